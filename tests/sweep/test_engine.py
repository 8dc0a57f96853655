"""An engine in this process as a bench: what it is asked to compute, and what is timed."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench import engines
from llmbench.engines import Batch, EngineSettings, StepResult
from llmbench.engines.stub import Stub
from llmbench.errors import InputError, ServingError
from llmbench.metrics.sweep import Case
from llmbench.sweep.engine import EngineBench, steps_of
from llmbench.weights.model import Model, open_model

MODEL = open_model("random:tiny")
SETTINGS = EngineSettings(num_blocks=64, block_size=8, max_batch=8, threads=1)


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 64))
def test_every_prompt_token_is_computed_once_and_no_step_has_more_than_its_budget(
    num: int, length: int, budget: int
) -> None:
    cached = [0] * num
    for pieces in steps_of(num, length, budget):
        assert 0 < sum(stop - start for _, start, stop in pieces) <= budget
        assert len({member for member, _, _ in pieces}) == len(pieces)
        for member, start, stop in pieces:
            assert cached[member] == start < stop
            cached[member] = stop
    assert cached == [length] * num


class Watched(Stub):
    """A stub that keeps an account of the cache: which sequence has written which positions into which blocks."""

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        super().__init__(model, settings)
        self.owner: dict[int, int] = {}
        self.lengths: dict[int, int] = {}
        self.given: dict[int, int] = {}
        self.shapes: list[tuple[int, int]] = []

    def step(self, batch: Batch) -> StepResult:
        result = super().step(batch)
        ends = np.cumsum(batch.query_lens)
        for i, table in enumerate(batch.block_tables):
            sequence, length = int(table[0]), int(batch.context_lens[i])
            for block in table[: -(-length // self.capacity().block_size)].tolist():
                assert self.owner.setdefault(block, sequence) == sequence, "a block in two hands"
            before = length - int(batch.query_lens[i])
            assert before in (0, self.lengths.get(sequence)), "a token was left out"
            if before and batch.query_lens[i] == 1 and sequence in self.given:
                assert batch.token_ids[ends[i] - 1] == self.given[sequence], "not the token that came before"
            self.lengths[sequence] = length
            if batch.wants_token[i]:
                self.given[sequence] = int(result.token_ids[i])
        self.shapes.append((len(batch.query_lens), len(batch.token_ids)))
        return result


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    made = Watched(MODEL, SETTINGS)
    monkeypatch.setattr(engines, "get", lambda name, model, settings: made)
    return made


def test_prompts_are_computed_in_pieces_then_all_sequences_decode_in_step(watched: Watched) -> None:
    found = EngineBench(MODEL, "stub", SETTINGS, tokens_per_step=32).run(Case(batch=3, input_len=20, output_len=6), 6)
    assert watched.shapes == [(2, 32), (2, 28), *[(3, 3)] * 5]
    assert set(watched.lengths.values()) == {25}, "the last token is not computed any more"
    assert (len(found.prefill_s), len(found.steps_s)) == (2, 5)
    assert found.total_s == pytest.approx(sum(found.prefill_s) + sum(found.steps_s))
    assert found.first_s == pytest.approx(sum(found.prefill_s))


def test_one_new_token_is_a_prefill_only(watched: Watched) -> None:
    found = EngineBench(MODEL, "stub", SETTINGS).run(Case(batch=2, input_len=5, output_len=6), 1)
    assert watched.shapes == [(2, 10)]
    assert (found.steps_s, found.total_s) == ([], found.first_s)


def test_the_declared_time_of_a_step_is_what_is_measured() -> None:
    settings = EngineSettings(num_blocks=64, block_size=8, max_batch=8, step_time_s=0.004)
    found = EngineBench(MODEL, "stub", settings).run(Case(batch=8, input_len=8, output_len=6), 6)
    assert min(found.steps_s) >= 0.004
    assert found.first_s >= 0.004


def test_a_real_engine_goes_on_behind_eos_and_other_prompts_come_each_time() -> None:
    with_numpy = EngineBench(MODEL, "numpy_llama", SETTINGS)
    for _ in range(2):
        found = with_numpy.run(Case(batch=2, input_len=9, output_len=12), 12)
        assert len(found.steps_s) == 11
    with_numpy.close()


def test_what_cannot_fit_is_told_with_the_numbers() -> None:
    bench = EngineBench(MODEL, "stub", SETTINGS)
    assert bench.unfit(Case(batch=8, input_len=40, output_len=24)) == ""
    assert bench.unfit(Case(batch=8, input_len=41, output_len=24)) == "72 blocks of 8 tokens, the cache has 64"
    assert bench.unfit(Case(batch=1, input_len=500, output_len=13)) == "513 tokens in a sequence, 512 are the most here"
    with pytest.raises(InputError, match="unknown engine"):
        EngineBench(MODEL, "stubb", SETTINGS)


class Compiling(Stub):
    """A stub that compiles for 20 ms in its first `times` steps of each number of sequences."""

    times = 1

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        super().__init__(model, settings)
        self.seen: list[int] = []

    def step(self, batch: Batch) -> StepResult:
        num = len(batch.query_lens)
        if self.seen.count(num) < self.times:
            start = time.perf_counter()
            time.sleep(0.02)
            self.compiled_s += time.perf_counter() - start
        self.seen.append(num)
        return super().step(batch)


def test_a_pass_in_which_the_engine_compiled_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Compiling(MODEL, SETTINGS)
    monkeypatch.setattr(engines, "get", lambda name, model, settings: made)
    EngineBench(MODEL, "stub", SETTINGS).run(Case(batch=2, input_len=4, output_len=3), 3)
    assert made.seen == [2] * 6


def test_an_engine_that_never_stops_compiling_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Compiling(MODEL, SETTINGS)
    made.times = 1000
    monkeypatch.setattr(engines, "get", lambda name, model, settings: made)
    with pytest.raises(ServingError, match="compiled something in each of 6 passes"):
        EngineBench(MODEL, "stub", SETTINGS).run(Case(batch=1, input_len=4, output_len=1), 1)
