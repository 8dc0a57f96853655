import asyncio
import json
import threading
from collections.abc import Callable, Sequence

import pytest

from llmbench import protocols
from llmbench.errors import InvalidMeasurement
from llmbench.loadgen.client import Client, Timeouts, locate
from llmbench.loadgen.driver import Driver
from llmbench.loadgen.record import Record
from llmbench.types import Request
from llmbench.workload.plan import PlannedRequest
from tests.loadgen.conftest import STREAM_HEAD, Do, Script, Step, ToyServer, answer

Serve = Callable[[Script], ToyServer]


def planned(offsets: Sequence[float]) -> list[PlannedRequest]:
    return [
        PlannedRequest(index=i, due_s=due_s, request=Request(prompt=f"p{i}", max_new_tokens=2), expected_tokens=2)
        for i, due_s in enumerate(offsets)
    ]


def drive(
    server: ToyServer,
    offsets: Sequence[float],
    concurrency: int | None = None,
    drain_s: float = 5.0,
    interrupts: Sequence[float] = (),
) -> list[Record]:
    """The records in the order in which they ended; interrupted after the given seconds."""
    records: list[Record] = []

    async def work() -> None:
        client = Client(locate(server.url), protocols.get("contest"), Timeouts(head_s=20, total_s=20))
        driver = Driver(planned(offsets), client, records.append, concurrency, drain_s)
        for after_s in interrupts:
            asyncio.get_running_loop().call_later(after_s, driver.interrupt)
        await driver.run()
        assert driver.counts.finished == driver.counts.planned == len(records)
        await client.close()

    asyncio.run(work())
    return records


def test_every_planned_request_has_exactly_one_record(serve: Serve) -> None:
    server = serve(lambda n, body: [STREAM_HEAD, Do.CLOSE] if n % 3 == 1 else answer(["a", "b"]))
    records = drive(server, [i / 500 for i in range(60)])
    assert sorted(record.index for record in records) == list(range(60))
    assert {record.status for record in records} == {"answered", "failed"}


def test_requests_are_sent_at_or_after_their_instants_counted_from_one_start(serve: Serve) -> None:
    offsets = [0.0, 0.01, 0.01, 0.05, 0.08]
    records = sorted(drive(serve(lambda n, body: answer(["a", "b"])), offsets), key=lambda record: record.index)
    start_ns = records[0].due_ns
    assert [record.due_ns - start_ns for record in records] == [round(offset * 1e9) for offset in offsets]
    assert all(record.sent_ns is not None and record.sent_ns >= record.due_ns for record in records)
    assert all(record.released_ns == record.due_ns for record in records)


def test_a_slow_answer_does_not_move_the_requests_after_it(serve: Serve) -> None:
    """Open loop: all requests are under way although none has been answered."""
    everyone = threading.Barrier(11, timeout=20)

    def script(n: int, body: bytes) -> list[Step]:
        threading.Thread(target=everyone.wait).start()
        return [0.2, *answer(["a", "b"])]

    server = serve(script)
    drive(server, [i / 1000 for i in range(10)])
    everyone.wait()
    assert server.most_at_once == 10


def test_slots_limit_how_many_are_under_way_and_the_wait_is_not_our_lateness(serve: Serve) -> None:
    server = serve(lambda n, body: [0.01, *answer(["a", "b"])])
    records = drive(server, [0.0] * 12, concurrency=3)
    assert server.most_at_once <= 3
    assert sorted(record.index for record in records) == list(range(12))
    waited = [record for record in records if record.released_ns is not None and record.released_ns > record.due_ns]
    assert len(waited) == 9
    assert all(record.sent_ns is not None and record.released_ns is not None for record in waited)


def test_requests_wait_for_slots_in_the_order_of_the_plan(serve: Serve) -> None:
    server = serve(lambda n, body: answer(["a", "b"]))
    drive(server, [0.0] * 8, concurrency=1)
    assert [json.loads(body)["inputs"] for body in server.bodies] == [f"p{i}" for i in range(8)]


def test_an_interrupt_stops_sending_and_waits_for_what_is_under_way(serve: Serve) -> None:
    server = serve(lambda n, body: [0.2, *answer(["a", "b"])])
    records = drive(server, [0.0, 0.0, 3600.0, 7200.0], interrupts=[0.1], drain_s=20)
    found = {record.index: (record.status, record.reason) for record in records}
    assert found[0] == found[1] == ("answered", "")
    assert found[2] == found[3] == ("unfinished", "not sent: interrupted")


def test_what_is_not_answered_in_the_time_to_drain_is_unfinished(serve: Serve) -> None:
    server = serve(lambda n, body: [STREAM_HEAD, Do.STALL])
    records = drive(server, [0.0, 0.0], interrupts=[0.1], drain_s=0.05)
    assert {record.status for record in records} == {"unfinished"}
    assert all("interrupted" in record.reason and record.sent_ns for record in records)


def test_a_second_interrupt_does_not_wait(serve: Serve) -> None:
    server = serve(lambda n, body: [Do.STALL])
    records = drive(server, [0.0, 3600.0], interrupts=[0.05, 0.1], drain_s=3600)
    assert [record.status for record in records] == ["unfinished", "unfinished"]


def test_requests_that_wait_for_a_slot_are_unfinished_after_an_interrupt(serve: Serve) -> None:
    server = serve(lambda n, body: [0.15, *answer(["a", "b"])])
    records = drive(server, [0.0] * 5, concurrency=1, interrupts=[0.05])
    assert [record.status for record in records].count("answered") == 1
    assert len(server.bodies) == 1


def test_an_error_while_a_record_is_kept_ends_the_run_instead_of_hanging(serve: Serve) -> None:
    server = serve(lambda n, body: answer(["a", "b"]))

    def full_disk(record: Record) -> None:
        raise InvalidMeasurement("journal.jsonl: No space left on device")

    async def work() -> None:
        client = Client(locate(server.url), protocols.get("contest"), Timeouts())
        try:
            await Driver(planned([0.0, 0.0]), client, full_disk).run()
        finally:
            await client.close()

    with pytest.raises(InvalidMeasurement, match="No space"):
        asyncio.run(work())
