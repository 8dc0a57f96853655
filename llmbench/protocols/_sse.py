"""Framing without I/O: bytes in any cut become payloads, and JSON payloads become Deltas.

Server-sent events as WHATWG's HTML standard (9.2.6) frames them, but for a lone carriage return as a line end, which
no server of a language model sends; an event that the end of the body cuts off is still tried.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from llmbench.types import Delta

_DONE = b"[DONE]"
_SHOWN_BYTES = 80
_TEXT_KEYS = tuple(
    f'"{key}":{space}"'.encode() for key in ("text", "content", "reasoning_content", "reasoning") for space in ("", " ")
)

EVENT_STREAM = "text/event-stream"


# Clients that read lines with `str.splitlines`, as httpx's `iter_lines` does, would split an event at these.
_LINE_BREAKS = tuple((sign.encode(), f"\\u{ord(sign):04x}".encode()) for sign in "\x85\u2028\u2029")


def event(value: Any, prefix: bytes = b"data: ") -> bytes:
    """One server-sent event with a JSON payload, which has nothing inside that anybody takes for the end of a line."""
    payload = msgspec.json.encode(value)
    for sign, escaped in _LINE_BREAKS:
        if sign in payload:
            payload = payload.replace(sign, escaped)
    return prefix + payload + b"\n\n"


DONE = b"data: [DONE]\n\n"


class Frames(Protocol):
    """Cuts a body into payloads."""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete."""
        ...

    def close(self) -> list[bytes]:
        """What is left when the body has ended."""
        ...


class Events:
    """The `data` of server-sent events: with a space behind the colon or without, several lines joined."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The data of the events that these bytes complete."""
        end = len(data) - 2
        if data.find(b"\n") == end and data.endswith(b"\n\n") and data.startswith(b"data: ") and self.fresh:
            return [data[6:end].removesuffix(b"\r")]  # one whole event, as servers send them
        if data.endswith(b"\n\n") and self.fresh and b"\r" not in data:
            events = data[:end].split(b"\n\n")
            if data.count(b"\n") == 2 * len(events) and all(event.startswith(b"data: ") for event in events):
                return [event[6:] for event in events]  # several, of one line each
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [payload for line in lines for payload in self._line(line.removesuffix(b"\r"))]

    def close(self) -> list[bytes]:
        """The data of an event that lacks its empty line."""
        line, self._rest = self._rest.removesuffix(b"\r"), b""
        return (self._line(line) if line else []) + self._line(b"")

    @property
    def fresh(self) -> bool:
        """Whether nothing is left of what was fed."""
        return not self._rest and not self._data

    def _line(self, line: bytes) -> list[bytes]:
        if not line:
            data, self._data = self._data, []
            return [b"\n".join(data)] if data else []
        if line.startswith(b"data:"):  # comments begin with a colon; `event`, `id` and `retry` say nothing here
            self._data.append(line[5:].removeprefix(b" "))
        return []


