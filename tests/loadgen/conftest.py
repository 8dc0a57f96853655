"""A server on a real socket that plays scripts: any bytes in any cut, resets, closes and stalls."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto

import pytest


class Do(Enum):
    """What a script may do besides sending bytes."""

    STALL = auto()  # send nothing more until the server is stopped
    CLOSE = auto()
    RESET = auto()


Step = bytes | float | Do  # a float waits that many seconds
Script = Callable[[int, bytes], list[Step]]  # from the number of the request (0 first) and its body

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def token_event(text: str, token_id: int = 5) -> bytes:
    """One line of the contest's stream."""
    token = {"id": token_id, "logprob": 17.25, "special": text == "", "text": text}
    inner = {"details": None, "generated_text": text, "tokens": token, "top_tokens": [token]}
    return json.dumps({"event": "message", "retry": 30000, "data": [inner]}).encode() + b"\n"


def last_event(text: str, num_tokens: int, reason: str = "length") -> bytes:
    """The line that ends it."""
    inner = {"generated_text": text, "finish_reason": reason, "generated_tokens": num_tokens}
    return json.dumps({"event": "message", "retry": 30000, "data": [inner]}).encode() + b"\n"


def answer(texts: list[str], reason: str = "length") -> list[Step]:
    """A whole good answer, one write for each event."""
    events = [token_event(text) for text in texts] + [last_event("".join(texts), len(texts), reason)]
    return [STREAM_HEAD, *(chunk(event) for event in events), LAST_CHUNK]


class ToyServer:
    """Runs in a thread of its own. `bodies` are the requests' bodies as they came."""

    def __init__(self, script: Script) -> None:
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.num_connections = 0
        self.most_at_once = 0
        self._at_once = 0
        self._script = script
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._stopped = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        self._ready.wait(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        self._ready.set()
        await self._stopped.wait()
        for listening in server.sockets:
            self._loop.remove_reader(listening.fileno())
        await _turns()  # who was accepted when its server is closed, or cancelled before it began, leaves a socket open
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await _turns()  # sockets are closed in a later turn of the loop

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        asked = False
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET "):  # for counters, which it does not have
                    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    return
                self.num_connections += not asked  # one that asks nothing is a probe
                asked = True
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(length)
                self.heads.append(head)
                self.bodies.append(body)
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                try:
                    going_on = await self._play(self._script(len(self.bodies) - 1, body), writer)
                finally:
                    self._at_once -= 1
                if not going_on:
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            writer.transport.abort() if self._stopped.is_set() else writer.close()
            self._writers.discard(writer)

    async def _play(self, steps: list[Step], writer: asyncio.StreamWriter) -> bool:
        """Do what the script says; whether the connection stays."""
        for step in steps:
            if isinstance(step, bytes):
                writer.write(step)
                await writer.drain()
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif step is Do.STALL:
                await self._stopped.wait()
            else:
                if step is Do.RESET:
                    writer.transport.abort()
                return False
        return True


async def _turns(number: int = 50) -> None:
    """Let the loop go round, so that what was begun comes to where it waits for others."""
    for _ in range(number):
        await asyncio.sleep(0)


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ToyServer]]:
    """Start servers with `serve(script)`; they are stopped after the test."""
    servers: list[ToyServer] = []

    def start(script: Script) -> ToyServer:
        servers.append(ToyServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
