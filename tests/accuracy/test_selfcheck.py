"""Decode against prefill: the estimate is the KL divergence, and what has no counterpart is not scored."""

import numpy as np
import pytest

from llmbench.accuracy import selfcheck
from llmbench.accuracy.asking import Answer
from llmbench.accuracy.selfcheck import Report, Scores, Settings, judge_rounds, limits
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.record import Record
from llmbench.types import TokenLogprob


def scores(decode: list[float], prefill: list[float], **changes: object) -> Scores:
    fields: dict[str, object] = {
        "cache": "cold",
        "decode": decode,
        "prefill": prefill,
        "places": [(0, i) for i in range(len(decode))],
        "num_tokens": len(decode),
        "cached": [0],
    }
    return Scores(**fields | changes)  # type: ignore[arg-type]


def judged(*rounds: Scores, profile: str = "fp32", ours: bool = True) -> Report:
    return judge_rounds(Settings(), rounds, profile, by_ids=True, cache_is_ours=ours)


def tokens(*told: tuple[str, float | None]) -> tuple[TokenLogprob, ...]:
    return tuple(TokenLogprob(token_id=-1, text=text, logprob=logprob) for text, logprob in told)


def test_the_estimate_is_the_kl_divergence_of_the_distributions_it_was_drawn_from() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(50)), rng.dirichlet(np.ones(50) * 3)
    drawn = rng.choice(50, 200_000, p=p)
    (found,) = judged(scores(np.log(p[drawn]).tolist(), np.log(q[drawn]).tolist())).rounds
    exact = float((p * np.log(p / q)).sum())
    assert abs(found.k3 - exact) < 5 * found.k3_standard_error < 0.1 * exact


def test_equal_scores_pass_and_a_mean_or_a_single_token_beyond_its_limit_fails() -> None:
    assert judged(scores([-1.0] * 9, [-1.0] * 9)).verdict == "passed"
    mean = judged(scores([-1.0] * 9, [-1.01] * 9))
    assert (mean.verdict, mean.exit_code) == ("failed", 1)
    assert mean.reasons == ("cache cold: estimated KLD (k3), nats per token: 4.98e-05, at most 1e-05 is allowed",)
    single = judged(scores([-1.0] * 999 + [-2.0], [-1.0] * 999 + [-1.92]))
    assert single.reasons == ("cache cold: largest change of a log-probability: 0.08, at most 0.06 is allowed",)
    assert single.rounds[0].worst is not None
    assert single.rounds[0].worst.token == 999
    assert judged(scores([-1.0] * 999 + [-2.0], [-1.0] * 999 + [-1.92]), profile="bf16").verdict == "passed"


def test_what_was_not_scored_is_not_passed() -> None:
    assert judged(scores([-1.0] * 4, [-1.0] * 4, num_tokens=9)).verdict == "inconclusive"
    assert judged(scores([], [], num_tokens=9)).exit_code == 3


def test_a_hot_round_without_a_hit_is_inconclusive_on_our_own_stack_only() -> None:
    cold = scores([-1.0], [-1.0])
    hot = scores([-1.0], [-1.0], cache="hot", cached=[0, 0, 16])
    assert judged(cold, hot).exit_code == 4
    assert judged(cold, hot, ours=False).exit_code == 0
    silent = judged(scores([-1.0], [-1.0], cached=[None]), ours=False)
    assert silent.rounds[0].hits is None


def test_limits_are_those_of_the_profile_with_their_source() -> None:
    assert [(gate.figure, gate.limit) for _, gate in limits("fp32")] == [("kld_mean", 1e-5), ("max_abs_free", 0.06)]
    assert [gate.figure for _, gate in limits("fp16")] == ["kld_mean"]
    with pytest.raises(InputError, match="no limit for the mean KLD"):
        limits("bitwise")


def test_a_text_that_comes_back_in_other_tokens_is_scored_up_to_there() -> None:
    answer = Answer(
        record=Record(index=0, due_ns=0, server_prompt_tokens=2),
        new=tokens((" a", -0.5), (" b", -1.0), ("c", -2.0)),
        prompt=(),
    )
    again = tokens(("<s>", None), ("x", -9.0), (" a", -0.6), (" bc", -1.0))
    scored = Answer(record=answer.record, new=(), prompt=again)
    assert list(selfcheck._both("x", answer, scored)) == [(-0.5, -0.6)]
    assert list(selfcheck._both((1, 7), answer, scored)) == [(-0.5, -0.6), (-1.0, -1.0)], "ids need no comparing"


def test_a_server_without_scores_is_no_measurement() -> None:
    silent = Answer(record=Record(index=0, due_ns=0), new=(), prompt=())
    spoken = Answer(record=Record(index=0, due_ns=0, server_prompt_tokens=1), new=tokens(("a", -1.0)), prompt=())
    with pytest.raises(InvalidMeasurement, match="gives no log-probabilities"):
        selfcheck._whole("x", silent)
    with pytest.raises(InvalidMeasurement, match="does not score prompts"):
        list(selfcheck._both("x", spoken, silent))
    with pytest.raises(InvalidMeasurement, match="leave --tokenizer out"):
        selfcheck._whole((1, 2), spoken)


def test_an_answer_goes_back_up_to_an_id_that_servers_refuse() -> None:
    record = Record(index=0, due_ns=0, token_ids=[5, 6, 0, 7])
    answer = Answer(record=record, new=tokens(*(("a", -1.0) for _ in range(4))), prompt=())
    assert selfcheck._whole((1, 2), answer) == (1, 2, 5, 6)
