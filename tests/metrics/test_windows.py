"""Parts of a run, in seconds of its plan."""

import numpy as np
import pytest

from llmbench.errors import InputError
from llmbench.loadgen.record import Record
from llmbench.metrics import windows
from llmbench.metrics.stalls import stalls
from llmbench.metrics.steady import cut, steady
from llmbench.metrics.windows import Window

S = 1_000_000_000


def answered(index: int, due_s: float, done_s: float, stamps_s: tuple[float, ...] = ()) -> Record:
    stamps = [round(stamp * S) for stamp in stamps_s or (done_s,)]
    return Record(
        index=index,
        status="answered",
        due_ns=round(due_s * S),
        released_ns=round(due_s * S),
        sent_ns=round(due_s * S),
        stamps_ns=stamps,
        tokens=[1] * len(stamps),
        num_tokens=len(stamps),
        done_ns=round(done_s * S),
    )


def test_a_request_belongs_to_the_window_in_which_it_is_due() -> None:
    traces = [answered(0, 0.0, 5.0), answered(1, 1.0, 1.5), answered(2, 2.0, 2.5)]
    assert [trace.index for trace in windows.due_in(traces, 0, Window(from_s=1, to_s=2))] == [1]


def test_the_traffic_of_a_window_counts_tokens_by_their_instants_and_requests_by_their_time_in_flight() -> None:
    traces = [answered(0, 0.0, 4.0, (1.0, 2.5, 3.5)), answered(1, 2.0, 3.0, (2.9, 3.0))]
    found = windows.traffic(traces, 0, Window(from_s=2, to_s=4))
    assert found.output_tokens_per_s == pytest.approx(4 / 2)
    assert found.answers_per_s == pytest.approx(1 / 2)  # the one that ended at 4 is not in it
    assert found.mean_in_flight == pytest.approx((2 + 1) / 2)


def test_a_request_that_never_ended_is_in_flight_until_the_end() -> None:
    lost = Record(index=0, due_ns=S, sent_ns=S)
    assert windows.in_flight([lost], 0, Window(from_s=0, to_s=4), 4).tolist() == pytest.approx([0, 1, 1, 1])


@pytest.mark.parametrize(("from_s", "to_s"), [(5, 4), (4, 4), (10, 12), (-3, 0)])
def test_a_window_with_nothing_in_it_is_refused(from_s: float, to_s: float) -> None:
    with pytest.raises(InputError, match="--from"):
        windows.window(from_s, to_s, Window(from_s=0, to_s=10))


def test_an_open_end_is_that_of_the_run() -> None:
    assert windows.window(None, 5, Window(from_s=0, to_s=10)) == Window(from_s=0, to_s=5)
    assert windows.window(3, None, Window(from_s=0, to_s=10)) == Window(from_s=3, to_s=10)


def test_mser_cuts_a_ramp_off_a_plateau() -> None:
    assert cut(np.concatenate((np.arange(10.0), np.full(90, 10.0)))) == 10
    assert cut(np.full(50, 3.0)) == 0


def test_the_steady_part_leaves_out_the_filling_of_an_empty_server() -> None:
    # one request each 0.1 s, each takes 10 s: the number in flight climbs to 100 in 10 s and stays there
    traces = [answered(n, n / 10, n / 10 + 10) for n in range(1000)]
    found = steady(traces, 0).window
    assert found is not None
    assert found.from_s == pytest.approx(10, abs=1)
    assert found.to_s == pytest.approx(99.9, abs=1)


def test_a_queue_that_only_grows_has_no_steady_part() -> None:
    traces = [answered(n, n / 10, n / 10 + 0.1 + n / 20) for n in range(1000)]
    found = steady(traces, 0)
    assert found.window is None
    assert "did not settle" in found.reason


def test_a_steady_part_is_not_looked_for_in_few_requests_or_in_a_burst() -> None:
    assert "it takes 50" in steady([answered(n, n, n + 1) for n in range(49)], 0).reason
    assert "at once" in steady([answered(n, 0, n + 1) for n in range(60)], 0).reason


def test_a_random_load_that_is_steady_keeps_most_of_itself() -> None:
    rng = np.random.default_rng(1)
    due = np.cumsum(rng.exponential(0.1, 3000))
    took = rng.exponential(1, 3000)
    traces = [answered(n, due[n], due[n] + took[n]) for n in range(3000)]
    found = steady(traces, 0).window
    assert found is not None
    assert found.to_s - found.from_s > 0.75 * due[-1]


def test_a_stall_is_a_gap_of_more_than_five_times_the_usual_one() -> None:
    even = answered(0, 0, 1, tuple(0.1 + 0.02 * n for n in range(10)))
    stalled = answered(1, 0, 2, (0.1, 0.12, 0.14, 0.16, 0.46, 0.48, 0.5))
    found = stalls([even, stalled])
    assert [(stall.index, stall.from_ns, round(stall.gap_s, 3)) for stall in found.found] == [(1, 160_000_000, 0.3)]
    assert (found.num_streams, found.num_frozen) == (2, 1)
