"""Reading a posted JSON body field by field: what is wrong is a RequestError that names the field, never a 500."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from llmbench.errors import RequestError

MAX_INT32 = 2**31 - 1
MAX_TEXT_CHARS = 4 << 20  # of a prompt, as MindIE
_MAX_STOPS = 64
_MAX_STOP_CHARS = 1024
_GREEDY_BELOW = 1e-5  # vLLM's limit, under which a division by the temperature means nothing


class FieldError(RequestError):
    """A field of a body is wrong; `field` is its name, empty for the body itself."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class UnknownModel(RequestError):
    """The request names a model that is not served here."""

    http_status = 404


def decode(body: bytes) -> dict[str, Any]:
    """The object in a body. Strict JSON: no NaN, no lone surrogates, no endless digits, no endless nesting."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FieldError("", f"the body is not JSON ({error})") from error
    except RecursionError as error:
        raise FieldError("", "the body is nested too deeply") from error
    if not isinstance(value, dict):
        raise FieldError("", f"the body must be an object, got {_kind(value)}")
    return value


class _Prompts(msgspec.Struct):
    """The two keys that tell the dialects of `/generate` apart; the rest is passed over unread."""

    inputs: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    prompt: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def prompt_key(body: bytes) -> str:
    """`inputs`, `prompt` or nothing: which of them a body has, in this order, as MindIE asks."""
    try:
        found = msgspec.json.decode(body, type=_Prompts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if found.inputs is not msgspec.UNSET:
        return "inputs"
    return "prompt" if found.prompt is not msgspec.UNSET else ""


class Fields:
    """The fields of one object; null counts as not given. Readers raise FieldError."""

    def __init__(self, values: dict[str, Any], where: str = "") -> None:
        self._values = values
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    def raw(self, name: str) -> Any:
        """The value as it stands; None when it was not given."""
        return self._values.get(name)

    def error(self, name: str, message: str) -> FieldError:
        """An error that names a field by its path."""
        return FieldError(f"{self._where}{name}", message)

    def object(self, name: str) -> "Fields":
        """An object inside; without fields when it was not given."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(name, f"must be an object, got {_kind(value)}")
        return Fields(value or {}, f"{self._where}{name}.")

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, f"must be a string, got {_kind(value)}")
        return value

    def prompt(self, name: str) -> str:
        """A string that must be there and have something in it; or text parts, as multimodal servers take them."""
        value = self._values.get(name)
        if value is None:
            raise self.error(name, "required")
        if isinstance(value, list):
            value = "".join(text_parts(value, self, name))
        if not isinstance(value, str):
            raise self.error(name, f"must be a string, got {_kind(value)}")
        if not 0 < len(value) <= MAX_TEXT_CHARS:
            raise self.error(name, f"must have 1 to {MAX_TEXT_CHARS} characters, got {len(value)}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise self.error(name, f"must be true or false, got {_kind(value)}")
        return default if value is None else value

    def integer(self, name: str, low: int, high: int = MAX_INT32) -> int | None:
        """A whole number between two limits; `5.0` is one, as for pydantic."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(name, f"must be a whole number, got {_kind(value)}")
        if not low <= value <= high:
            raise self.error(name, f"must be between {low} and {high}, got {_short(value)}")
        return value

    def number(self, name: str, low: float, high: float = 1e300, *, above: bool = False) -> float | None:
        """A number between two limits; `above` leaves the lower one out."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.error(name, f"must be a number, got {_kind(value)}")
        if not (low < value if above else low <= value) or not value <= high:
            limits = f"above {low:g}" if above else f"at least {low:g}"
            limits += f" and at most {high:g}" if high < 1e300 else ""
            raise self.error(name, f"must be {limits}, got {_short(value)}")
        return float(value)

    def temperature(self, name: str = "temperature") -> float | None:
        """A temperature, 0 for one so small that it is greedy."""
        value = self.number(name, 0)
        return 0.0 if value is not None and value < _GREEDY_BELOW else value

    def seed(self, name: str = "seed") -> int | None:
        """A seed of 64 bits, signed or not, as an unsigned one."""
        value = self.integer(name, -(2**63), 2**64 - 1)
        return None if value is None else value % 2**64

    def ids(self, name: str, limit: int = MAX_INT32 + 1) -> tuple[int, ...]:
        """A list of token ids below a limit."""
        value = self._values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise self.error(name, f"must be a list of token ids, got {_kind(value)}")
        return tuple(self._ids(name, value, limit))

    def _ids(self, name: str, values: list[Any], limit: int) -> Iterator[int]:
        for item in values:
            if not isinstance(item, int) or isinstance(item, bool):
                raise self.error(name, f"must be a list of token ids, found {_kind(item)} in it")
            if not 0 <= item < limit:
                raise self.error(name, f"token ids must be between 0 and {limit - 1}, found {_short(item)}")
            yield item

    def stops(self, name: str = "stop") -> tuple[str, ...]:
        """A stop text or a list of them. An empty one, which MindIE's own example has, stops nothing."""
        value = self._values.get(name)
        values = [value] if isinstance(value, str) else value or []
        if not isinstance(values, list) or not all(isinstance(item, str) for item in values):
            raise self.error(name, "must be a string or a list of strings")
        if len(values) > _MAX_STOPS or any(len(item) > _MAX_STOP_CHARS for item in values):
            raise self.error(name, f"at most {_MAX_STOPS} texts of {_MAX_STOP_CHARS} characters each")
        return tuple(item for item in values if item)

    def refuse(self, harmless: Mapping[str, Collection[Any]]) -> None:
        """Raise for a field that asks for what this server cannot do; listed values ask for nothing."""
        for name, values in harmless.items():
            value = self._values.get(name)
            if value is None or value in ([], {}):
                continue
            if not any(value == one and type(value) is type(one) for one in values):
                raise self.error(name, "not supported by this server; leave it out")


def text_parts(parts: list[Any], fields: Fields, name: str) -> Iterator[str]:
    """The texts of content parts `{"type": "text", "text": ...}`. Raises FieldError for any other."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise fields.error(name, 'only parts {"type": "text", "text": "..."} are supported')
        yield part["text"]


def _kind(value: Any) -> str:
    """A JSON value's type in JSON's words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _short(value: float) -> str:
    text = repr(value)
    return text if len(text) <= 24 else f"{text[:24]}..."
