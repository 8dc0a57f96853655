"""The server's end of the link: starts an agent process, hands it steps, notices when it dies."""

import asyncio
import contextlib
import os
import secrets
import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import msgspec

from llmbench.errors import AgentDied, InputError, LlmbenchError, ServingError
from llmbench.link import frames
from llmbench.link.agent import TOKEN_VARIABLE
from llmbench.link.arena import Arena, Dimensions, Row, StepArrays
from llmbench.link.extras import Extra, Scored

_GOODBYE_S = 2.0  # how long an agent may take to end by itself

FrameT = TypeVar("FrameT", bound=msgspec.Struct)


class _Connection(asyncio.Protocol):
    """The server's end of one connection: frames out, and in their order frames in, or the error that ended it.

    A protocol rather than a stream: a frame reaches who waits for it one turn of the event loop earlier.
    """

    _transport: asyncio.Transport

    def __init__(self, greeted: "Callable[[_Connection, frames.Frame], None]") -> None:
        self._greeted: Callable[[_Connection, frames.Frame], None] | None = greeted
        self._assembler = frames.Assembler()
        self._arrived: deque[frames.Frame] = deque()
        self._waiting: asyncio.Future[frames.Frame] | None = None
        self.error: AgentDied | None = None
        self.ended: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._assembler.feed(data):
                self._arrive(frame)
        except AgentDied as error:
            self._end(error)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(AgentDied("the agent process has gone"))

    def send(self, frame: frames.Frame) -> None:
        """Send a frame. Raises the error that ended the connection."""
        if self.error is not None:
            raise self.error
        self._transport.write(frames.encode(frame))

    async def receive(self) -> frames.Frame:
        """The next frame. Raises the error that ended the connection."""
        if self._arrived:
            return self._arrived.popleft()
        if self.error is not None:
            raise self.error
        self._waiting = asyncio.get_running_loop().create_future()
        return await self._waiting

    def close(self) -> None:
        self._transport.close()

    def _arrive(self, frame: frames.Frame) -> None:
        if self._greeted is not None:
            greeted, self._greeted = self._greeted, None
            greeted(self, frame)
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(frame)
        else:
            self._arrived.append(frame)

    def _end(self, error: AgentDied) -> None:
        self.error = self.error or error
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(self.error)
        self.ended()


