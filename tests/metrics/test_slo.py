"""Objectives: read, judged, and decided no more often wrongly than they say."""

import numpy as np
import pytest
from scipy import stats

from llmbench.errors import InputError
from llmbench.loadgen.record import Record
from llmbench.metrics import slo

MS = 1_000_000


def trace(ttft_ms: float = 100, e2el_ms: float = 1000, answered: bool = True) -> Record:
    return Record(
        index=0,
        status="answered" if answered else "failed",
        due_ns=0,
        released_ns=0,
        sent_ns=0,
        stamps_ns=[round(ttft_ms * MS), round(e2el_ms * MS)],
        tokens=[1, 9],
        num_tokens=10,
        done_ns=round(e2el_ms * MS),
    )


def test_objectives_are_read_and_written() -> None:
    found = slo.parse("ttft:p99<500ms, tpot:p95 < 40ms,e2el<=2s,goodput>=95%")
    assert [str(each) for each in found] == ["ttft:p99<500ms", "tpot:p95<40ms", "e2el<2s", "goodput>=95%"]
    assert found[0].limit_s == pytest.approx(0.5)
    assert found[2].percentile == 100
    assert slo.parse(",".join(map(str, found))) == found
    assert slo.parse("ttft:p99.9<1500us")[0].percentile == 99.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "METRIC:pNN<LIMIT"),
        ("ttft", "METRIC:pNN<LIMIT"),
        ("tft:p99<1s", "did you mean ttft"),
        ("zzz:p99<1s", "known: ttft"),
        ("ttft:p99<500", "needs a unit: s, ms, us"),
        ("ttft:p0<5ms", "between 0 and 100"),
        ("ttft:p101<5ms", "between 0 and 100"),
        ("ttft:p9.9.9<5ms", "no number"),
        ("goodput>=95%", "goodput is of limits"),
    ],
)
def test_what_is_wrong_with_an_objective_is_said(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        slo.parse(text)


def judged(text: str, traces: list[Record]) -> slo.Outcome:
    return slo.judge(slo.parse(text), traces)[-1]


def test_a_percentile_passes_fails_or_cannot_be_told() -> None:
    fast, slow = trace(), trace(ttft_ms=900)
    assert judged("ttft:p99<500ms", [fast] * 299).answer == "pass"
    few = judged("ttft:p99<500ms", [fast] * 298)
    assert few.answer == "unknown"
    assert "send 1 more" in few.remedy
    assert judged("ttft:p99<500ms", [fast] * 290 + [slow] * 10).answer == "fail"
    assert judged("ttft:p90<500ms", [fast] * 290 + [slow] * 10).answer == "pass"
    assert judged("ttft:p99<500ms", []).answer == "unknown"


def test_a_request_without_an_answer_keeps_no_objective_and_one_that_was_never_sent_counts_for_none() -> None:
    lost, never = trace(answered=False), Record(index=0, due_ns=0)
    assert judged("e2el<2s", [trace()] * 9).answer == "pass"
    assert judged("e2el<2s", [trace()] * 9 + [never]).answer == "pass"
    assert judged("e2el<2s", [trace()] * 9 + [lost]).answer == "fail"


def test_an_answer_of_one_token_has_no_time_per_token_to_keep() -> None:
    short = trace()
    short.tokens, short.num_tokens, short.stamps_ns = [1], 1, [MS]
    assert judged("tpot<1ms", [short]).num == 0
    assert slo.goodput(slo.parse("tpot<1ms"), [short]) == 1.0


def test_goodput_is_the_share_of_requests_that_keep_all_limits() -> None:
    traces = [trace()] * 96 + [trace(ttft_ms=900)] * 2 + [trace(e2el_ms=3000), trace(answered=False)]
    objectives = slo.parse("ttft<500ms,e2el<2s,goodput>=90%")
    assert slo.goodput(objectives, traces) == pytest.approx(0.96)
    outcomes = slo.judge(objectives, traces)
    assert [outcome.objective for outcome in outcomes] == ["goodput>=90%"], (
        "limits of goodput are not demands by themselves"
    )
    assert outcomes[0].answer == "pass"
    assert (outcomes[0].num, outcomes[0].num_over) == (100, 4)
    assert slo.exit_code(outcomes) == 0


def test_bounds_of_a_share_are_those_of_clopper_and_pearson() -> None:
    for num, kept in ((100, 96), (10, 0), (10, 10), (1500, 1400)):
        low, high = slo.share_bounds(num, kept)
        assert low == pytest.approx(stats.beta.ppf(0.05, kept, num - kept + 1) if kept else 0.0, abs=1e-6)
        assert high == pytest.approx(stats.beta.ppf(0.95, kept + 1, num - kept) if kept < num else 1.0, abs=1e-6)


def test_an_objective_that_holds_need_not_be_shown() -> None:
    objective = slo.parse("ttft:p99<500ms")[0]
    assert objective.holds([trace()] * 5) is True
    assert objective.holds([trace()] * 5 + [trace(ttft_ms=900)]) is False
    assert objective.holds([]) is None


def test_exit_codes_tell_failed_from_unknown() -> None:
    assert slo.exit_code([judged("e2el<2s", [trace()])]) == 0
    assert slo.exit_code([judged("ttft:p99<1s", [trace()])]) == 4
    assert slo.exit_code([judged("ttft:p99<1s", [trace()]), judged("e2el<1ms", [trace()])]) == 1


def test_a_decision_on_the_very_edge_is_wrong_in_five_percent_at_most() -> None:
    over = np.random.default_rng(1).binomial(1000, 0.01, 4000)
    answers = [slo.decide(1000, int(k), 99) for k in over]
    for wrong in ("pass", "fail"):
        assert answers.count(wrong) <= 0.06 * len(answers)


def test_looking_after_every_request_is_still_wrong_in_five_percent_at_most() -> None:
    rng = np.random.default_rng(2)
    once, always = 0, 0
    for _ in range(400):
        over = np.cumsum(rng.random(1000) < 0.05)
        looks = [(n + 1, int(over[n])) for n in range(19, 1000, 20)]
        once += any(slo.decide(n, k, 95) != "unknown" for n, k in looks)
        always += any(slo.decide_any_time(n, k, 95) != "unknown" for n, k in looks)
    assert always <= 0.05 * 400
    assert once > 0.2 * 400, "which the test for one look is not"


def test_looking_all_the_time_finds_clear_cases_soon() -> None:
    assert slo.decide_any_time(400, 40, 95) == "fail"
    assert slo.decide_any_time(400, 2, 95) == "pass"
    assert slo.decide_any_time(10, 0, 95) == "unknown"
    assert slo.decide_any_time(10, 1, 100) == "fail"


@pytest.mark.parametrize(("num", "over", "percentile"), [(0, 0, 99), (100, 0, 99), (100, 3, 99), (30, 1, 90)])
def test_so_many_more_requests_are_enough_and_one_less_is_not(num: int, over: int, percentile: float) -> None:
    more = slo.fewest_more(num, over, percentile)
    assert more is not None
    assert slo.decide(num + more, over, percentile) == "pass"
    assert slo.decide(num + more - 1, over, percentile) != "pass"
