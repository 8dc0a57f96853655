import asyncio
import json
import threading
from collections.abc import Callable, Sequence
from typing import Literal

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
    offsets: Sequence[float] | Sequence[PlannedRequest],
    concurrency: int | None = None,
    drain_s: float = 5.0,
    interrupts: Sequence[float] = (),
) -> list[Record]:
    """The records in the order in which they ended; interrupted after the given seconds."""
    records: list[Record] = []

    async def work() -> None:
        client = Client(locate(server.url), protocols.get("contest"), Timeouts(head_s=20, total_s=20))
        requests = [each for each in offsets if isinstance(each, PlannedRequest)]
        numbers = [each for each in offsets if not isinstance(each, PlannedRequest)]
        driver = Driver(requests or planned(numbers), client, records.append, concurrency, drain_s)
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


def chained(
    index: int, after: int | Literal["slot"] | None, think_s: float = 0.0, due_s: float = 0.0
) -> PlannedRequest:
    request = Request(prompt=f"p{index}", max_new_tokens=2)
    return PlannedRequest(index=index, due_s=due_s, request=request, after=after, think_s=think_s, expected_tokens=2)


def by_index(records: Sequence[Record]) -> dict[int, Record]:
    return {record.index: record for record in records}


def test_the_next_turn_is_due_a_think_time_after_the_answer_to_the_turn_before(serve: Serve) -> None:
    turns = [chained(0, None), chained(1, 0, think_s=0.03), chained(2, 1, think_s=0.01)]
    records = by_index(drive(serve(lambda n, body: [0.01, *answer(["a", "b"])]), turns))
    for turn, think_ns in ((1, 30_000_000), (2, 10_000_000)):
        before, record = records[turn - 1], records[turn]
        assert before.done_ns is not None
        assert record.due_ns == record.released_ns == before.done_ns + think_ns
        assert record.sent_ns is not None
        assert record.sent_ns >= record.due_ns


def test_a_turn_is_not_due_before_its_own_instant(serve: Serve) -> None:
    records = by_index(drive(serve(lambda n, body: answer(["a", "b"])), [chained(0, None), chained(1, 0, due_s=0.2)]))
    assert records[1].due_ns - records[0].due_ns == 200_000_000


def test_a_turn_follows_a_failed_one_too(serve: Serve) -> None:
    server = serve(lambda n, body: [STREAM_HEAD, Do.CLOSE] if n == 0 else answer(["a", "b"]))
    records = by_index(drive(server, [chained(0, None), chained(1, 0)]))
    assert [records[n].status for n in (0, 1)] == ["failed", "answered"]


def test_a_closed_loop_has_as_many_under_way_as_it_has_users_and_thinks_in_between(serve: Serve) -> None:
    server = serve(lambda n, body: [0.005, *answer(["a", "b"])])
    users = 3
    plan = [chained(n, None if n < users else "slot", think_s=0.0 if n < users else 0.002) for n in range(15)]
    records = drive(server, plan)
    assert server.most_at_once <= users
    ends = sorted(record.done_ns or 0 for record in records)
    dues = sorted(record.due_ns for record in records)[users:]
    assert dues == [end + 2_000_000 for end in ends[: len(dues)]]


def test_a_user_is_free_only_after_the_last_turn_of_a_conversation(serve: Serve) -> None:
    server = serve(lambda n, body: answer(["a", "b"]))
    drive(server, [chained(0, None), chained(1, 0), chained(2, "slot"), chained(3, 2)])
    assert [json.loads(body)["inputs"] for body in server.bodies] == ["p0", "p1", "p2", "p3"]


def test_a_part_of_a_plan_is_sent_under_its_own_indexes(serve: Serve) -> None:
    part = [chained(4, None), chained(7, 4), chained(9, 3), chained(12, "slot")]  # request 3 is in another part
    assert sorted(by_index(drive(serve(lambda n, body: answer(["a", "b"])), part))) == [4, 7, 9, 12]


def test_the_rest_of_a_closed_loop_goes_on_although_no_user_begins_in_it(serve: Serve) -> None:
    records = drive(serve(lambda n, body: answer(["a", "b"])), [chained(n, "slot") for n in (5, 6)])
    assert {record.status for record in records} == {"answered"}


def test_an_interrupt_ends_what_waits_for_an_answer_as_well(serve: Serve) -> None:
    server = serve(lambda n, body: [0.15, *answer(["a", "b"])])
    plan = [chained(0, None), chained(1, 0), chained(2, "slot"), chained(3, "slot")]
    records = by_index(drive(server, plan, interrupts=[0.05], drain_s=20))
    assert [records[n].status for n in range(4)] == ["answered", "unfinished", "unfinished", "unfinished"]
    assert len(server.bodies) == 1
