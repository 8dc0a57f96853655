"""What every arrival process promises; a new file in the room is tested the moment it exists."""

import json
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.metrics import arrivals as tests_of
from llmbench.workload import arrivals
from llmbench.workload.arrivals import Arrivals

NAMES = plugins.names("workload.arrivals")
RATES = (0.5, 3.0, 20.0, 100.0)
NEEDED = {"steps": ":rates=3x1+2x9+1x6"}  # processes that cannot be named without a setting; `trace` needs a file


@pytest.fixture(autouse=True, scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A recorded trace of irregular times, out of order."""
    path = tmp_path_factory.mktemp("trace") / "times.jsonl"
    times = np.cumsum(np.random.default_rng(5).uniform(0, 0.2, 400))[::-1]
    path.write_text("".join(json.dumps({"timestamp": 1.7e9 + time}) + "\n" for time in times), encoding="utf-8")
    NEEDED["trace"] = f":path={path}"
    yield
    del NEEDED["trace"]


def get(text: str, qps: float) -> Arrivals:
    return arrivals.get(text + NEEDED.get(text, ""), qps)


def offsets(text: str, qps: float, number: int, seed: int = 7) -> list[float]:
    return list(islice(get(text, qps).offsets(np.random.default_rng(seed)), number))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qps", RATES)
def test_due_times_start_at_zero_or_later_and_never_decrease(name: str, qps: float) -> None:
    due = offsets(name, qps, 5000)
    assert due[0] >= 0
    assert all(before <= after for before, after in pairwise(due))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_offsets(name: str) -> None:
    assert offsets(name, 20.0, 3000) == offsets(name, 20.0, 3000)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qps", RATES)
def test_the_long_run_rate_is_within_two_percent_of_the_declared_one(name: str, qps: float) -> None:
    process = get(name, qps)
    due = offsets(name, qps, 60_001)
    if due[-1] == 0:
        assert process.rate == float("inf")
    else:  # the long run begins behind ramps and steps
        assert 50_000 / (due[-1] - due[10_000]) == pytest.approx(process.rate, rel=0.02)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qps", RATES)
def test_the_expected_number_of_requests_in_a_time_is_what_comes_on_average(name: str, qps: float) -> None:
    process = get(name, qps)
    if process.rate == float("inf"):
        return
    time_s = 4000 / process.rate
    mean = np.mean([np.searchsorted(offsets(name, qps, 5000, seed), time_s) for seed in range(20)])
    assert mean == pytest.approx(process.expected(time_s), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qps", RATES)
def test_with_the_process_taken_out_exponential_gaps_are_left(name: str, qps: float) -> None:
    due = np.array(offsets(name, qps, 5000))
    gaps = get(name, qps).unit_gaps(due)
    if gaps is not None:
        assert not tests_of.contradictions(tests_of.examine(gaps, tests_of.mean_rate(gaps, due)))


@pytest.mark.parametrize("name", NAMES)
def test_think_times_are_never_negative_and_only_closed_loops_have_users(name: str) -> None:
    process = get(name, 3.0)
    assert min(islice(process.thinks(np.random.default_rng(1)), 100)) >= 0
    assert (process.users is not None) == (name == "closed")


@pytest.mark.parametrize("name", NAMES)
def test_the_index_of_dispersion_is_as_declared(name: str) -> None:
    """Variance over mean of the counts in windows of 50 mean gaps; a gap histogram would not see correlated gaps."""
    process = get(name, 20.0)
    if process.dispersion is None:
        return
    window_s = 50 / process.rate
    counts = np.bincount((np.array(offsets(name, 20.0, 200_000)) / window_s).astype(int))[:-1]
    # a window's edge cuts a gap, which adds up to 1/6 of a request to the variance of a nearly regular process
    assert counts.var() / counts.mean() == pytest.approx(process.dispersion, rel=0.1, abs=0.25 / 50)


def test_the_contest_offers_what_its_rounding_makes_of_the_rate() -> None:
    rates = {qps: arrivals.get("contest", qps).rate for qps in (0.5, 3.0, 6.0, 100.0, 200.0, 201.0)}
    assert rates == pytest.approx({0.5: 0.5, 3.0: 1 / 0.33, 6.0: 1 / 0.17, 100.0: 100, 200.0: 100, 201.0: float("inf")})


def test_the_contests_gaps_are_whole_milliseconds_of_a_poisson_distribution() -> None:
    gaps_ms = np.diff(np.array(offsets("contest", 2.0, 50_001))) * 1000
    assert np.abs(gaps_ms - gaps_ms.round()).max() < 1e-6
    assert gaps_ms.mean() == pytest.approx(500, rel=0.01)
    assert gaps_ms.var() == pytest.approx(500, rel=0.05)  # the variance of a Poisson number is its mean


def test_the_contest_sends_the_first_request_at_once_and_poisson_after_a_gap() -> None:
    assert offsets("contest", 2.0, 1) == [0.0]
    assert offsets("poisson", 2.0, 1)[0] > 0


@pytest.mark.parametrize("qps", [0.0, -1.0, float("nan")])
def test_a_rate_that_is_not_above_zero_is_refused(qps: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        arrivals.get("poisson", qps)


def test_a_wrong_name_is_answered_with_the_near_one() -> None:
    with pytest.raises(InputError, match="poisson"):
        arrivals.get("poison", 1.0)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gamma:shpe=1", "--arrivals gamma: shpe: unknown key. Did you mean 'shape'"),
        ("gamma:shape=x", "--arrivals gamma: shape: Expected `float`"),
        ("gamma:shape=0", "--arrivals gamma: shape: must be from 0.01"),
        ("gamma:shape=1,shape=2", "shape: is given twice"),
        ("gamma:1,2", "'2' is not key=value"),
        ("steps", "rates: is missing"),
        ("steps:30x1+3y5", "'3y5' is not SECONDSxRATE"),
        ("steps:30x1+30x0", "the last rate, must be above 0"),
        ("ramp:shape=curved", "--arrivals ramp: shape: "),
        ("ramp:from=0,shape=exponential", "from: must be finite and above 0"),
        ("closed:users=0", "users: must be 1 or more"),
        ("closed:think=expo:2", "think: unknown distribution 'expo'"),
        ("closed:think=uniform:3", "should be uniform:LOW:HIGH"),
        ("trace:path=nowhere.csv,scale=0", "scale: must be finite and above 0"),
        ("poisson:qps=3", "qps: unknown key"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_key_and_the_near_one(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        arrivals.get(text, 5.0)
    assert message in str(refused.value)


def test_the_first_setting_may_stand_without_its_key() -> None:
    assert arrivals.get("gamma:0.25", 5.0) == arrivals.get("gamma:shape=0.25", 5.0)


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(1, 500), st.sampled_from(["linear", "exponential"]))
def test_a_ramp_offers_its_rates_at_its_ends_whatever_they_are(
    first: float, last: float, seconds: float, shape: str
) -> None:
    process = arrivals.get(f"ramp:from={first},to={last},seconds={seconds},shape={shape}", 1.0)
    step = seconds * 1e-6
    assert process.expected(step) / step == pytest.approx(first, rel=0.01)
    assert (process.expected(seconds) - process.expected(seconds - step)) / step == pytest.approx(last, rel=0.01)
    mean = (first + last) / 2 if shape == "linear" else (last - first) / np.log(last / first) if first != last else last
    assert process.expected(seconds) / seconds == pytest.approx(mean, rel=1e-6)
    due = np.array(list(islice(process.offsets(np.random.default_rng(3)), 50)))
    unit = np.cumsum(np.random.default_rng(3).exponential(size=1024))[:50]
    gaps = process.unit_gaps(due)
    assert gaps is not None
    assert np.cumsum(gaps) == pytest.approx(unit, rel=1e-6)


def test_a_pause_of_the_steps_has_no_request() -> None:
    due = np.array(offsets("steps:2x50+3x0+2x50", 1.0, 190))
    assert not ((due > 2) & (due < 5)).any()
    assert ((due > 5) & (due < 7)).sum() > 60


def test_half_the_shape_of_gamma_is_double_the_dispersion() -> None:
    assert arrivals.get("gamma:shape=0.5", 5.0).dispersion == 2


def test_a_closed_loop_begins_with_one_request_of_each_user_after_a_think_time() -> None:
    process = arrivals.get("closed:users=3,think=uniform:1:2", 1.0)
    due = list(islice(process.offsets(np.random.default_rng(1)), 5))
    assert 1 <= due[0] < due[1] < due[2] == due[3] == due[4] < 2


def test_a_trace_is_read_from_csv_with_dates_and_scaled(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:17:04.5,7\n2023-11-16 18:17:03.9799600,9\n")
    assert offsets(f"trace:{path},scale=2", 1.0, 2) == pytest.approx([0, 2 * 0.52004])


def test_a_trace_begins_anew_one_mean_gap_after_its_end(tmp_path: Path) -> None:
    path = tmp_path / "numbers.jsonl"
    path.write_text("10\n11\n14\n")
    assert offsets(f"trace:{path}", 1.0, 5) == pytest.approx([0, 1, 4, 6, 7])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"timestamp": 1}\n{"time": 2}', "line 2: unknown field 'timestamp'. Did you mean 'time'?"),
        ("t.jsonl", '{"timestamp": "soon"}', "line 1: timestamp: neither a number"),
        ("t.jsonl", "{", "line 1: not JSON"),
        ("t.jsonl", "", "no request"),
        ("t.csv", "timestamps,x\n1,2", "Did you mean 'timestamps'"),
        ("t.csv", "timestamp,x\n1,2\nnever,2", "line 3: timestamp: neither"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_name_the_line_and_the_field(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as refused:
        offsets(f"trace:{tmp_path / name}", 1.0, 1)
    assert name in str(refused.value)
    assert message in str(refused.value)
