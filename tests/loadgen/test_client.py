import asyncio
import socket
from collections.abc import Callable

import pytest

from llmbench import protocols
from llmbench.errors import InputError, ServingError
from llmbench.loadgen.client import Client, Timeouts, locate
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import new_loop
from llmbench.types import Request
from tests.loadgen.conftest import (
    LAST_CHUNK,
    STREAM_HEAD,
    Do,
    Script,
    Step,
    ToyServer,
    answer,
    chunk,
    last_event,
    token_event,
)

Serve = Callable[[Script], ToyServer]
PATIENT = Timeouts(connect_s=20, head_s=20, total_s=20)


def ask(url: str, number: int = 1, timeouts: Timeouts = PATIENT, at_once: bool = False) -> list[Record]:
    """Send requests one after the other, or all at once."""

    async def work() -> list[Record]:
        client = Client(locate(url), protocols.get("contest"), timeouts)
        request = Request(prompt="a prompt", max_new_tokens=3, request_id="r-1")
        try:
            if at_once:
                return await asyncio.gather(*(client.send(request, index) for index in range(number)))
            return [await client.send(request, index) for index in range(number)]
        finally:
            await client.close()

    return asyncio.run(work())


def play(serve: Serve, steps: list[Step], timeouts: Timeouts = PATIENT) -> Record:
    return ask(serve(lambda n, body: steps).url, timeouts=timeouts)[0]


def test_an_answer_is_recorded_with_its_instants_in_order(serve: Serve) -> None:
    record = play(serve, answer(["a", " b", " c"]))
    assert (record.status, record.reason, record.text) == ("answered", "", "a b c")
    assert (record.num_tokens, sum(record.tokens), record.finish_reason) == (3, 3, "length")
    assert record.token_ids == [5, 5, 5]
    instants = [record.due_ns, record.sent_ns, record.connected_ns, record.first_byte_ns, *record.stamps_ns]
    instants.append(record.done_ns)
    assert None not in instants
    assert instants == sorted(instants, key=lambda at_ns: at_ns or 0)


@pytest.mark.parametrize(
    ("final", "kept"),
    [("a b c", None), (" a b", None), ("a b and the rest", None), ("x b", "a b"), ("a", "a b")],
)
def test_a_final_text_that_does_not_begin_with_the_streamed_one_is_kept_beside_it(
    serve: Serve, final: str, kept: str | None
) -> None:
    """The text of the last token may come at the end only, as with MindIE."""
    events = [token_event("a"), token_event(" b"), last_event(final, 2)]
    record = play(serve, [STREAM_HEAD, *map(chunk, events), LAST_CHUNK])
    assert (record.status, record.text, record.streamed_text) == ("answered", final, kept)


def test_the_request_goes_out_as_the_dialect_says(serve: Serve) -> None:
    server = serve(lambda n, body: answer(["a"]))
    ask(server.url + "/behind/a/proxy/")
    head = server.heads[0].decode().splitlines()
    assert head[0] == "POST /behind/a/proxy/models/llama2/generate_stream HTTP/1.1"
    assert f"Host: 127.0.0.1:{server.port}" in head
    assert "X-Request-Id: r-1" in head
    assert b'"inputs": "a prompt"' in server.bodies[0]


def test_a_stream_cut_at_every_byte_gives_the_same_answer(serve: Serve) -> None:
    raw = b"".join(step for step in answer(["a", "é", " c"]) if isinstance(step, bytes))
    cuts = list(range(1, len(raw), 7))
    server = serve(lambda n, body: [raw[: cuts[n]], 0.0005, raw[cuts[n] :]])
    records = ask(server.url, number=len(cuts))
    assert {(record.status, record.text, record.num_tokens) for record in records} == {("answered", "aé c", 3)}


def test_tokens_that_come_in_one_read_share_a_stamp(serve: Serve) -> None:
    raw = b"".join(step for step in answer(["a", "b", "c"]) if isinstance(step, bytes))
    record = play(serve, [raw])
    assert record.tokens == [3]
    assert len(record.stamps_ns) == 1


def test_a_connection_is_kept_and_used_again(serve: Serve) -> None:
    server = serve(lambda n, body: answer(["a"]))
    records = ask(server.url, number=5)
    assert [record.connection for record in records] == ["new", *["reused"] * 4]
    assert all(record.connected_ns == record.sent_ns for record in records[1:])
    assert server.num_connections == 1


