"""The command line: one thin file for each command; nothing heavy is imported before a command runs."""

import sys

import typer

from llmbench import __version__
from llmbench.cli import (
    acc,
    audit,
    data,
    doctor,
    generate,
    layers,
    maxload,
    perf,
    plan,
    report,
    selftest,
    serve,
    sweep,
    weights,
)
from llmbench.cli import eval as evaluate
from llmbench.errors import LlmbenchError

INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would make `--help` take twice as long
    help="Tells the truth about an LLM serving stack: how fast it is, and whether it is still right.",
    epilog="Exit codes: 0 fine · 1 a requested check failed · 2 wrong usage or input · 3 the measurement is not "
    "valid · 4 inconclusive · 130 interrupted.",
)
app.command("serve")(serve.serve)
app.command("generate")(generate.generate)
app.command("perf")(perf.perf)
app.command("report")(report.report)
app.command("maxload")(maxload.maxload)
app.command("layers")(layers.layers)
app.command("doctor")(doctor.doctor)
app.command("selftest")(selftest.selftest)
app.add_typer(acc.app, name="acc")
app.add_typer(audit.app, name="audit")
app.add_typer(evaluate.app, name="eval")
app.add_typer(sweep.app, name="sweep")
app.add_typer(plan.app, name="plan")
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"llmbench {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Tells the truth about an LLM serving stack: how fast it is, and whether it is still right."""


def main() -> None:
    """Run the command line; every error that is ours is one line and an exit code."""
    try:
        app()
    except LlmbenchError as error:
        print(f"llmbench: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
