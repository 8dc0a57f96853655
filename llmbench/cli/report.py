"""`llmbench report`: a run's numbers and verdict again, from its plan and journals alone; or what another tool left."""

from pathlib import Path
from typing import Annotated

import typer

AllowOption = Annotated[
    list[str] | None, typer.Option("--allow", metavar="CHECK", help="Let the run count although this check failed.")
]

SloOption = Annotated[
    str | None, typer.Option(metavar="LIST", help="Objectives, as in ttft:p99<500ms,tpot:p95<40ms,e2el<2s.")
]


def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The folder of a run; or a result file of the contest, vLLM or GuideLLM."),
    ],
    from_s: Annotated[
        float | None, typer.Option("--from", metavar="S", help="Only requests due from this second of the plan.")
    ] = None,
    to_s: Annotated[float | None, typer.Option("--to", metavar="S", help="And before this one.")] = None,
    steady: Annotated[bool, typer.Option("--steady", help="Show the steady part beside the whole run.")] = False,
    definition: Annotated[
        str | None,
        typer.Option(metavar="TOOL", help="What that tool would have printed: vllm, sglang, guidellm, aiperf, …"),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Write only json, csv, txt, md, html, xlsx, parquet, contest; or all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where the files go.  [default: RUN]")
    ] = None,
    allow: AllowOption = None,
    slo: SloOption = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict only.")] = False,
) -> None:
    """Compute a run's numbers, checks and files again from its journals, also of a run that was killed.

    \b
    llmbench report results/RUN --steady
    llmbench report results/RUN --from 60 --to 120 --format json
    llmbench report results/RUN --definition vllm

    Exit status 0: the run is valid, 1: an objective is not kept, 3: it is not valid, 4: it cannot be told.
    What other tools left is shown, not judged.
    """
    from llmbench.cli import _report

    settings = _report.Settings(
        run=run,
        from_s=from_s,
        to_s=to_s,
        steady=steady,
        definition=definition,
        formats=formats or [],
        output=output,
        allow=allow or [],
        slo=slo,
        json=json,
        quiet=quiet,
    )
    raise typer.Exit(_report.main(settings))
