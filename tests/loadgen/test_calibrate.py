"""Calibration on real processes: identities only, as a busy machine may be a bad instrument."""

import math
from pathlib import Path

import msgspec
import pytest

from llmbench.errors import InputError
from llmbench.loadgen import calibrate
from llmbench.loadgen.calibrate import Calibration, Ceiling, Load
from llmbench.metrics.instrument import InstrumentError, Spread
from llmbench.types import Request
from llmbench.workload import plan as plans
from llmbench.workload.plan import PlannedRequest

SHORT = Load(requests_per_s=40.0, num_tokens=5, ttft_s=0.005, gap_s=0.002, send_s=0.5)


def plan(offsets: list[float], num_tokens: int, users: int | None = None) -> plans.Plan:
    requests = tuple(
        PlannedRequest(
            index=i,
            due_s=due_s,
            request=Request(prompt="p", max_new_tokens=num_tokens),
            after="slot" if users is not None and i >= users else None,
        )
        for i, due_s in enumerate(offsets)
    )
    settings = plans.PlanSettings(dataset="toy", num_samples=1, arrivals="constant", qps=1.0, rate=1.0, seed=0)
    return plans.Plan(settings=settings, requests=requests, sha256=plans.hash_of(requests))


def calibration(
    ttft_p95_s: float = 0.001, lateness_p95_s: float = 0.001, ceiling: Ceiling | None = None
) -> Calibration:
    def one(p95_s: float) -> Spread:
        return Spread(num=20, mean_s=0.0, p50_s=0.0, p95_s=p95_s, p99_s=1.0, p999_s=1.0)

    return Calibration(
        when="2026-01-31T15:45:00+00:00",
        machine="a machine",
        num_cpus=2,
        software="Python",
        dialect="contest",
        load=SHORT,
        num_requests=20,
        num_answered=20,
        events_per_s=200.0,
        server_lag_s=0.0,
        error=InstrumentError(
            ttft=one(ttft_p95_s),
            stamp=one(0.0002),
            lateness=one(lateness_p95_s),
            ttft_p99_shift_s=0.0,
            icl_p99_shift_s=0.0,
        ),
        cpu_s_per_1000_requests=1.0,
        cpu_utilisation=0.05,
        ceiling=ceiling,
    )


@pytest.mark.parametrize("dialect", ["openai_completions", "contest"])
def test_a_calibration_compares_every_token_of_every_request(dialect: str) -> None:
    found = calibrate.calibrate(SHORT, dialect)
    assert found.num_requests == found.num_answered == SHORT.num_requests == 20
    assert found.error.ttft.num == found.error.lateness.num == 20
    assert found.error.stamp.num == 100
    assert found.error.ttft.p50_s is not None
    assert found.error.ttft.p50_s > 0  # the way there and back takes time, and no clock is off
    assert found.error.stamp.p50_s is not None
    assert found.error.stamp.p50_s > 0
    assert found.server_lag_s > 0
    assert found.cpu_s_per_1000_requests > 0
    assert found.events_per_s > 0


def test_streams_that_are_kept_busy_are_a_load_too() -> None:
    found = calibrate.calibrate(msgspec.structs.replace(SHORT, requests_per_s=None, streams=3), "openai_completions")
    assert found.num_answered == found.num_requests > 3


def test_a_calibration_can_be_saved_and_read(tmp_path: Path) -> None:
    calibrate.save(calibration(), tmp_path / "calibration.json")
    assert calibrate.read(tmp_path / "calibration.json") == calibration()
    with pytest.raises(InputError, match="cannot write"):
        calibrate.save(calibration(), tmp_path / "none" / "calibration.json")
    with pytest.raises(InputError, match="cannot read"):
        calibrate.read(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(InputError, match="not a calibration"):
        calibrate.read(tmp_path / "other.json")


def test_an_error_or_a_lateness_above_five_milliseconds_is_not_good() -> None:
    assert calibration().good
    assert not calibration(ttft_p95_s=0.006).good
    assert not calibration(lateness_p95_s=0.006).good
    assert not msgspec.structs.replace(calibration(), num_answered=19).good


def test_the_instrument_error_is_said_in_milliseconds() -> None:
    assert calibrate.plus_minus(calibration()) == "instrument error: TTFT ± 1 ms, a chunk's stamp ± 0.2 ms"


def test_the_share_of_the_ceiling_counts_requests_and_tokens() -> None:
    most = Ceiling(events_per_s=10_000.0, num_tokens=64, requests_per_s=1000.0, bound_by="the error")
    assert calibrate.share_of_ceiling(calibration(ceiling=most), 100.0, 20.0) == pytest.approx(0.1 + 0.2)
    assert calibrate.share_of_ceiling(calibration(), 80.0, 5.0) == pytest.approx(0.1)
    nothing = msgspec.structs.replace(most, events_per_s=0.0)
    assert calibrate.share_of_ceiling(calibration(ceiling=nothing), 1.0, 1.0) == math.inf


def test_the_preflight_has_the_tokens_per_second_of_the_busiest_seconds_of_the_plan() -> None:
    offsets = [i / 2 for i in range(20)] + [10 + i / 100 for i in range(500)]
    load = calibrate.planned_load(plan(offsets, 20))
    assert load.num_tokens == 20
    assert load.events_per_s == pytest.approx(100 * 20, rel=0.01)


def test_the_preflight_cuts_long_answers_and_sends_more_of_them() -> None:
    load = calibrate.planned_load(plan([i / 20 for i in range(200)], 400))
    assert load.num_tokens == 40
    assert load.events_per_s == pytest.approx(20 * 400, rel=0.05)
    assert load.send_s + load.answer_s < 2.0


def test_the_preflight_of_a_slow_plan_still_has_something_to_measure() -> None:
    load = calibrate.planned_load(plan([0.0, 60.0, 120.0], 8))
    assert load.num_requests == 20


def test_the_preflight_of_a_closed_loop_or_of_slots_has_no_more_than_they_can_take() -> None:
    closed = calibrate.planned_load(plan([0.0] * 100, 40, users=10))
    assert closed.rate == pytest.approx(10 / closed.answer_s)
    slots = calibrate.planned_load(plan([0.0] * 100, 40), concurrency=10)
    assert slots.rate == pytest.approx(10 / slots.answer_s)


def test_the_preflight_tries_no_load_beyond_its_time() -> None:
    load = calibrate.planned_load(plan([0.0] * 100_000, 40))
    assert load.events_per_s <= 40_000


def test_a_plan_without_requests_has_no_load() -> None:
    with pytest.raises(InputError, match="without requests"):
        calibrate.planned_load(plan([], 5))


def test_the_preflight_measures_the_plan_in_its_dialect() -> None:
    found = calibrate.preflight(plan([i / 10 for i in range(20)], 5), "openai_chat", budget_s=1.0)
    assert found.dialect == "openai_chat"
    assert found.num_answered == found.num_requests >= 20


def test_the_ceiling_is_a_load_that_was_tried() -> None:
    said: list[str] = []
    found = calibrate.ceiling(num_tokens=4, budget_s=0.5, say=said.append)
    tried = [line.rpartition(":")[0] for line in said]
    assert len(tried) >= 2
    for rate in (found.events_per_s / 4, found.requests_per_s):
        assert rate == 0 or any(f"{rate:,.0f} requests/s" in line for line in tried)
