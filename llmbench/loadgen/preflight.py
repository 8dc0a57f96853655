"""Before anything is timed: does the target answer in this dialect, to this model name?

One request of one or two tokens with a prompt of its own, so that no prompt of a plan is in the server's prefix cache.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from llmbench.errors import InputError, ServingError
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import new_loop, sender
from llmbench.loadgen.target import Target
from llmbench.protocols import ClientHalf, HttpRequest
from llmbench.types import Delta, Request

_PROMPT = "Is anybody there? Say yes."
_MODELS = "/v1/models"
_IDENTITY = "/identity"
_WORDS = "; see --dialect, --served-model and --dialect-option, or leave this out with --no-preflight"


def check(target: Target, dialect: ClientHalf, timeouts: Timeouts) -> Record:
    """Send the small request. Raises InputError when the server refuses it (4xx), ServingError when it fails."""
    record = _send(target, dialect, timeouts, Request(prompt=_PROMPT, max_new_tokens=2, request_id="preflight"))
    if record.status == "answered":
        return record
    kind = InputError if 400 <= record.http_status < 500 and record.http_status != 429 else ServingError
    raise kind(f"{target.url} does not answer in dialect {dialect.name}: {record.reason}{_WORDS}")


def models(target: Target, timeouts: Timeouts) -> list[str]:
    """The names that `/v1/models` tells; none when the server has no such page."""
    try:
        return [str(model["id"]) for model in _page(target, _MODELS, timeouts)["data"]]
    except (msgspec.DecodeError, KeyError, TypeError):
        return []


def identity(target: Target, timeouts: Timeouts) -> dict[str, Any]:
    """What the bundled stack says that it is: hashes of its settings and weights, its engine, its processes.

    Raises ServingError when there is no such page.
    """
    try:
        return dict(_page(target, _IDENTITY, timeouts))
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise ServingError(f"{target.url}{_IDENTITY}: the server does not say what it is ({error})") from error


def _page(target: Target, path: str, timeouts: Timeouts) -> Any:
    """The JSON value on a page. Raises msgspec.DecodeError when there is none."""
    return msgspec.json.decode(_send(target, _Page(path), timeouts, Request(prompt="")).text)


def _send(target: Target, dialect: ClientHalf, timeouts: Timeouts, request: Request) -> Record:
    """One request on a connection of its own."""
    loop = new_loop()
    try:
        return loop.run_until_complete(_one(target, dialect, timeouts, request))
    finally:
        loop.close()


async def _one(target: Target, dialect: ClientHalf, timeouts: Timeouts, request: Request) -> Record:
    way = msgspec.structs.replace(target.way, warm_connections=0)
    client = sender(msgspec.structs.replace(target, way=way), dialect, timeouts)
    record = Record(index=0, request_id=request.request_id, due_ns=0)
    over: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
    try:
        client.start(client.prepare(request), request, record, over.set_result)
        return await over
    finally:
        await client.close()


class _Page:
    """A page of the server as a dialect of its own: its text is the body."""

    name = "page"

    def __init__(self, path: str) -> None:
        self._path = path

    def encode(self, request: Request) -> HttpRequest:
        return HttpRequest(method="GET", path=self._path, headers=(), body=b"")

    def decoder(self, request: Request, headers: Mapping[str, str]) -> "_Body":
        return _Body()


class _Body:
    """All of a body as text."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[Delta]:
        self._data += data
        return []

    def close(self) -> list[Delta]:
        return [Delta(full_text=self._data.decode("utf-8", "replace"), finish_reason="stop")]
