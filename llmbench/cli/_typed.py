"""Which options of a command stand on its command line, and not only in its defaults."""

from typing import Any, Protocol


class Context(Protocol):
    """What is asked of a command's context: typer's own type, and that of the commands which it makes."""

    params: dict[str, Any]

    def get_parameter_source(self, name: str) -> object:
        """Where a parameter has its value from."""
        ...


def typed(context: Context) -> set[str]:
    """The names of the parameters that were typed."""
    return {name for name in context.params if str(context.get_parameter_source(name)) == "ParameterSource.COMMANDLINE"}
