"""The lower bound: the least that a Python client can do and still stamp every chunk. Standard library and uvloop.

    python raw.py HOST:PORT RATE STREAMS NUMBER TOKENS     a rate of 0: as many streams as are told, always busy

Prints JSON: reported TTFT and gaps between chunks, and how long it planned to send, in seconds. It parses nothing: an
event is an occurrence of
`"text":"`, an answer has ended with its zero chunk.
"""

import asyncio
import gc
import json
import random
import sys
import time
from typing import cast

import uvloop


class Load:
    """What is to be sent, and what came of it."""

    def __init__(self, rate: float, streams: int, number: int, tokens: int, host: str) -> None:
        self.rate, self.streams, self.number = rate, streams, number
        body = json.dumps(
            {
                "model": "oracle",
                "prompt": "say " * 32,
                "max_tokens": tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        self.payload = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self.idle: list[Stream] = []
        self.num_sent = self.num_ended = 0
        self.ttft_s: list[float] = []
        self.gaps_s: list[float] = []
        self.planned_s = 0.0
        self.over = asyncio.Event()


class Stream(asyncio.Protocol):
    """One connection, one answer after another."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.sent_ns = 0
        self.stamps: list[int] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's are not of that class

    def send(self, sent_ns: int) -> None:
        self.sent_ns = sent_ns
        self.stamps.clear()
        self.load.num_sent += 1
        self.transport.write(self.load.payload)

    def data_received(self, data: bytes) -> None:
        stamp_ns = time.monotonic_ns()
        self.stamps += [stamp_ns] * data.count(b'"text":"')
        if data.endswith(b"\r\n0\r\n\r\n"):
            self.ended()

    def ended(self) -> None:
        load, stamps = self.load, self.stamps
        load.ttft_s.append((stamps[0] - self.sent_ns) / 1e9)
        load.gaps_s += [(after - before) / 1e9 for before, after in zip(stamps, stamps[1:])]  # noqa: B905, RUF007
        load.num_ended += 1
        if load.num_ended == load.number:
            load.over.set()
        elif not load.rate and load.num_sent < load.number:
            self.send(time.monotonic_ns())
        else:
            load.idle.append(self)


async def run(load: Load, host: str, port: int) -> None:
    """Send everything, wait for everything."""
    loop = asyncio.get_running_loop()

    async def one(sent_ns: int) -> None:
        if load.idle:
            load.idle.pop().send(sent_ns)
            return
        _, stream = await loop.create_connection(lambda: Stream(load), host, port)
        stream.send(sent_ns)

    if not load.rate:
        for _ in range(min(load.streams, load.number)):
            await one(time.monotonic_ns())
    draw = random.Random(0)
    due = began = time.monotonic() + draw.expovariate(load.rate or 1.0)
    tasks: list[asyncio.Task[None]] = []
    while load.rate and len(tasks) < load.number:
        await asyncio.sleep(due - time.monotonic())
        tasks.append(loop.create_task(one(time.monotonic_ns())))
        load.planned_s = due - began
        due += draw.expovariate(load.rate)
    await load.over.wait()


def p99(values: list[float]) -> float:
    """Linear interpolation between neighbours."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * 0.99
    low = int(place)
    return ordered[low] + (ordered[min(low + 1, len(ordered) - 1)] - ordered[low]) * (place - low)


def main() -> None:
    """Run as the command line says."""
    host, _, port = sys.argv[1].partition(":")
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    load = Load(float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[1])
    gc.freeze()
    gc.disable()
    loop.run_until_complete(run(load, host, int(port)))
    ttft = load.ttft_s
    found = {"ttft_mean": sum(ttft) / len(ttft), "ttft_p99": p99(ttft), "icl_p99": p99(load.gaps_s)}
    print(json.dumps(found | {"planned_s": load.planned_s or None}))


if __name__ == "__main__":
    main()
