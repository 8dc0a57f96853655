"""Penalties, banned ids and log-probabilities on rows of logits whose results can be computed by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.engines import SAMPLING, Batch, Float32, StepResult
from llmbench.link import extras, frames
from llmbench.link.arena import Dimensions, StepArrays
from llmbench.link.extras import Extra, Penalties, PromptTargets, Scored
from llmbench.types import Sampling

ROW = (2.0, -1.0, 0.5, 4.0, 0.0)


def rows(*values: tuple[float, ...]) -> Float32:
    return np.array(values, np.float32)


def batch(wants_token: list[bool], temperature: float = 0.0, query_lens: list[int] | None = None) -> Batch:
    """A step; of its inputs only what the extras look at means something."""
    n = len(wants_token)
    sampling = np.zeros(n, SAMPLING)
    sampling["temperature"], sampling["top_p"] = temperature, 1
    lens = np.array(query_lens or [1] * n, np.int32)
    return Batch(
        token_ids=np.ones(lens.sum(), np.int32),
        query_lens=lens,
        context_lens=lens,
        block_tables=np.zeros((n, 1), np.int32),
        wants_token=np.array(wants_token),
        sampling=sampling,
    )


def result(logits: Float32, wants_token: list[bool], prompts: tuple[Float32, ...] = ()) -> StepResult:
    """What a greedy engine gives."""
    token_ids = np.full(len(wants_token), -1, np.int32)
    chosen = np.zeros(len(wants_token), np.float32)
    token_ids[wants_token] = logits.argmax(axis=1)
    chosen[wants_token] = logits.max(axis=1)
    return StepResult(token_ids=token_ids, chosen_logits=chosen, logits=logits, prompt_logits=prompts)


def penalties(history: list[int], prompt_len: int, **values: float) -> Penalties:
    given = {"repetition": 1.0, "presence": 0.0, "frequency": 0.0} | values
    return Penalties(history=history, prompt_len=prompt_len, **given)


def applied(row: tuple[float, ...], **extra: Any) -> tuple[int, float, list[Scored]]:
    """The token, its raw logit and the scores of one sequence that asks for this."""
    step, given_out = batch([True]), result(rows(row), [True])
    before = rows(row)
    scored = extras.apply(step, given_out, [Extra(row=0, **extra)])
    assert given_out.logits is not None
    np.testing.assert_array_equal(given_out.logits, before, err_msg="the model's own logits are kept")
    return int(given_out.token_ids[0]), float(given_out.chosen_logits[0]), scored


def log_softmax(logits: Float32) -> Any:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


# -- penalties and bans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        # divides what is positive and multiplies what is negative, of prompt and answer, once however often it came
        (penalties([0, 1, 3, 3, 2], 2, repetition=2.0), [1.0, -2.0, 0.25, 2.0, 0.0]),
        # once for each id of the answer; the prompt's do not count
        (penalties([0, 1, 3, 3, 2], 2, presence=0.5), [2.0, -1.0, 0.0, 3.5, 0.0]),
        # for each time in the answer
        (penalties([0, 1, 3, 3, 2], 2, frequency=0.25), [2.0, -1.0, 0.25, 3.5, 0.0]),
        (penalties([3, 3, 3], 3, presence=1.0, frequency=1.0), list(ROW)),
        # below 1, and below 0, they favour what was said before
        (penalties([1, 2], 1, repetition=0.5, presence=-1.0), [2.0, -0.5, 2.0, 4.0, 0.0]),
        # the repetition first, then the other two
        (penalties([0, 1, 3, 3, 2], 2, repetition=2.0, presence=0.5, frequency=0.25), [1.0, -2.0, -0.5, 1.0, 0.0]),
    ],
)
def test_penalties_are_the_formulas_of_sampling(asked: Penalties, expected: list[float]) -> None:
    row = rows(ROW)[0]
    extras._penalise(row, asked)
    np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_a_penalised_token_is_chosen_again_and_told_with_the_raw_logit() -> None:
    assert applied(ROW) == (3, 4.0, [])
    token_id, logit, scored = applied(ROW, penalties=penalties([3, 3], 0, frequency=1.5))
    assert (token_id, logit, scored) == (0, 2.0, [])


def test_of_two_that_are_equal_after_a_penalty_the_lower_id_is_chosen() -> None:
    """1.0 and 1.0, as computed above."""
    both = penalties([0, 1, 3, 3, 2], 2, repetition=2.0, presence=0.5, frequency=0.25)
    assert applied(ROW, penalties=both)[:2] == (0, 2.0)


def test_a_banned_id_is_not_chosen() -> None:
    assert applied(ROW, banned=[3])[:2] == (0, 2.0)
    assert applied(ROW, banned=[3, 0, 2])[:2] == (4, 0.0)


def test_a_banned_id_that_no_model_has_changes_nothing() -> None:
    assert applied(ROW, banned=[5, 2**31 - 1])[:2] == (3, 4.0)
    assert applied(ROW, banned=[3, 2**31 - 1])[:2] == (0, 2.0)


def test_when_every_id_is_banned_none_is() -> None:
    assert applied(ROW, banned=[0, 1, 2, 3, 4])[:2] == (3, 4.0)


@pytest.mark.parametrize("repetition", [1e-300, 1e-45, 1e-30, 1e30, 1e300])
@pytest.mark.parametrize("row", [ROW, (3e38, -3e38, 0.0, 1.0, -1.0)])
def test_no_penalty_makes_a_row_from_which_nothing_can_be_chosen(row: tuple[float, ...], repetition: float) -> None:
    """It would fail the step of every sequence in the batch."""
    changed = rows(row)[0]
    extras._penalise(changed, penalties([0, 1, 2, 3, 4], 5, repetition=repetition))
    assert np.isfinite(changed).all()
    assert 0 <= applied(row, penalties=penalties([0, 1, 2, 3, 4], 5, repetition=repetition))[0] < 5


def test_a_temperature_that_float32_cannot_hold_still_never_draws_a_banned_id() -> None:
    arrays = StepArrays.private(Dimensions(max_batch=1, max_tokens=1, max_blocks=1))
    for seed in range(20):
        arrays.admit(0, Sampling(temperature=1e300), seed)
        step = batch([True])
        step.sampling[0] = arrays.sampling[0]
        given_out = result(rows(ROW), [True])
        extras.apply(step, given_out, [Extra(row=0, banned=[0, 3])])
        assert given_out.token_ids[0] in (1, 2, 4)


def test_only_the_sequence_that_asks_is_chosen_again() -> None:
    step = batch([True, False, True, True])
    given_out = result(rows(ROW, ROW, ROW), [True, False, True, True])
    extras.apply(step, given_out, [Extra(row=2, banned=[3])])
    assert given_out.token_ids.tolist() == [3, -1, 0, 3]
    assert given_out.chosen_logits.tolist() == [4.0, 0.0, 2.0, 4.0]


def test_a_sequence_that_wants_no_token_yet_is_left_alone() -> None:
    given_out = result(rows(ROW), [False, True])
    scored = extras.apply(batch([False, True]), given_out, [Extra(row=0, banned=[3], num_logprobs=1)])
    assert (given_out.token_ids.tolist(), scored) == ([-1, 3], [])


def test_a_penalised_sequence_is_still_sampled_by_its_seed() -> None:
    def drawn(seed: int) -> int:
        step, given_out = batch([True], temperature=5.0), result(rows(ROW), [True])
        step.sampling["seed"] = seed
        extras.apply(step, given_out, [Extra(row=0, penalties=penalties([3], 0, presence=1.0))])
        return int(given_out.token_ids[0])

    first = [drawn(seed) for seed in range(40)]
    assert first == [drawn(seed) for seed in range(40)]
    assert set(first) == {0, 1, 2, 3, 4}


# -- log-probabilities ----------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(-80, 80, width=32), min_size=5, max_size=5), min_size=1, max_size=4))
def test_logprobs_are_those_of_a_float64_log_softmax(values: list[list[float]]) -> None:
    logits = np.array(values, np.float32)
    expected = log_softmax(logits)
    for i, (logprob, top) in enumerate(extras._score(logits, [1] * len(logits), 5)):
        assert logprob == pytest.approx(expected[i, 1], abs=1e-9)
        assert [value for _, value in top] == pytest.approx(sorted(expected[i], reverse=True), abs=1e-9)
        assert sorted(token_id for token_id, _ in top) == [0, 1, 2, 3, 4]


def test_logprobs_of_large_and_of_very_different_logits_stay_numbers() -> None:
    logits = rows((3e38, -3e38, 0.0), (1e4, 1e4, 1e4), (-1e4, -1e4, -2e4))
    ((first, _), (second, _), (third, top)) = extras._score(logits, [0, 2, 0], 3)
    assert (first, second, third) == pytest.approx((0.0, -np.log(3), -np.log(2)))
    assert [token_id for token_id, _ in top] == [0, 1, 2]


def test_the_likeliest_come_first_and_of_equal_ones_the_lower_id() -> None:
    logits = rows((1.0, 3.0, 3.0, 2.0, 3.0, 1.0))
    ((_, top),) = extras._score(logits, [0], 4)
    assert [token_id for token_id, _ in top] == [1, 2, 4, 3]
    ((_, two),) = extras._score(logits, [0], 1)
    assert len(two) == 1
    assert logits[0, two[0][0]] == 3.0


def test_as_many_as_were_asked_for_are_named_and_never_more_than_there_are() -> None:
    for asked, got in ((0, 0), (1, 1), (5, 5), (20, 5)):
        _, _, (scored,) = applied(ROW, num_logprobs=asked)
        assert len(scored.top) == got
        assert scored.logprob == pytest.approx(log_softmax(rows(ROW))[0, 3])


def test_logprobs_are_of_the_models_own_logits_also_when_another_token_was_made_to_win() -> None:
    token_id, _, (scored,) = applied(ROW, banned=[3], num_logprobs=2)
    expected = log_softmax(rows(ROW))[0]
    assert token_id == 0
    assert scored.logprob == pytest.approx(expected[0])
    assert [each[0] for each in scored.top] == [3, 0]


def test_the_prompts_tokens_are_scored_each_behind_the_one_before_it() -> None:
    """A piece of three new tokens at the end of a prompt: the last row is the answer's."""
    logits = rows((0.0, 1.0, 2.0), (3.0, 0.0, 0.0), (0.0, 0.0, 9.0))
    wants = [True]
    given_out = result(logits[2:], wants, prompts=(logits,))
    step = batch(wants, query_lens=[3])
    extra = Extra(row=0, prompt=PromptTargets(token_ids=[2, 1], num_top=1), num_logprobs=0)
    (scored,) = extras.apply(step, given_out, [extra])
    expected = log_softmax(logits)
    assert [score for score, _ in scored.prompt] == pytest.approx([expected[0, 2], expected[1, 1]])
    assert [[token_id for token_id, _ in top] for _, top in scored.prompt] == [[2], [0]]
    assert scored.logprob == pytest.approx(expected[2, 2])


