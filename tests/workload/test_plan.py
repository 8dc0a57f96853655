import gzip
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.types import Sampling
from llmbench.workload import arrivals, plan
from llmbench.workload.plan import Turn


class Sample(NamedTuple):
    prompt: str
    output: str


class WordTokenizer:
    """One token per word, and the begin-of-sequence id."""

    def encode(self, text: str, bos: bool = True) -> list[int]:
        return [1] * bos + [7] * len(text.split())


TOKENIZER = cast("Tokenizer", WordTokenizer())
SAMPLES = [Sample("one", "a b c"), Sample("two words", "d"), Sample("three", "")]


def make(
    samples: Sequence[plan.Sample] = SAMPLES,
    number: int = 7,
    seed: int = 3,
    max_new_tokens: int | None = None,
    tokenizer: Tokenizer | None = TOKENIZER,
    shuffle: bool = False,
    process: str = "poisson",
    seeds: plan.Seeds | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008
) -> plan.Plan:
    settings = plan.PlanSettings(
        dataset="toy", num_samples=len(samples), arrivals=process, qps=5.0, rate=5.0, seed=seed, seeds=seeds
    )
    made = arrivals.get(process, 5.0)
    return plan.make_plan(samples, made, number, settings, tokenizer, max_new_tokens, shuffle, sampling)


TALKS = [
    Turn(prompt="a", output="x"),
    Turn(prompt="a x b", output="y", think_s=2.0),
    Turn(prompt="c", output_tokens=40),
    Turn(prompt="d", output="z"),
    Turn(prompt="d z e", think_s=0.5),
    Turn(prompt="d z e f", think_s=0.25),
]


@pytest.mark.parametrize(
    ("test_time_s", "qps", "number"),
    [(100, 0.57, 57), (3000, 0.5, 1500), (2400, 0.625, 1500), (10, 0.39, 3), (3, 1 / 3, 1), (250, 6, 1500)],
)
def test_the_number_of_requests_is_time_times_rate_without_the_error_of_floats(
    test_time_s: float, qps: float, number: int
) -> None:
    assert plan.count(test_time_s, qps) == number


def test_no_request_at_all_is_refused_with_what_to_change() -> None:
    with pytest.raises(InputError, match="--test-time 10 or more"):
        plan.count(5, 0.1)


