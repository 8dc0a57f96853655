"""The client that goes through an HTTP proxy: aiohttp's, whose stamps are about twice as far off and cost more CPU.

Proxies are used only when one is named; those of the environment are not.
"""

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from llmbench.clock import now_ns, seconds
from llmbench.loadgen._answer import Answer
from llmbench.loadgen.client import Finished, Timeouts, headers, next_limit, why
from llmbench.loadgen.record import Record
from llmbench.loadgen.target import Target
from llmbench.protocols import ClientHalf, HttpRequest
from llmbench.types import Request

_BUFFER_BYTES = 4 << 20
_NOT_OURS = frozenset({"User-Agent", "Accept", "Accept-Encoding"})  # what aiohttp would add of its own


class ProxiedClient:
    """Sends requests to one target through a proxy; see `client.Sender`."""

    def __init__(self, target: Target, dialect: ClientHalf, timeouts: Timeouts) -> None:
        self.target = target
        self.dialect = dialect
        self.timeouts = timeouts
        self.session: aiohttp.ClientSession | None = None
        self.tls = target.tls()
        scheme = "http" if target.tls_name is None else "https"
        self.base = f"{scheme}://{target.authority}{target.prefix}"
        self._under_way: set[ProxiedExchange] = set()

    def prepare(self, request: Request) -> HttpRequest:
        """The request in its dialect."""
        return self.dialect.encode(request)

    def start(self, payload: HttpRequest, request: Request, record: Record, finished: Finished) -> "ProxiedExchange":
        """Send now, without waiting; `finished` is called once, when the record is final."""
        if self.session is None:
            self.session = _session()

        def over(final: Record) -> None:
            self._under_way.discard(exchange)
            finished(final)

        exchange = ProxiedExchange(self, payload, request, record, over)
        self._under_way.add(exchange)
        return exchange

    async def warm(self) -> None:
        """Nothing: aiohttp opens connections when they are needed."""

    async def close(self) -> None:
        """Close every connection, and wait until they are."""
        tasks = [exchange.task for exchange in self._under_way]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.session is not None:
            await self.session.close()


class ProxiedExchange:
    """One request and its response."""

    def __init__(
        self, client: ProxiedClient, payload: HttpRequest, request: Request, record: Record, finished: Finished
    ) -> None:
        self.record = record
        self._client = client
        self._payload = payload
        self._answer = Answer(client.dialect, request, record)
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._read_ns = 0
        self._over = False
        record.sent_ns = now_ns()
        self.task = self._loop.create_task(self._exchange())
        self._watch()

    def give_up(self, reason: str) -> None:
        """Stop waiting; the record stays unfinished, with the reason. Nothing happens when it is already final."""
        if not self._over:
            self.record.reason = reason
            self._finish(now_ns())

    async def _exchange(self) -> None:
        try:
            async for data in self._reads():
                self._answer.body(self._read_ns, data)
            failure = self._answer.end(self._read_ns)
        except (aiohttp.ClientError, OSError) as error:
            self._read_ns = now_ns()
            connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError)
            failure = f"{'connect' if connecting else 'connection lost'}: {why(error)}"
        if failure:
            self._fail(self._read_ns, failure)
        else:
            self.record.status = "answered"
            self._finish(self._read_ns)

    async def _reads(self) -> AsyncIterator[bytes]:
        """The reads of the body, stamped; the head goes to the answer."""
        client, record = self._client, self.record
        assert client.session is not None
        async with client.session.request(
            self._payload.method,
            client.base + self._payload.path,
            data=self._payload.body,
            headers=dict(headers(self._payload.headers, client.target.way.headers)),
            proxy=client.target.way.proxy,
            ssl=client.tls or True,
            allow_redirects=False,
            trace_request_ctx=record,
        ) as response:
            self._read_ns = record.first_byte_ns = now_ns()
            self._answer.head(response.status, {name.lower(): value for name, value in response.headers.items()})
            self._watch()
            async for data in response.content.iter_any():
                self._read_ns = now_ns()
                yield data
            self._read_ns = now_ns()

    def _fail(self, stamp_ns: int, reason: str) -> None:
        self.record.status = "failed"
        self.record.reason = reason
        self._finish(stamp_ns)

    def _finish(self, stamp_ns: int) -> None:
        """Make the record final, and stop what is under way."""
        if self._over:
            return
        self._over = True
        self.record.done_ns = stamp_ns
        self._answer.close()
        if self._timer is not None:
            self._timer.cancel()
        if self.task is not asyncio.current_task():
            self.task.cancel()
        self._finished(self.record)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        at_ns, _ = next_limit(self._client.timeouts, self.record, self._read_ns)
        self._timer = self._loop.call_later(max(0.0, seconds(now_ns(), at_ns)), self._look, at_ns)

    def _look(self, at_ns: int) -> None:
        limit_ns, limit = next_limit(self._client.timeouts, self.record, self._read_ns)
        if limit_ns <= at_ns:
            self._fail(now_ns(), limit)
        else:
            self._watch()


def _session() -> aiohttp.ClientSession:
    """A session without limits, redirects or the environment's proxies, that notes when a connection is ready."""
    trace = aiohttp.TraceConfig()

    async def connected(record: Record, kind: str) -> None:
        record.connected_ns = now_ns()
        record.connection = "new" if kind == "new" else "reused"

    async def created(session: aiohttp.ClientSession, context: object, _: object) -> None:
        await connected(context.trace_request_ctx, "new")  # type: ignore[attr-defined]

    async def reused(session: aiohttp.ClientSession, context: object, _: object) -> None:
        await connected(context.trace_request_ctx, "reused")  # type: ignore[attr-defined]

    trace.on_connection_create_end.append(created)
    trace.on_connection_reuseconn.append(reused)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        read_bufsize=_BUFFER_BYTES,
        skip_auto_headers=_NOT_OURS,
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
    )
