"""Several agents that hold one model together; to the step loop they are one agent that fails as a whole."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence

import msgspec

from llmbench.engines import Capacity
from llmbench.errors import AgentDied, LlmbenchError, ServingError
from llmbench.link import collective, frames
from llmbench.link.arena import Dimensions, Row, StepArrays
from llmbench.link.extras import Extra, Scored
from llmbench.link.remote import Agent, new_arena


class AgentGroup:
    """One agent for each rank, all with the same arena. Rank 0 answers the steps; when one ends, all are ended."""

    arrays: StepArrays

    def __init__(self, agents: Sequence[Agent]) -> None:
        self._agents = agents
        self._first = agents[0]
        self._ended: Callable[[], None] = lambda: None
        self.died: AgentDied | None = None
        """Why the group can do no more steps; None while all its agents live."""
        self.loaded = msgspec.structs.replace(
            self._first.loaded, capacity=_least(agent.loaded.capacity for agent in agents)
        )
        for rank, agent in enumerate(agents):
            agent.watch(functools.partial(self._break, rank))
            if agent.died is not None:
                self._break(rank)

    @classmethod
    async def start(cls, load: frames.Load, host: str, ports: Sequence[int]) -> "AgentGroup":
        """Start an agent for each port, 0 for a free one, and let them load. Raises what the first to fail raises."""
        num_ranks = len(ports)
        try:
            path = collective.create(num_ranks)
        except OSError as error:
            raise ServingError(f"no room for the shared memory of {num_ranks} ranks ({error.strerror})") from error
        members = [frames.Member(rank=rank, size=num_ranks, path=str(path)) for rank in range(num_ranks)]
        loads = [msgspec.structs.replace(load, member=member) for member in members]
        starts = [asyncio.ensure_future(Agent.start(one, host, port)) for one, port in zip(loads, ports, strict=True)]
        try:
            await asyncio.wait(starts, return_when=asyncio.FIRST_EXCEPTION)
            for start in starts:
                if start.done():
                    start.result()  # raises what went wrong
            return cls([start.result() for start in starts])
        except BaseException:
            await _abandon(starts)
            raise
        finally:
            path.unlink(missing_ok=True)

    @property
    def pids(self) -> tuple[int, ...]:
        """Of all ranks, in their order."""
        return tuple(agent.pid for agent in self._agents)

    @property
    def engine_ns(self) -> int:
        """Nanoseconds that rank 0's engine spent in all steps so far, waiting for the other ranks included."""
        return self._first.engine_ns

    @property
    def agent_ns(self) -> int:
        """Nanoseconds that rank 0's agent spent in all steps so far, the engine's among them."""
        return self._first.agent_ns

    def watch(self, ended: Callable[[], None]) -> None:
        """Call this when a rank ends, also when no step is under way."""
        self._ended = ended

    async def attach(self, size: Dimensions) -> None:
        """Share one arena of these dimensions; its name is gone again when this returns."""
        arena = new_arena(size)
        try:
            for agent in self._agents:
                await agent.share(arena)
        finally:
            arena.unlink()
        self.arrays = self._first.arrays = arena.arrays

    def begin(
        self, rows: Sequence[Row], steps: Sequence[int], admitted: list[frames.Admitted], extras: list[Extra]
    ) -> None:
        """Hand over a step to all ranks. Raises AgentDied when one has ended."""
        if self.died is not None:
            raise self.died
        num_tokens = self.arrays.write(rows, steps)
        step = frames.Step(num_sequences=len(rows), num_tokens=num_tokens, admitted=admitted, extras=extras)
        for agent in self._agents:
            agent.send(step)

    async def finish(self, num_sequences: int) -> tuple[list[int], list[float], list[Scored]]:
        """Wait for rank 0, and so for all: token ids, raw logits and scores, as one agent gives them."""
        try:
            return await self._first.finish(num_sequences)
        except AgentDied as error:
            raise self.died or error from error

    async def close(self) -> None:
        """Let the agents end; kill those that do not."""
        for agent in self._agents:
            agent.watch(lambda: None)  # that they end now is nothing to be told
        await asyncio.gather(*(agent.close() for agent in self._agents))

    def _break(self, rank: int) -> None:
        """A rank has ended: the others wait for it in vain."""
        if self.died is None:
            self.died = AgentDied(f"the agent process of rank {rank} has gone")
            for agent in self._agents:
                agent.kill()
            self._ended()


async def _abandon(starts: Sequence["asyncio.Future[Agent]"]) -> None:
    """End what has started, and what is still starting."""
    for start in starts:
        start.cancel()
    for start in starts:
        with contextlib.suppress(asyncio.CancelledError, LlmbenchError):
            await (await start).close()


def _least(capacities: Iterable[Capacity]) -> Capacity:
    """What every rank can hold: each sized its cache by itself."""
    found = list(capacities)
    return Capacity(
        num_blocks=min(capacity.num_blocks for capacity in found),
        block_size=found[0].block_size,
        max_model_len=min(capacity.max_model_len for capacity in found),
    )
