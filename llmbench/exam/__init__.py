"""Asking the questions of an eval: over HTTP or in this process, with a journal, marks, tallies and comparisons."""

from collections.abc import Callable, Sequence
from typing import Protocol

from llmbench.evals import Ask, Reply


class Answerer(Protocol):
    """Something that answers: a server behind HTTP, or an engine in this process."""

    def answer(self, asks: Sequence[Ask], replied: Callable[[int, Reply], None]) -> None:
        """Answer all, in any order; `replied` gets the place of each Ask and its Reply, once, as soon as it is there.

        An Ask that cannot be answered is a Reply with an error; an error that `replied` raises ends it all.
        """
        ...
