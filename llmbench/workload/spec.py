"""The one syntax of parts with settings on the command line: `name`, or `name:key=value,key=value`.

The first value may stand without its key (`gamma:0.5`): it is the part's first setting. Values hold no comma.
"""

import difflib
from typing import Any, TypeVar

import msgspec

from llmbench.errors import InputError

T = TypeVar("T", bound=msgspec.Struct)


def name(text: str) -> str:
    """What stands before the first colon."""
    return text.partition(":")[0].strip()


def build(flag: str, text: str, kind: type[T], **given: Any) -> T:
    """The struct `kind` with the settings of a text; those in `given` are not for users to set here.

    Raises InputError that begins with the flag and the part, names the key, and what was perhaps meant.
    """
    place = f"{flag} {name(text)}"
    fields = [field for field in msgspec.structs.fields(kind) if field.name not in given]
    known = [field.encode_name for field in fields]
    values: dict[str, Any] = _values(place, text.partition(":")[2], known)
    missing = [field.encode_name for field in fields if field.required and field.encode_name not in values]
    if missing:
        raise InputError(f"{place}: {missing[0]}: is missing; write {name(text)}:{missing[0]}=...")
    try:
        return msgspec.convert(values | given, kind, strict=False, dec_hook=_from_text)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        raise InputError(f"{place}: {where.rstrip('`')}: {what}" if where else f"{place}: {what}") from error


def _from_text(kind: type[Any], text: Any) -> Any:
    """A Path, which msgspec does not know."""
    return kind(text)


def _values(place: str, text: str, known: list[str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for number, part in enumerate(text.split(",") if text.strip() else []):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals and number == 0 and known:
            key, value = known[0], key
        elif not equals:
            raise InputError(f"{place}: {part.strip()!r} is not key=value")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{place}: {key}: unknown key. {hint}Known: {', '.join(known) or 'none'}")
        if key in values:
            raise InputError(f"{place}: {key}: is given twice")
        values[key] = value
    return values
