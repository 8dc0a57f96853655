"""A TLS front and an HTTP proxy on real sockets, each in a thread of its own, in front of any server."""

import asyncio
import contextlib
import re
import ssl
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Certificate:
    """A self-signed certificate."""

    def __init__(self, folder: Path, names: str = "DNS:localhost,IP:127.0.0.1") -> None:
        self.path = folder / "certificate.pem"
        self.key = folder / "key.pem"
        what = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=localhost"]
        where = ["-addext", f"subjectAltName={names}", "-days", "2", "-keyout", str(self.key), "-out", str(self.path)]
        subprocess.run(["openssl", "req", "-x509", *what, *where], check=True, capture_output=True)

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context


class Threaded:
    """An asyncio server in a thread; `close` ends it."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self._handler = handler
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._stopped.wait()
        server.close()
        # a task that was never begun cannot close its socket, nor a handshake that was just broken off
        await asyncio.sleep(0.05)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)  # sockets are closed in a later turn of the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


def tls_front(certificate: Certificate, port: int) -> Threaded:
    """Takes TLS connections and passes them on to a port of this machine."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(65536)
        if first:  # else it was a probe
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            far_writer.write(first)
            await _joined(reader, writer, far_reader, far_writer)

    return Threaded(handle, certificate.context())


class Proxy:
    """An HTTP proxy: CONNECT, and requests with a whole URL; `asked` are the first lines that it got."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heads: list[str] = []
        self._server = Threaded(self._handle)
        self.url = f"http://127.0.0.1:{self._server.port}"

    def close(self) -> None:
        self._server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.heads.append(head)
        self.asked.append(head.split("\r\n")[0])
        method, where = self.asked[-1].split(" ")[:2]
        found = re.match(r"(?:http://)?([^:/]+):(\d+)(.*)", where)
        assert found
        far_reader, far_writer = await asyncio.open_connection(found[1], int(found[2]))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:  # one request for each connection is enough here
            rest = head.split("\r\n", 1)[1]
            far_writer.write(f"{method} {found[3]} HTTP/1.1\r\n{rest}".encode("latin-1"))
        await _joined(reader, writer, far_reader, far_writer)


async def _joined(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    far_reader: asyncio.StreamReader,
    far_writer: asyncio.StreamWriter,
) -> None:
    """Pass bytes on in both directions until one side ends."""
    both = [asyncio.create_task(_pass(reader, far_writer)), asyncio.create_task(_pass(far_reader, writer))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        far_writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(NotImplementedError):
            writer.write_eof()
