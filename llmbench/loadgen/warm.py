"""Each prompt of a plan once, before anything is timed: what a run with a declared warm cache begins with."""

import asyncio
from collections.abc import Iterator, Sequence

import msgspec

from llmbench.clock import now_ns
from llmbench.errors import ServingError
from llmbench.loadgen.client import Sender, Timeouts
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import new_loop, sender
from llmbench.loadgen.target import Target
from llmbench.protocols import ClientHalf
from llmbench.types import Request
from llmbench.workload.plan import Plan

_AT_ONCE = 8


def fill(plan: Plan, target: Target, dialect: ClientHalf, timeouts: Timeouts) -> int:
    """Send every distinct prompt of a plan once, for one token, 8 at a time; how many. Raises ServingError."""
    asked = {planned.request.prompt: planned.request for planned in plan.requests}
    # ids of their own: rows that a server captures of them are not those of the load
    requests = [
        msgspec.structs.replace(request, max_new_tokens=1, request_id=f"warm-{index:05d}")
        for index, request in enumerate(asked.values())
    ]
    loop = new_loop()
    try:
        loop.run_until_complete(_all(requests, target, dialect, timeouts))
    finally:
        loop.close()
    return len(requests)


async def _all(requests: Sequence[Request], target: Target, dialect: ClientHalf, timeouts: Timeouts) -> None:
    way = msgspec.structs.replace(target.way, warm_connections=0)
    client = sender(msgspec.structs.replace(target, way=way), dialect, timeouts)
    ahead = iter(requests)
    try:
        await asyncio.gather(*(_in_turn(ahead, client) for _ in range(_AT_ONCE)))
    finally:
        await client.close()


async def _in_turn(ahead: Iterator[Request], client: Sender) -> None:
    for request in ahead:
        over: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
        record = Record(index=0, request_id=request.request_id, due_ns=now_ns())
        client.start(client.prepare(request), request, record, over.set_result)
        if (await over).status != "answered":
            raise ServingError(f"--cache warm: a prompt was not answered before the run ({record.reason})")
