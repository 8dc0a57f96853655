"""The server's end of the link: starts an agent process, hands it steps, notices when it dies."""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from llmbench.errors import AgentDied, InputError, LlmbenchError, ServingError
from llmbench.link import frames
from llmbench.link.agent import TOKEN_VARIABLE
from llmbench.link.arena import Arena, Dimensions, Row, StepArrays
from llmbench.link.extras import Extra, Scored

_GOODBYE_S = 2.0  # how long an agent may take to end by itself

FrameT = TypeVar("FrameT", bound=msgspec.Struct)


class Agent:
    """One agent process. `start` and `attach` come first, then any number of steps, one at a time."""

    loaded: frames.Loaded
    arrays: StepArrays

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self.engine_ns = 0
        """Nanoseconds that the engine spent in all steps so far."""

    @classmethod
    async def start(cls, load: frames.Load, host: str = "127.0.0.1", port: int = 0) -> "Agent":
        """Start a process and let it load the model. Raises the agent's error, or AgentDied when it ends before."""
        connected: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        token = secrets.token_hex(16)

        async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = await frames.receive(reader)
            if isinstance(hello, frames.Hello) and secrets.compare_digest(hello.token, token):
                await connected.put((reader, writer))
            else:
                writer.close()

        try:
            listener = await asyncio.start_server(on_connection, host, port)
        except OSError as error:
            raise InputError(f"cannot listen for the agent on {host}:{port} ({error.strerror})") from error
        async with listener:
            at = listener.sockets[0].getsockname()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "llmbench.link.agent", at[0], str(at[1])),
                env={**os.environ, TOKEN_VARIABLE: token},
                stdin=asyncio.subprocess.DEVNULL,
            )
            try:
                agent = cls(process, *await _first(connected, process))
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

    async def attach(self, size: Dimensions) -> None:
        """Share an arena of these dimensions; its name is gone again when this returns."""
        try:
            arena = Arena.create(size)
        except OSError as error:
            raise ServingError(f"no room for the shared memory of the agent link ({error.strerror})") from error
        try:
            message = frames.Attach(path=str(arena.path), **msgspec.structs.asdict(size))
            await self._ask(message, frames.Ok)
        finally:
            arena.unlink()
        self.arrays = arena.arrays

    def begin(
        self,
        rows: Sequence[Row],
        steps: Sequence[int],
        admitted: list[frames.Admitted],
        extras: list[Extra],
    ) -> None:
        """Hand over a step; the agent computes while the caller does other things."""
        num_tokens = self.arrays.write(rows, steps)
        self._send(frames.Step(num_sequences=len(rows), num_tokens=num_tokens, admitted=admitted, extras=extras))

    async def finish(self, num_sequences: int) -> tuple[list[int], list[float], list[Scored]]:
        """Wait for the step: token ids (-1 where none was wanted), raw logits, and what the extras asked for.

        Raises AgentDied when the process ends, ServingError when the engine could not do the step.
        """
        done = await self._answer(frames.Done)
        self.engine_ns += done.engine_ns
        return *self.arrays.result(num_sequences), done.scored

    async def close(self) -> None:
        """Let the agent end; kill it when it does not."""
        with contextlib.suppress(OSError, AgentDied):
            self._send(frames.Stop())
        self._writer.close()
        await _end(self._process, patience_s=_GOODBYE_S)

    async def _ask(self, message: frames.Frame, kind: type[FrameT]) -> FrameT:
        self._send(message)
        return await self._answer(kind)

    def _send(self, message: frames.Frame) -> None:
        if self._writer.is_closing():
            raise AgentDied(f"the agent process {self.pid} has gone")
        self._writer.write(frames.encode(message))

    async def _answer(self, kind: type[FrameT]) -> FrameT:
        answer = await frames.receive(self._reader)
        if isinstance(answer, frames.Refused):
            error: type[LlmbenchError] = InputError if answer.exit_code == InputError.exit_code else ServingError
            raise error(answer.message)
        if not isinstance(answer, kind):
            raise AgentDied(f"the agent answered {type(answer).__name__} where {kind.__name__} was due")
        return answer


async def _first(
    connected: "asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]", process: asyncio.subprocess.Process
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The agent's connection, unless its process ends first."""
    connection = asyncio.ensure_future(connected.get())
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait((connection, ended), return_when=asyncio.FIRST_COMPLETED)
        if connection.done():
            return connection.result()
        raise AgentDied(f"the agent process ended while starting, exit status {process.returncode}; see its output")
    finally:
        connection.cancel()
        ended.cancel()


async def _end(process: asyncio.subprocess.Process, patience_s: float = 0.0) -> None:
    """Wait for a process to end, kill it when it takes too long."""
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except asyncio.TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