def test_requests_at_once_each_have_a_connection(serve: Serve) -> None:
    server = serve(lambda n, body: answer(["a", "b"]))
    records = ask(server.url, number=40, at_once=True)
    assert {record.status for record in records} == {"answered"}
    assert server.num_connections <= 40


def test_a_kept_connection_that_the_server_drops_is_replaced_without_a_failure(serve: Serve) -> None:
    # the second request comes on the kept connection, which is reset before a byte of an answer
    server = serve(lambda n, body: [Do.RESET] if n == 1 else answer(["a"]))
    first, second = ask(server.url, number=2)
    assert (first.status, second.status) == ("answered", "answered")
    assert (second.connection, server.num_connections) == ("retried", 2)


def test_a_body_that_lasts_until_the_server_closes_is_an_answer(serve: Serve) -> None:
    record = play(serve, [b"HTTP/1.1 200 OK\r\n\r\n", token_event("a"), last_event("a", 1), Do.CLOSE])
    assert (record.status, record.text) == ("answered", "a")


def test_the_contests_ping_does_not_harm_an_answer(serve: Serve) -> None:
    steps: list[Step] = [STREAM_HEAD, chunk(token_event("a")), chunk(b": You can't see this ping\r\n\r\n")]
    record = play(serve, [*steps, chunk(last_event("a", 1)), LAST_CHUNK])
    assert (record.status, record.text, record.num_tokens) == ("answered", "a", 1)


def test_a_status_that_is_not_200_is_a_failure_with_the_beginning_of_its_body(serve: Serve) -> None:
    body = b"no room " * 100
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: %d\r\n\r\n" % len(body)
    record = play(serve, [head + body[:5], body[5:]])
    assert (record.status, record.http_status) == ("failed", 503)
    assert record.reason == "HTTP 503: " + body[:200].decode().strip()


def test_an_error_text_with_status_200_is_a_failure(serve: Serve) -> None:
    text = "Error202: prompt out of range"
    steps = [STREAM_HEAD, chunk(token_event(text, 0)), chunk(last_event(text, 0, "prompt_out_of_range")), LAST_CHUNK]
    record = play(serve, list(steps))
    assert (record.status, record.reason) == ("failed", text)


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([Do.CLOSE], "closed before a response"),
        ([STREAM_HEAD, chunk(token_event("a")), Do.CLOSE], "closed in the middle of the response"),
        ([STREAM_HEAD, chunk(token_event("a")), LAST_CHUNK], "ended before the answer's last event"),
        ([STREAM_HEAD, chunk(b"what?\n"), LAST_CHUNK], "not a contest event"),
        ([b"220 mail.example ESMTP\r\n\r\n"], "not an HTTP/1.1 response"),
        ([STREAM_HEAD, b"zz\r\n"], "wrong chunk size"),
    ],
)
def test_a_stream_that_is_not_whole_is_a_failure(serve: Serve, steps: list[Step], reason: str) -> None:
    record = play(serve, steps)
    assert record.status == "failed"
    assert reason in record.reason
    assert record.done_ns is not None


def test_a_reset_in_the_middle_is_a_failure(serve: Serve) -> None:
    record = play(serve, [STREAM_HEAD, chunk(token_event("a")), 0.02, Do.RESET])
    assert record.status == "failed"
    assert record.tokens == [1]


def test_a_silent_server_is_a_failure_after_the_time_for_the_head(serve: Serve) -> None:
    record = play(serve, [Do.STALL], Timeouts(connect_s=5, head_s=0.05, total_s=5))
    assert (record.status, record.reason) == ("failed", "time-out: no response in 0.05 s")


def test_a_stalled_stream_is_a_failure_after_the_whole_time(serve: Serve) -> None:
    record = play(serve, [STREAM_HEAD, Do.STALL], Timeouts(connect_s=5, head_s=5, total_s=0.1))
    assert (record.status, record.reason) == ("failed", "time-out: no end of the response in 0.1 s")


def test_a_server_that_is_gone_is_a_failure_and_not_an_exception() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        target = locate(f"127.0.0.1:{gone.getsockname()[1]}")

    async def work() -> Record:
        client = Client(target, protocols.get("contest"), PATIENT)
        record = await client.send(Request(prompt="a"))
        await client.close()
        return record

    record = asyncio.run(work())
    assert (record.status, record.reason) == ("failed", "connect: Connection refused")