@pytest.mark.parametrize(("test_time_s", "qps"), [(0, 1), (-1, 1), (1, -1), (float("inf"), 1), (1, float("nan"))])
def test_times_and_rates_without_sense_are_refused(test_time_s: float, qps: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        plan.count(test_time_s, qps)


def test_samples_come_in_order_and_from_the_first_again() -> None:
    prompts = [planned.request.prompt for planned in make().requests]
    assert prompts == ["one", "two words", "three", "one", "two words", "three", "one"]


def test_the_length_to_ask_for_is_that_of_the_samples_output_and_an_empty_one_is_left_to_the_server() -> None:
    lengths = [(planned.request.max_new_tokens, planned.expected_tokens) for planned in make().requests[:3]]
    assert lengths == [(3, 3), (1, 1), (None, None)]


def test_prompts_are_counted_with_the_begin_of_sequence_id() -> None:
    assert [planned.num_prompt_tokens for planned in make().requests[:3]] == [2, 3, 2]


def test_one_length_can_be_asked_of_all() -> None:
    assert {planned.request.max_new_tokens for planned in make(max_new_tokens=9).requests} == {9}


def test_without_a_tokenizer_nothing_is_counted() -> None:
    planned = make(tokenizer=None).requests[0]
    assert (planned.num_prompt_tokens, planned.request.max_new_tokens) == (None, None)


def test_the_same_settings_give_the_same_hash_and_another_seed_another() -> None:
    assert make().sha256 == make().sha256
    assert make().sha256 != make(seed=4).sha256


def test_shuffling_the_prompts_does_not_move_the_schedule() -> None:
    plain, shuffled = make(number=30), make(number=30, shuffle=True)
    assert [r.due_s for r in plain.requests] == [r.due_s for r in shuffled.requests]
    assert [r.request.prompt for r in plain.requests] != [r.request.prompt for r in shuffled.requests]
    assert sorted(r.request.prompt for r in plain.requests) == sorted(r.request.prompt for r in shuffled.requests)


def test_every_request_has_an_id_of_its_own() -> None:
    assert len({planned.request.request_id for planned in make(number=200).requests}) == 200


def test_a_saved_plan_comes_back_equal_and_the_same_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    plan.save(make(), tmp_path / "a.jsonl.gz")
    plan.save(make(), tmp_path / "b.jsonl.gz")
    assert plan.load(tmp_path / "a.jsonl.gz") == make()
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_plan_that_was_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.jsonl.gz"
    plan.save(make(), path)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"two words", b"two thorns")))
    with pytest.raises(InputError, match="changed"):
        plan.load(path)


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"text\n", mtime=0), gzip.compress(b"x", mtime=0)[:9]])
def test_what_is_not_a_plan_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match="plan"):
        plan.load(path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        plan.load(tmp_path / "plan.jsonl.gz")


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(InputError, match="no sample"):
        make(samples=[])


@pytest.mark.parametrize(("old", "new"), [(b'"dialect":""', b'"dialect":"tgi"'), (b'"qps":5.0', b'"qps":6.0')])
def test_what_a_plan_says_of_itself_is_sealed_as_well(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = tmp_path / "plan.jsonl.gz"
    plan.save(make(), path)
    content = gzip.decompress(path.read_bytes())
    assert old in content
    path.write_bytes(gzip.compress(content.replace(old, new, 1)))
    with pytest.raises(InputError, match="changed"):
        plan.load(path)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_four_seeds_come_of_one_and_each_can_be_given() -> None:
    derived = plan.seeds(3)
    assert len({derived.schedule, derived.prompts, derived.lengths, derived.sampling}) == 4
    assert plan.seeds(3) == derived != plan.seeds(4)
    given = plan.seeds(3, prompts=7, schedule=None)
    assert (given.prompts, given.schedule, given.lengths) == (7, derived.schedule, derived.lengths)


def test_another_seed_of_the_schedule_moves_the_schedule_alone() -> None:
    random = Sampling(temperature=1.0)
    one = make(number=30, shuffle=True, sampling=random, seeds=plan.seeds(3))
    other = make(number=30, shuffle=True, sampling=random, seeds=plan.seeds(3, schedule=9))
    assert [r.due_s for r in one.requests] != [r.due_s for r in other.requests]
    assert [r.request for r in one.requests] == [r.request for r in other.requests]


def test_another_seed_of_the_sampling_changes_the_sampling_alone() -> None:
    one, other = (
        make(number=30, shuffle=True, sampling=Sampling(temperature=1.0), seeds=plan.seeds(3, sampling=seed))
        for seed in (1, 2)
    )
    assert [r.due_s for r in one.requests] == [r.due_s for r in other.requests]
    assert [r.request.prompt for r in one.requests] == [r.request.prompt for r in other.requests]
    assert all(
        a.request.sampling.seed != b.request.sampling.seed for a, b in zip(one.requests, other.requests, strict=True)
    )
    assert len({r.request.sampling.seed for r in one.requests}) == 30


def test_greedy_requests_have_no_seed() -> None:
    assert {planned.request.sampling.seed for planned in make().requests} == {None}


# --- what waits for what ---------------------------------------------------------------------------------------------


def test_a_conversation_is_due_as_one_and_its_turns_wait_for_the_turn_before() -> None:
    requests = make(TALKS, number=8).requests
    assert [planned.after for planned in requests] == [None, 0, None, None, 3, 4, None, 6]
    assert [planned.think_s for planned in requests] == [0, 2, 0, 0, 0.5, 0.25, 0, 2]
    assert requests[0].due_s == requests[1].due_s < requests[2].due_s < requests[3].due_s == requests[5].due_s
    first_four = [planned.due_s for planned in make(number=4).requests]
    assert [planned.due_s for planned in requests if planned.after is None] == first_four


def test_shuffling_keeps_conversations_together() -> None:
    prompts = [planned.request.prompt for planned in make(TALKS, number=60, shuffle=True).requests]
    assert all(after == "d z e" for before, after in pairwise(prompts) if before == "d")
    assert prompts[:6] != [talk.prompt for talk in TALKS]


def test_a_sample_can_say_how_long_its_answer_is_to_be() -> None:
    assert [planned.expected_tokens for planned in make(TALKS, number=3).requests] == [1, 1, 40]


def test_in_a_closed_loop_each_user_begins_one_request_and_the_others_wait_for_a_free_user() -> None:
    requests = make(number=9, process="closed:users=3,think=exponential:2").requests
    assert [planned.after for planned in requests] == [None] * 3 + ["slot"] * 6
    assert all(planned.due_s == 0 and planned.think_s > 0 for planned in requests[3:])
    assert 0 < requests[0].due_s < requests[2].due_s


def test_a_conversation_takes_one_user_of_a_closed_loop() -> None:
    requests = make(TALKS, number=6, process="closed:users=2,think=1").requests
    assert [planned.after for planned in requests] == [None, 0, None, "slot", 3, 4]


@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.sampled_from(["poisson", "burst", "closed:users=1", "closed:users=4,think=uniform:0:1"]),
    st.booleans(),
)
def test_the_parts_of_a_plan_are_the_plan_whatever_the_number_of_workers(
    number: int, num_workers: int, process: str, talks: bool
) -> None:
    whole = make(TALKS if talks else SAMPLES, number=number, process=process)
    parts = whole.split(num_workers)
    assert len(parts) == num_workers
    joined = sorted((planned for part in parts for planned in part.requests), key=lambda planned: planned.index)
    assert tuple(joined) == whole.requests
    assert {part.sha256 for part in parts} == {whole.sha256}
    for part in parts:
        indexes = [planned.index for planned in part.requests]
        assert indexes == sorted(indexes)
        afters = {planned.after for planned in part.requests}
        assert {after for after in afters if isinstance(after, int)} <= set(indexes)
        assert "slot" not in afters or None in afters, "somebody begins"


def test_requests_that_wait_for_nothing_are_dealt_in_turn_by_index() -> None:
    parts = make(number=8).split(3)
    assert [[planned.index for planned in part.requests] for part in parts] == [[0, 3, 6], [1, 4, 7], [2, 5]]


# --- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("process", "test_time_s", "number"),
    [
        ("poisson", None, 50),
        ("poisson", 4.0, 20),
        ("steps:30x1+30x5", None, 180),
        ("steps:30x1+30x5", 40.0, 80),
        ("ramp:from=1,to=10,seconds=60", None, 330),
    ],
)
def test_a_process_that_ends_by_itself_is_sent_to_its_end_unless_a_time_is_given(
    process: str, test_time_s: float | None, number: int
) -> None:
    assert plan.number(arrivals.get(process, 5.0), test_time_s) == number


def test_a_plan_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the plan"):
        plan.save(make(), tmp_path / "nowhere" / "plan.jsonl.gz")
