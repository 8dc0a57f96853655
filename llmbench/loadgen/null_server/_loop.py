"""The null server's one loop: sockets that are ready, and a heap of absolute instants on a kernel timer.

No event loop of a library: those round timers to a millisecond, and uvloop defers writes to the end of its turn, so
that a stamp before the write would not be that of the send.
"""

import os
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from heapq import heappop, heappush
from http import HTTPStatus
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector

from llmbench.clock import now_ns, seconds
from llmbench.errors import LlmbenchError, ServingError
from llmbench.loadgen._pacer import KernelTimer
from llmbench.loadgen.null_server import Settings
from llmbench.loadgen.null_server._answers import STATUS, Answers, Script, filled
from llmbench.loadgen.null_server._counts import Counts, Ending
from llmbench.loadgen.null_server._fate import Fate, fate, refused
from llmbench.protocols import HttpResponse, Status

_BACKLOG = 4096
_READ_BYTES = 1 << 18
_MAX_IN_A_ROW = 32  # then sockets are looked at, so that a flood of tokens does not keep requests waiting
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with time 0: closing sends a reset


class Loop:
    """Accepts, reads, and sends each token at its instant."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self.settings = settings
        self.answers = Answers(settings)
        self.counts = Counts(settings.faults.tenant_rate)
        self.waiting: deque[Stream] = deque()
        self._listener = socket.create_server((host, port), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self._selector = DefaultSelector()
        self._ahead: list[tuple[int, int, Callable[[], None]]] = []
        self._orders = count()
        self._connections = count()
        self._requests = count()
        self._seen: set[str] = set()
        self._first_ns: int | None = None
        self._set_ns = 0
        self._timer = _kernel_timer()
        self._selector.register(self._listener, EVENT_READ, self._accept)
        if self._timer is not None:
            self._selector.register(self._timer.fd, EVENT_READ, self._rang)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Serve until an exception, such as that of a signal, ends it."""
        while True:
            timeout_s = self._fire()
            for key, mask in self._selector.select(timeout_s):
                key.data(mask)

    def at(self, instant_ns: int, action: Callable[[], None]) -> None:
        """Do something at or after an instant."""
        heappush(self._ahead, (instant_ns, next(self._orders), action))

    def end_with(self, pipe: int) -> None:
        """End when this pipe is closed at the other end."""
        self._selector.register(pipe, EVENT_READ, lambda _: None if os.read(pipe, 4096) else sys.exit(0))

    def listen(self, connection: "Connection", *, also_writable: bool) -> None:
        """Watch a connection, first or anew."""
        mask = EVENT_READ | EVENT_WRITE if also_writable else EVENT_READ
        if connection.watched:
            self._selector.modify(connection.socket, mask, connection.ready)
        else:
            self._selector.register(connection.socket, mask, connection.ready)
            connection.watched = True

    def forget(self, connection: "Connection") -> None:
        """Stop watching a connection."""
        self._selector.unregister(connection.socket)

    def freeze(self, stream: "Stream", instant_ns: int) -> int:
        """An instant of a stream, moved when the whole server stands still then."""
        faults = self.settings.faults
        if faults.stall_at_s < 0 or self._first_ns is None:
            return instant_ns
        from_ns = self._first_ns + round(faults.stall_at_s * 1e9)
        return instant_ns + round(faults.stall_s * 1e9) if stream.due_ns < from_ns <= instant_ns else instant_ns

    def asked(self, connection: "Connection", received_ns: int, path: str, body: bytes) -> None:
        """A generation request has come."""
        self._first_ns = received_ns if self._first_ns is None else self._first_ns
        asked = self.answers.read(path, body)
        if asked is None:
            connection.answer(HttpResponse(status=404, body=b'{"error":"no such route"}'))
            return
        number = next(self._requests)
        prompt = repr(asked.prompt)
        what = fate(self.settings, number, prompt in self._seen)
        self._seen.add(prompt)
        if what.dropped:
            connection.close()
            return
        self.answers.wall.now_s = connection.clock_shift_s = what.clock_shift_s
        self.answers.wall.now_s += time.time()
        try:
            script = self.answers.script(asked, what)
            if what.error_status is not None:
                raise _Planted(what.error_status)
        except _Planted as error:
            response = self.answers.refusal(asked, error)
            connection.answer(HttpResponse(status=error.http_status, body=response.body, headers=response.headers))
            return
        except LlmbenchError as error:
            connection.answer(self.answers.refusal(asked, error))
            return
        stream = Stream(self, connection, script, what, received_ns)
        connection.stream = stream
        if self.settings.slots and self.counts.num_running >= self.settings.slots:
            self.waiting.append(stream)
            self.counts.num_waiting += 1
        else:
            stream.begin(received_ns)

    def route(self, connection: "Connection", method: str, path: str, body: bytes) -> None:
        """A request that asks for no tokens."""
        if path == "/metrics":
            kind = (("Content-Type", "text/plain; version=0.0.4; charset=utf-8"),)
            connection.answer(HttpResponse(status=200, body=self.counts.text().encode(), headers=kind))
            return
        for dialect in self.answers.dialects:
            if (method, path) in dialect.others:
                connection.answer(dialect.answer(method, path, body, _Host()))
                return
        known = path in ("/", "/health")
        connection.answer(HttpResponse(status=200 if known else 404, body=b"{}"))

    def slot_freed(self) -> None:
        """Begin with whoever has waited longest."""
        while self.waiting and (not self.settings.slots or self.counts.num_running < self.settings.slots):
            self.counts.num_waiting -= 1
            self.waiting.popleft().begin(now_ns())

    def _accept(self, _: int) -> None:
        while True:
            try:
                accepted, _address = self._listener.accept()
            except BlockingIOError:
                return
            if refused(self.settings, next(self._connections)):
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                accepted.close()
                continue
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.listen(Connection(self, accepted), also_writable=False)

    def _fire(self) -> float | None:
        """Do what is due; how long may be waited for sockets, None for as long as the kernel timer lets."""
        ahead = self._ahead
        for _ in range(_MAX_IN_A_ROW):
            if not ahead:
                return None
            if ahead[0][0] > now_ns():
                return self._sleep(ahead[0][0])
            heappop(ahead)[2]()
        return 0.0 if ahead else None

    def _sleep(self, until_ns: int) -> float | None:
        if self._timer is None:
            return max(0.0, seconds(now_ns(), until_ns))
        if until_ns != self._set_ns:
            self._set_ns = until_ns
            self._timer.set(until_ns)
        return None

    def _rang(self, _: int) -> None:
        assert self._timer is not None
        self._timer.rang()
        self._set_ns = 0