def test_prompt_logits_go_to_the_sequences_that_asked_for_them_in_order() -> None:
    first, second = rows((1.0, 0.0)), rows((0.0, 5.0))
    wants = [False, True, False]
    step = batch(wants)
    asked = [
        Extra(row=0, prompt=PromptTargets(token_ids=[0], num_top=0)),
        Extra(row=1, num_logprobs=0),
        Extra(row=2, prompt=PromptTargets(token_ids=[0], num_top=0)),
    ]
    wanted = extras.wanted(step, asked)
    assert wanted.want_logits
    assert wanted.score_prompts is not None
    assert wanted.score_prompts.tolist() == [True, False, True]
    one, two, three = extras.apply(step, result(rows((2.0, 2.0)), wants, prompts=(first, second)), asked)
    assert one.prompt[0][0] == pytest.approx(log_softmax(first)[0, 0])
    assert two.logprob == pytest.approx(np.log(0.5))
    assert three.prompt[0][0] == pytest.approx(log_softmax(second)[0, 0])


def test_nothing_is_asked_of_the_engine_that_nobody_needs() -> None:
    step = batch([True, False])
    nothing = [
        Extra(row=0),
        Extra(row=1, num_logprobs=3),
        Extra(row=0, prompt=PromptTargets(token_ids=[], num_top=1)),
    ]
    assert extras.wanted(step, []) is step
    assert extras.wanted(step, nothing) is step


def test_what_is_asked_and_scored_crosses_the_link_unchanged() -> None:
    asked = Extra(
        row=3,
        penalties=penalties([1, 2**31 - 1], 1, repetition=1.5),
        banned=[2**31],
        num_logprobs=0,
        prompt=PromptTargets(token_ids=[7], num_top=2),
    )
    scored = Scored(row=3, logprob=float("-inf"), top=[(1, -0.5)], prompt=[(-1.25, [])])
    frame = frames.Step(num_sequences=4, num_tokens=4, extras=[asked])
    done = frames.Done(engine_ns=1, scored=[scored])
    assert [frames.Assembler().feed(frames.encode(each)) for each in (frame, done)] == [[frame], [done]]
