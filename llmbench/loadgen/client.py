"""The HTTP client that measures: raw asyncio streams, every read stamped before anything is parsed.

A request that cannot be sent or answered is a record with its reason; nothing here raises for it.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import msgspec

from llmbench.clock import now_ns, seconds
from llmbench.loadgen._answer import Answer
from llmbench.loadgen._http import HttpError, ResponseParser
from llmbench.loadgen.record import Record
from llmbench.loadgen.target import Target as Target
from llmbench.loadgen.target import Way as Way
from llmbench.loadgen.target import locate as locate
from llmbench.protocols import ClientHalf
from llmbench.types import Request

_MOST_HELD = 16  # reads of one response: their parsing must not hold up the stamps of others
_HELD_NS = 1_000_000_000  # and no longer than that, whatever a server sends
_END_BYTES = 5  # less may be the last part of an end that was cut
_ENDS = (b"\r\n\r\n", b"\n\n")
_MAX_IDLE_S = 2.0  # common servers drop idle connections after 5 s (uvicorn); a reuse must not race with that

Finished = Callable[[Record], None]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the instant of sending; the response's head and its end each have their own.

    `idle_s` is between two reads of one response, and of `first_token_s` the reads that bring no token do not count.
    """

    connect_s: float = 10.0
    head_s: float = 1800.0
    total_s: float = 1800.0  # the slowest answers of the contest's runs took 700 s, most of it in the server's queue
    first_token_s: float | None = None
    idle_s: float | None = None


class Pending(Protocol):
    """A request that was sent and has no final record yet."""

    def give_up(self, reason: str) -> None:
        """Stop waiting; the record stays unfinished, with the reason. Nothing happens when it is already final."""
        ...


class Sender(Protocol):
    """What the load loop needs of a client; `Client` is one, and the one that goes through a proxy."""

    @property
    def target(self) -> Target: ...

    @property
    def dialect(self) -> ClientHalf: ...

    def prepare(self, request: Request) -> Any:
        """All that can be made of a request before the clock has started."""
        ...

    def start(self, payload: Any, request: Request, record: Record, finished: Finished) -> Pending:
        """Send now, without waiting; `finished` is called once, when the record is final."""
        ...

    async def warm(self) -> None:
        """Open the connections that are wished before the first request."""
        ...

    async def close(self) -> None:
        """Close every connection, and wait until they are."""
        ...


