"""`llmbench report`: a run's numbers and verdict again, from its plan and journals alone."""

from pathlib import Path
from typing import Annotated

import typer

AllowOption = Annotated[
    list[str] | None, typer.Option("--allow", metavar="CHECK", help="Let the run count although this check failed.")
]


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    allow: AllowOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict only.")] = False,
) -> None:
    """Compute a run's numbers, checks and files again from its journals, also of a run that was killed.

    Exit status 0: the run is valid, 3: it is not, 4: it cannot be told.
    """
    from llmbench.cli import _results

    results = _results.read(run, allow or ())
    _results.show(results, _results.write(results), json, quiet)
    raise typer.Exit(results.exit_code)
