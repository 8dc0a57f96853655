"""Progress on a terminal: lines that overwrite themselves."""

import sys
from collections.abc import Callable

from llmbench.loadgen.driver import Counts
from llmbench.report import words


def line(text: str = "") -> None:
    """A line on stderr in the place of the one before; without a text there is none any more."""
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _what(done: int, total: int, what: str) -> str:
    return what


def in_bytes(done: int, total: int, what: str) -> str:
    """For a Line about bytes."""
    return f"{words.size(done)} of {words.size(total)}  {what}"


class Line:
    """How much of something is done, in one line while it goes on, where somebody looks on."""

    def __init__(self, told: Callable[[int, int, str], str] = _what) -> None:
        """`told` makes a text of how much is done, of how much, and of what."""
        self._told = told
        self._to_terminal = sys.stderr.isatty()

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._to_terminal:
            line(f"{100 * done // max(total, 1):3d} %  {self._told(done, total, what)}")

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: object) -> None:
        if self._to_terminal:
            line()


def overwrite(counts: Counts) -> None:
    """One line that overwrites itself. Plain text: rich would hold the load loop up for 0.4 to 1.6 ms."""
    print(
        f"\rsent {counts.sent}/{counts.planned}, answered {counts.answered}, failed {counts.failed} ",
        end="\n" if counts.finished == counts.planned else "",
        file=sys.stderr,
        flush=True,
    )
