import asyncio
import sys
from collections.abc import Callable

import pytest

from llmbench.clock import now_ns
from llmbench.loadgen import _pacer

KINDS = [_pacer.LoopAlarm, *([_pacer.KernelAlarm] if sys.platform == "linux" else [])]
Kind = Callable[[asyncio.AbstractEventLoop, Callable[[], None]], _pacer.Alarm]


@pytest.mark.parametrize("kind", KINDS)
def test_an_alarm_rings_once_for_each_setting_and_never_early(kind: Kind) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        rung: asyncio.Queue[int] = asyncio.Queue()
        alarm = kind(loop, lambda: rung.put_nowait(now_ns()))
        for ahead_ns in (3_000_000, 0, -5_000_000, 500_000):
            at_ns = now_ns() + ahead_ns
            alarm.set(at_ns)
            assert await asyncio.wait_for(rung.get(), 20) >= at_ns
        alarm.close()
        assert rung.empty()

    asyncio.run(work())


@pytest.mark.parametrize("kind", KINDS)
def test_setting_an_alarm_anew_replaces_the_instant(kind: Kind) -> None:
    async def work() -> None:
        rung: asyncio.Queue[int] = asyncio.Queue()
        alarm = kind(asyncio.get_running_loop(), lambda: rung.put_nowait(now_ns()))
        alarm.set(now_ns() + 3_600_000_000_000)
        alarm.set(now_ns() + 1_000_000)
        await asyncio.wait_for(rung.get(), 20)
        alarm.close()

    asyncio.run(work())


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_alarm_does_not_ring(kind: Kind) -> None:
    async def work() -> None:
        rung: list[int] = []
        alarm = kind(asyncio.get_running_loop(), lambda: rung.append(1))
        alarm.set(now_ns() + 1_000_000)
        alarm.close()
        await asyncio.sleep(0.01)
        assert rung == []

    asyncio.run(work())
