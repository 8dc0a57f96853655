"""Which sequences run in the next step, and with how many tokens each; no I/O and no clock.

Policy: first come, first served.
* Every running sequence that waits for its next token gets it in every step, before any prompt.
* What is left of the token budget goes to prompts in the order of arrival, in pieces. While others wait, one prompt
  gets at most half of what is left, so that short prompts behind a long one need not wait until it is through.
* Blocks for a whole prompt are taken when it is admitted. A request whose blocks are not free may be overtaken by
  later ones that fit, at most `max_overtakes` times; then everybody waits for it, so that nobody waits for ever.
* When a running sequence cannot grow, the youngest running one gives its blocks back and goes to the head of the
  queue; its tokens are computed again later. Nobody is admitted in such a step.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import PromptTooLong
from llmbench.serving.blocks import BlockPool
from llmbench.serving.sequence import Sequence
from llmbench.types import FinishReason

Batching = Literal["continuous", "static"]

_LOOK_AHEAD = 8  # how many requests without blocks are looked past in one step


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sequences that run at once, new tokens of all of them in one step, requests that may wait.

    `max_model_len` is the longest prompt and answer together; None takes what model and KV cache allow. A prompt longer
    than `max_prompt_len` is refused, an answer is cut at `max_new_tokens`; None sets no such limit. `batching`
    static starts a new batch only when the one before has ended. `prefix_cache` reuses the blocks of earlier prompts:
    off, so that a measurement is cold unless it says otherwise.
    """

    max_batch: int = 32
    max_tokens_per_step: int = 512
    max_waiting: int = 10_000
    max_model_len: int | None = None
    max_prompt_len: int | None = None
    max_new_tokens: int | None = None
    batching: Batching = "continuous"
    max_overtakes: int = 16
    prefix_cache: bool = False


class Work(NamedTuple):
    """One sequence's share of a step."""

    sequence: Sequence
    num_tokens: int

    @property
    def wants_token(self) -> bool:
        """False for a piece of a prompt that is not its last."""
        return self.sequence.num_cached + self.num_tokens == self.sequence.num_tokens


class Growth(NamedTuple):
    """New blocks of a sequence, from position `first` of its table on."""

    slot: int
    first: int
    blocks: list[int]


@dataclass(slots=True)
class Plan:
    """One step."""

    works: list[Work] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    grown: list[Growth] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(work.num_tokens for work in self.works)


class Emission(NamedTuple):
    """A token that a step produced. `sequence` has left the scheduler when there is a `finish_reason`."""

    sequence: Sequence
    token_id: int
    logit: float
    finish_reason: FinishReason | None


