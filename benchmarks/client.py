"""How late the client sends and how late it stamps, beside an aiohttp client doing the same, in turns on one machine.

    python benchmarks/client.py --rate 50 --seconds 6 --rounds 3

A paced null server runs in a process of its own; the text of each token is the instant at which it was written, on
the clock that all processes of a machine share, so that a client's stamp minus the text is the client's error. Each
client runs in a fresh process on uvloop. On a shared machine the microseconds drift; their ratio within a round is
what to compare with earlier results.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvloop

from llmbench import protocols
from llmbench.clock import now_ns
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.run import run
from llmbench.types import Request
from llmbench.workload import plan as plans

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


class Load(NamedTuple):
    """What both clients do; times in seconds."""

    rate: float
    seconds: float
    num_tokens: int
    ttft_s: float
    gap_s: float

    @property
    def due_s(self) -> list[float]:
        return [i / self.rate for i in range(int(self.rate * self.seconds))]


class Errors(NamedTuple):
    """Microseconds; CPU microseconds per token."""

    lag_p50: float
    lag_p99: float
    stamp_p50: float
    stamp_p99: float
    cpu_per_token: float


class NullServer(asyncio.Protocol):
    """Answers any request with tokens at fixed distances; the stock event loop writes at once, so the text is true."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if data.endswith(b"}"):  # the end of a JSON body
            self._text = ""
            self._loop.call_later(self._load.ttft_s, self._token, 0, self._loop.time() + self._load.ttft_s)

    def _token(self, number: int, at_s: float) -> None:
        if self.transport.is_closing():
            return
        if number == 0:
            self.transport.write(HEAD)
        if number == self._load.num_tokens:
            last = {"generated_text": self._text, "finish_reason": "length", "generated_tokens": number}
            self.transport.write(chunk(last) + b"0\r\n\r\n")
            return
        text = f"{now_ns()} "
        token = {"id": 5, "logprob": 1.0, "special": False, "text": text}
        self.transport.write(chunk({"generated_text": text, "tokens": token}))
        self._text += text
        self._loop.call_at(at_s + self._load.gap_s, self._token, number + 1, at_s + self._load.gap_s)


def chunk(event: Mapping[str, object]) -> bytes:
    """A contest event as one HTTP chunk."""
    line = json.dumps({"data": [event]}).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(line), line)


def serve(load: Load, port: Connection) -> None:
    """The server's process."""

    async def work() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: NullServer(load), "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(work())


def ours(load: Load, url: str) -> tuple[list[int], list[int]]:
    """Send lags and stamp errors of llmbench's client, in ns."""
    requests = tuple(
        plans.PlannedRequest(index=i, due_s=due_s, request=Request(prompt="x", max_new_tokens=load.num_tokens))
        for i, due_s in enumerate(load.due_s)
    )
    settings = plans.PlanSettings(dataset="", num_samples=1, arrivals="constant", qps=load.rate, rate=load.rate, seed=0)
    plan = plans.Plan(settings=settings, requests=requests, sha256=plans.hash_of(requests))
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(plan, locate(url), protocols.get("contest"), Timeouts(), Path(folder) / "journal.jsonl")
    lags, errors = [], []
    for record in outcome.records:
        assert record.status == "answered", record.reason
        assert record.sent_ns is not None
        lags.append(record.sent_ns - record.due_ns)
        stamps = chain.from_iterable([at] * n for at, n in zip(record.stamps_ns, record.tokens, strict=True))
        errors += [at - int(text) for at, text in zip(stamps, record.text.split(), strict=True)]
    return lags, errors


def with_aiohttp(load: Load, url: str) -> tuple[list[int], list[int]]:
    """The same of a plain aiohttp client that sleeps until each request is due."""
    lags: list[int] = []
    errors: list[int] = []

    async def one(session: aiohttp.ClientSession, due_ns: int) -> None:
        await asyncio.sleep((due_ns - now_ns()) / 1e9)
        lags.append(now_ns() - due_ns)
        async with session.post(f"{url}/models/llama2/generate_stream", json={"inputs": "x"}) as response:
            async for data in response.content.iter_any():
                stamp_ns = now_ns()
                events = [json.loads(line)["data"][0] for line in data.splitlines()]
                errors.extend(stamp_ns - int(event["generated_text"]) for event in events if "tokens" in event)

    async def work() -> None:
        start_ns = now_ns() + 20_000_000
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(one(session, start_ns + round(due_s * 1e9)) for due_s in load.due_s))

    uvloop.new_event_loop().run_until_complete(work())
    return lags, errors


def client(work: Callable[[Load, str], tuple[list[int], list[int]]], load: Load, url: str, result: Connection) -> None:
    """One client's process."""
    before_s = time.process_time()
    lags, errors = work(load, url)
    cpu_s = time.process_time() - before_s
    (lag_p50, lag_p99), (stamp_p50, stamp_p99) = at(lags, 50, 99), at(errors, 50, 99)
    result.send(Errors(lag_p50, lag_p99, stamp_p50, stamp_p99, cpu_s * 1e6 / len(errors)))


def at(values_ns: list[int], *percents: int) -> list[float]:
    """Percentiles in microseconds."""
    cuts = statistics.quantiles(values_ns, n=100, method="inclusive")
    return [cuts[percent - 1] / 1000 for percent in percents]


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=50, help="requests per second")
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load = Load(options.rate, options.seconds, options.tokens, ttft_s=0.05, gap_s=0.01)
    start = multiprocessing.get_context("spawn")
    here, there = start.Pipe()
    server = start.Process(target=serve, args=(load, there), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    contenders = {"llmbench": ours, "aiohttp": with_aiohttp}
    found: dict[str, list[Errors]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, work in contenders.items():
            process = start.Process(target=client, args=(work, load, url, there))
            process.start()
            process.join()
            if not here.poll():
                sys.exit(f"the {name} client failed; its error is above")
            found[name].append(here.recv())
    server.terminate()
    print(
        f"{load.rate:g} requests/s x {load.num_tokens} tokens, {options.rounds} rounds, {os.cpu_count()} CPUs; medians"
    )
    print(f"{'us':10}" + "".join(f"{field:>15}" for field in Errors._fields))
    for name, rounds in found.items():
        print(f"{name:10}" + "".join(f"{statistics.median(column):15.1f}" for column in zip(*rounds, strict=True)))
    ratios = [
        [mine / other for mine, other in zip(a, b, strict=True)]
        for a, b in zip(found["llmbench"], found["aiohttp"], strict=True)
    ]
    print(f"{'ratio':10}" + "".join(f"{statistics.median(column):15.2f}" for column in zip(*ratios, strict=True)))


if __name__ == "__main__":
    main()
