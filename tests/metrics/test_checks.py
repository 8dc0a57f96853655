from typing import Literal

import pytest

from llmbench.errors import InputError
from llmbench.loadgen.record import Record
from llmbench.metrics import checks
from llmbench.metrics.checks import Evidence, answers, pace

MS = 1_000_000


def trace(
    index: int = 0, late_ms: float = 0.1, ttft_ms: float = 100, tokens: int = 3, expected: int | None = 3
) -> Record:
    """An answered request, due 10 ms after the one before."""
    due_ns = index * 10 * MS
    sent_ns = due_ns + round(late_ms * MS)
    return Record(
        index=index,
        status="answered",
        due_ns=due_ns,
        released_ns=due_ns,
        sent_ns=sent_ns,
        connected_ns=sent_ns,
        stamps_ns=[sent_ns + round(ttft_ms * MS)],
        tokens=[tokens],
        num_tokens=tokens,
        done_ns=sent_ns + round(ttft_ms * MS),
        finish_reason="length",
        expected_tokens=expected,
    )


def test_a_good_run_is_valid() -> None:
    outcomes = checks.check(Evidence(traces=[trace(i) for i in range(50)]))
    assert {outcome.verdict for outcome in outcomes} == {"ok", "not applicable"}
    assert checks.verdict(outcomes) == "VALID"


@pytest.mark.parametrize("status", ["failed", "unfinished"])
def test_one_lost_request_makes_the_run_invalid(status: Literal["failed", "unfinished"]) -> None:
    run = [trace(i) for i in range(50)]
    run[7].status = status
    outcome = answers.all_answered(Evidence(traces=run))
    assert (outcome.value, outcome.verdict) == (1, "failed")
    assert checks.verdict(checks.check(Evidence(traces=run))) == "INVALID"


def test_an_answer_of_another_length_is_found_unless_the_model_ended_it() -> None:
    short, ended = trace(0, tokens=2), trace(1, tokens=2)
    ended.finish_reason = "eos"
    outcome = answers.output_lengths(Evidence(traces=[short, ended, trace(2)]))
    assert (outcome.value, outcome.verdict) == (1, "failed")


def test_lengths_that_nobody_asked_for_are_not_checked() -> None:
    assert answers.output_lengths(Evidence(traces=[trace(expected=None)])).verdict == "not applicable"


def test_the_limit_of_lateness_is_five_percent_of_the_median_first_token_but_two_milliseconds_at_least() -> None:
    assert pace.own_lateness(Evidence(traces=[trace(ttft_ms=100)])).limit == pytest.approx(0.005)
    assert pace.own_lateness(Evidence(traces=[trace(ttft_ms=10)])).limit == pytest.approx(0.002)


def test_where_nothing_is_streamed_the_limit_is_five_percent_of_the_whole_answers_time() -> None:
    whole = trace(ttft_ms=1000)
    whole.stamps_ns, whole.tokens = [], []
    assert pace.own_lateness(Evidence(traces=[whole])).limit == pytest.approx(0.05)


def test_a_client_that_is_late_makes_the_run_invalid() -> None:
    assert pace.own_lateness(Evidence(traces=[trace(i, late_ms=4.9) for i in range(9)])).verdict == "ok"
    assert pace.own_lateness(Evidence(traces=[trace(i, late_ms=5.1) for i in range(9)])).verdict == "failed"


def test_four_late_requests_of_sixty_may_be_chance_and_five_are_not() -> None:
    def late(num: int) -> str:
        traces = [trace(i, late_ms=9.0 if i < num else 0.1) for i in range(60)]
        return pace.own_lateness(Evidence(traces=traces)).verdict

    assert [late(num) for num in (4, 5)] == ["ok", "failed"]  # P(5 of 60 or more | 1 in 100) = 0.04 %


def test_with_many_requests_lateness_is_judged_near_their_own_99th_percentile() -> None:
    def late(num: int) -> str:
        traces = [trace(i, late_ms=9.0 if i < num else 0.1) for i in range(3000)]
        return pace.own_lateness(Evidence(traces=traces)).verdict

    assert [late(num) for num in (30, 60)] == ["ok", "failed"]


def test_a_rate_that_was_not_kept_makes_the_run_invalid() -> None:
    def slower(by_ms: float) -> str:
        return pace.rate_kept(Evidence(traces=[trace(i, late_ms=by_ms * i) for i in range(200)])).verdict

    assert slower(0.1) == "ok"  # 1 %
    assert slower(0.3) == "failed"


def test_a_short_run_does_not_fail_for_a_request_that_is_a_millisecond_late() -> None:
    run = Evidence(traces=[trace(0), trace(1, late_ms=1.5)])  # 10 ms apart: 14 % off
    outcome = pace.rate_kept(run)
    assert outcome.verdict == "ok"
    assert outcome.value == pytest.approx(0.123, abs=0.001)


def test_a_rate_has_no_sense_in_a_burst_or_where_slots_hold_requests_back() -> None:
    burst = [trace(0), trace(0, late_ms=99)]
    assert pace.rate_kept(Evidence(traces=burst)).verdict == "not applicable"
    assert pace.own_lateness(Evidence(traces=burst)).verdict == "not applicable"
    held = [trace(i) for i in range(3)]
    held[2].released_ns = held[2].due_ns + 50 * MS
    assert pace.rate_kept(Evidence(traces=held)).verdict == "not applicable"
    assert pace.own_lateness(Evidence(traces=held)).verdict == "ok"


def test_a_run_without_any_answer_is_invalid_and_nothing_divides_by_zero() -> None:
    outcomes = checks.check(Evidence(traces=[Record(index=0, due_ns=0, reason="not sent: interrupted")]))
    assert checks.verdict(outcomes) == "INVALID"


def test_a_check_that_is_allowed_is_shown_and_does_not_count() -> None:
    run = Evidence(traces=[trace(i, tokens=2) for i in range(50)])
    assert checks.verdict(checks.check(run)) == "INVALID"
    outcomes = checks.check(run, allow=["lengths"])
    assert checks.verdict(outcomes) == "VALID"
    assert [outcome.id for outcome in outcomes if outcome.allowed] == ["lengths"]


def test_allowing_what_is_no_check_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"--allow length: .* answered, lengths"):
        checks.check(Evidence(traces=[trace()]), allow=["length"])


def test_a_resumed_run_proves_nothing_for_sure() -> None:
    outcomes = checks.check(Evidence(traces=[trace(i) for i in range(50)], seams_s=[0.2]))
    assert checks.verdict(outcomes) == "INCONCLUSIVE"
    assert checks.EXIT["INCONCLUSIVE"] == 4


def test_what_failed_outweighs_what_is_unsure() -> None:
    outcomes = checks.check(Evidence(traces=[trace(i, tokens=2) for i in range(50)], seams_s=[0.2]))
    assert checks.verdict(outcomes) == "INVALID"


def test_instants_out_of_order_are_found() -> None:
    run = [trace(i) for i in range(50)]
    assert answers.instants_in_order(Evidence(traces=run)).verdict == "ok"
    run[3].done_ns = run[3].stamps_ns[0] - 1
    outcome = answers.instants_in_order(Evidence(traces=run))
    assert (outcome.value, outcome.verdict) == (1, "failed")