class Agent:
    """One agent process. `start` and `attach` come first, then any number of steps, one at a time."""

    loaded: frames.Loaded
    arrays: StepArrays

    def __init__(self, process: asyncio.subprocess.Process, connection: _Connection) -> None:
        self._process = process
        self._connection = connection
        self.engine_ns = 0
        """Nanoseconds that the engine spent in all steps so far."""
        self.agent_ns = 0
        """Nanoseconds that the agent spent in all steps so far, the engine's among them."""

    @classmethod
    async def start(cls, load: frames.Load, host: str = "127.0.0.1", port: int = 0) -> "Agent":
        """Start a process and let it load the model. Raises the agent's error, or AgentDied when it ends before."""
        connected: asyncio.Future[_Connection] = asyncio.get_running_loop().create_future()
        token = secrets.token_hex(16)

        def greeted(connection: _Connection, hello: frames.Frame) -> None:
            known = isinstance(hello, frames.Hello) and secrets.compare_digest(hello.token.encode(), token.encode())
            if known and not connected.done():
                connected.set_result(connection)
            else:
                connection.close()

        try:
            listener = await asyncio.get_running_loop().create_server(lambda: _Connection(greeted), host, port)
        except OSError as error:
            raise InputError(f"cannot listen for the agent on {host}:{port} ({error.strerror})") from error
        async with listener:
            at = listener.sockets[0].getsockname()
            try:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "llmbench.link.agent", at[0], str(at[1])),
                    env={**os.environ, TOKEN_VARIABLE: token},
                    stdin=asyncio.subprocess.DEVNULL,
                )
            except OSError as error:
                raise ServingError(f"cannot start the agent process ({error.strerror})") from error
            try:
                agent = cls(process, await _first(connected, process))
            except BaseException:
                await _end(process)
                raise
        try:
            agent.loaded = await agent._ask(load, frames.Loaded)
        except BaseException:
            await agent.close()
            raise
        return agent

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """Of all ranks: there is one."""
        return (self.pid,)

    @property
    def died(self) -> AgentDied | None:
        """Why the process can do no more steps; None while it lives."""
        return self._connection.error

    def watch(self, ended: Callable[[], None]) -> None:
        """Call this when the process ends, also when no step is under way."""
        self._connection.ended = ended

    async def attach(self, size: Dimensions) -> None:
        """Share an arena of these dimensions; its name is gone again when this returns."""
        arena = new_arena(size)
        try:
            await self.share(arena)
        finally:
            arena.unlink()
        self.arrays = arena.arrays

    async def share(self, arena: Arena) -> None:
        """Let the agent map an arena that may be others' too."""
        await self._ask(frames.Attach(path=str(arena.path), **msgspec.structs.asdict(arena.arrays.size)), frames.Ok)

    def begin(
        self,
        rows: Sequence[Row],
        steps: Sequence[int],
        admitted: list[frames.Admitted],
        extras: list[Extra],
    ) -> None:
        """Hand over a step; the agent computes while the caller does other things."""
        num_tokens = self.arrays.write(rows, steps)
        self._connection.send(
            frames.Step(num_sequences=len(rows), num_tokens=num_tokens, admitted=admitted, extras=extras)
        )

    async def finish(self, num_sequences: int) -> tuple[list[int], list[float], list[Scored]]:
        """Wait for the step: token ids (-1 where none was wanted), raw logits, and what the extras asked for.

        Raises AgentDied when the process ends, ServingError when the engine could not do the step.
        """
        done = await self._answer(frames.Done)
        self.engine_ns += done.engine_ns
        self.agent_ns += done.agent_ns
        return *self.arrays.result(num_sequences), done.scored

    def send(self, step: frames.Step) -> None:
        """Set the agent off on a step that lies in an arena already."""
        self._connection.send(step)

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Let the agent end; kill it when it does not."""
        with contextlib.suppress(AgentDied):
            self._connection.send(frames.Stop())
        self._connection.close()
        await _end(self._process, patience_s=_GOODBYE_S)

    async def _ask(self, message: frames.Frame, kind: type[FrameT]) -> FrameT:
        self._connection.send(message)
        return await self._answer(kind)

    async def _answer(self, kind: type[FrameT]) -> FrameT:
        answer = await self._connection.receive()
        if isinstance(answer, frames.Refused):
            error: type[LlmbenchError] = InputError if answer.exit_code == InputError.exit_code else ServingError
            raise error(answer.message)
        if not isinstance(answer, kind):
            raise AgentDied(f"the agent answered {type(answer).__name__} where {kind.__name__} was due")
        return answer


def new_arena(size: Dimensions) -> Arena:
    """An arena to share. Raises ServingError when there is no room for it."""
    try:
        return Arena.create(size)
    except OSError as error:
        raise ServingError(f"no room for the shared memory of the agent link ({error.strerror})") from error


async def _first(connected: "asyncio.Future[_Connection]", process: asyncio.subprocess.Process) -> _Connection:
    """The agent's connection, unless its process ends first."""
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait((connected, ended), return_when=asyncio.FIRST_COMPLETED)
        if connected.done():
            return connected.result()
        raise AgentDied(f"the agent process ended while starting, exit status {process.returncode}; see its output")
    finally:
        connected.cancel()
        ended.cancel()


async def _end(process: asyncio.subprocess.Process, patience_s: float = 0.0) -> None:
    """Wait for a process to end, kill it when it takes too long or nobody wants to wait any longer."""
    try:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), patience_s)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
