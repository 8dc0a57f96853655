"""`llmbench acc run`: a timed load whose own rows are captured, and compared with a base."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    context: typer.Context,
    base: Annotated[
        Path, typer.Option(help="What the rows must be like: a capture, or a run with one, of the same requests.")
    ],
    force: Annotated[
        bool, typer.Option("--force/--no-force", help="Feed the base's tokens, so that every row stays comparable.")
    ] = False,
    profile: Annotated[
        str | None, typer.Option(help="How much may differ; see `acc compare`.  [default: by the base's precision]")
    ] = None,
    allow_missing: Annotated[int, typer.Option(min=0, help="Rows that may be on one side only.")] = 0,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML of the comparison there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary of it in Markdown there.")] = None,
) -> None:
    """Measure a load and check the rows of that very load: `llmbench perf --capture`, then `acc compare BASE RUN`.

    Takes every option of `llmbench perf` as well (see `llmbench perf --help`), but for --url, --resume, --audit and
    --json: the stack is launched for it. The comparison is written into the run's folder too: accuracy.json, .html.

    Exit status 0: the run is VALID and its rows PASSED. Else the first of these that holds: 1, rows failed; 3, the run
    is INVALID or its rows are not comparable; 4, either cannot be told; 1, an objective of --slo is not kept.
    """
    from llmbench.cli import _acc_run

    wanted = _acc_run.Wanted(
        base=base, force=force, profile=profile, allow_missing=allow_missing, junit=junit, markdown=markdown
    )
    raise typer.Exit(_acc_run.command(wanted, context.args))
