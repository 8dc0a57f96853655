"""Reading a server's Prometheus page."""

import asyncio
import socket
from itertools import count

import pytest

from llmbench.errors import ServingError
from llmbench.loadgen import scrape
from llmbench.loadgen.client import Target
from llmbench.loadgen.record import Line, Scrape

PAGE = b"""# HELP vllm:request_success_total Requests
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop",model_name="a b"} 3.0
vllm:request_success_total{finished_reason="length",model_name="a} b"} 4
vllm:request_success_created{finished_reason="length"} 1.7e9
ttft_seconds_bucket{le="0.1"} 2.0
ttft_seconds_sum 0.25
up 1 1700000000000
odd NaN
"""


def test_values_are_summed_over_labels_and_buckets_are_left_out() -> None:
    values = scrape.parse(PAGE)
    assert values["vllm:request_success_total"] == 7
    assert values["ttft_seconds_sum"] == 0.25
    assert values["up"] == 1
    assert set(values) == {"vllm:request_success_total", "ttft_seconds_sum", "up", "odd"}


def page(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def observed(answers: list[bytes], for_s: float = 0.0, required: bool = False) -> list[Line]:
    """What an observer adds while nothing happens for a while; the last answer is repeated."""
    lines: list[Line] = []
    number = count()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"GET /metrics HTTP/1.1\r\n")
        writer.write(answers[min(next(number), len(answers) - 1)])
        writer.close()

    async def watch() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            target = Target(url="", authority=host, prefix="", family=socket.AF_INET, host=host, port=port)
            async with scrape.scraper(target, required=required, every_s=0.05)(lines.append):
                await asyncio.sleep(for_s)

    asyncio.run(watch())
    return lines


def finished(number: int) -> bytes:
    return page(b"request_success_total %d\n" % number)


def values(lines: list[Line]) -> list[float]:
    return [line.values["request_success_total"] for line in lines if isinstance(line, Scrape)]


def test_the_server_is_read_before_and_after_and_in_between() -> None:
    found = values(observed([finished(1), finished(1), finished(1), finished(2), finished(3)], for_s=0.4))
    assert found[0] == 1
    assert found[-1] == 3
    assert len(found) > 3


def test_the_last_reading_is_one_that_does_not_change_any_more() -> None:
    answers = [finished(number) for number in (1, 1, 1, 5, 6, 9, 9)]
    assert values(observed(answers)) == [1, 9]


def test_a_server_without_counters_leaves_no_trace_unless_they_were_asked_for() -> None:
    missing = page(b"not here", b"404 Not Found")
    assert observed([missing]) == []
    with pytest.raises(ServingError, match="--metrics-url"):
        observed([missing], required=True)


def test_a_server_that_stops_to_answer_the_page_does_not_disturb_the_run() -> None:
    assert values(observed([finished(1), finished(1), finished(1), page(b"gone", b"500 No")])) == [1]
