"""`llmbench compare`: is build B slower than build A, by their repeated runs."""

from pathlib import Path
from typing import Annotated

import typer

MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        "-m",
        metavar="NAME[=DELTA]",
        help="A metric that decides, several times: ttft:mean, tpot:p90=3%, output_tokens_per_s, …",
    ),
]
DeltaOption = Annotated[float, typer.Option(min=0, max=0.99, help="The least change that matters, as a share.")]
AlphaOption = Annotated[float, typer.Option(min=1e-6, max=0.5, help="How often a definite verdict may be wrong.")]


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="The base: a run's folder, or a folder of runs.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="What is to be judged, likewise.")],
    metric: MetricOption = None,
    delta: DeltaOption = 0.02,
    alpha: AlphaOption = 0.05,
    paired: Annotated[
        bool | None,
        typer.Option(
            "--paired/--unpaired",
            help="Whether the i-th run of A was made beside the i-th of B.  [default: by their plans]",
        ),
    ] = None,
    allow_invalid: Annotated[bool, typer.Option("--allow-invalid", help="Take runs that are INVALID, too.")] = False,
    allow_different_plan: Annotated[
        bool, typer.Option("--allow-different-plan", help="The sides may have been sent different loads.")
    ] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the comparison there.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown for a pull request there.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations for GitHub Actions as well.")] = False,
    one_line: Annotated[bool, typer.Option("--one-line", help="Print one line only, for a badge.")] = False,
) -> None:
    """Compare two builds by their repeated runs; the run is what is repeated, not the request.

    \b
    llmbench compare results/a results/b --metric tpot:p90=3%

    Exit status 0: no regression, 1: a regression, 3: runs are INVALID or had other plans, 4: inconclusive.
    """
    from llmbench.cli import _compare

    options = _compare.Options(
        metrics=metric or [],
        delta=delta,
        alpha=alpha,
        paired=paired,
        allow_invalid=allow_invalid,
        allow_different_plan=allow_different_plan,
    )
    outputs = _compare.Outputs(json=json, junit=junit, markdown=markdown, github=github, one_line=one_line)
    raise typer.Exit(_compare.main(a, b, options, outputs))
