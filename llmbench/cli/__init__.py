"""The command line: one thin file for each command; nothing heavy is imported before a command runs."""

import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from llmbench import __version__
from llmbench.errors import InputError, LlmbenchError

INTERRUPTED = 130

COMMANDS = (
    *("serve", "generate", "perf", "report", "maxload", "layers", "doctor", "selftest"),
    *("acc", "audit", "eval", "compare", "gate", "history", "sweep", "plan", "data", "weights", "quantize"),
)
"""Each is a module of this package, with a function of its name, or with an `app` of several commands."""


def app(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The command line with these commands; others are not even imported.

    One command stands alone, without options in front of it: they would load pydantic, which takes 0.1 s.
    """
    several = len(names) > 1
    line = typer.Typer(
        no_args_is_help=True,
        add_help_option=several,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # rich would make `--help` take twice as long
        help="Tells the truth about an LLM serving stack: how fast it is, and whether it is still right.",
        epilog="Exit codes: 0 fine · 1 a requested check failed · 2 wrong usage or input · 3 the measurement is not "
        "valid · 4 inconclusive · 130 interrupted.",
    )
    line.callback()(root if several else _bare)
    for name in names:
        found = vars(import_module(f"llmbench.cli.{name}"))
        if "app" in found:
            line.add_typer(found["app"], name=name)
        else:
            line.command(name)(found[name])
    return line


def _version(show: bool) -> None:
    if show:
        typer.echo(f"llmbench {__version__}")
        raise typer.Exit


def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Tells the truth about an LLM serving stack: how fast it is, and whether it is still right."""


def _bare() -> None:
    """Tells the truth about an LLM serving stack."""


def main() -> None:
    """Run the command line; every error that is ours, or that names a file, is one line and an exit code."""
    try:
        app([name for name in sys.argv[1:2] if name in COMMANDS] or COMMANDS)()
    except LlmbenchError as error:
        print(f"llmbench: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except OSError as error:  # a folder that may not be entered, a name that is too long: `exists` raises it anywhere
        if error.filename is None:
            raise
        print(f"llmbench: {error.filename}: {error.strerror}", file=sys.stderr)
        raise SystemExit(InputError.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
