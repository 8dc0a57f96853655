"""Progress on a terminal: lines that overwrite themselves."""

import sys

from llmbench.loadgen.driver import Counts


def line(text: str = "") -> None:
    """A line on stderr in the place of the one before; without a text there is none any more."""
    print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def overwrite(counts: Counts) -> None:
    """One line that overwrites itself. Plain text: rich would hold the load loop up for 0.4 to 1.6 ms."""
    print(
        f"\rsent {counts.sent}/{counts.planned}, answered {counts.answered}, failed {counts.failed} ",
        end="\n" if counts.finished == counts.planned else "",
        file=sys.stderr,
        flush=True,
    )
