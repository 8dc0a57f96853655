"""What other tools left behind, as traces where their files have instants; what they do not tell stays unknown.

One file for each kind of file. None of it is judged: a verdict needs what was planned, and when it was sent.
"""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.metrics import Trace
from llmbench.metrics.summary import Summary, distribution


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one file (or one benchmark in it) tells. `traces` is empty where they have no instants of their own."""

    tool: str
    numbers: Summary
    traces: Sequence[Trace] = ()
    start_ns: int = 0
    load: str = ""
    not_judged: str
    notes: Sequence[str] = ()


class Reader(Protocol):
    """The contract of a file in this room."""

    @staticmethod
    def recognises(value: Any) -> bool:
        """Whether this decoded JSON is of the tool."""
        ...

    @staticmethod
    def read(value: Any, name: str) -> list[Told]:
        """What it tells, one for each benchmark; `name` is the file's. Raises msgspec.ValidationError."""
        ...


def read(data: bytes, name: str) -> list[Told]:
    """What a file of another tool tells. Raises InputError when no reader knows it, or it is broken."""
    return [told for value in _values(data, name) for told in _read(value, name)]


def _values(data: bytes, name: str) -> list[Any]:
    """The file as one JSON value, or as one in each line, which is how some tools append their results."""
    try:
        return [msgspec.json.decode(data)]
    except msgspec.DecodeError as error:
        try:
            return [msgspec.json.decode(line) for line in data.splitlines() if line.strip()] or [None]
        except msgspec.DecodeError:
            raise InputError(f"{name}: neither the folder of a run nor JSON ({error})") from error


def _read(value: Any, name: str) -> list[Told]:
    kinds = plugins.names("metrics.foreign")
    for kind in kinds:
        reader = cast(Reader, plugins.load("metrics.foreign", kind))
        if reader.recognises(value):
            try:
                return reader.read(value, name)
            except msgspec.ValidationError as error:
                raise InputError(f"{name}: looks like a result of {kind}, but {error}") from error
    raise InputError(f"{name}: not a result that is known here; known: {', '.join(kinds)}")


def without(numbers: Summary, *names: str) -> Summary:
    """A summary in which some metrics are unknown."""
    nothing = distribution([])
    return msgspec.structs.replace(
        numbers,
        run={name: None if name in names else value for name, value in numbers.run.items()},
        requests={name: nothing if name in names else spread for name, spread in numbers.requests.items()},
    )