class Scheduler:
    """Holds the waiting and the running sequences. Use: `add`, then `plan` and `commit` in turn."""

    def __init__(self, limits: Limits, pool: BlockPool, max_model_len: int) -> None:
        self.limits = limits
        self.pool = pool
        self.max_model_len = max_model_len
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._free_slots = list(range(limits.max_batch - 1, -1, -1))

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises PromptTooLong when it could never run to its end."""
        if sequence.max_tokens > self.max_model_len:
            raise PromptTooLong(
                f"{len(sequence.prompt_ids)} prompt tokens and {sequence.max_new_tokens} new ones are more than the "
                f"{self.max_model_len} that this server holds"
            )
        self.waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is; its blocks are free at once."""
        if sequence.running:
            self._leave(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def fail_running(self) -> list[Sequence]:
        """Take all running sequences out: the engine has lost its cache."""
        lost = list(self.running)
        for sequence in lost:
            self._leave(sequence)
        self.pool.forget()
        return lost

    def plan(self) -> Plan | None:
        """The next step; None when there is nothing to run."""
        plan = Plan()
        budget = self.limits.max_tokens_per_step
        num_running = len(self.running)
        for sequence in [each for each in self.running if each.num_missing == 1]:
            if budget and sequence.running and self._grow(sequence, plan):
                plan.works.append(Work(sequence, 1))
                budget -= 1
        for sequence in self.running:
            if budget and sequence.num_missing > 1:
                budget -= self._prefill(sequence, budget, plan)
        if len(self.running) == num_running:  # after a preemption nobody new may take the blocks
            self._admit(budget, plan)
        if not self.running and not self.waiting:
            self.check()
        return plan if plan.works else None

    def commit(self, plan: Plan, token_ids: Iterable[int], logits: Iterable[float]) -> list[Emission]:
        """Take in what a step produced; what was cancelled meanwhile is passed over."""
        emissions = []
        for work, token_id, logit in zip(plan.works, token_ids, logits, strict=True):
            sequence = work.sequence
            if not sequence.running:
                continue
            wants_token = work.wants_token
            self._cached(sequence, work.num_tokens)
            if not wants_token:
                continue
            reason = sequence.append(token_id)
            if reason is not None:
                self._leave(sequence)
            emissions.append(Emission(sequence, token_id, logit, reason))
        return emissions

    def check(self) -> None:
        """Assert that no block is lost or in two hands."""
        self.pool.check([block for sequence in self.running for block in sequence.blocks])

    def _admit(self, budget: int, plan: Plan) -> None:
        if self.limits.batching == "static" and any(sequence.output_ids for sequence in self.running):
            return  # the batch has begun to decode: nobody joins it
        skipped: list[Sequence] = []
        while self.waiting and self._free_slots and budget:
            sequence = self.waiting.popleft()
            if not self._start(sequence, plan):
                skipped.append(sequence)
                if sequence.num_overtakes >= self.limits.max_overtakes or len(skipped) > _LOOK_AHEAD:
                    break
                continue
            for blocked in skipped:
                blocked.num_overtakes += 1
            budget -= self._prefill(sequence, budget, plan)
            if any(blocked.num_overtakes >= self.limits.max_overtakes for blocked in skipped):
                break
        self.waiting.extendleft(reversed(skipped))

    def _start(self, sequence: Sequence, plan: Plan) -> bool:
        """Give a sequence its slot and the blocks of its whole prompt; false when those are not free."""
        shared = [] if sequence.sampling.prompt_logprobs is not None else self.pool.share(sequence.tokens())
        # one token more than the prompt, or it might be preempted in the very next step; a prompt that is only scored
        # may fill the cache and gets none
        missing = self.pool.needed(min(sequence.num_tokens + 1, sequence.max_tokens)) - len(shared)
        if missing > self.pool.num_free:
            self.pool.release(shared)
            return False
        sequence.slot = self._free_slots.pop()
        sequence.blocks = shared
        sequence.num_cached = len(shared) * self.pool.block_size
        if not sequence.num_preemptions:  # later it may find what it left there itself
            sequence.num_hits = sequence.num_cached
        if shared:
            plan.grown.append(Growth(sequence.slot, 0, shared))
        self.running.append(sequence)
        plan.admitted.append(sequence)
        self._take(sequence, sequence.num_tokens, plan)
        return True

    def _prefill(self, sequence: Sequence, budget: int, plan: Plan) -> int:
        """Put a piece of a prompt into the step; gives its length."""
        others_wait = bool(self.waiting and self._free_slots)
        num_tokens = min(sequence.num_missing, max(1, budget // 2) if others_wait else budget)
        plan.works.append(Work(sequence, num_tokens))
        return num_tokens

    def _cached(self, sequence: Sequence, num_tokens: int) -> None:
        """The keys and values of so many more tokens are in the cache."""
        before = sequence.num_cached // self.pool.block_size
        sequence.num_cached += num_tokens
        after = sequence.num_cached // self.pool.block_size
        if self.pool.prefix_cache and after > before:
            self.pool.remember(sequence.tokens(0, after * self.pool.block_size), sequence.blocks)

    def _grow(self, sequence: Sequence, plan: Plan) -> bool:
        """A block for the next token, from a younger sequence if need be; false when it had to give way itself."""
        missing = self.pool.needed(sequence.num_tokens) - len(sequence.blocks)
        while missing > self.pool.num_free:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        self._take(sequence, sequence.num_tokens, plan)
        return True

    def _take(self, sequence: Sequence, num_tokens: int, plan: Plan) -> None:
        first = len(sequence.blocks)
        blocks = self.pool.allocate(max(0, self.pool.needed(num_tokens) - first))
        if blocks:
            sequence.blocks = sequence.blocks + blocks
            plan.grown.append(Growth(sequence.slot, first, blocks))

    def _preempt(self, sequence: Sequence) -> None:
        self._leave(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        if not sequence.output_ids:
            sequence.prompt_scores.clear()  # they come again with the prompt
        self.waiting.appendleft(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Out of the running: blocks and slot are free."""
        self.running.remove(sequence)
        self.pool.release(sequence.blocks)
        self._free_slots.append(sequence.slot)
        sequence.blocks = []
        sequence.num_cached = 0
        sequence.slot = -1
