"""How late llmbench's load loop sends when nothing comes back, beside the kernel's timer alone.

    python -m benchmarks.client.lag SECONDS

1,000 sends per second as a Poisson process. Prints JSON: the 99th percentile of both, in seconds.
"""

import asyncio
import gc
import json
import random
import sys
from collections.abc import Callable
from itertools import accumulate

from benchmarks.client.runs import p99
from llmbench.clock import now_ns, seconds
from llmbench.loadgen._pacer import alarm
from llmbench.loadgen.driver import Driver
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import new_loop
from llmbench.types import Request
from llmbench.workload.plan import PlannedRequest

RATE = 1000.0


class Nobody:
    """Takes requests for sent and answered."""

    def prepare(self, request: Request) -> bytes:
        return b""

    def start(self, payload: bytes, request: Request, record: Record, finished: Callable[[Record], None]) -> "Nobody":
        record.sent_ns = record.done_ns = now_ns()
        record.status = "answered"
        asyncio.get_running_loop().call_soon(finished, record)
        return self

    def give_up(self, reason: str) -> None:
        """Nothing is waited for."""


async def loop_alone(due_s: list[float]) -> list[float]:
    """Seconds from due to sent, of the load loop."""
    requests = [PlannedRequest(index=i, due_s=at, request=Request(prompt="")) for i, at in enumerate(due_s)]
    records: list[Record] = []
    await Driver(requests, Nobody(), records.append).run()  # type: ignore[arg-type]  # it is asked for no more
    return [seconds(record.due_ns, record.sent_ns or 0) for record in records]


async def timer_alone(due_s: list[float]) -> list[float]:
    """Seconds from due to ringing, of a kernel timer in the event loop."""
    late_s: list[float] = []
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    start_ns = now_ns() + 20_000_000
    due_ns = [start_ns + round(at * 1e9) for at in due_s]

    def ring() -> None:
        at_ns = now_ns()
        while len(late_s) < len(due_ns) and due_ns[len(late_s)] <= at_ns:
            late_s.append(seconds(due_ns[len(late_s)], at_ns))
        if len(late_s) < len(due_ns):
            timer.set(due_ns[len(late_s)])
        else:
            over.set_result(None)

    timer = alarm(loop, ring)
    timer.set(due_ns[0])
    await over
    timer.close()
    return late_s


def main() -> None:
    """Both, one after the other."""
    draw = random.Random(0)
    due_s = list(accumulate(draw.expovariate(RATE) for _ in range(round(RATE * float(sys.argv[1])))))
    loop = new_loop()
    asyncio.set_event_loop(loop)
    gc.freeze()
    gc.disable()
    found = {"llmbench": p99(loop.run_until_complete(loop_alone(due_s)))}
    print(json.dumps(found | {"raw": p99(loop.run_until_complete(timer_alone(due_s)))}))


if __name__ == "__main__":
    main()
