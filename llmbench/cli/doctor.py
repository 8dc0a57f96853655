"""`llmbench doctor`."""

from pathlib import Path
from typing import Annotated

import typer


def doctor(
    qps: Annotated[
        float | None,
        typer.Option("-X", "--qps", min=0.001, help="Planned requests per second.  [default: 20, or all streams busy]"),
    ] = None,
    concurrency: Annotated[int | None, typer.Option("-c", "--concurrency", min=1, help="Planned streams.")] = None,
    output_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 64,
    dialect: Annotated[str, typer.Option(help="HTTP dialect to calibrate.")] = "openai_completions",
    full: Annotated[bool, typer.Option("--full", help="Take a minute: longer, and a finer search.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the calibration to this JSON file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine as a measuring instrument: its own error, what load it can carry, what stands in the way.

    \b
    llmbench doctor -X 50
    llmbench doctor --concurrency 64 --dialect openai_chat --full

    A server whose emission times are known is measured at the planned load. Exit status 0: fine; 3: this machine cannot
    measure that load.
    """
    from llmbench.cli import _doctor

    settings = _doctor.Settings(
        qps=20.0 if qps is None and concurrency is None else qps,
        concurrency=concurrency,
        output_tokens=output_tokens,
        dialect=dialect,
        send_s=5.0 if full else 1.5,
        search_s=60.0 if full else 8.0,
        save=save,
    )
    raise typer.Exit(_doctor.main(settings, json))