class Separated:
    """Payloads with one byte behind each, as vLLM's and MindIE's `/generate` send them."""

    def __init__(self, separator: bytes = b"\0") -> None:
        self._separator = separator
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that these bytes complete."""
        *payloads, self._rest = (self._rest + data).split(self._separator)
        return [payload for payload in payloads if payload.strip()]

    def close(self) -> list[bytes]:
        """The payload that lacks its separator."""
        rest, self._rest = self._rest, b""
        return [rest] if rest.strip() else []


class Whole:
    """One payload, which ends with the body."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """Nothing before the end."""
        self._parts.append(data)
        return []

    def close(self) -> list[bytes]:
        """The body."""
        body = b"".join(self._parts)
        self._parts.clear()
        return [body] if body.strip() else []


class Reader(Protocol):
    """What a dialect makes of the JSON objects of one response."""

    def read(self, event: dict[str, Any]) -> Iterable[Delta]:
        """The Deltas of one object. What it lacks may show as KeyError, TypeError, ValueError or IndexError."""
        ...

    def end(self, done: bool) -> Iterable[Delta]:
        """What was held back until the end, said by `[DONE]` or of the body; nothing when the answer is not whole."""
        ...


class JsonDecoder:
    """A Decoder from framing and reading; errors in the stream and everything malformed are Deltas too.

    Most events of a stream are the one before with another text. `again` makes the Delta of such an event, for whose
    bytes around the text the last one stands; that takes a fifth of the time of decoding it.
    """

    def __init__(self, frames: Frames, reader: Reader, again: Callable[[str], Delta] | None = None) -> None:
        self._frames = frames
        self._reader = reader
        self._again = again
        self._before = self._behind = b""
        self._event_before = self._event_behind = b""  # the same of a whole event, while one may come
        self._ended = False

    def feed(self, data: bytes) -> list[Delta]:
        """The Deltas that these bytes complete."""
        before, behind = self._event_before, self._event_behind
        if before and data.startswith(before) and data.endswith(behind) and self._again is not None:
            text = _plain(data[len(before) : -len(behind)])
            if text:
                return [self._again(text)]
        deltas = self._take(self._frames.feed(data))
        self._expect()
        return deltas

    def _expect(self) -> None:
        """Whether the next bytes may be an event like the one before, and how it would be framed."""
        whole = isinstance(self._frames, Events) and self._frames.fresh and self._before and not self._ended
        self._event_before, self._event_behind = (
            (b"data: " + self._before, self._behind + b"\n\n") if whole else (b"", b"")
        )

    def close(self) -> list[Delta]:
        """What is left, or an error when the answer never said that it was finished."""
        deltas = self._take(self._frames.close())
        if not self._ended:
            deltas += self._made(b"", lambda _: self._reader.end(done=False))
            if not deltas or deltas[-1].finish_reason is None:
                deltas.append(failure("the response ended before the answer did"))
            self._ended = True
        return deltas

    def _take(self, payloads: list[bytes]) -> list[Delta]:
        deltas: list[Delta] = []
        for payload in payloads:
            if self._ended:
                break
            new = self._read(payload)
            deltas += new
            for delta in new:
                self._ended = self._ended or delta.finish_reason is not None
        return deltas

    def _read(self, payload: bytes) -> list[Delta]:
        if self._again is None:
            return self._made(payload, self._event)
        end = len(payload) - len(self._behind)
        if self._before and payload.startswith(self._before) and payload.endswith(self._behind):
            text = _plain(payload[len(self._before) : end])
            if text and end > len(self._before):
                return [self._again(text)]
        made = self._made(payload, self._event)
        if len(made) == 1 and made[0].assumed:
            self._learn(payload, made[0].text)
        return made

    def _learn(self, payload: bytes, text: str) -> None:
        """Keep the bytes around a text, where it can be nowhere else."""
        said = text.encode("utf-8", "replace") + b'"'
        for key in _TEXT_KEYS:
            if _plain(said[:-1]) and payload.count(key + said) == 1:
                start = payload.index(key + said) + len(key)
                self._before, self._behind = payload[:start], payload[start + len(said) - 1 :]

    def _event(self, payload: bytes) -> Iterable[Delta]:
        if payload.strip() == _DONE:
            return self._reader.end(done=True)
        event = msgspec.json.decode(payload)
        if not isinstance(event, dict):
            raise TypeError(f"expected an object, found {type(event).__name__}")
        message = said_error(event)
        return [failure(message)] if message else self._reader.read(event)

    def _made(self, payload: bytes, make: Callable[[bytes], Iterable[Delta]]) -> list[Delta]:
        """The Deltas that are made of a payload, or the one that says why none are."""
        try:
            return [_sound(delta) for delta in make(payload)]
        except (
            msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError, IndexError,
            AttributeError,
        ) as error:  # fmt: skip
            shown = payload[:_SHOWN_BYTES].decode("utf-8", "replace")
            return [failure(f"not an event of this dialect: {shown!r} ({type(error).__name__}: {error})")]


def _plain(text: bytes) -> str:
    """What stands between the quotes of a JSON string without escapes; empty when it is not that simple."""
    if b'"' in text or b"\\" in text:
        return ""
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return ""
    return decoded if decoded.isprintable() else ""


def _sound(delta: Delta) -> Delta:
    """A Delta whose text is text and whose numbers are numbers: a foreign server may say anything."""
    if type(delta.text) is str and type(delta.num_tokens) is int and delta.num_tokens >= 0 and not _totals(delta):
        return delta
    for text in (delta.text, "" if delta.full_text is None else delta.full_text):
        if type(text) is not str:
            raise TypeError(f"expected text, found {text!r}")
    for number in (delta.num_tokens, delta.total_tokens, delta.num_prompt_tokens, delta.num_cached_tokens):
        if number is not None and (type(number) is not int or number < 0):
            raise TypeError(f"expected a number of tokens, found {number!r}")
    return delta


def _totals(delta: Delta) -> bool:
    """Whether it says anything of the whole answer."""
    return (
        delta.full_text is not None
        or delta.total_tokens is not None
        or delta.num_prompt_tokens is not None
        or delta.num_cached_tokens is not None
    )


def said_error(event: dict[str, Any]) -> str:
    """The message of an error object: OpenAI's, MindIE's, FastAPI's or vLLM's old one; empty when it is none."""
    error = event.get("error")
    if error is None and event.get("object") == "error":
        error = event
    if isinstance(error, dict):
        return str(error.get("message") or error)
    return str(error) if error else ""


def failure(message: str) -> Delta:
    """The Delta of an answer that failed."""
    return Delta(finish_reason="error", error=message)
