"""`llmbench gate`: two builds side by side, or one against a stored baseline; speed and accuracy together."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Judge a build against another one, or against a stored baseline.\n\n"
    "\b\n"
    "llmbench gate --settings configs/gate/embedded.yaml --a old.yaml --b new.yaml --junit gate.xml\n"
    "llmbench gate update --baseline DIR --settings configs/gate/embedded.yaml --b old.yaml\n"
    "llmbench gate --baseline DIR --b new.yaml\n\n"
    "Both stacks are launched in turn, ABBA, each run on a fresh server with the same plan, until it is sure. "
    "Exit 0: no regression, 1: a regression of speed or accuracy, 3: the runs are not valid, 4: inconclusive."
)

SETTINGS_HELP = "What is measured and what decides, as in configs/gate."
Results = Annotated[Path, typer.Option(help="Where the folder of the runs goes.")]
ServeCommand = Annotated[
    str | None, typer.Option(metavar="CMD", help="Launches that side's server.  [default: this llmbench's serve]")
]
MaxRepeats = Annotated[int | None, typer.Option(min=1, help="Runs of each side at most.  [default: the settings']")]


@app.callback(invoke_without_command=True)
def gate(
    context: typer.Context,
    settings: Annotated[Path | None, typer.Option("--settings", help=SETTINGS_HELP)] = None,
    a: Annotated[Path | None, typer.Option("--a", metavar="CONFIG", help="Serve settings of the base.")] = None,
    b: Annotated[Path | None, typer.Option("--b", metavar="CONFIG", help="Serve settings of what is judged.")] = None,
    a_command: ServeCommand = None,
    b_command: ServeCommand = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Judge against this stored baseline instead of side A.")
    ] = None,
    max_repeats: MaxRepeats = None,
    results: Results = Path("results"),
    json: Annotated[Path | None, typer.Option("--json", help="Write the comparison there.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown for a pull request there.")] = None,
    github: Annotated[bool, typer.Option("--github", help="Print annotations for GitHub Actions as well.")] = False,
    one_line: Annotated[bool, typer.Option("--one-line", help="Print one line only, for a badge.")] = False,
) -> None:
    """Launch both stacks in turn, ABBA, each run on a fresh server with the same plan, until it is sure.

    Or `--baseline DIR`: runs of B against what was stored by `gate update`.
    """
    if context.invoked_subcommand is not None:
        return
    if settings is None and baseline is None:
        raise typer.BadParameter("give --settings FILE, as configs/gate/embedded.yaml, or --baseline DIR")
    from llmbench.cli import _gate
    from llmbench.cli._compare import Outputs

    sides = _gate.Side(name="a", config=a, command=a_command), _gate.Side(name="b", config=b, command=b_command)
    outputs = Outputs(json=json, junit=junit, markdown=markdown, github=github, one_line=one_line)
    if baseline is not None:
        if a is not None or a_command is not None:
            raise typer.BadParameter("--baseline stands in for side A: leave --a out")
        raise typer.Exit(_gate.against_baseline(baseline, settings, sides[1], max_repeats, results, outputs))
    assert settings is not None
    raise typer.Exit(_gate.side_by_side(settings, sides, max_repeats, results, outputs))


@app.command()
def update(
    baseline: Annotated[Path, typer.Option(metavar="DIR", help="The baseline; made if it is not there.")],
    settings: Annotated[
        Path | None, typer.Option("--settings", help="As in configs/gate.  [default: those of the baseline]")
    ] = None,
    b: Annotated[Path | None, typer.Option("--b", metavar="CONFIG", help="Serve settings of the build.")] = None,
    b_command: ServeCommand = None,
    runs: Annotated[int, typer.Option(min=2, help="How many runs it rests on.")] = 5,
    label: Annotated[str | None, typer.Option(help="Name of the build.  [default: the git commit here]")] = None,
) -> None:
    """Measure a build and store it as the newest version of a baseline."""
    from llmbench.cli import _gate

    _gate.update(baseline, settings, _gate.Side(name="b", config=b, command=b_command), runs, label)


@app.command()
def calibrate(
    settings: Annotated[Path, typer.Option("--settings", help=SETTINGS_HELP)],
    a: Annotated[Path | None, typer.Option("--a", metavar="CONFIG", help="Serve settings.")] = None,
    a_command: ServeCommand = None,
    pairs: Annotated[int, typer.Option(min=4, help="A/A pairs to make.")] = 8,
    results: Results = Path("results"),
    json: Annotated[Path | None, typer.Option("--json", help="Write what was found there.")] = None,
) -> None:
    """Gate a build against itself: how often that is a false alarm here, and the smallest slow-down it finds."""
    from llmbench.cli import _gate, _gate_calibrate

    _gate_calibrate.main(settings, _gate.Side(name="a", config=a, command=a_command), pairs, results, json)