def test_who_stops_waiting_leaves_no_connection_behind(serve: Serve) -> None:
    server = serve(lambda n, body: [STREAM_HEAD, Do.STALL])

    async def work() -> None:
        client = Client(locate(server.url), protocols.get("contest"), PATIENT)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(client.send(Request(prompt="a")), 0.05)
        await client.close()

    asyncio.run(work())


@pytest.mark.parametrize("turns", range(6))
def test_who_stops_waiting_while_a_connection_is_being_made_can_still_close(serve: Serve, turns: int) -> None:
    server = serve(lambda n, body: [STREAM_HEAD, Do.STALL])

    async def work() -> None:
        client = Client(locate(server.url), protocols.get("contest"), PATIENT)
        request = Request(prompt="a")
        exchange = client.start(client.prepare(request), request, Record(index=0, due_ns=0), lambda record: None)
        for _ in range(turns):  # of the event loop: the connection has come to another point in each
            await asyncio.sleep(0)
        exchange.give_up("tired")
        await asyncio.wait_for(client.close(), 20)

    loop = new_loop()
    try:
        loop.run_until_complete(work())
    finally:
        loop.close()


@pytest.mark.parametrize("url", ["ftp://localhost:1", "ftp://localhost", "http://", "localhost:99999999"])
def test_an_address_that_cannot_be_measured_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="--url"):
        locate(url)


def test_an_address_where_nobody_answers_is_told_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: connecting is refused
        with pytest.raises(ServingError, match="nobody answers"):
            locate(f"127.0.0.1:{unused.getsockname()[1]}")


def test_a_server_on_ipv6_is_found() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        port = server.getsockname()[1]
        target = locate(f"http://[::1]:{port}")
    assert (target.host, target.family, target.authority) == ("::1", socket.AF_INET6, f"[::1]:{port}")


def slowly(texts: list[str], wait_s: float) -> list[Step]:
    """The events of an answer, each in a write of its own, some time apart; without their end."""
    steps: list[Step] = [STREAM_HEAD]
    for text in texts:
        steps += [chunk(token_event(text)), wait_s]
    return steps


def test_reads_that_are_parsed_together_keep_their_own_stamps(serve: Serve) -> None:
    texts = [f" {number}" for number in range(40)]
    end = chunk(last_event("".join(texts), len(texts)))
    record = play(serve, [*slowly(texts, 0.005), end, LAST_CHUNK])
    assert (record.status, record.text, sum(record.tokens)) == ("answered", "".join(texts), 40)
    assert len(record.stamps_ns) > 20
    assert record.stamps_ns == sorted(set(record.stamps_ns))
    assert record.stamps_ns[-1] - record.stamps_ns[0] >= 39 * 5_000_000


def test_an_end_that_is_cut_anywhere_is_seen_when_it_is_there(serve: Serve) -> None:
    end = chunk(last_event(" a b", 2)) + LAST_CHUNK
    cuts = list(range(1, 10))
    server = serve(lambda n, body: [*slowly([" a", " b"], 0.005), end[: -cuts[n]], 0.005, end[-cuts[n] :]])
    records = ask(server.url, number=len(cuts))
    assert {(record.status, record.text) for record in records} == {("answered", " a b")}
    assert all((record.done_ns or 0) - (record.sent_ns or 0) < 900_000_000 for record in records)


def test_tokens_that_were_held_are_in_the_record_of_a_request_that_ran_out_of_time(serve: Serve) -> None:
    limits = Timeouts(connect_s=20, head_s=20, total_s=20, idle_s=0.5)
    record = play(serve, [*slowly([" a", " b", " c"], 0.01), Do.STALL], limits)
    assert (record.status, record.text, sum(record.tokens)) == ("failed", " a b c", 3)
    assert record.reason == "time-out: nothing more of the response for 0.5 s"


def test_tokens_that_were_held_are_in_the_record_of_a_stream_that_broke_off(serve: Serve) -> None:
    record = play(serve, [*slowly([" a", " b", " c"], 0.01), Do.CLOSE])
    assert (record.status, record.text, sum(record.tokens)) == ("failed", " a b c", 3)


def test_what_stands_behind_an_end_is_a_failure_however_it_is_cut(serve: Serve) -> None:
    end = chunk(last_event(" a b", 2)) + LAST_CHUNK
    record = play(serve, [*slowly([" a", " b"], 0.005), end[:-4], 0.01, end[-4:] + b"more of it", Do.STALL])
    assert (record.status, record.reason) == ("failed", "more bytes than the response has")