class Connection:
    """One client's connection; it asks one thing after another."""

    def __init__(self, loop: Loop, accepted: socket.socket) -> None:
        self.socket = accepted
        self.watched = False
        self.stream: Stream | None = None
        self.clock_shift_s = 0.0
        self._loop = loop
        self._asked = b""
        self._unsent = b""
        self._closing = False

    def ready(self, mask: int) -> None:
        """The socket can be read or written."""
        if mask & EVENT_WRITE:
            self._flush()
        if mask & EVENT_READ:
            self._read()

    def send(self, data: bytes) -> None:
        """Hand bytes to the system now; what it does not take waits."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(data):
            self._unsent = data[sent:]
            self._loop.listen(self, also_writable=True)

    def answer(self, response: HttpResponse) -> None:
        """Send a whole response."""
        headers = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
        head = f"{self.first_lines(response.status)}{headers}Content-Length: {len(response.body)}\r\n\r\n"
        self.send(head.encode() + response.body)
        self.answered()

    def answered(self) -> None:
        """The response is whole."""
        self.stream = None
        if self._closing and not self._unsent:
            self.close()

    def first_lines(self, status: int) -> str:
        """The status line and the date, by the clock that the server says it has."""
        date = formatdate(time.time() + self.clock_shift_s, usegmt=True)
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nDate: {date}\r\n"

    def close(self, *, reset: bool = False) -> None:
        """Close; a stream under way ends."""
        if self.socket.fileno() < 0:
            return
        self._loop.forget(self)
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.socket.close()
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.lost()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, b""
        self.send(unsent)
        if not self._unsent and self.socket.fileno() >= 0:
            self._loop.listen(self, also_writable=False)
            if self._closing and self.stream is None:
                self.close()

    def _read(self) -> None:
        try:
            data = self.socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        received_ns = now_ns()
        if not data:
            self.close()
            return
        self._asked += data
        end = self._asked.find(b"\r\n\r\n")
        if end < 0 or self.stream is not None:
            return
        method, path, length = self._head(self._asked[:end])
        if len(self._asked) < end + 4 + length:
            return
        body, self._asked = self._asked[end + 4 : end + 4 + length], self._asked[end + 4 + length :]
        if method == "POST":
            self._loop.asked(self, received_ns, path, body)
        else:
            self._loop.route(self, method, path, body)

    def _head(self, head: bytes) -> tuple[str, str, int]:
        """Method, path and length of the body."""
        first, _, rest = head.partition(b"\r\n")
        method, path, version = [*first.decode("latin-1").split(), "", "", ""][:3]
        rest = rest.lower()
        self._closing = b"connection: close" in rest or version == "HTTP/1.0"
        if b"expect: 100-continue" in rest:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        _, _, length = rest.partition(b"content-length:")
        return method, path.partition("?")[0], int(length.partition(b"\r\n")[0] or 0)


class Stream:
    """One answer under way."""

    def __init__(self, loop: Loop, connection: Connection, script: Script, what: Fate, received_ns: int) -> None:
        self.due_ns = received_ns
        self._loop = loop
        self._counts = loop.counts
        self._settings = loop.settings
        self._connection = connection
        self._script = script
        self._fate = what
        self._received_ns = received_ns
        self._received = b"%019d" % received_ns
        self._stamps: list[bytes] = []
        self._head = b""
        self._running = False
        self._over = False
        self._way = _way(loop, connection, received_ns)

    def begin(self, now_ns: int) -> None:
        """Take a slot; the first token is due."""
        self._running = True
        self._counts.num_running += 1
        self._counts.queue.observe(seconds(self._received_ns, now_ns))
        first = self._script.tokens[0]
        wait_s = self._settings.ttft_s + self._settings.prompt_token_s * self._script.num_prompt_tokens
        wait_s = (wait_s + (first - 1) * self._gap_s()) * self._fate.slowness
        self._head = self._connection.first_lines(200).encode() + self._script.head
        self.due_ns = now_ns
        self._next(now_ns + round(wait_s * 1e9), 0)

    def lost(self) -> None:
        """The client has gone, or was sent away."""
        if not self._over:
            self._end("abort")

    def _gap_s(self) -> float:
        return self._settings.gap_s * (1 + self._settings.crowding * (self._counts.num_running - 1))

    def _next(self, due_ns: int, num_sent: int) -> None:
        """Set out the next event, or what happens instead."""
        due_ns = self._loop.freeze(self, due_ns)
        what, event = self._fate, len(self._stamps)
        before = self._script.tokens[event - 1] if event else 0
        if what.stall_after is not None and before <= what.stall_after < self._script.tokens[event]:
            due_ns += round(self._settings.faults.stall_s * 1e9)
        self.due_ns = due_ns
        if what.hang_after is not None and num_sent >= what.hang_after:
            return
        self._loop.at(due_ns, self._emit)

    def _emit(self) -> None:
        """Send one event, stamped just before."""
        if self._over:
            return
        script, stamps = self._script, self._stamps
        num_sent = script.tokens[len(stamps) - 1] if stamps else 0
        if self._fate.abort_after is not None and num_sent >= self._fate.abort_after:
            self._connection.close(reset=True)
            return
        event = script.events[len(stamps)]
        head, self._head = self._head, b""
        emitted_ns = now_ns()
        stamps.append(b"%019d" % emitted_ns)
        data = filled(event, stamps, self._received)
        if data:
            self._way(head + data if head else data)
        else:
            self._head = head
        self._emitted(emitted_ns, num_sent)

    def _emitted(self, emitted_ns: int, num_before: int) -> None:
        script, counts, number = self._script, self._counts, len(self._stamps)
        num_sent = script.tokens[number - 1]
        counts.num_generated_tokens += num_sent - num_before
        if number == 1:
            counts.num_prompt_tokens += script.num_prompt_tokens
            counts.num_cached_tokens += script.num_prompt_tokens if self._fate.cached else 0
            counts.ttft.observe(seconds(self._received_ns, emitted_ns))
        if self._over:  # the client had gone when it was sent
            return
        if number < len(script.events):
            step = script.tokens[number] - num_sent
            self._next(self.due_ns + round(step * self._gap_s() * self._fate.slowness * 1e9), num_sent)
            return
        counts.e2e.observe(seconds(self._received_ns, emitted_ns))
        self._end("length" if script.finish_reason == "length" else "stop")
        self._connection.answered()

    def _end(self, reason: Ending) -> None:
        self._over = True
        if self._running:
            self._counts.ended[reason] += 1
            self._counts.num_running -= 1
            self._loop.slot_freed()
        elif self in self._loop.waiting:
            self._loop.waiting.remove(self)
            self._counts.num_waiting -= 1


# -- faulty ways from the server to the client -------------------------------------------------------------------------

Way = Callable[[bytes], None]


def _way(loop: Loop, connection: Connection, received_ns: int) -> Way:
    """How the bytes of one answer get to the client."""
    faults = loop.settings.faults
    way: Way = connection.send
    if faults.drip_bytes:
        way = _Drip(loop, way, faults.drip_bytes, faults.drip_gap_s).put
    if faults.flush_s:
        way = _Buffer(loop, way, faults.flush_s, received_ns).put
    return way


class _Buffer:
    """A proxy that writes what has gathered at each tick."""

    def __init__(self, loop: Loop, way: Way, every_s: float, start_ns: int) -> None:
        self._loop = loop
        self._way = way
        self._every_ns = round(every_s * 1e9)
        self._start_ns = start_ns
        self._held = b""

    def put(self, data: bytes) -> None:
        """Hold until the next tick."""
        if not self._held:
            ticks = (now_ns() - self._start_ns) // self._every_ns + 1
            self._loop.at(self._start_ns + ticks * self._every_ns, self._write)
        self._held += data

    def _write(self) -> None:
        held, self._held = self._held, b""
        self._way(held)


class _Drip:
    """A way that takes few bytes at a time."""

    def __init__(self, loop: Loop, way: Way, size: int, gap_s: float) -> None:
        self._loop = loop
        self._way = way
        self._size = size
        self._gap_ns = round(gap_s * 1e9)
        self._held = b""

    def put(self, data: bytes) -> None:
        """Write at once in pieces, or one piece after another."""
        if not self._gap_ns:
            for start in range(0, len(data), self._size):
                self._way(data[start : start + self._size])
            return
        idle = not self._held
        self._held += data
        if idle:
            self._write()

    def _write(self) -> None:
        piece, self._held = self._held[: self._size], self._held[self._size :]
        self._way(piece)
        if self._held:
            self._loop.at(now_ns() + self._gap_ns, self._write)


class _Planted(ServingError):
    """An error that was asked for."""

    def __init__(self, status: int) -> None:
        super().__init__(f"planted fault: status {status}")
        self.http_status = status


class _Host:
    """The server as the management routes see it."""

    def status(self) -> Status:
        return STATUS

    def tokenize(self, text: str) -> list[int]:
        return [5] * len(text.split())

    def detokenize(self, ids: list[int]) -> str:
        return " null" * len(ids)


def _kernel_timer() -> KernelTimer | None:
    try:
        return KernelTimer()
    except (OSError, AttributeError):  # then waits are rounded up to a millisecond
        return None
