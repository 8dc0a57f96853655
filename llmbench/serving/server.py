"""HTTP: every dialect's routes over one frontend, `/health`, the metrics, and what the server is."""

import asyncio
import contextlib
import errno
import hmac
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from aiohttp import web

from llmbench import clock
from llmbench.errors import (
    BodyTooLarge,
    InputError,
    LlmbenchError,
    Overloaded,
    RequestError,
    ServingError,
    TimedOut,
    Unauthorised,
)
from llmbench.protocols import Dialect, Host, HttpResponse, Reply
from llmbench.serving import observe
from llmbench.serving.config import Http
from llmbench.serving.frontend import Frontend, Mailbox
from llmbench.serving.identity import Identity
from llmbench.serving.observe import Observer
from llmbench.serving.stubs import FrontendStub

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 2.0  # for answers that end with an error because the server stops
_SWEEP_EVERY_S = 0.5
_PIECE_BYTES = 256 << 10
_BACKLOG = 2048  # as uvicorn: when it is full, a burst of connections waits a second for its SYNs to be sent again

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The routes of all dialects over one frontend, and who is being answered."""

    def __init__(
        self,
        dialects: list[Dialect],
        frontend: Frontend | FrontendStub,
        host: Host,
        observer: Observer,
        settings: Http,
        identity: Callable[[], Awaitable[Identity]],
    ) -> None:
        self._frontend = frontend
        self._host = host
        self._observer = observer
        self._settings = settings
        self._identity = identity
        self._writing: dict[asyncio.Transport, int] = {}  # who is being written to, since when
        app = web.Application(client_max_size=settings.max_body_bytes)
        self._add_routes(app.router, dialects)
        # a handler is cancelled when its client has gone, so that its blocks are freed
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_LAST_WORDS_S)

    def _add_routes(self, router: web.UrlDispatcher, dialects: list[Dialect]) -> None:
        posts: dict[str, list[Dialect]] = {}
        for dialect in dialects:
            for path in dialect.posts:
                posts.setdefault(path, []).append(dialect)
            for method, path in dialect.others:
                router.add_route(method, path, self._other_handler(dialect))
        for path, speakers in posts.items():
            router.add_post(path, self._post_handler(speakers))
        router.add_get("/health", self._health)
        router.add_get("/metrics", self._metrics)
        router.add_get("/metrics-json", self._metrics_json)
        router.add_get("/identity", self._identify)

    def _post_handler(self, speakers: list[Dialect]) -> _Handler:
        async def handle(http: web.Request) -> web.StreamResponse:
            dialect = speakers[-1]
            try:
                body = await self._read(http)
                dialect = next((each for each in speakers[:-1] if each.wants(http.path, body)), dialect)
                headers = {name.lower(): _text(value) for name, value in http.headers.items()}
                reply = dialect.parse(http.path, body, headers, self._host.status())
            except LlmbenchError as error:
                return _whole(dialect.reject(error))
            try:
                mailbox = self._frontend.submit(reply.requests)
            except LlmbenchError as error:
                return _whole(reply.refuse(error))
            try:
                return await self._answer(http, reply, mailbox)
            finally:
                self._frontend.cancel(mailbox)  # does nothing after a complete answer

        return handle

    def _other_handler(self, dialect: Dialect) -> _Handler:
        async def handle(http: web.Request) -> web.StreamResponse:
            try:
                return _whole(dialect.answer(http.method, http.path, await self._read(http), self._host))
            except LlmbenchError as error:
                return _whole(dialect.reject(error))

        return handle

    async def _read(self, http: web.Request) -> bytes:
        """The body. Raises Unauthorised, BodyTooLarge, or TimedOut when it does not come."""
        self._check_key(http)
        self._check_connections()
        try:
            return await asyncio.wait_for(http.read(), self._settings.body_timeout_s)
        except web.HTTPRequestEntityTooLarge as error:
            raise BodyTooLarge(f"the body has more than {self._settings.max_body_bytes} bytes") from error
        except asyncio.TimeoutError as error:
            raise TimedOut(f"the body did not come within {self._settings.body_timeout_s:g} s") from error
        except (web.RequestPayloadError, ValueError) as error:
            raise RequestError(f"the body cannot be read ({error})") from error

    def _check_key(self, http: web.Request) -> None:
        key = self._settings.api_key
        given = http.headers.get("Authorization", "")
        if key is not None and not hmac.compare_digest(_text(given).encode(), f"Bearer {key}".encode()):
            raise Unauthorised("the API key is missing or wrong: send `Authorization: Bearer KEY`")

    def _check_connections(self) -> None:
        most, server = self._settings.max_connections, self._runner.server
        if most is not None and server is not None and len(server.connections) > most:
            raise Overloaded(f"{most} clients are connected already; try again later")

    async def _answer(self, http: web.Request, reply: Reply, mailbox: Mailbox) -> web.StreamResponse:
        """Wait for the pieces and send them; what the status is shows with the first one."""
        chunks = _chunks(reply, mailbox)
        try:
            first = await anext(chunks, b"")
            if not reply.stream:
                body = first + b"".join([chunk async for chunk in chunks])
        except LlmbenchError as error:
            return _whole(reply.refuse(error))
        response = web.StreamResponse(headers=dict(reply.headers))
        with contextlib.suppress(ConnectionError):  # the client has gone: nobody takes the rest
            if reply.stream:
                await self._stream(http, response, first, chunks, reply)
            else:
                await self._send(http, response, body)
        return response

    async def _stream(
        self, http: web.Request, response: web.StreamResponse, first: bytes, chunks: AsyncIterator[bytes], reply: Reply
    ) -> None:
        response.enable_chunked_encoding()
        await response.prepare(http)
        await self._write(http, response.write(first))
        try:
            async for chunk in chunks:
                await self._write(http, response.write(chunk))
        except LlmbenchError as error:
            for chunk in reply.abort(error):
                await self._write(http, response.write(chunk))
        await self._write(http, response.write_eof())

    async def _send(self, http: web.Request, response: web.StreamResponse, body: bytes) -> None:
        """A whole body in pieces, so that one who takes it slowly is told from one who takes nothing."""
        response.content_length = len(body)
        await response.prepare(http)
        for at in range(0, len(body), _PIECE_BYTES):
            await self._write(http, response.write(body[at : at + _PIECE_BYTES]))
        await self._write(http, response.write_eof())

    async def _write(self, http: web.Request, writing: Coroutine[Any, Any, None]) -> None:
        """Write, known to `sweep` for as long as the client does not take it."""
        transport = http.transport
        if transport is None:
            writing.close()
            raise ConnectionResetError("the client has gone")
        self._writing[transport] = clock.now_ns()
        try:
            await writing
        finally:
            self._writing.pop(transport, None)

    async def sweep(self) -> None:
        """Until cancelled: drop clients that take nothing, end requests that take too long."""
        while True:
            await asyncio.sleep(_SWEEP_EVERY_S)
            now_ns = clock.now_ns()
            for transport, since_ns in list(self._writing.items()):
                if clock.seconds(since_ns, now_ns) > self._settings.idle_timeout_s:
                    _log.warning("dropping a client that took nothing for %g s", self._settings.idle_timeout_s)
                    transport.abort()
            self._frontend.expire(self._settings.request_timeout_s)

    async def drain(self) -> None:
        """Refuse new requests, and wait a while for those under way."""
        self._frontend.stopping = True
        try:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._frontend.all_answered(), self._settings.drain_s)
        finally:  # also when it is told to stop a second time
            self._frontend.fail_all(ServingError("the server is stopping"))

    async def listen(self, sockets: list[socket.socket]) -> None:
        """Serve on bound sockets, until `close`. Raises InputError when another server was faster on their port."""
        await self._runner.setup()
        for bound in sockets:
            try:
                bound.listen(_BACKLOG)  # uvloop would only log that it fails
            except OSError as error:
                host, port = bound.getsockname()[:2]
                raise _taken(host, port, error) from error
            await web.SockSite(self._runner, bound, backlog=_BACKLOG).start()

    async def close(self) -> None:
        """Close every connection."""
        await self._runner.cleanup()

    async def _health(self, _: web.Request) -> web.Response:
        ready = self._host.status().ready
        return web.Response(text="ready\n" if ready else "the agent is starting\n", status=200 if ready else 503)

    async def _metrics(self, http: web.Request) -> web.Response:
        if (refused := self._refused(http)) is not None:
            return refused
        body = observe.exposition(self._observer, self._host.status())
        return web.Response(body=body, headers={"Content-Type": observe.CONTENT_TYPE})

    async def _metrics_json(self, http: web.Request) -> web.Response:
        if (refused := self._refused(http)) is not None:
            return refused
        return web.json_response(observe.averages(self._observer, self._host.status(), http.host))

    async def _identify(self, http: web.Request) -> web.Response:
        if (refused := self._refused(http)) is not None:
            return refused
        body = msgspec.json.encode(await self._identity())
        return web.Response(body=body, content_type="application/json")

    def _refused(self, http: web.Request) -> web.Response | None:
        try:
            self._check_key(http)
        except Unauthorised as error:
            return web.Response(text=f"{error}\n", status=error.http_status)
        return None


async def _chunks(reply: Reply, mailbox: Mailbox) -> AsyncIterator[bytes]:
    """What the dialect sends, until every request has ended. Raises the error that ended one."""
    num_open = len(reply.requests)
    while num_open:
        index, delta = await mailbox.next()
        for chunk in reply.render(delta, index):
            yield chunk
        num_open -= delta.finish_reason is not None


def _text(value: str) -> str:
    """A header's value without the lone surrogates that stand for bytes that are no UTF-8: no frame can carry them."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _whole(response: HttpResponse) -> web.Response:
    return web.Response(status=response.status, body=response.body, headers=dict(response.headers))


def bind(host: str, port: int) -> list[socket.socket]:
    """Take a port (0: a free one) before anything costly is done.

    With the default host the IPv6 loopback is taken too where there is one: the contest's client says `localhost`.
    Raises InputError when the port is taken, or the host is none of this machine.
    """
    try:
        sockets = [_bound(host, port)]
    except OSError as error:
        raise _taken(host, port, error) from error
    if host == "127.0.0.1":
        try:
            sockets.append(_bound("::1", sockets[0].getsockname()[1]))
        except OSError as error:
            _log.debug("no IPv6 loopback: %s", error)
    return sockets


def _taken(host: str, port: int, error: OSError) -> InputError:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return InputError(
            f"cannot listen on {host}:{port} ({error.strerror}); choose an address of this machine with --host"
        )
    reason = os.strerror(error.errno) if error.errno else str(error)
    return InputError(f"cannot listen on {host}:{port} ({reason}); choose another port with --port")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound
