"""The server's own counters, read from its Prometheus page before, during and after a run.

Each reading is one short connection of its own. A page of 100 kB takes about 1 ms of the measuring process, every few
seconds; buckets of histograms are left out, their sums and counts are not.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from llmbench.clock import now_ns
from llmbench.errors import ServingError
from llmbench.loadgen._http import HttpError, ResponseParser
from llmbench.loadgen.client import Target
from llmbench.loadgen.record import Line, Scrape
from llmbench.loadgen.run import Observer

EVERY_S = 5.0
_TIMEOUT_S = 5.0
_SETTLE_S = 3.0  # what a server may take to count the last answers
_SETTLE_EVERY_S = 0.1

_LINE = re.compile(rb"^([a-zA-Z_:][\w:]*)(?:\{[^\n]*\})? +([^\s]+)", re.MULTILINE)
_BUCKET = (b"_bucket", b"_created")


def scraper(target: Target, path: str = "/metrics", required: bool = False, every_s: float = EVERY_S) -> Observer:
    """An observer of a run (see `run.Observer`): a Scrape before its first request, every few seconds, and at its end.

    The first and the last are taken when two readings, a tenth of a second apart, agree: servers count an answer a
    little after its last byte. A server without such a page leaves no trace, unless it is `required`: then
    ServingError. Nothing is read through a proxy.
    """

    @asynccontextmanager
    async def observe(append: Callable[[Line], None]) -> AsyncIterator[None]:
        first = await read(target, path)
        first = first and await _settled(target, path)
        if first is None:
            if required:
                raise ServingError(f"--metrics-url {target.url}: no Prometheus metrics are there")
            yield
            return
        append(first)
        reading = asyncio.get_running_loop().create_task(_keep_reading(target, path, every_s, append))
        try:
            yield
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            if (last := await _settled(target, path)) is not None:
                append(last)

    return observe


async def read(target: Target, path: str) -> Scrape | None:
    """The counters now; None when there are none, or not in time."""
    found = await page(target, path)
    at_ns = now_ns()
    values = {} if found is None else parse(found)
    return Scrape(at_ns=at_ns, values=values) if values else None


async def page(target: Target, path: str, timeout_s: float = _TIMEOUT_S) -> bytes | None:
    """A page of the server, on a connection of its own; None when there is none, or not in time, or a proxy between."""
    if target.way.proxy is not None:
        return None
    try:
        return await asyncio.wait_for(_get(target, path), timeout_s)
    except (OSError, HttpError, asyncio.TimeoutError):
        return None


def parse(page: bytes) -> dict[str, float]:
    """Prometheus text: value by name, summed over labels, without buckets and instants of creation."""
    values: dict[str, float] = {}
    for name, value in _LINE.findall(page):
        if not name.endswith(_BUCKET):
            try:
                number = float(value)
            except ValueError:
                continue
            text = name.decode()
            values[text] = values.get(text, 0.0) + number
    return values


async def _keep_reading(target: Target, path: str, every_s: float, append: Callable[[Line], None]) -> None:
    while True:
        await asyncio.sleep(every_s)
        if (found := await read(target, path)) is not None:
            append(found)


async def _settled(target: Target, path: str) -> Scrape | None:
    """The counters when they have come to rest: nothing runs, and two readings agree in all totals."""
    last = await read(target, path)
    for _ in range(round(_SETTLE_S / _SETTLE_EVERY_S)):
        await asyncio.sleep(_SETTLE_EVERY_S)
        before, last = last, await read(target, path)
        if before is not None and last is not None and _totals(before) == _totals(last):
            break
    return last


def _totals(scrape: Scrape) -> dict[str, float]:
    """What counts requests and tokens; processor time and memory move on their own."""
    counted = ("request", "tokens", "running", "waiting")
    return {
        name: value
        for name, value in scrape.values.items()
        if any(word in name for word in counted) and "per_s" not in name
    }


async def _get(target: Target, path: str) -> bytes | None:
    """The body of a page, or None when its status is not 200."""
    reader, writer = await asyncio.open_connection(
        target.host, target.port, family=target.family, ssl=target.tls(), server_hostname=target.tls_name
    )
    try:
        given = "".join(f"{name}: {value}\r\n" for name, value in target.way.headers)
        head = f"GET {target.prefix}{path} HTTP/1.1\r\nHost: {target.authority}\r\n{given}Connection: close\r\n\r\n"
        writer.write(head.encode("latin-1"))
        parser, body = ResponseParser(), []
        while not parser.complete and (data := await reader.read(1 << 20)):
            body.append(parser.feed(data))
        if not parser.complete:
            parser.close()
        return b"".join(body) if parser.status == 200 else None
    finally:
        writer.close()
