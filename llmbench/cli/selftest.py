"""`llmbench selftest`."""

from typing import Annotated

import typer


def selftest(
    case: Annotated[list[str] | None, typer.Option(metavar="NAME", help="This case only; can be repeated.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what the cases are, and run none.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Prove this installation: plant faults in a server and in the client, and see that each trips its check alone.

    Takes less than a minute. Exit status 0: every check works; 1: one does not; 4: this machine is too busy to tell.
    """
    from llmbench.cli import _selftest

    if list_:
        print("\n".join(_selftest.table(case or ())))
        return
    raise typer.Exit(_selftest.main(case or (), json))
