import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pytest

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.workload import arrivals, plan


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
    samples: Sequence[Sample] = SAMPLES,
    number: int = 7,
    seed: int = 3,
    max_new_tokens: int | None = None,
    tokenizer: Tokenizer | None = TOKENIZER,
    shuffle: bool = False,
) -> plan.Plan:
    settings = plan.PlanSettings(
        dataset="toy", num_samples=len(samples), arrivals="poisson", qps=5.0, rate=5.0, seed=seed
    )
    process = arrivals.get("poisson", 5.0)
    return plan.make_plan(samples, process, number, settings, tokenizer, max_new_tokens, shuffle)


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


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"text\n"), gzip.compress(b"x")[:9]])
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