class Client:
    """Sends requests to one target over as many kept connections as are needed at once."""

    def __init__(self, target: Target, dialect: ClientHalf, timeouts: Timeouts) -> None:
        self.target = target
        self.dialect = dialect
        self.timeouts = timeouts
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._all_closed = asyncio.Event()
        self._tls = target.tls()

    def prepare(self, request: Request) -> bytes:
        """All bytes of the HTTP request, so that none are made after the clock has started."""
        http = self.dialect.encode(request)
        lines = [f"{http.method} {self.target.prefix}{http.path} HTTP/1.1", f"Host: {self.target.authority}"]
        lines += [f"{name}: {value}" for name, value in headers(http.headers, self.target.way.headers)]
        lines += [f"Content-Length: {len(http.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + http.body

    def start(self, payload: bytes, request: Request, record: Record, finished: Finished) -> "Exchange":
        """Send now, without waiting; `finished` is called once, when the record is final."""
        exchange = Exchange(self, payload, request, record, finished)
        exchange.begin()
        return exchange

    async def send(self, request: Request, index: int = 0) -> Record:
        """Send one request and wait for what comes of it. Never raises for what the server does."""
        record = Record(index=index, request_id=request.request_id, due_ns=now_ns())
        record.released_ns = record.due_ns
        outcome: asyncio.Future[Record] = asyncio.get_running_loop().create_future()

        def finished(final: Record) -> None:
            if not outcome.done():  # it is when whoever waited was cancelled
                outcome.set_result(final)

        exchange = self.start(self.prepare(request), request, record, finished)
        try:
            return await outcome
        finally:
            exchange.give_up("cancelled")

    async def warm(self) -> None:
        """Open the connections that are wished before the first request; one that cannot be opened is not."""
        opening = (self.connect() for _ in range(self.target.way.warm_connections))
        for connection in await asyncio.gather(*opening, return_exceptions=True):
            if isinstance(connection, _Connection):
                self._keep(connection)

    async def connect(self) -> "_Connection":
        """A new connection, secured where it is to be. Raises OSError."""
        target, connection = self.target, _Connection(self)
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: connection,
                target.host,
                target.port,
                family=target.family,
                ssl=self._tls,
                server_hostname=target.tls_name,
            )
        except BaseException:  # a connection that is cancelled when it has just been made: uvloop never tells its end
            self._forget(connection)
            raise
        return connection

    async def close(self) -> None:
        """Close every connection, and wait until they are."""
        for connection in list(self._open):
            connection.transport.abort()
        self._idle.clear()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        if self._open:
            self._all_closed.clear()
            await self._all_closed.wait()

    def _connected(self, task: asyncio.Task[None]) -> None:
        """Forget a connection attempt that is over; an error of our own in it goes to the loop's handler."""
        self._connecting.discard(task)
        if not task.cancelled():
            task.result()

    def _take(self) -> "_Connection | None":
        """The connection that was used last, if it is not idle for too long."""
        while self._idle:
            connection = self._idle.pop()
            if seconds(connection.idle_since_ns, now_ns()) < _MAX_IDLE_S and not connection.transport.is_closing():
                return connection
            connection.transport.close()
        return None

    def _keep(self, connection: "_Connection") -> None:
        connection.exchange = None
        connection.idle_since_ns = now_ns()
        self._idle.append(connection)

    def _forget(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if not self._open:
            self._all_closed.set()


class _Connection(asyncio.Protocol):
    """One TCP connection; it only stamps and passes on."""

    transport: asyncio.Transport

    def __init__(self, client: Client) -> None:
        self._client = client
        self.exchange: Exchange | None = None
        self.idle_since_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._client._open.add(self)

    def data_received(self, data: bytes) -> None:
        stamp_ns = now_ns()  # before anything else: parsing is not the server's time
        if self.exchange is None:
            self.transport.abort()  # bytes that nobody asked for; what follows cannot be trusted
        else:
            self.exchange.received(stamp_ns, data)

    def connection_lost(self, error: Exception | None) -> None:
        stamp_ns = now_ns()
        self._client._forget(self)
        if self.exchange is not None:
            self.exchange.lost(stamp_ns, error)


class Exchange:
    """One request and its response, from the first stamp to the last."""

    def __init__(self, client: Client, payload: bytes, request: Request, record: Record, finished: Finished) -> None:
        self.record = record
        self._client = client
        self._payload = payload
        self._answer = Answer(client.dialect, request, record)
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None
        self._parser = ResponseParser()
        self._held: list[tuple[int, bytes]] = []
        self._each = True  # read is parsed at once
        self._read_ns = 0
        self._over = False

    def begin(self) -> None:
        """Stamp, then send on a kept connection or open one."""
        self.record.sent_ns = now_ns()
        connection = self._client._take()
        if connection is None:
            self._connect("new")
            return
        self.record.connected_ns = self.record.sent_ns
        self.record.connection = "reused"
        self._write(connection)

    def received(self, stamp_ns: int, data: bytes) -> None:
        """A read of the response. After the first token some are held, unless they may be the end: to parse several at
        once takes a third of the time, and what happens meanwhile is stamped sooner. Their own stamps stay with them.
        """
        self._read_ns = stamp_ns
        self._held.append((stamp_ns, data))
        if self._each or len(self._held) == _MOST_HELD or len(data) < _END_BYTES or data.endswith(_ENDS):
            self._parse()

    def _parse(self) -> None:
        """Take all reads that are held."""
        held, self._held = self._held, []
        connection = self._connection
        for stamp_ns, data in held:
            if self._over:  # it said more than its answer
                if connection is not None:
                    connection.transport.abort()
                return
            self._take(stamp_ns, data)
        self._each = not (self.record.stamps_ns and self._parser.chunked)

    def _take(self, stamp_ns: int, data: bytes) -> None:
        record = self.record
        if record.first_byte_ns is None:
            record.first_byte_ns = stamp_ns
        try:
            body = self._parser.feed(data)
        except HttpError as error:
            self._fail(stamp_ns, str(error))
            return
        if self._parser.status and not record.http_status:
            self._answer.head(self._parser.status, self._parser.headers)
            self._watch()
        if body:
            self._answer.body(stamp_ns, body)
        if self._parser.complete:
            self._ended(stamp_ns)

    def lost(self, stamp_ns: int, error: Exception | None) -> None:
        """The connection is gone: the end of a body without a length, or a failure."""
        self._connection = None
        self._parse()
        if self._over:
            return
        try:
            if error is None:
                self._parser.close()
        except HttpError as early:
            error = early
        if error is None:
            self._ended(stamp_ns)
        elif self.record.connection == "reused" and self.record.first_byte_ns is None:
            self._connect("retried")  # the server dropped the kept connection before it can have seen the request
        else:
            self._fail(stamp_ns, str(error) if isinstance(error, HttpError) else f"connection lost: {why(error)}")

    def give_up(self, reason: str) -> None:
        """Stop waiting; the record stays unfinished, with the reason. Nothing happens when it is already final."""
        self._parse()
        if not self._over:
            self.record.reason = reason
            self._finish(now_ns(), keep=False)

    def _connect(self, kind: Literal["new", "retried"]) -> None:
        self.record.connection = kind
        self._watch()
        self._connecting = self._loop.create_task(self._open())
        self._client._connecting.add(self._connecting)
        self._connecting.add_done_callback(self._client._connected)

    async def _open(self) -> None:
        try:
            connection = await self._client.connect()
        except OSError as error:
            self._fail(now_ns(), f"connect: {why(error)}")
            return
        self._connecting = None
        self.record.connected_ns = now_ns()
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        connection.exchange = self
        self._connection = connection
        connection.transport.write(self._payload)
        self._watch()

    def _ended(self, stamp_ns: int) -> None:
        """The response is whole."""
        failure = self._answer.end(stamp_ns)
        if failure:
            self._fail(stamp_ns, failure, keep=self._parser.keep_alive)
            return
        self.record.status = "answered"
        self._finish(stamp_ns, keep=self._parser.keep_alive)

    def _fail(self, stamp_ns: int, reason: str, keep: bool = False) -> None:
        self.record.status = "failed"
        self.record.reason = reason
        self._finish(stamp_ns, keep)

    def _finish(self, stamp_ns: int, keep: bool) -> None:
        """Make the record final and let go of the connection."""
        if self._over:
            return
        self._over = True
        self.record.done_ns = stamp_ns
        self._answer.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None and keep:
            self._client._keep(connection)
        elif connection is not None:
            connection.exchange = None
            connection.transport.abort()
        self._finished(self.record)

    def _watch(self) -> None:
        """Look again when the next of the limits could be passed; a read does not move the timer."""
        if self._timer is not None:
            self._timer.cancel()
        at_ns, _ = next_limit(self._client.timeouts, self.record, self._read_ns)
        if self.record.http_status:
            at_ns = min(at_ns, now_ns() + _HELD_NS)
        self._timer = self._loop.call_later(max(0.0, seconds(now_ns(), at_ns)), self._look, at_ns)

    def _look(self, at_ns: int) -> None:
        self._parse()
        if self._over:
            return
        limit_ns, limit = next_limit(self._client.timeouts, self.record, self._read_ns)
        if limit_ns <= at_ns:
            self._fail(now_ns(), limit)
        else:
            self._watch()


def next_limit(timeouts: Timeouts, record: Record, read_ns: int) -> tuple[int, str]:
    """The next instant at which a request would fail, and the words for it; `read_ns` is that of its last read."""
    sent_ns = record.sent_ns or 0
    limits = [(sent_ns, timeouts.total_s, "no end of the response in")]
    if record.connected_ns is None:
        limits.append((sent_ns, timeouts.connect_s, "no connection in"))
    elif not record.http_status:
        limits.append((sent_ns, timeouts.head_s, "no response in"))
    if timeouts.first_token_s is not None and not record.stamps_ns:
        limits.append((sent_ns, timeouts.first_token_s, "no first token in"))
    if timeouts.idle_s is not None and record.first_byte_ns is not None:
        limits.append((read_ns, timeouts.idle_s, "nothing more of the response for"))
    at_ns, limit_s, what = min((from_ns + round(limit_s * 1e9), limit_s, what) for from_ns, limit_s, what in limits)
    return at_ns, f"time-out: {what} {limit_s:g} s"


def headers(own: tuple[tuple[str, str], ...], given: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The dialect's headers and the user's; one of the same name takes the dialect's place."""
    replaced = {name.lower() for name, _ in given}
    return (*(pair for pair in own if pair[0].lower() not in replaced), *given)


def why(error: Exception) -> str:
    """The system's words for an error, without addresses, so that equal causes count as one."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error) or type(error).__name__
