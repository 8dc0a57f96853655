"""The scheduler against a toy engine that keeps the tokens themselves in the blocks of its cache.

The toy's next token depends on everything that it reads back through the block table, so a block that is lost, shared
or overwritten changes an answer.
"""

from collections.abc import Sequence as Sequences
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmbench.errors import PromptTooLong
from llmbench.serving.blocks import BlockPool
from llmbench.serving.scheduler import Batching, Emission, Limits, Plan, Scheduler
from llmbench.serving.sequence import Sequence
from llmbench.types import FinishReason, Sampling

EOS = 9


def next_token(tokens: Sequences[int]) -> int:
    """What the toy engine answers to a sequence; now and then EOS."""
    mixed = 7
    for token in tokens:
        mixed = (mixed * 31 + token + 1) % 1_000_003
    return 10 + mixed % 90 if mixed % 17 else EOS


def alone(prompt: Sequences[int], max_new_tokens: int, ignore_eos: bool = False) -> list[int]:
    """The answer that a sequence gets when nobody else is there."""
    answer: list[int] = []
    while len(answer) < max_new_tokens and (ignore_eos or EOS not in answer):
        answer.append(next_token([*prompt, *answer]))
    return answer


class Toy:
    """Scheduler, pool and toy engine; `step` checks everything that is promised of a step."""

    def __init__(
        self,
        num_blocks: int = 16,
        block_size: int = 4,
        *,
        max_batch: int = 4,
        max_tokens_per_step: int = 16,
        batching: Batching = "continuous",
        prefix_cache: bool = False,
        max_overtakes: int = 16,
        max_model_len: int | None = None,
    ) -> None:
        limits = Limits(
            max_batch=max_batch,
            max_tokens_per_step=max_tokens_per_step,
            batching=batching,
            prefix_cache=prefix_cache,
            max_overtakes=max_overtakes,
        )
        self.pool = BlockPool(num_blocks, block_size, prefix_cache)
        self.scheduler = Scheduler(limits, self.pool, max_model_len or num_blocks * block_size)
        self.tables: dict[int, list[int]] = {}  # by slot, as the arena keeps them
        self.cache: dict[tuple[int, int], int] = {}
        self.arrived: list[Sequence] = []
        self.admitted: list[Sequence] = []  # first admissions only, in their order
        self.ended: dict[Sequence, FinishReason] = {}
        self.num_steps = 0
        self.plan: Plan | None = None

    def add(self, prompt: Sequences[int], max_new_tokens: int = 4, ignore_eos: bool = False) -> Sequence:
        sequence = Sequence(
            request_id=str(len(self.arrived)),
            prompt_ids=list(prompt),
            max_new_tokens=max_new_tokens,
            sampling=Sampling(ignore_eos=ignore_eos),
            eos_ids=frozenset({EOS}),
        )
        self.scheduler.add(sequence)
        self.arrived.append(sequence)
        return sequence

    def begin(self) -> Plan | None:
        """Plan a step and check the plan."""
        decoding_before = any(sequence.output_ids for sequence in self.scheduler.running)
        self.plan = plan = self.scheduler.plan()
        limits = self.scheduler.limits
        if plan is None:
            assert not self.scheduler.running, "running sequences were left without work"
            assert not self.scheduler.waiting, "waiting sequences were left for ever"
            return None
        assert plan.num_tokens <= limits.max_tokens_per_step
        assert len(plan.works) <= limits.max_batch
        assert len({work.sequence for work in plan.works}) == len(plan.works)
        slots = [sequence.slot for sequence in self.scheduler.running]
        assert sorted(slots) == sorted(set(slots))
        assert all(0 <= slot < limits.max_batch for slot in slots)
        if limits.batching == "static" and decoding_before:
            assert not plan.admitted, "somebody joined a batch that had begun to decode"
        for sequence in plan.admitted:
            if sequence not in self.admitted:
                self.admitted.append(sequence)
            self.tables[sequence.slot] = []
        for growth in plan.grown:
            table = self.tables[growth.slot]
            assert growth.first == len(table)
            table += growth.blocks
        return plan

    def finish(self) -> list[Emission]:
        """Compute the plan as an engine would, commit it."""
        assert self.plan is not None
        plan, self.plan = self.plan, None
        self.num_steps += 1
        token_ids = []
        for work in plan.works:
            token_ids.append(self._compute(work.sequence, work.num_tokens) if work.wants_token else -1)
            if not work.wants_token:
                self._write(work.sequence, work.num_tokens)
        emissions = self.scheduler.commit(plan, token_ids, [float(token) for token in token_ids])
        for emission in emissions:
            if emission.finish_reason is not None:
                assert emission.sequence not in self.ended, "a sequence ended twice"
                self.ended[emission.sequence] = emission.finish_reason
        return emissions

    def step(self) -> list[Emission]:
        return self.finish() if self.begin() is not None else []

    def run(self) -> None:
        """Until everything has ended."""
        work = sum(len(each.prompt_ids) + each.max_new_tokens + 1 for each in self.arrived)
        while self.begin() is not None:
            self.finish()
            assert self.num_steps < 50 + 20 * work, "the scheduler makes no headway"
        self.scheduler.check()
        assert self.pool.num_free == self.pool.num_blocks

    def _write(self, sequence: Sequence, num_tokens: int) -> None:
        if not sequence.running:  # it was cancelled while the step ran
            return
        start, size = sequence.num_cached, self.pool.block_size
        table = self.tables[sequence.slot]
        for position, token in enumerate(sequence.tokens(start, start + num_tokens), start):
            self.cache[table[position // size], position % size] = token

    def _compute(self, sequence: Sequence, num_tokens: int) -> int:
        self._write(sequence, num_tokens)
        if not sequence.running:
            return 0
        size, table = self.pool.block_size, self.tables[sequence.slot]
        end = sequence.num_cached + num_tokens
        return next_token([self.cache[table[position // size], position % size] for position in range(end)])


# -- one thing at a time --------------------------------------------------------------------------------------------


def test_a_sequence_gets_its_answer_and_ends_at_its_length() -> None:
    toy = Toy()
    sequence = toy.add([1, 2, 3], 5, ignore_eos=True)
    toy.run()
    assert sequence.output_ids == alone([1, 2, 3], 5, ignore_eos=True)
    assert toy.ended[sequence] == "length"


def test_eos_ends_a_sequence_and_is_counted_unless_it_is_ignored() -> None:
    prompt = next([n, n] for n in range(1000) if next_token([n, n]) == EOS)
    toy = Toy()
    ending, going_on = toy.add(prompt, 5), toy.add(prompt, 5, ignore_eos=True)
    toy.run()
    assert (ending.output_ids, toy.ended[ending]) == ([EOS], "eos")
    assert (len(going_on.output_ids), toy.ended[going_on]) == (5, "length")


def test_a_prompt_longer_than_the_budget_is_computed_in_pieces() -> None:
    toy = Toy(max_tokens_per_step=8)
    sequence = toy.add(range(20), 2, ignore_eos=True)
    pieces = []
    while (plan := toy.begin()) is not None:
        pieces.append(plan.num_tokens)
        toy.finish()
    assert pieces == [8, 8, 4, 1]
    assert sequence.output_ids == alone(range(20), 2, ignore_eos=True)


def test_running_sequences_get_their_token_while_a_long_prompt_comes_in() -> None:
    toy = Toy(num_blocks=40, max_tokens_per_step=8)
    first = toy.add([1, 2], 12, ignore_eos=True)
    toy.step()
    toy.add(range(60), 1)
    for expected in range(2, 10):
        toy.step()
        assert len(first.output_ids) == expected


def test_a_short_prompt_behind_a_long_one_need_not_wait_until_it_is_through() -> None:
    toy = Toy(num_blocks=64, max_tokens_per_step=16)
    long, short = toy.add(range(200), 1), toy.add([1, 2], 1)
    toy.step()
    assert short in toy.ended
    assert long not in toy.ended


def test_a_request_that_can_never_run_to_its_end_is_refused_with_its_sizes() -> None:
    toy = Toy(num_blocks=4, block_size=4)
    with pytest.raises(PromptTooLong, match="13 prompt tokens and 4 new ones are more than the 16 that this server"):
        toy.add(range(13), 4)
    toy.add(range(12), 4)
    toy.run()


@pytest.mark.parametrize("num_prompt", [1, 15, 16])
def test_a_prompt_that_is_only_scored_runs_even_when_it_fills_the_cache(num_prompt: int) -> None:
    toy = Toy(num_blocks=4, block_size=4)
    sequence = toy.add(range(num_prompt), 0)
    toy.run()
    assert sequence in toy.ended
    assert sequence.output_ids == []


def test_requests_are_admitted_in_the_order_of_arrival() -> None:
    toy = Toy(num_blocks=8, max_overtakes=0)
    sequences = [toy.add(range(length), 3) for length in (12, 20, 1, 9, 2, 16, 3, 1)]
    toy.run()
    assert toy.admitted == sequences


def test_a_request_without_blocks_is_overtaken_only_so_many_times() -> None:
    toy = Toy(num_blocks=8, block_size=4, max_overtakes=3, max_batch=2)
    toy.add(range(8), 8, ignore_eos=True)
    toy.step()
    big = toy.add(range(28), 1)
    small = [toy.add([n], 1) for n in range(10)]
    toy.run()
    order = toy.admitted
    assert [sequence for sequence in small if order.index(sequence) < order.index(big)] == small[:3]


def test_static_batching_starts_a_batch_only_when_the_one_before_has_ended() -> None:
    toy = Toy(num_blocks=64, max_batch=2, batching="static")
    sequences = [toy.add([n], length, ignore_eos=True) for n, length in enumerate((1, 6, 2, 3, 1))]
    batches = []
    while (plan := toy.begin()) is not None:
        if plan.admitted:
            batches.append(plan.admitted)
        toy.finish()
    assert batches == [sequences[:2], sequences[2:4], sequences[4:]]


def test_a_static_batch_takes_who_comes_until_it_begins_to_decode() -> None:
    toy = Toy(num_blocks=64, max_batch=4, max_tokens_per_step=4, batching="static")
    sequences = [toy.add([n] * length, 3, ignore_eos=True) for n, length in enumerate((3, 2, 2, 5))]
    admitted = []
    for _ in range(3):  # 2 + 1 + 1 tokens; the last ones of three prompts and the first of the fourth; decode
        plan = toy.begin()
        assert plan is not None
        admitted.append(plan.admitted)
        toy.finish()
    assert admitted == [sequences[:3], sequences[3:4], []]


def test_continuous_batching_fills_a_slot_in_the_next_step() -> None:
    toy = Toy(max_batch=2)
    toy.add([1], 10, ignore_eos=True)
    toy.add([2], 1)
    waiting = toy.add([3], 5, ignore_eos=True)
    toy.step()
    assert not waiting.running
    toy.step()
    assert waiting.running


def test_the_youngest_gives_way_and_gets_the_same_answer_in_the_end() -> None:
    toy = Toy(num_blocks=8, block_size=2)
    old, young = toy.add([1, 2, 3], 10, ignore_eos=True), toy.add([4, 5, 6], 10, ignore_eos=True)
    toy.run()
    assert (old.num_preemptions, young.num_preemptions > 0) == (0, True)
    for sequence in (old, young):
        assert sequence.output_ids == alone(sequence.prompt_ids, 10, ignore_eos=True)


def two_that_need_more_than_there_is() -> tuple[Toy, Sequence]:
    """An old sequence and a young one that has to give way at some step."""
    toy = Toy(num_blocks=6, block_size=2, max_batch=3)
    toy.add([1, 2, 3], 8, ignore_eos=True)
    return toy, toy.add([4, 5, 6], 8, ignore_eos=True)


def steps_until_it_gives_way() -> int:
    toy, young = two_that_need_more_than_there_is()
    while not young.num_preemptions:
        toy.step()
    return toy.num_steps - 1


def test_nobody_is_admitted_in_a_step_in_which_somebody_had_to_give_way() -> None:
    toy, young = two_that_need_more_than_there_is()
    for _ in range(steps_until_it_gives_way()):
        toy.step()
    newcomer = toy.add([7], 1)
    plan = toy.begin()
    assert plan is not None
    assert young.num_preemptions == 1
    assert toy.pool.num_free >= toy.pool.needed(2), "there would have been room"
    assert plan.admitted == []
    toy.finish()
    toy.run()
    assert newcomer in toy.ended


def test_who_gave_way_comes_back_before_those_who_came_later() -> None:
    toy, young = two_that_need_more_than_there_is()
    for _ in range(steps_until_it_gives_way()):
        toy.step()
    later = toy.add([7, 8, 9], 3, ignore_eos=True)
    toy.step()
    assert list(toy.scheduler.waiting) == [young, later]


def test_those_who_were_overtaken_keep_their_order() -> None:
    toy = Toy(num_blocks=8, block_size=4, max_batch=3)
    toy.add(range(8), 8, ignore_eos=True)
    toy.step()
    big = [toy.add(range(28), 1), toy.add(range(27), 1)]
    small = toy.add([1], 1)
    toy.step()
    assert small in toy.ended
    assert list(toy.scheduler.waiting) == big


@pytest.mark.parametrize("when", ["waiting", "running", "in a step", "ended"])
def test_the_blocks_of_a_cancelled_sequence_are_free_at_once(when: str) -> None:
    toy = Toy(max_batch=1)
    sequence, other = toy.add([1, 2, 3], 3, ignore_eos=True), toy.add([4, 5], 3, ignore_eos=True)
    if when == "in a step":
        toy.begin()
    elif when != "waiting":
        toy.step()
        toy.step()
    if when == "ended":
        toy.step()
    toy.scheduler.cancel(sequence)
    assert toy.pool.num_free == toy.pool.num_blocks
    assert not sequence.running
    if when == "in a step":
        assert toy.finish() == []
    toy.run()
    assert other.output_ids == alone([4, 5], 3, ignore_eos=True)
    assert (sequence in toy.ended) == (when == "ended")


def test_when_the_engine_has_lost_its_cache_the_running_are_out_and_the_waiting_stay() -> None:
    toy = Toy(max_batch=2)
    running = [toy.add([n], 5, ignore_eos=True) for n in range(2)]
    waiting = toy.add([3], 2, ignore_eos=True)
    toy.step()
    assert toy.scheduler.fail_running() == running
    assert toy.pool.num_free == toy.pool.num_blocks
    toy.cache.clear()
    toy.run()
    assert list(toy.ended) == [waiting]


def test_a_known_prefix_is_not_computed_again_and_gives_the_same_answer() -> None:
    toy = Toy(prefix_cache=True, max_tokens_per_step=64)
    prompt = list(range(12))
    first = toy.add(prompt, 3, ignore_eos=True)
    toy.run()
    second = toy.add([*prompt, 50], 3, ignore_eos=True)
    plan = toy.begin()
    assert plan is not None
    assert plan.num_tokens == 1
    toy.finish()
    toy.run()
    assert (first.num_hits, second.num_hits) == (0, 12)
    assert second.output_ids == alone([*prompt, 50], 3, ignore_eos=True)


def test_without_the_prefix_cache_every_prompt_is_computed() -> None:
    toy = Toy(max_tokens_per_step=64)
    for _ in range(2):
        sequence = toy.add(range(12), 1)
        plan = toy.begin()
        assert plan is not None
        assert plan.num_tokens == 12
        toy.finish()
        assert sequence.num_hits == 0


# -- anything at any time -------------------------------------------------------------------------------------------

REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=14), st.integers(0, 10)), min_size=1, max_size=14
)


@given(
    requests=REQUESTS,
    num_blocks=st.integers(6, 20),
    max_batch=st.integers(1, 6),
    spare_budget=st.integers(0, 20),
    batching=st.sampled_from(["continuous", "static"]),
    prefix_cache=st.booleans(),
    max_overtakes=st.integers(0, 3),
)
def test_every_sequence_ends_with_the_answer_it_gets_alone(
    requests: list[tuple[list[int], int]],
    num_blocks: int,
    max_batch: int,
    spare_budget: int,
    batching: Batching,
    prefix_cache: bool,
    max_overtakes: int,
) -> None:
    toy = Toy(
        num_blocks,
        4,
        max_batch=max_batch,
        max_tokens_per_step=max_batch + spare_budget,
        batching=batching,
        prefix_cache=prefix_cache,
        max_overtakes=max_overtakes,
    )
    for prompt, max_new_tokens in requests:
        toy.add(prompt, max_new_tokens)
    toy.run()
    for sequence in toy.arrived:
        assert sequence.output_ids == alone(sequence.prompt_ids, sequence.max_new_tokens)
        assert toy.ended[sequence] == ("eos" if EOS in sequence.output_ids else "length") or not sequence.output_ids
    _check_overtaking(toy)


def _check_overtaking(toy: Toy) -> None:
    order = {sequence: i for i, sequence in enumerate(toy.admitted)}
    for i, sequence in enumerate(toy.arrived):
        if sequence in order:
            later = [other for other in toy.arrived[i + 1 :] if order.get(other, len(order)) < order[sequence]]
            assert len(later) <= toy.scheduler.limits.max_overtakes


class Traffic(RuleBasedStateMachine):
    """Requests come, clients go, the engine dies: at any moment of a step."""

    toy: Toy

    @initialize(
        num_blocks=st.integers(4, 16),
        max_batch=st.integers(1, 5),
        batching=st.sampled_from(["continuous", "static"]),
        prefix_cache=st.booleans(),
        max_overtakes=st.integers(0, 3),
    )
    def start(self, num_blocks: int, max_batch: int, **settings: Any) -> None:
        self.toy = Toy(num_blocks, 4, max_batch=max_batch, max_tokens_per_step=max_batch + 6, **settings)
        self.gone: set[Sequence] = set()

    @rule(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20), max_new_tokens=st.integers(0, 12))
    def arrive(self, prompt: list[int], max_new_tokens: int) -> None:
        longest = self.toy.scheduler.max_model_len
        if len(prompt) + max_new_tokens <= longest:
            self.toy.add(prompt, max_new_tokens)
        else:
            with pytest.raises(PromptTooLong):
                self.toy.add(prompt, max_new_tokens)

    @precondition(lambda self: self.toy.plan is None)
    @rule()
    def begin(self) -> None:
        self.toy.begin()

    @precondition(lambda self: self.toy.plan is not None)
    @rule()
    def finish(self) -> None:
        for emission in self.toy.finish():
            assert emission.sequence not in self.gone

    @precondition(lambda self: self.toy.arrived)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.toy.arrived))
        self.toy.scheduler.cancel(sequence)
        if sequence not in self.toy.ended:
            self.gone.add(sequence)

    @rule()
    def lose_the_engine(self) -> None:
        self.gone |= set(self.toy.scheduler.fail_running())
        self.toy.plan = None

    @invariant()
    def no_block_is_lost_or_shared(self) -> None:
        self.toy.scheduler.check()
        assert len(self.toy.scheduler.running) <= self.toy.scheduler.limits.max_batch
        known = {*self.toy.scheduler.running, *self.toy.scheduler.waiting, *self.toy.ended, *self.gone}
        assert set(self.toy.arrived) == known, "a sequence was lost"

    def teardown(self) -> None:
        if not hasattr(self, "toy"):
            return
        if self.toy.plan is not None:
            self.toy.finish()
        self.toy.run()
        for sequence in self.toy.arrived:
            answer = alone(sequence.prompt_ids, sequence.max_new_tokens)
            if sequence in self.gone:
                assert sequence.output_ids == answer[: len(sequence.output_ids)]
            else:
                assert sequence.output_ids == answer


TestTraffic = Traffic.TestCase
