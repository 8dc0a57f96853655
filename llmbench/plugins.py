"""The folder is the registry: the public modules of a room are its parts, and the file name is the name users type."""

import difflib
import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from llmbench.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints


def names(room: str) -> list[str]:
    """The parts of a room such as `engines` or `workload.arrivals`: its public modules, then third-party ones."""
    ours = _ours(room)
    theirs = {point.name for point in _theirs(room)}
    return ours + sorted(theirs - set(ours))


def load(room: str, name: str) -> ModuleType:
    """Import one part. Raises InputError with near matches when there is no such part."""
    if name in _ours(room):
        return importlib.import_module(f"llmbench.{room}.{name}")
    for point in _theirs(room):
        if point.name != name:
            continue
        module = point.load()
        assert isinstance(module, ModuleType), f"entry point {point.value} must name a module"
        return module
    raise InputError(unknown(room.rpartition(".")[2].rstrip("s"), name, names(room)))


def _ours(room: str) -> list[str]:
    package = importlib.import_module(f"llmbench.{room}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_"))


def _theirs(room: str) -> "EntryPoints":
    from importlib.metadata import entry_points  # a tenth of the time of `llmbench --help`

    return entry_points(group=f"llmbench.{room}")


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The message for a wrong name: what it is, what was perhaps meant, what there is."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}"
