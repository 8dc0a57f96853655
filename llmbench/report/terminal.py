"""The console that commands print on."""

import os
import sys

from rich.console import Console


class Terminal(Console):
    """A rich console that stops printing when nobody reads any more, as behind `| head`, and changes no exit status.

    rich itself would end the process with 1, which here means that a check failed.
    """

    def on_broken_pipe(self) -> None:
        """Print the rest to nowhere."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
