"""What other tools would have printed of the same traces: one file for each tool, with its own names and units.

All of them count from the instant of sending, and drop requests without an answer; so a server that times slow requests
out gets better numbers in them. The formulas were read in the code of the versions named in each file.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import msgspec

from llmbench import plugins
from llmbench.metrics import Trace


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One number as the tool prints it; None where it prints none."""

    name: str
    value: float | None
    unit: str = ""


class Definition(Protocol):
    """The contract of a file in this room; its docstring says what is peculiar to the tool."""

    __doc__: str | None
    TOOL: str
    """The tool and the version that was read."""
    FORMULAS: Mapping[str, str]
    """What each name means, as instants of a trace."""

    @staticmethod
    def figures(traces: Sequence[Trace]) -> list[Figure]:
        """The numbers, in the tool's order."""
        ...


def names() -> list[str]:
    """The tools whose definitions are known."""
    return plugins.names("metrics.definitions")


def get(name: str) -> Definition:
    """The definitions of a tool; `inference-perf` means inference_perf. Raises InputError for an unknown one."""
    return cast(Definition, plugins.load("metrics.definitions", name.replace("-", "_")))
