"""HTTP: every dialect's routes over one frontend, and `/health`."""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from llmbench.errors import LlmbenchError, ServingError
from llmbench.protocols import Dialect, Host, HttpResponse, Reply
from llmbench.serving.frontend import Frontend, Mailbox

_log = logging.getLogger(__name__)

_MAX_BODY_BYTES = 16 << 20
_LAST_WORDS_S = 2.0  # for answers that end with an error because the server stops


def application(dialects: list[Dialect], frontend: Frontend, host: Host) -> web.Application:
    """The routes of all dialects."""
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    posts: dict[str, list[Dialect]] = {}
    for dialect in dialects:
        for path in dialect.posts:
            posts.setdefault(path, []).append(dialect)
        for method, path in dialect.others:
            app.router.add_route(method, path, _other_handler(dialect, host))
    for path, speakers in posts.items():
        app.router.add_post(path, _post_handler(speakers, frontend, host))

    async def health(_: web.Request) -> web.Response:
        ready = host.status().ready
        return web.Response(text="ready\n" if ready else "the agent is starting\n", status=200 if ready else 503)

    app.router.add_get("/health", health)
    return app


_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _post_handler(speakers: list[Dialect], frontend: Frontend, host: Host) -> _Handler:
    async def handle(http: web.Request) -> web.StreamResponse:
        body = await http.read()
        headers = {name.lower(): value for name, value in http.headers.items()}
        dialect = next((each for each in speakers[:-1] if each.wants(http.path, body)), speakers[-1])
        try:
            reply = dialect.parse(http.path, body, headers, host.status())
        except LlmbenchError as error:
            return _whole(dialect.reject(error))
        try:
            mailbox = frontend.submit(reply.requests)
        except LlmbenchError as error:
            return _whole(reply.refuse(error))
        try:
            return await _answer(http, reply, mailbox)
        finally:
            frontend.cancel(mailbox)  # does nothing after a complete answer

    return handle


def _other_handler(dialect: Dialect, host: Host) -> _Handler:
    async def handle(http: web.Request) -> web.StreamResponse:
        return _whole(dialect.answer(http.method, http.path, await http.read(), host))

    return handle


async def _answer(http: web.Request, reply: Reply, mailbox: Mailbox) -> web.StreamResponse:
    """Wait for the pieces and send them; what the status is shows with the first one."""
    chunks = _chunks(reply, mailbox)
    try:
        first = await anext(chunks, b"")
        if not reply.stream:
            body = first + b"".join([chunk async for chunk in chunks])
            return web.Response(body=body, headers=dict(reply.headers))
    except LlmbenchError as error:
        return _whole(reply.refuse(error))
    response = web.StreamResponse(headers=dict(reply.headers))
    response.enable_chunked_encoding()
    await response.prepare(http)
    try:
        await response.write(first)
        async for chunk in chunks:
            await response.write(chunk)
    except LlmbenchError as error:
        for chunk in reply.abort(error):
            await response.write(chunk)
    await response.write_eof()
    return response


async def _chunks(reply: Reply, mailbox: Mailbox) -> AsyncIterator[bytes]:
    """What the dialect sends, until every request has ended. Raises the error that ended one."""
    num_open = len(reply.requests)
    while num_open:
        index, delta = await mailbox.next()
        for chunk in reply.render(delta, index):
            yield chunk
        num_open -= delta.finish_reason is not None


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
