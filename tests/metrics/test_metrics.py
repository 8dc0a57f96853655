"""Metrics of runs whose numbers can be worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.loadgen.record import Record
from llmbench.metrics import Trace, per_request, per_run
from llmbench.metrics.summary import distribution, percentile, summarise

MS = 1_000_000


def answered(
    due: int, sent: int, stamps: list[int], done: int, tokens: list[int] | None = None, index: int = 0, **more: int
) -> Record:
    """An answered request; instants in ms."""
    tokens = tokens or [1] * len(stamps)
    return Record(
        index=index,
        status="answered",
        due_ns=due * MS,
        released_ns=more.pop("released", due) * MS,
        sent_ns=sent * MS,
        connected_ns=more.pop("connected", sent) * MS,
        stamps_ns=[stamp * MS for stamp in stamps],
        tokens=tokens,
        num_tokens=sum(tokens),
        done_ns=done * MS,
        finish_reason="length",
        num_prompt_tokens=more.pop("prompt", 10),
    )


def failed(due: int = 0, index: int = 0, reason: str = "HTTP 500: no") -> Record:
    return Record(index=index, status="failed", reason=reason, due_ns=due * MS, sent_ns=(due + 1) * MS)


def test_times_from_due_hold_our_own_lateness_and_times_from_sent_do_not() -> None:
    trace = answered(due=100, sent=103, stamps=[153, 163, 183], done=190)
    assert per_request.ttft.of(trace) == pytest.approx(0.053)
    assert per_request.e2el.of(trace) == pytest.approx(0.090)
    assert per_request.ttft_from_sent.of(trace) == pytest.approx(0.050)
    assert per_request.service_time.of(trace) == pytest.approx(0.087)
    assert per_request.lateness.of(trace) == pytest.approx(0.003)


def test_waiting_for_a_slot_is_not_lateness() -> None:
    trace = answered(due=0, sent=501, stamps=[510], done=511, released=500)
    assert per_request.lateness.of(trace) == pytest.approx(0.001)
    assert per_request.slot_wait.of(trace) == pytest.approx(0.5)
    assert per_request.e2el.of(trace) == pytest.approx(0.511)


def test_the_time_per_output_token_leaves_the_first_token_out() -> None:
    trace = answered(due=0, sent=0, stamps=[50, 60, 90], done=95)
    assert per_request.tpot.of(trace) == pytest.approx(0.020)
    assert per_request.itl.of(trace) == pytest.approx([0.010, 0.030])


def test_tokens_of_one_read_have_no_gap_between_them() -> None:
    trace = answered(due=0, sent=0, stamps=[50, 90], tokens=[2, 3], done=95)
    assert per_request.itl.of(trace) == pytest.approx([0.0, 0.040, 0.0, 0.0])
    assert per_request.tpot.of(trace) == pytest.approx(0.010)


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    trace = answered(due=0, sent=0, stamps=[50], done=51)
    assert per_request.tpot.of(trace) is None
    assert per_request.itl.of(trace) == []


def test_the_time_to_connect_is_apart() -> None:
    assert per_request.connect.of(answered(due=0, sent=5, stamps=[9], done=9, connected=7)) == pytest.approx(0.002)


def test_a_request_without_an_answer_waits_for_ever_and_has_no_time_of_service() -> None:
    assert per_request.ttft.of(failed()) == per_request.e2el.of(failed()) == math.inf
    assert per_request.service_time.of(failed()) is None
    assert per_request.ttft_from_sent.of(failed()) is None


def test_an_answer_that_was_not_streamed_has_no_first_token() -> None:
    trace = answered(due=0, sent=0, stamps=[], done=70)
    assert per_request.ttft.of(trace) is None
    assert per_request.e2el.of(trace) == pytest.approx(0.070)


def test_a_run_by_hand() -> None:
    run: list[Trace] = [
        answered(index=0, due=0, sent=1, stamps=[51, 61], done=70),
        answered(index=1, due=1000, sent=1001, stamps=[1051, 1061, 1071], done=1080),
        failed(index=2, due=2000),
    ]
    numbers = summarise(run)
    assert (numbers.num_planned, numbers.num_answered, numbers.num_failed, numbers.num_unfinished) == (3, 2, 1, 0)
    assert numbers.reasons == {"HTTP 500: no": 1}
    assert (numbers.num_prompt_tokens, numbers.num_output_tokens) == (20, 5)
    assert numbers.run["exec_time"] == pytest.approx(1.079)
    assert numbers.run["requests_per_s"] == pytest.approx(2 / 1.079)
    assert numbers.run["output_tokens_per_s"] == pytest.approx(5 / 1.079)
    assert numbers.run["total_tokens_per_s"] == pytest.approx(25 / 1.079)
    assert numbers.run["offered_rate"] == numbers.run["achieved_rate"] == pytest.approx(1.0)
    e2el = numbers.requests["e2el"]
    assert (e2el.num, e2el.num_infinite, e2el.max) == (3, 1, math.inf)
    assert e2el.mean == pytest.approx(0.075)  # of 70 and 80 ms
    assert e2el.p50 == pytest.approx(0.080)
    assert e2el.p90 == math.inf
    assert numbers.requests["itl"].num == 3


def test_a_run_of_one_request_has_no_rate() -> None:
    run: list[Trace] = [answered(due=0, sent=1, stamps=[51], done=70)]
    assert per_run.offered_rate.of(run) is None
    assert per_run.achieved_rate.of(run) is None


def test_a_run_in_which_nothing_was_sent_has_numbers_that_say_so() -> None:
    numbers = summarise([Record(index=0, due_ns=5, reason="not sent: interrupted")])
    assert numbers.num_unfinished == 1
    assert set(numbers.run.values()) == {None}
    assert numbers.requests["service_time"].p50 is None
    assert numbers.requests["e2el"].num == 0


def test_total_throughput_is_left_out_when_prompts_were_not_counted() -> None:
    run = [answered(due=0, sent=1, stamps=[51], done=70)]
    run[0].num_prompt_tokens = None
    assert per_run.total_tokens_per_s.of(run) is None
    assert summarise(run).num_prompt_tokens is None


def test_percentiles_by_hand() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == pytest.approx(2.5)
    assert percentile([float(i) for i in range(101)], 99) == pytest.approx(99.0)
    assert percentile([5.0], 99) == 5.0
    assert percentile([], 50) is None


def test_a_percentile_that_touches_an_infinite_value_is_infinite() -> None:
    ordered = [1.0, 2.0, math.inf]
    assert percentile(ordered, 50) == 2.0
    assert percentile(ordered, 51) == math.inf
    assert percentile([math.inf, math.inf], 50) == math.inf


@settings(deadline=None)  # a busy machine is not a fault
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 100))
def test_a_percentile_lies_between_its_neighbours_and_never_falls(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    found = percentile(ordered, percent)
    assert found is not None
    assert ordered[0] <= found <= ordered[-1]
    higher = percentile(ordered, min(100.0, percent + 1))
    assert higher is not None
    assert higher >= found or math.isclose(higher, found)


@settings(deadline=None)  # a busy machine is not a fault
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=40), st.integers(0, 40))
def test_requests_without_an_answer_never_make_a_run_look_faster(values: list[float], lost: int) -> None:
    alone, with_lost = distribution(values), distribution([*values, *[math.inf] * lost])
    assert alone.mean == with_lost.mean
    for name in ("p50", "p90", "p95", "p99", "max"):
        before, after = getattr(alone, name), getattr(with_lost, name)
        assert after >= before or math.isclose(after, before)


@settings(deadline=None)  # a busy machine is not a fault
@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=30).map(sorted),
    st.data(),
)
def test_gaps_add_up_to_the_time_from_the_first_token_to_the_last(stamps: list[int], data: st.DataObject) -> None:
    tokens = data.draw(st.lists(st.integers(1, 4), min_size=len(stamps), max_size=len(stamps)))
    trace = answered(due=0, sent=0, stamps=stamps, done=stamps[-1], tokens=tokens)
    gaps = per_request.itl.of(trace)
    assert len(gaps) == sum(tokens) - 1
    assert sum(gaps) == pytest.approx((stamps[-1] - stamps[0]) / 1000)
    if gaps:
        assert per_request.tpot.of(trace) == pytest.approx(sum(gaps) / len(gaps))


def test_every_metric_says_what_it_is() -> None:
    for name, label, unit, formula in [
        *((m.name, m.label, m.unit, m.formula) for m in per_request.METRICS),
        *((m.name, m.label, m.unit, m.formula) for m in per_run.METRICS),
    ]:
        assert label
        assert unit
        assert formula.endswith((".", "`.")), name
