"""`llmbench history`: how the versions of a baseline went, and where they changed."""

from pathlib import Path
from typing import Annotated

import typer


def history(
    baseline: Annotated[Path, typer.Argument(metavar="DIR", help="A baseline, as `llmbench gate update` keeps it.")],
    delta: Annotated[float, typer.Option(min=0, max=0.99, help="Smaller changes are not marked.")] = 0.02,
    csv: Annotated[Path | None, typer.Option(help="Write the figures of all versions there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with a chart of each metric there.")] = None,
) -> None:
    """Show the trend of a baseline over its versions, with the changes that were no chance marked."""
    from llmbench.cli import _history

    _history.main(baseline, delta, csv, html)
