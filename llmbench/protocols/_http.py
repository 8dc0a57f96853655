"""HTTP parts that dialects share: headers of requests and answers, and what a request must be able to carry."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from llmbench.errors import LlmbenchError, Overloaded, RequestError
from llmbench.protocols import HttpResponse
from llmbench.protocols._sse import EVENT_STREAM
from llmbench.types import Request, Sampling

JSON_HEADERS = (("Content-Type", "application/json"),)
STREAM_HEADERS = (("Content-Type", f"{EVENT_STREAM}; charset=utf-8"), ("Cache-Control", "no-cache"))

# What every dialect that samples can say.
_BASIC = frozenset({"temperature", "top_k", "top_p", "seed", "repetition_penalty"})
_DEFAULTS = msgspec.structs.asdict(Sampling())


def answer(value: Any, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> HttpResponse:
    """A whole JSON response."""
    return HttpResponse(status=status, body=msgspec.json.encode(value), headers=JSON_HEADERS + headers)


def retry_after(error: LlmbenchError) -> tuple[tuple[str, str], ...]:
    """The header by which a full server says when to come again, in whole seconds; nothing for other errors."""
    if not isinstance(error, Overloaded):
        return ()
    return (("Retry-After", str(max(1, math.ceil(error.retry_after_s)))),)


def client_headers(request: Request) -> tuple[tuple[str, str], ...]:
    """Of a posted JSON body, with the id that joins a server's captured rows with the requests of a run."""
    return (*JSON_HEADERS, *((("X-Request-Id", request.request_id),) if request.request_id else ()))


def is_stream(request: Request, headers: Mapping[str, str]) -> bool:
    """Whether a response is a stream of events: as its type says, else as it was asked."""
    kind = headers.get("content-type", "")
    return EVENT_STREAM in kind or (request.stream and "application/json" not in kind)


def text_prompt(request: Request, dialect: str) -> str:
    """The prompt of a dialect that has no token ids. Raises RequestError."""
    if not isinstance(request.prompt, str):
        raise RequestError(f"the {dialect} dialect takes a prompt as text only, not as token ids")
    return request.prompt


def check_carried(request: Request, dialect: str, more: Collection[str] = ()) -> None:
    """Raise RequestError for a sampling setting that a dialect cannot say: dropped, it would change the answer."""
    for name, value in msgspec.structs.asdict(request.sampling).items():
        if value != _DEFAULTS[name] and name not in _BASIC and name not in more:
            raise RequestError(f"the {dialect} dialect cannot ask for {name}")
