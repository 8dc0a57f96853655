"""What a measuring process says of itself, held against what it was made to do."""

import asyncio
import time

import pytest

from llmbench.clock import now_ns
from llmbench.loadgen.doctored import can_starve, starved
from llmbench.loadgen.monitor import monitor
from llmbench.loadgen.record import Line, Sample


async def watched(seconds: float, block_s: float = 0.0) -> list[Sample]:
    lines: list[Line] = []
    async with monitor(lines.append):
        await asyncio.sleep(seconds / 2)
        _spin(block_s)
        await asyncio.sleep(seconds / 2)
    return [line for line in lines if isinstance(line, Sample)]


def _spin(for_s: float) -> None:
    """Use the CPU and let the event loop do nothing."""
    end = time.process_time() + for_s
    while time.process_time() < end:
        pass


def test_a_sample_comes_every_second_and_one_at_the_end_and_they_cover_the_whole_time() -> None:
    start_ns = now_ns()
    samples = asyncio.run(watched(2.5))
    end_ns = now_ns()
    assert len(samples) == 3
    assert sum(sample.span_s for sample in samples) == pytest.approx((end_ns - start_ns) / 1e9, abs=0.3)
    assert [sample.at_ns for sample in samples] == sorted(sample.at_ns for sample in samples)
    assert all(start_ns < sample.at_ns <= end_ns for sample in samples)


def test_a_blocked_event_loop_shows_as_lag_and_as_cpu_time() -> None:
    blocked = asyncio.run(watched(0.2, block_s=0.3))
    assert max(sample.lag_s for sample in blocked) > 0.27  # of the 0.3 s at most one tick of 20 ms is not seen
    assert sum(sample.cpu_s for sample in blocked) >= 0.3


def test_an_idle_process_uses_hardly_any_cpu_to_watch_itself() -> None:
    idle = asyncio.run(watched(1.2))
    assert sum(sample.cpu_s for sample in idle) < 0.12  # a tenth of a core, on a machine that is busy otherwise


@pytest.mark.skipif(not can_starve(), reason="needs sched_setaffinity")
def test_a_process_that_gets_no_core_says_how_long_it_waited_for_one() -> None:
    with starved(3).around():
        samples = asyncio.run(watched(0.1, block_s=0.2))
    assert sum(sample.cpu_s for sample in samples) >= 0.2
    assert sum(sample.waited_s for sample in samples) > 0.2  # of four that want the core each gets a quarter


def test_memory_that_is_taken_shows() -> None:
    before = asyncio.run(watched(0.02))[-1].rss_bytes
    held = b"x" * 64 * 2**20
    after = asyncio.run(watched(0.02))[-1].rss_bytes
    assert after - before > 0.9 * len(held)
