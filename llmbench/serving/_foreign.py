"""Reading a settings file of another stack so that no key is silently dead: read, named in a note, or refused."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from llmbench.errors import ConfigError

T = TypeVar("T")
_MISSING = object()


class ForeignFile:
    """A nested mapping read by dotted keys; items of a list have their number, `ModelConfig.0.modelName`."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self._source = source
        self._read: set[str] = set()
        self.notes: list[str] = []

    def error(self, key: str, message: str) -> ConfigError:
        """The error to raise for a key."""
        return ConfigError(f"{self._source}: {key}: {message}")

    def note(self, key: str, message: str) -> None:
        """Tell the user something about a key."""
        self.notes.append(f"{key} {message}")

    def get(self, key: str, default: T, kind: type[T] | None = None) -> T:
        """A value, counted as honoured; the default when it is absent or null. Raises ConfigError for another type."""
        self._read.add(key)
        value = self._find(key)
        if value is _MISSING or value is None:
            return default
        kind = kind or type(default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise self.error(key, f"expected {_NAMES.get(kind, kind.__name__)}, got {value!r}")
        result: T = value
        return result

    def require(self, key: str) -> None:
        """Refuse a file without this key."""
        if self._find(key) in (_MISSING, None, [], ""):
            raise self.error(key, "is required and must not be empty")

    def integers(self, key: str, default: list[int]) -> list[int]:
        """A list of numbers above 0."""
        self._read.add(key)
        value = self._find(key)
        if value is _MISSING or value is None:
            return default
        if not isinstance(value, list) or not value or not all(type(item) is int and item > 0 for item in value):
            raise self.error(key, f"expected a list of whole numbers above 0, got {value!r}")
        return value

    def must_be(self, key: str, only: T, why: str) -> None:
        """Refuse any other value than the one that holds here."""
        value = self.get(key, only)
        if value != only:
            raise self.error(key, f"only {only!r} works here, got {value!r}: {why}")

    def finish(self, unused: Mapping[str, str]) -> tuple[str, ...]:
        """Every note, once each key was read or is among `unused`, by its name or the beginning of it.

        Raises ConfigError for a key that is neither.
        """
        for key in _leaves(self._values):
            if any(key == read or key.startswith(f"{read}.") for read in self._read):
                continue
            name = _without_numbers(key)
            start = next((start for start in unused if name.startswith(start)), None)
            if start is None:
                raise self.error(name, "unknown key")
            self.note(start if name.startswith(f"{start}.") else name, f"has no effect: {unused[start]}")
        return tuple(dict.fromkeys(self.notes))

    def _find(self, key: str) -> Any:
        value: Any = self._values
        for part in key.split("."):
            if isinstance(value, Mapping):
                value = value.get(part, _MISSING)
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                return _MISSING
        return value


_NAMES: dict[type, str] = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list"}


def _leaves(value: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of everything that is not a mapping, or a list of mappings."""
    items: Iterator[tuple[Any, Any]] | None = None
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = iter(enumerate(value))
    if items is None:
        yield path
        return
    for key, below in items:
        yield from _leaves(below, f"{path}.{key}" if path else str(key))


def _without_numbers(key: str) -> str:
    return ".".join(part for part in key.split(".") if not part.isdigit())
