"""The speed sweep: batch x input length x output length, each case timed in two passes and step by step.

A bench is what is measured: an engine in this process (`engine`), or a server behind HTTP (`http`).
"""

from typing import Protocol

from llmbench.metrics.sweep import Case, Pass


class Bench(Protocol):
    """What runs cases."""

    def unfit(self, case: Case) -> str:
        """Why a case cannot run here, as far as that is known beforehand; empty when it can."""
        ...

    def run(self, case: Case, num_new: int) -> Pass:
        """The case's prompts, other ones each time, answered with exactly so many tokens.

        Raises RequestError or MemoryError when they do not fit, ServingError when it fails.
        """
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...
