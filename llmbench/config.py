"""Settings files: YAML or JSON into frozen, closed structs; a wrong key or value is named with its path."""

import difflib
import json
import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from llmbench.errors import ConfigError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """The safe loader, to which 1e-5 is a number, as in YAML 1.2 and JSON; in YAML 1.1 it is a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file. Raises ConfigError when it cannot be read or is something else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the settings ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error})") from error
    try:
        value = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, found {type(value).__name__}")
    return value


def build(values: dict[str, Any], kind: type[T], source: str) -> T:
    """A struct from a mapping; raises ConfigError `source: key: what is wrong`, with near matches for a wrong key."""
    try:
        return msgspec.convert(values, kind, dec_hook=_path)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {_explain(str(error), kind)}") from error


def _path(kind: type, value: Any) -> Any:
    """A path from its text; the one type in a settings struct that msgspec does not know."""
    if kind is not Path or not isinstance(value, str | Path):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Path(value)


def _explain(message: str, kind: type) -> str:
    """msgspec says ``... - at `$.limits.max_batch```; people read `limits.max_batch: ...`."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    unknown = re.search(r"unknown field `(.+)`", what)
    if unknown:
        known = _fields(kind, key)
        near = difflib.get_close_matches(unknown[1], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}" if known else ""
        key = f"{key}.{unknown[1]}" if key else unknown[1]
        return f"{key}: unknown key{hint}"
    return f"{key}: {what}" if key else what


def _fields(kind: Any, path: str) -> list[str]:
    """The field names of the struct that a path leads to, as `limits.files[...]`; none where it leads to no struct."""
    try:
        for name in re.findall(r"[^.\[\]]+", path):
            if not name.isdecimal():  # an index, which leads to the same
                kind = _struct(next(field.type for field in msgspec.structs.fields(kind) if field.encode_name == name))
        return [field.encode_name for field in msgspec.structs.fields(kind)]
    except (TypeError, StopIteration):
        return []


def _struct(kind: Any) -> Any:
    """The struct in a type such as `dict[str, Struct]` or `Struct | None`; the type itself where there is none."""
    arms = getattr(kind, "__args__", ())
    return next((arm for arm in arms if isinstance(arm, type) and issubclass(arm, msgspec.Struct)), kind)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
