"""The step loop: plan, let the agent compute, meanwhile hand out the tokens of the step before, commit."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from llmbench import clock
from llmbench.errors import AgentDied, LlmbenchError
from llmbench.link.arena import Row, StepArrays
from llmbench.link.extras import Extra, Penalties, PromptTargets, Scored
from llmbench.link.frames import Admitted
from llmbench.link.ranks import AgentGroup
from llmbench.link.remote import Agent
from llmbench.serving.frontend import Frontend
from llmbench.serving.observe import Observer
from llmbench.serving.scheduler import Emission, Plan, Scheduler, Work
from llmbench.serving.sequence import Sequence
from llmbench.serving.stubs import LinkStub

_log = logging.getLogger(__name__)

AnyAgent = Agent | AgentGroup | LinkStub
_FIRST_RETRY_S, _LAST_RETRY_S = 0.1, 10.0


class StepLoop:
    """Drives one agent, and starts it again when it dies."""

    def __init__(
        self,
        scheduler: Scheduler,
        frontend: Frontend,
        agent: AnyAgent,
        start_agent: Callable[[], Awaitable[AnyAgent]],
        wake: asyncio.Event,
        observer: Observer,
    ) -> None:
        self._scheduler = scheduler
        self._frontend = frontend
        self._start_agent = start_agent
        self._wake = wake
        self._observer = observer
        self.agent = agent
        self.agent.watch(wake.set)
        self.ready = True

    async def run(self) -> None:
        """Until cancelled."""
        emissions: list[Emission] = []
        last_ns: int | None = None  # when the step before gave its tokens
        while True:
            if (died := self.agent.died) is not None:  # between two steps: nobody who waits is lost
                self._frontend.deliver(emissions)
                emissions = []
                await self._recover(died)
            start_ns = clock.now_ns()
            plan = self._scheduler.plan()
            if plan is None:
                self._frontend.deliver(emissions)
                emissions, last_ns = [], None
                self._wake.clear()
                if not self._scheduler.waiting and self.agent.died is None:
                    await self._wake.wait()
                continue
            try:
                planned_ns = clock.now_ns()
                write_step(self.agent, plan)
                written_ns = clock.now_ns()
                self._frontend.admitted(plan.admitted)
                self._frontend.deliver(emissions)  # overlaps the agent's step
                emissions = []
                delivered_ns = clock.now_ns()
                token_ids, logits, scored = await self.agent.finish(len(plan.works))
            except AgentDied as error:
                self._frontend.deliver(emissions)
                emissions = []
                await self._recover(error)
            except LlmbenchError as error:  # the engine could not do this step; the agent lives
                _log.error("step failed: %s", error)
                self._frontend.fail(self._scheduler.fail_running(), AgentDied(str(error)))
            else:
                finished_ns = clock.now_ns()
                take_scores(plan, scored)
                emissions = self._scheduler.commit(plan, token_ids, logits)
                last_ns = self._observe(emissions, last_ns)
                stages = self._observer.stages_ns
                stages["schedule"] += planned_ns - start_ns + last_ns - finished_ns
                stages["link write"] += written_ns - planned_ns
                stages["detokenise"] += delivered_ns - written_ns
                stages["step"] += finished_ns - written_ns

    def _observe(self, emissions: list[Emission], last_ns: int | None) -> int:
        """Count the gaps between tokens; gives the instant of these ones."""
        now_ns = clock.now_ns()
        if last_ns is not None:
            num_decoded = sum(len(emission.sequence.output_ids) > 1 for emission in emissions)
            self._observer.step(num_decoded, clock.seconds(last_ns, now_ns))
        observer = self._observer
        observer.num_preemptions = self._scheduler.num_preemptions
        observer.num_steps += 1
        observer.stages_ns["agent"], observer.stages_ns["engine"] = self.agent.agent_ns, self.agent.engine_ns
        return now_ns

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
                self.agent.watch(self._wake.set)
                break
            except LlmbenchError as again:
                _log.error("the agent does not start: %s; next try in %.1f s", again, retry_s)
                self._frontend.fail_all(AgentDied(f"the agent does not start: {again}"))
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
        self.ready = True
        _log.warning("agent %s is ready", ", ".join(map(str, self.agent.pids)))


def write_step(agent: AnyAgent, plan: Plan) -> None:
    """Write a plan into the arena and set the agent off."""
    place(agent.arrays, plan)
    rows, steps = step_rows(plan)
    agent.begin(rows, steps, [_admitted(sequence) for sequence in plan.admitted], step_extras(plan))


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


def step_extras(plan: Plan) -> list[Extra]:
    """What the sequences of a plan ask for besides their next token; mostly nothing."""
    return [
        _extra(row, work)
        for row, work in enumerate(plan.works)
        if not work.sequence.plain  # penalties, bans or scores: few are, so that this costs next to nothing
    ]


def _extra(row: int, work: Work) -> Extra:
    sequence, num_tokens = work
    sampling = sequence.sampling
    targets: list[int] = []
    if sampling.prompt_logprobs is not None and not sequence.output_ids:
        # the row of each new token scores the token behind it; behind the prompt's last one comes the answer
        targets = sequence.prompt_ids[sequence.num_cached + 1 : sequence.num_cached + num_tokens + 1]
    ends = sequence.eos_ids | set(sampling.stop_token_ids)
    return Extra(
        row=row,
        penalties=_penalties(sequence) if sampling.penalised else None,
        banned=sorted(ends) if len(sequence.output_ids) < sampling.min_new_tokens else [],
        num_logprobs=sampling.num_logprobs,
        prompt=PromptTargets(token_ids=targets, num_top=sampling.prompt_logprobs or 0) if targets else None,
    )


def _penalties(sequence: Sequence) -> Penalties:
    sampling = sequence.sampling
    return Penalties(
        repetition=sampling.repetition_penalty,
        presence=sampling.presence_penalty,
        frequency=sampling.frequency_penalty,
        history=sequence.tokens(),
        prompt_len=len(sequence.prompt_ids),
    )


def take_scores(plan: Plan, scored: list[Scored]) -> None:
    """Keep the scores with their sequences until the frontend hands them out."""
    for scores in scored:
        sequence = plan.works[scores.row].sequence
        sequence.prompt_scores += scores.prompt
        if scores.logprob is not None:
            sequence.scores.append((scores.logprob, scores.top))


def _admitted(sequence: Sequence) -> Admitted:
    return Admitted(
        slot=sequence.slot,
        request_id=sequence.request_id,
        arrival_s=sequence.arrival_s,
        prompt_ids=sequence.prompt_ids,
    )


async def cancelled(task: "asyncio.Task[None]") -> None:
    """Cancel a task and wait until it has ended."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
