"""The folder is the registry: the public modules of a room are its parts, and the file name is the name users type."""

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType

from llmbench.errors import InputError


def names(room: str) -> list[str]:
    """The parts of a room such as `engines` or `workload.arrivals`: its public modules, then third-party ones."""
    package = importlib.import_module(f"llmbench.{room}")
    ours = [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]
    theirs = [point.name for point in entry_points(group=f"llmbench.{room}")]
    return sorted(ours) + sorted(set(theirs) - set(ours))


def load(room: str, name: str) -> ModuleType:
    """Import one part. Raises InputError with near matches when there is no such part."""
    known = names(room)
    if name not in known:
        raise InputError(unknown(room.rpartition(".")[2].rstrip("s"), name, known))
    for point in entry_points(group=f"llmbench.{room}", name=name):
        module = point.load()
        assert isinstance(module, ModuleType), f"entry point {point.value} must name a module"
        return module
    return importlib.import_module(f"llmbench.{room}.{name}")


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The message for a wrong name: what it is, what was perhaps meant, what there is."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Known: {', '.join(known) or 'none'}"
