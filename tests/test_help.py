"""What `--help` says of every command: a whole sentence first, and something about everything that can be given."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from llmbench.cli import app


def commands(name: str, command: Any, parent: Any = None) -> Iterator[tuple[str, Any]]:
    """A command and all below it, each by its whole name; the sets of `eval`, which are one command, once."""
    yield name, command
    if not hasattr(command, "list_commands"):
        return
    context = type(command).context_class(command, info_name=name, parent=parent)
    seen = set()
    for below in command.list_commands(context):
        found = command.get_command(context, below)
        if id(found) not in seen:
            seen.add(id(found))
            yield from commands(f"{name} {below}", found, context)


COMMANDS = dict(commands("llmbench", get_command(app())))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_paragraph_of_help_is_whole_sentences(name: str) -> None:
    """It is all that the list of commands shows."""
    first, _, _ = (COMMANDS[name].help or "").partition("\n\n")
    assert first.rstrip().endswith((".", "?")), first


@pytest.mark.parametrize("name", COMMANDS)
def test_all_that_can_be_given_is_explained(name: str) -> None:
    silent = [param.name for param in COMMANDS[name].params if not getattr(param, "hidden", False) and not param.help]
    assert not silent


def test_there_are_the_commands_below_commands_too() -> None:
    assert {"llmbench perf", "llmbench acc compare", "llmbench quantize search", "llmbench eval compare"} <= {*COMMANDS}
