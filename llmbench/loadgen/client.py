"""The HTTP client that measures: raw asyncio streams, every read stamped before anything is parsed.

A request that cannot be sent or answered is a record with its reason; nothing here raises for it.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Literal, cast
from urllib.parse import urlsplit

import msgspec

from llmbench.clock import now_ns, seconds
from llmbench.errors import InputError, ServingError
from llmbench.loadgen._http import HttpError, ResponseParser
from llmbench.loadgen.record import Record
from llmbench.protocols import Decoder, Dialect
from llmbench.types import Delta, Request

_SHOWN_BODY_CHARS = 200
_MAX_IDLE_S = 2.0  # common servers drop idle connections after 5 s (uvicorn); a reuse must not race with that


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run sends to: the name as given, and the one address that answered."""

    url: str
    authority: str
    prefix: str
    family: int
    host: str
    port: int


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds from the instant of sending; the response's head and its end each have their own."""

    connect_s: float = 10.0
    head_s: float = 1800.0
    total_s: float = 1800.0  # the slowest answers of the contest's runs took 700 s, most of it in the server's queue


def locate(url: str, timeout_s: float = 5.0, flag: str = "--url") -> Target:
    """Find the address behind a URL, once, so that no request waits for a name. Raises InputError, ServingError."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port or 80
    except ValueError as error:
        raise InputError(f"{flag} {url}: {error}") from error
    if parts.scheme != "http" or not parts.hostname:
        raise InputError(f"{flag} {url}: only http://HOST:PORT is measured; put a plain-HTTP proxy in front of others")
    try:
        addresses = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InputError(f"{flag} {url}: cannot find the host ({error.strerror})") from error
    failure = ""
    for family, _, _, _, address in addresses:
        try:
            socket.create_connection(cast("tuple[str, int]", address[:2]), timeout=timeout_s).close()
        except OSError as error:
            failure = failure or error.strerror or str(error)
            continue
        authority = parts.netloc.rpartition("@")[2]
        prefix = parts.path.rstrip("/")
        return Target(url=url, authority=authority, prefix=prefix, family=family, host=str(address[0]), port=port)
    raise ServingError(f"nobody answers at {url} ({failure}); start a server there, or leave --url out")


class Client:
    """Sends requests to one target over as many kept connections as are needed at once."""

    def __init__(self, target: Target, dialect: Dialect, timeouts: Timeouts) -> None:
        self.target = target
        self.dialect = dialect
        self.timeouts = timeouts
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._all_closed = asyncio.Event()

    def prepare(self, request: Request) -> bytes:
        """All bytes of the HTTP request, so that none are made after the clock has started."""
        http = self.dialect.encode(request)
        lines = [f"{http.method} {self.target.prefix}{http.path} HTTP/1.1", f"Host: {self.target.authority}"]
        lines += [f"{name}: {value}" for name, value in http.headers]
        lines += [f"Content-Length: {len(http.body)}", "", ""]
        return "\r\n".join(lines).encode("latin-1") + http.body

    def start(self, payload: bytes, request: Request, record: Record, finished: Callable[[Record], None]) -> "Exchange":
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

    def __init__(
        self, client: Client, payload: bytes, request: Request, record: Record, finished: Callable[[Record], None]
    ) -> None:
        self.record = record
        self._client = client
        self._payload = payload
        self._request = request
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connection: _Connection | None = None
        self._parser = ResponseParser()
        self._decoder: Decoder | None = None
        self._refusal = b""
        self._pieces: list[str] = []
        self._error = ""
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
        """A read of the response."""
        record = self.record
        if record.first_byte_ns is None:
            record.first_byte_ns = stamp_ns
        try:
            body = self._parser.feed(data)
        except HttpError as error:
            self._fail(stamp_ns, str(error))
            return
        if self._parser.status and not record.http_status:
            self._head()
        if self._decoder is None:
            self._refusal += body[: 4 * _SHOWN_BODY_CHARS - len(self._refusal)]
        elif body:
            self._take(stamp_ns, self._decoder.feed(body))
        if self._parser.complete:
            self._ended(stamp_ns)

    def lost(self, stamp_ns: int, error: Exception | None) -> None:
        """The connection is gone: the end of a body without a length, or a failure."""
        self._connection = None
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
            self._fail(stamp_ns, str(error) if isinstance(error, HttpError) else f"connection lost: {_why(error)}")

    def give_up(self, reason: str) -> None:
        """Stop waiting; the record stays unfinished, with the reason. Nothing happens when it is already final."""
        if not self._over:
            self.record.reason = reason
            self._finish(now_ns(), keep=False)

    def _connect(self, kind: Literal["new", "retried"]) -> None:
        self.record.connection = kind
        self._arm(self._client.timeouts.connect_s, "no connection")
        self._connecting = self._loop.create_task(self._open())
        self._client._connecting.add(self._connecting)
        self._connecting.add_done_callback(self._client._connected)

    async def _open(self) -> None:
        target = self._client.target
        try:
            _, connection = await self._loop.create_connection(
                lambda: _Connection(self._client), target.host, target.port, family=target.family
            )
        except OSError as error:
            self._fail(now_ns(), f"connect: {_why(error)}")
            return
        self._connecting = None
        self.record.connected_ns = now_ns()
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        connection.exchange = self
        self._connection = connection
        connection.transport.write(self._payload)
        self._arm(self._client.timeouts.head_s, "no response")

    def _head(self) -> None:
        record, parser = self.record, self._parser
        record.http_status = parser.status
        if parser.status == 200:
            self._decoder = self._client.dialect.decoder(self._request, parser.headers)
        self._arm(self._client.timeouts.total_s, "no end of the response")

    def _take(self, stamp_ns: int, deltas: list[Delta]) -> None:
        record = self.record
        tokens = 0
        for delta in deltas:
            tokens += delta.num_tokens
            record.token_ids += delta.token_ids
            if delta.text:
                self._pieces.append(delta.text)
            if delta.finish_reason is not None:
                record.finish_reason = delta.finish_reason
                self._error = self._error or (delta.error or "")
            if delta.full_text is not None:
                self._pieces = [delta.full_text]
            if delta.total_tokens is not None:
                record.num_tokens = delta.total_tokens
            if delta.num_prompt_tokens is not None:
                record.server_prompt_tokens = delta.num_prompt_tokens
            if delta.num_cached_tokens is not None:
                record.cached_tokens = delta.num_cached_tokens
        if tokens:
            record.stamps_ns.append(stamp_ns)
            record.tokens.append(tokens)

    def _ended(self, stamp_ns: int) -> None:
        """The response is whole."""
        record = self.record
        if self._decoder is None:
            shown = self._refusal.decode("utf-8", "replace")[:_SHOWN_BODY_CHARS].strip()
            self._fail(stamp_ns, f"HTTP {record.http_status}: {shown}", keep=self._parser.keep_alive)
            return
        self._take(stamp_ns, self._decoder.close())
        if self._error or record.finish_reason in ("error", "cancelled"):
            self._fail(stamp_ns, self._error or f"the server says {record.finish_reason}", keep=self._parser.keep_alive)
            return
        record.status = "answered"
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
        self.record.text = "".join(self._pieces)
        self.record.num_tokens = self.record.num_tokens or sum(self.record.tokens)
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

    def _arm(self, limit_s: float, what: str) -> None:
        """Fail `limit_s` after the instant of sending."""
        if self._timer is not None:
            self._timer.cancel()
        assert self.record.sent_ns is not None
        left_s = limit_s - seconds(self.record.sent_ns, now_ns())
        self._timer = self._loop.call_later(left_s, self._timed_out, f"time-out: {what} in {limit_s:g} s")

    def _timed_out(self, reason: str) -> None:
        self._fail(now_ns(), reason)


def _why(error: Exception) -> str:
    """The system's words for an error, without addresses, so that equal causes count as one."""
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number) if number else str(error) or type(error).__name__
