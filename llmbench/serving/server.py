"""HTTP: every dialect's routes over one frontend, and `/health`."""

import logging
import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

from llmbench.errors import LlmbenchError, ServingError
from llmbench.protocols import Dialect, HttpResponse, Reply, Status
from llmbench.serving.frontend import Frontend, Ticket
from llmbench.types import Delta

_log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 16 << 20
_LAST_WORDS_S = 2.0  # for answers that end with an error because the server stops


def application(
    dialects: list[Dialect], frontend: Frontend, status: Callable[[], Status], ready: Callable[[], bool]
) -> web.Application:
    """The routes of all dialects."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    for dialect in dialects:
        for path in dialect.posts:
            app.router.add_post(path, _post_handler(dialect, frontend))
        for path in dialect.gets:
            app.router.add_get(path, _get_handler(dialect, status))

    async def health(_: web.Request) -> web.Response:
        return web.Response(text="ready\n") if ready() else web.Response(text="the agent is starting\n", status=503)

    app.router.add_get("/health", health)
    return app


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _post_handler(dialect: Dialect, frontend: Frontend) -> _Handler:
    async def handle(http: web.Request) -> web.StreamResponse:
        body = await http.read()
        headers = {name.lower(): value for name, value in http.headers.items()}
        try:
            reply = dialect.parse(http.path, body, headers)
        except LlmbenchError as error:
            return _whole(dialect.reject(error))
        try:
            ticket = frontend.submit(reply.request)
        except LlmbenchError as error:
            return _whole(reply.refuse(error))
        try:
            return await _answer(http, reply, ticket)
        finally:
            frontend.cancel(ticket)  # does nothing after a complete answer

    return handle


def _get_handler(dialect: Dialect, status: Callable[[], Status]) -> _Handler:
    async def handle(http: web.Request) -> web.StreamResponse:
        return _whole(dialect.answer(http.path, status()))

    return handle


async def _answer(http: web.Request, reply: Reply, ticket: Ticket) -> web.StreamResponse:
    """Wait for the pieces and send them; what the status is shows with the first one."""
    try:
        delta = await ticket.next()
        if not reply.request.stream:
            return await _answer_at_once(reply, ticket, delta)
    except LlmbenchError as error:
        return _whole(reply.refuse(error))
    response = web.StreamResponse(headers=dict(reply.headers))
    response.enable_chunked_encoding()
    await response.prepare(http)
    try:
        while True:
            for chunk in reply.render(delta):
                await response.write(chunk)
            if delta.finish_reason is not None:
                break
            delta = await ticket.next()
    except LlmbenchError as error:
        for chunk in reply.abort(error):
            await response.write(chunk)
    await response.write_eof()
    return response


async def _answer_at_once(reply: Reply, ticket: Ticket, delta: Delta) -> web.Response:
    chunks = reply.render(delta)
    while delta.finish_reason is None:
        delta = await ticket.next()
        chunks += reply.render(delta)
    return web.Response(body=b"".join(chunks), headers=dict(reply.headers))


def _whole(response: HttpResponse) -> web.Response:
    return web.Response(status=response.status, body=response.body, headers=dict(response.headers))


def bind(host: str, port: int) -> list[socket.socket]:
    """Take a port (0: a free one) before anything costly is done.

    With the default host the IPv6 loopback is taken too where there is one: the contest's client says `localhost`.
    Raises ServingError when the port is taken.
    """
    try:
        sockets = [_bound(host, port)]
    except OSError as error:
        reason = error.strerror or str(error)
        raise ServingError(f"cannot listen on {host}:{port} ({reason}); choose another port with --port") from error
    if host == "127.0.0.1":
        try:
            sockets.append(_bound("::1", sockets[0].getsockname()[1]))
        except OSError as error:
            _log.debug("no IPv6 loopback: %s", error)
    return sockets


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


async def listen(app: web.Application, sockets: list[socket.socket]) -> web.AppRunner:
    """Serve on bound sockets; `cleanup` of the runner ends it."""
    # a handler is cancelled when its client has gone, so that its blocks are freed
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=_LAST_WORDS_S)
    await runner.setup()
    for bound in sockets:
        await web.SockSite(runner, bound).start()
    return runner
