"""`llmbench eval compare` and `eval list`, which need neither a server nor an engine."""

from pathlib import Path

import msgspec
from rich.table import Table

from llmbench import evals, plugins
from llmbench.cli import _eval_screen as screen
from llmbench.exam import compare as comparing
from llmbench.exam.journal import ITEMS, read
from llmbench.report.terminal import Terminal


def show_sets() -> None:
    """A table of the sets."""
    table = Table("set", "answer modes", "splits", "what", box=None, pad_edge=False)
    for name in plugins.names("evals"):
        found = evals.module(name)
        table.add_row(name, ", ".join(found.MODES), ", ".join(found.SPLITS), found.ABOUT)
    Terminal().print(table)


def compare(base: Path, new: Path, margin: float, seed: int, *, json: bool) -> int:
    """Compare two runs, print; the exit status."""
    found = comparing.compare(read(base / ITEMS), read(new / ITEMS), margin, seed)
    if json:
        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        screen.comparison(Terminal(), found)
    return comparing.EXIT[found.verdict]
