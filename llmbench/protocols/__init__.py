"""HTTP dialects, both directions, one file each.

A dialect module has a factory `dialect(**options)`; the name of the file is the name users type. The client's half
turns a Request into bytes and a response's bytes into Deltas; the server's half turns a request's bytes into a Request
and Deltas into bytes. Nothing here opens a socket or reads a clock, so that every stream can be tested cut at every
byte.
"""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Protocol

import msgspec

from llmbench import plugins
from llmbench.errors import InputError, LlmbenchError
from llmbench.types import Delta, Request

_FOR_TESTS = {"stamp", "clock"}  # options of a dialect that no user can write


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the client sends: a POST unless said otherwise; `headers` without Host and Content-Length."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    method: str = "POST"


class HttpResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A whole response that the server gives at once."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/json"),)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a dialect may know about the server it speaks for. `quantisation` is what of the model is of 8 bits."""

    model_name: str
    model_dtype: str
    quantisation: str = ""
    vocab_size: int
    max_model_len: int
    max_batch: int
    max_tokens_per_step: int
    max_waiting: int
    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    block_size: int
    num_ranks: int = 1
    ready: bool


class Host(Protocol):
    """The server as a dialect sees it."""

    def status(self) -> Status:
        """How it is now."""
        ...

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, the begin-of-sequence id in front."""
        ...

    def detokenize(self, ids: list[int]) -> str:
        """The text of ids."""
        ...


class Decoder(Protocol):
    """Turns the body of one response into Deltas; any cut of the bytes gives the same Deltas."""

    def feed(self, data: bytes) -> list[Delta]:
        """The Deltas that these bytes complete. A malformed event is a Delta with an error."""
        ...

    def close(self) -> list[Delta]:
        """What is left when the body has ended; an answer that never said it was finished is a Delta with an error."""
        ...


class Reply(Protocol):
    """The server's side of one HTTP answer: holds what the dialect must remember between the pieces."""

    requests: tuple[Request, ...]
    """What is asked: one, or several where the dialect takes a list of prompts."""
    stream: bool
    headers: tuple[tuple[str, str], ...]
    """Of the response that `render` fills."""

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """What to send for one piece of request `index`; each item is one HTTP chunk.

        An answer that is not streamed comes when the last request has its last piece.
        """
        ...

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """The whole response when there is an error before anything was sent."""
        ...

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """The chunks that end a stream in which an error came after the first piece."""
        ...


class ClientHalf(Protocol):
    """What a client needs of a dialect."""

    @property
    def name(self) -> str: ...

    def encode(self, request: Request) -> HttpRequest:
        """The HTTP request that asks for this."""
        ...

    def decoder(self, request: Request, headers: Mapping[str, str]) -> Decoder:
        """A decoder for the response of status 200; `headers` have lower-case names."""
        ...


class Dialect(Protocol):
    """Both halves of one HTTP dialect. Paths may have variable segments, `/v2/models/{model}/generate`."""

    name: str
    posts: Sequence[str]
    """Paths that generation requests are posted to."""
    others: Sequence[tuple[str, str]]
    """Method and path of the management routes."""

    def encode(self, request: Request) -> HttpRequest:
        """The HTTP request that asks for this, as the dialect's own client would send it."""
        ...

    def decoder(self, request: Request, headers: Mapping[str, str]) -> Decoder:
        """A decoder for the response of status 200; `headers` have lower-case names."""
        ...

    def wants(self, path: str, body: bytes) -> bool:
        """Whether a posted body is in this dialect; asked only for a path that several dialects share."""
        ...

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> Reply:
        """Read a posted request; `headers` have lower-case names. Raises RequestError when it is wrong."""
        ...

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """The response to a request that `parse` refused: there is no Reply yet."""
        ...

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """The response of a management route."""
        ...


def get(name: str, **options: object) -> Dialect:
    """A dialect by name. Raises InputError for an unknown one, and for an option that it does not have."""
    factory = plugins.load("protocols", name).dialect
    known = [option for option in signature(factory).parameters if option not in _FOR_TESTS]
    for option in options.keys() - set(known) - _FOR_TESTS:
        raise InputError(f"dialect {name}: {plugins.unknown('option', option, known)}")
    dialect: Dialect = factory(**options)
    return dialect


def options(name: str) -> dict[str, object]:
    """The options of a dialect that users may set, with their defaults. Raises InputError for an unknown dialect."""
    parameters = signature(plugins.load("protocols", name).dialect).parameters.values()
    return {option.name: option.default for option in parameters if option.name not in _FOR_TESTS}


def option_value(name: str, text: str) -> tuple[str, object]:
    """`KEY=VALUE` for a dialect, the value as that option has it. Raises InputError for a wrong one."""
    key, sign, value = text.partition("=")
    known = options(name)
    if not sign or key not in known:
        raise InputError(f"--dialect-option {text}: {plugins.unknown('option', key, list(known))}; write KEY=VALUE")
    if not isinstance(known[key], bool):
        return key, value
    if value not in ("true", "false"):
        raise InputError(f"--dialect-option {text}: must be true or false")
    return key, value == "true"
