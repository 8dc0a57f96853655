"""HTTP: every dialect's routes over one frontend, and `/health`."""

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web

from llmbench.errors import LlmbenchError, ServingError
from llmbench.protocols import Dialect, HttpResponse, Reply, Status
from llmbench.serving.frontend import Frontend, Ticket

_log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 16 << 20


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


_Handler = Callable[[web.Request], "asyncio.Future[web.StreamResponse]"]


def _post_handler(dialect: Dialect, frontend: Frontend) -> Callable[..., object]:
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


def _get_handler(dialect: Dialect, status: Callable[[], Status]) -> Callable[..., object]:
    async def handle(http: web.Request) -> web.StreamResponse:
        return _whole(dialect.answer(http.path, status()))

    return handle


async def _answer(http: web.Request, reply: Reply, ticket: Ticket) -> web.StreamResponse:
    """Wait for the pieces and send them; the status is known when the first one is there."""
    piece = await ticket.pieces.get()
    if isinstance(piece, LlmbenchError):
        return _whole(reply.refuse(piece))
    if not reply.request.stream:
        return await _answer_at_once(reply, ticket, piece)
    response = web.StreamResponse(headers=dict(reply.headers))
    response.enable_chunked_encoding()
    await response.prepare(http)
    while True:
        failed = isinstance(piece, LlmbenchError)
        for chunk in reply.abort(piece) if isinstance(piece, LlmbenchError) else reply.render(piece):
            await response.write(chunk)
        if failed or (not isinstance(piece, LlmbenchError) and piece.finish_reason is not None):
            break
        piece = await ticket.pieces.get()
    await response.write_eof()
    return response


async def _answer_at_once(reply: Reply, ticket: Ticket, piece: object) -> web.Response:
    body = b""
    while True:
        if isinstance(piece, LlmbenchError):
            return _whole(reply.refuse(piece))
        body += b"".join(reply.render(piece))
        if piece.finish_reason is not None:
            return web.Response(body=body, headers=dict(reply.headers))
        piece = await ticket.pieces.get()


def _whole(response: HttpResponse) -> web.Response:
    return web.Response(status=response.status, body=response.body, headers=dict(response.headers))


async def listen(app: web.Application, host: str, port: int) -> tuple[web.AppRunner, int]:
    """Listen on a port (0: a free one); gives the runner to clean up and the port.

    With the default host the IPv6 loopback listens too where there is one: the contest's client says `localhost`.
    Raises ServingError when the port is taken.
    """
    # a handler ends when its client has gone, so that its blocks are freed
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        reason = error.strerror or str(error)
        raise ServingError(f"cannot listen on {host}:{port} ({reason}); choose another with --port") from error
    port = runner.addresses[0][1]
    if host == "127.0.0.1":
        try:
            await web.TCPSite(runner, "::1", port).start()
        except OSError as error:
            _log.debug("no IPv6 loopback: %s", error)
    return runner, port
