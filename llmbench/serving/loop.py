"""The step loop: plan, let the agent compute, meanwhile hand out the tokens of the step before, commit."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from llmbench.errors import AgentDied, LlmbenchError
from llmbench.link.arena import Row, StepArrays
from llmbench.link.frames import Admitted
from llmbench.link.remote import Agent
from llmbench.serving.frontend import Frontend
from llmbench.serving.scheduler import Emission, Plan, Scheduler
from llmbench.serving.sequence import Sequence

_log = logging.getLogger(__name__)

_HEAD = 20  # ids of a prompt that the names of captured rows are made from
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 10.0


class StepLoop:
    """Drives one agent, and starts it again when it dies."""

    def __init__(
        self,
        scheduler: Scheduler,
        frontend: Frontend,
        agent: Agent,
        start_agent: Callable[[], Awaitable[Agent]],
        wake: asyncio.Event,
    ) -> None:
        self._scheduler = scheduler
        self._frontend = frontend
        self._start_agent = start_agent
        self._wake = wake
        self.agent = agent
        self.ready = True
        self.num_restarts = 0

    async def run(self) -> None:
        """Until cancelled."""
        emissions: list[Emission] = []
        while True:
            plan = self._scheduler.plan()
            if plan is None:
                self._frontend.deliver(emissions)
                emissions = []
                self._wake.clear()
                if not self._scheduler.waiting:
                    await self._wake.wait()
                continue
            try:
                write_step(self.agent, plan)
                self._frontend.deliver(emissions)  # overlaps the agent's step
                emissions = []
                result = await self.agent.finish(len(plan.works))
            except AgentDied as error:
                self._frontend.deliver(emissions)
                emissions = []
                await self._recover(error)
            except LlmbenchError as error:  # the engine could not do this step; the agent lives
                _log.error("step failed: %s", error)
                self._frontend.fail(self._scheduler.fail_running(), AgentDied(str(error)))
            else:
                emissions = self._scheduler.commit(plan, *result)

    async def close(self) -> None:
        """End the agent."""
        await self.agent.close()

    async def _recover(self, error: AgentDied) -> None:
        """What ran is lost and told so at once; what waits is kept for the next agent."""
        self.ready = False
        lost = self._scheduler.fail_running()
        _log.error("%s; %d requests in flight are lost, starting another agent", error, len(lost))
        self._frontend.fail(lost, error)
        await self.agent.close()
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                self.agent = await self._start_agent()
                break
            except LlmbenchError as again:
                _log.error("the agent does not start: %s; next try in %.1f s", again, retry_s)
                self._frontend.fail_all(AgentDied(f"the agent does not start: {again}"))
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
        self.num_restarts += 1
        self.ready = True
        _log.warning("agent %d is ready", self.agent.pid)


def write_step(agent: Agent, plan: Plan) -> None:
    """Write a plan into the arena and set the agent off."""
    place(agent.arrays, plan)
    rows, steps = step_rows(plan)
    agent.begin(rows, steps, [_admitted(sequence) for sequence in plan.admitted])


def place(arrays: StepArrays, plan: Plan) -> None:
    """Write what a plan changes for longer than its step: new sequences, new blocks."""
    for sequence in plan.admitted:
        arrays.admit(sequence.slot, sequence.sampling, sequence.seed)
    for growth in plan.grown:
        arrays.set_blocks(growth.slot, growth.first, growth.blocks)


def step_rows(plan: Plan) -> tuple[list[Row], list[int]]:
    """A plan as the arena takes it: a row for each sequence, and how many tokens it has got so far."""
    rows = []
    for work in plan.works:
        sequence, num_tokens = work
        end = sequence.num_cached + num_tokens
        rows.append(Row(sequence.slot, sequence.tokens(sequence.num_cached, end), end, work.wants_token))
    return rows, [len(work.sequence.output_ids) for work in plan.works]


def _admitted(sequence: Sequence) -> Admitted:
    return Admitted(
        slot=sequence.slot,
        request_id=sequence.request_id,
        arrival_s=sequence.arrival_s,
        prompt_len=len(sequence.prompt_ids),
        head=sequence.prompt_ids[:_HEAD],
    )


async def cancelled(task: "asyncio.Task[None]") -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
