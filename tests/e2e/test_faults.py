"""What can go wrong around `llmbench serve`: killed processes, clients that misbehave, more load than it can take.

Each test runs its own server as a process and looks at it from outside: sockets, `/metrics`, exit codes, `/dev/shm`.
"""

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil
import pytest
import yaml

from llmbench import plugins, protocols
from llmbench.loadgen import run as load
from llmbench.loadgen.client import Client, Timeouts, locate
from llmbench.loadgen.record import Record
from llmbench.tokenizer import embedded_path
from llmbench.types import Request, Sampling
from llmbench.workload import plan as plans
from tests.conftest import Launch, Serving, ended, poll

pytestmark = pytest.mark.alone

T = TypeVar("T")
DIALECTS = plugins.names("protocols")
STUB = ("--model", "random:tiny", "--engine", "stub", "--threads", "1")
STREAM, COMPLETIONS = "/models/llama2/generate_stream", "/v1/completions"
LONG = 1900  # tokens
KNOWN = {"prompt": "Hello", "max_tokens": 12, "seed": 7}
"""The stub's tokens follow from seed and position, so that this has one right answer."""


def work(work: Coroutine[Any, Any, T], within_s: float = 90.0) -> T:
    """Run it; nothing may hang."""
    return asyncio.run(asyncio.wait_for(work, within_s))


def settings(tmp_path: Path, **values: Any) -> str:
    """A settings file."""
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


async def fetched(server: Serving, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    """Status, body (as JSON where it is) and headers (lower-case names) of one request on its own connection."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session,
        session.request("GET" if data is None else "POST", server.url + path, data=data, headers=given) as response,
    ):
        content = await response.read()
        shown = json.loads(content) if "json" in response.content_type else content.decode()
        return response.status, shown, {name.lower(): value for name, value in response.headers.items()}


def asked(server: Serving, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
    return work(fetched(server, path, body, **headers))


def known_answer(server: Serving) -> str:
    status, answer, _ = asked(server, COMPLETIONS, KNOWN)
    assert status == 200, answer
    return str(answer["choices"][0]["text"])


async def metric(server: Serving, name: str) -> float:
    text = (await fetched(server, "/metrics"))[1]
    found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    assert found, f"no {name} in the metrics"
    return float(found[1])


async def until(server: Serving, within_s: float = 30.0, **metrics: float) -> None:
    """Until these metrics have these values."""
    deadline = time.monotonic() + within_s
    while True:
        found = {name: await metric(server, f"vllm:{name}") for name in metrics}
        if found == metrics:
            return
        assert time.monotonic() < deadline, f"{found} and not {metrics} within {within_s} s"
        await asyncio.sleep(0.02)


def idle(server: Serving, within_s: float = 15.0) -> None:
    """Nothing runs or waits, and every block is free."""
    work(until(server, within_s, num_requests_running=0, num_requests_waiting=0, kv_cache_usage_perc=0))


@contextlib.asynccontextmanager
async def client(server: Serving, dialect: str = "contest") -> AsyncIterator[Client]:
    """The client that measures."""
    sender = Client(locate(server.url), protocols.get(dialect), Timeouts())
    try:
        yield sender
    finally:
        await sender.close()


def request(number: int, prompt: str = "Hello", stream: bool = True) -> Request:
    return Request(prompt=prompt, max_new_tokens=number, sampling=Sampling(), stream=stream)


def http_request(path: str, body: Any, *headers: str, length: int | None = None) -> bytes:
    """The bytes of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(data) if length is None else length}"]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + data


async def talk(server: Serving, data: bytes, within_s: float = 30.0) -> bytes:
    """Send bytes as they are; everything that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), within_s)
    finally:
        writer.transport.abort()


async def first_answer(server: Serving, data: bytes, within_s: float = 30.0) -> tuple[int, Any]:
    """Send bytes as they are; status and JSON of the first answer, whether the server closes or not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), within_s)
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length is not None, head
        return int(head.split(b" ")[1]), json.loads(
            await asyncio.wait_for(reader.readexactly(int(length[1])), within_s)
        )
    finally:
        writer.transport.abort()


async def eventually(true: Callable[[], Coroutine[Any, Any, bool]], what: str, within_s: float = 30.0) -> None:
    """Ask until it is true, but not for ever."""
    deadline = time.monotonic() + within_s
    while not await true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        await asyncio.sleep(0.01)


async def stopping(server: Serving) -> bool:
    """Whether it takes no more requests."""
    return (await fetched(server, COMPLETIONS, KNOWN))[0] == 503


def slow_reader(server: Serving, path: str, body: Any) -> socket.socket:
    """A client that asks and then takes nothing."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", server.port))
    raw.sendall(http_request(path, body))
    return raw


def shared_memory() -> set[Path]:
    """What processes that have ended left in shared memory."""
    paths = Path("/dev/shm").glob("llmbench-*-*")
    return {path for path in paths if ended(int(path.name.split("-")[1]))}


@contextlib.contextmanager
def open_files(soft: int) -> Iterator[None]:
    """A limit of open files for what is started inside."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as this process may have; the load generator raises the limit too and leaves it there."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# -- processes that are killed --------------------------------------------------------------------------------------


def test_when_the_agent_is_killed_20_streams_hear_it_in_their_dialect_and_those_that_wait_are_answered(
    launch: Launch, tmp_path: Path
) -> None:
    config = settings(tmp_path, limits={"max_batch": 20})
    with launch(config, *STUB, "--step-time", "0.01") as server:
        expected = known_answer(server)

        async def all_of_it() -> tuple[int, list[Record], list[Record]]:
            async with contextlib.AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(client(server, DIALECTS[i % len(DIALECTS)])) for i in range(20)
                ]
                streams = [asyncio.ensure_future(each.send(request(LONG))) for each in clients]
                await until(server, num_requests_running=20)
                waiting = [asyncio.ensure_future(each.send(request(10))) for each in clients[:5]]
                await until(server, num_requests_waiting=5)
                killed_ns = time.monotonic_ns()
                os.kill(server.agent_pid, signal.SIGKILL)
                return killed_ns, await asyncio.gather(*streams), await asyncio.gather(*waiting)

        killed_ns, lost, waited = work(all_of_it())
        for record in lost:
            assert record.done_ns is not None
            assert record.done_ns - killed_ns < 2e9
            assert (record.status, record.http_status) == ("failed", 200)
            assert record.stamps_ns, "it was in mid-stream"
            assert "agent" in record.reason or "error304" in record.reason
        assert [(record.status, record.num_tokens) for record in waited] == [("answered", 10)] * 5
        assert known_answer(server) == expected
        idle(server)
        assert "20 requests in flight are lost, starting another agent" in server.log
        assert "Traceback" not in server.log


def test_what_the_prefix_cache_knew_of_a_killed_agent_is_not_believed_of_the_next(launch: Launch) -> None:
    with launch("--model", "random:tiny", "--threads", "1", "--prefix-cache") as server:
        body = {"prompt": list(range(5, 75)), "max_tokens": 16, "temperature": 0, "ignore_eos": True}

        def answered() -> tuple[str, int]:
            status, answer, _ = asked(server, COMPLETIONS, body)
            assert status == 200
            return answer["choices"][0]["text"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        cold = answered()
        assert answered() == (cold[0], 64)
        os.kill(server.agent_pid, signal.SIGKILL)
        assert poll(lambda: "is ready" in server.log)
        assert answered() == cold
        assert answered() == (cold[0], 64)


def test_a_server_that_is_killed_under_load_frees_its_port_and_takes_its_agent_along(
    launch: Launch, tmp_path: Path
) -> None:
    with launch(*STUB, "--step-time", "0.01") as server:

        async def killed() -> list[Record]:
            async with client(server) as sender:
                streams = [asyncio.ensure_future(sender.send(request(LONG))) for _ in range(10)]
                await until(server, num_requests_running=10)
                server.process.kill()
                return await asyncio.gather(*streams)

        assert {record.status for record in work(killed())} == {"failed"}
        assert poll(lambda: ended(server.agent_pid)), "the agent lives on"
        server.process.wait(30)
        with launch(*STUB, port=server.port) as after:
            assert after.port == server.port
            assert not shared_memory()
            assert known_answer(after)


def test_an_agent_that_cannot_start_again_is_an_error_for_those_who_wait_until_it_can(
    launch: Launch, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(embedded_path().parent, folder)
    config = settings(tmp_path, limits={"max_batch": 1})
    with launch(config, "--model", str(folder), "--engine", "stub", "--step-time", "0.01") as server:
        expected = known_answer(server)

        async def third_try() -> bool:
            return "next try in 0.4 s" in server.log

        async def without_a_model() -> tuple[Record, Record, tuple[int, Any, dict[str, str]]]:
            async with client(server) as sender:
                running = asyncio.ensure_future(sender.send(request(200)))
                await until(server, num_requests_running=1)
                waiting = asyncio.ensure_future(sender.send(request(5)))
                await until(server, num_requests_waiting=1)
                folder.rename(tmp_path / "away")
                os.kill(server.agent_pid, signal.SIGKILL)
                lost = await running, await waiting
                await eventually(third_try, "a third try")
                return *lost, await fetched(server, "/health")

        running, waiting, health = work(without_a_model())
        assert (running.status, waiting.status) == ("failed", "failed")
        assert "error304" in waiting.reason
        assert health[:2] == (503, "the agent is starting\n")
        tries = [float(found) for found in re.findall(r"next try in (\S+) s", server.log)]
        assert tries[:3] == [0.1, 0.2, 0.4], "it waits twice as long each time"
        status, answer, _ = asked(server, COMPLETIONS, KNOWN)
        assert (status, answer["error"]["type"]) == (500, "server_error")
        (tmp_path / "away").rename(folder)
        assert poll(lambda: asked(server, "/health")[0] == 200)
        assert known_answer(server) == expected
        idle(server)


# -- more than it can take ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("many_files")
def test_1000_streams_at_once_are_all_answered_by_a_server_that_may_open_few_files_at_first(
    launch: Launch, tmp_path: Path
) -> None:
    config = settings(tmp_path, limits={"max_batch": 256})
    with open_files(256):
        server = launch(config, *STUB, "--step-time", "0.01")
    planned = tuple(
        plans.PlannedRequest(index=i, due_s=0.0, request=request(16, f"Number {i}"), expected_tokens=16)
        for i in range(1000)
    )
    origin = plans.PlanSettings(dataset="toy", num_samples=1000, arrivals="burst", qps=1000, rate=None, seed=0)
    plan = plans.Plan(settings=origin, requests=planned, sha256=plans.hash_of(planned))
    outcome = load.run(plan, locate(server.url), protocols.get("contest"), Timeouts(), tmp_path / "journal.jsonl")
    assert {record.reason for record in outcome.records} == {""}
    assert sorted(record.index for record in outcome.records if record.status == "answered") == list(range(1000))
    assert {record.num_tokens for record in outcome.records} == {16}
    idle(server)
    assert asked(server, "/metrics")[1].count("nan") == 0
    assert "Traceback" not in server.log


@pytest.mark.usefixtures("many_files")
def test_of_ten_times_too_much_everything_is_answered_or_refused_at_once(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, limits={"max_batch": 4, "max_waiting": 16})
    with launch(config, *STUB, "--step-time", "0.02") as server:
        expected = known_answer(server)

        async def one(session: aiohttp.ClientSession, dialect: str) -> tuple[int, str, float]:
            http = protocols.get(dialect).encode(request(15))
            start = time.monotonic()
            async with session.post(server.url + http.path, data=http.body, headers=dict(http.headers)) as response:
                await response.read()
                return response.status, response.headers.get("Retry-After", ""), time.monotonic() - start

        async def flood() -> list[tuple[int, str, float]]:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as session:
                return await asyncio.gather(*(one(session, DIALECTS[i % len(DIALECTS)]) for i in range(200)))

        answers = work(flood())
        answered = [took_s for status, _, took_s in answers if status == 200]
        refused = [(status, again) for status, again, _ in answers if status != 200]
        assert 16 <= len(answered) <= 40
        assert set(refused) == {(503, "1")}
        slowest_refusal = max(took_s for status, _, took_s in answers if status == 503)
        assert slowest_refusal < max(answered), "a refused request does not wait for the others' answers"
        assert known_answer(server) == expected
        idle(server)
        assert "Traceback" not in server.log


@pytest.mark.usefixtures("many_files")
def test_500_clients_that_reset_in_mid_stream_leave_no_block_behind(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, limits={"max_batch": 400, "max_tokens_per_step": 2000})
    with launch(config, *STUB, "--step-time", "0.02") as server:
        data = http_request(STREAM, {"inputs": "Hello there", "parameters": {"max_new_tokens": LONG}})

        async def vanish() -> None:
            streams = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", server.port) for _ in range(500)))
            for _, writer in streams:
                writer.write(data)
            await asyncio.gather(*(reader.readexactly(400) for reader, _ in streams[:300]))
            await until(server, num_requests_running=400, num_requests_waiting=100)
            for _, writer in streams:
                raw = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close is a reset
                writer.transport.abort()

        work(vanish())
        idle(server)
        aborted = re.search(
            r'vllm:request_success_total{finished_reason="abort".*} (\S+)', asked(server, "/metrics")[1]
        )
        assert aborted is not None
        assert float(aborted[1]) == 500
        assert known_answer(server)
        assert "Traceback" not in server.log


def test_one_who_reads_nothing_does_not_slow_the_others(launch: Launch) -> None:
    with launch(*STUB, "--step-time", "0.005") as server:

        async def fast() -> float:
            async with client(server) as sender:
                start = time.monotonic()
                records = await asyncio.gather(*(sender.send(request(64)) for _ in range(8)))
                assert [(record.status, record.num_tokens) for record in records] == [("answered", 64)] * 8
                return time.monotonic() - start

        async def beside() -> float:
            raw = slow_reader(server, COMPLETIONS, {"prompt": ["a"] * 16, "max_tokens": LONG, "stream": True})
            try:
                await until(server, num_requests_running=16)
                return await fast()
            finally:
                raw.close()

        alone_s = min(work(fast()) for _ in range(2))
        assert work(beside()) < 5 * alone_s + 1
        idle(server)


# -- clients that keep the server waiting ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_one_who_never_reads_is_dropped_after_the_idle_time(launch: Launch, tmp_path: Path, stream: bool) -> None:
    config = settings(tmp_path, http={"idle_timeout_s": 0.7})
    with launch(config, *STUB) as server:
        # some 10 MB, more than the kernel keeps for a connection
        body: dict[str, Any] = {"prompt": ["a"] * 32, "max_tokens": LONG, "stream": True}
        body = body if stream else {"prompt": ["a"] * 4, "max_tokens": LONG, "logprobs": 20}

        async def dropped() -> None:
            with contextlib.closing(slow_reader(server, COMPLETIONS, body)) as raw:
                mine = raw.getsockname()[1]
                theirs = psutil.Process(server.process.pid)
                await until(server, num_requests_running=len(body["prompt"]))

                async def gone() -> bool:
                    return mine not in {
                        each.raddr.port for each in theirs.net_connections() if each.status != psutil.CONN_LISTEN
                    }

                await eventually(gone, "the server lets go of the connection", within_s=60)

        work(dropped())
        idle(server)
        assert "dropping a client that took nothing for 0.7 s" in server.log
        assert known_answer(server)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_answer_that_takes_too_long_ends_with_the_dialects_error(slow_server: Serving, dialect: str) -> None:
    async def both() -> tuple[Record, Record]:
        async with client(slow_server, dialect) as sender:
            return await asyncio.gather(sender.send(request(1500)), sender.send(request(1500, stream=False)))

    streamed, whole = work(both())
    for record in (streamed, whole):
        assert record.status == "failed"
        assert record.done_ns is not None
        assert record.sent_ns is not None
        assert 0.5 < (record.done_ns - record.sent_ns) / 1e9 < 5
    assert streamed.stamps_ns, "it was in mid-stream"
    assert "no complete answer within 1 s" in streamed.reason or "error304" in streamed.reason
    assert whole.http_status == 504
    assert "no complete answer within 1 s" in whole.reason


@pytest.fixture(scope="module")
def slow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server with little patience, that several tests share: a second for an answer, half of one for a body."""
    folder = tmp_path_factory.mktemp("slow")
    http = {"request_timeout_s": 1.0, "body_timeout_s": 0.5, "max_body_bytes": 10_000}
    config = settings(folder, http=http)
    with Serving(config, *STUB, "--step-time", "0.02", log=folder / "log") as serving:
        yield serving.wait_until_ready()


def path_of(dialect: str) -> str:
    return protocols.get(dialect).encode(request(5)).path


def is_error(dialect: str, body: Any) -> bool:
    """Whether a body is an error in the shape of its dialect."""
    if dialect == "contest":
        return isinstance(body["detail"], str)
    if dialect.startswith("openai"):
        return set(body["error"]) == {"message", "type", "param", "code"}
    return set(body) == {"error", "error_type"}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_body_that_never_comes_is_answered_in_time(slow_server: Serving, dialect: str) -> None:
    start = time.monotonic()
    for begun in (b"", b'{"inputs": '):
        status, body = work(first_answer(slow_server, http_request(path_of(dialect), begun, length=1000)))
        assert status == 504
        assert is_error(dialect, body)
    assert 0.9 < time.monotonic() - start < 10


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_body_that_is_too_large_is_refused_in_the_dialects_shape(
    slow_server: Serving, dialect: str, chunked: bool
) -> None:
    data = json.dumps({"inputs": "x" * 20_000}).encode()
    if chunked:
        lines = (
            f"POST {path_of(dialect)} HTTP/1.1",
            "Host: x",
            "Transfer-Encoding: chunked",
            "Connection: close",
            "",
            "",
        )
        sent = "\r\n".join(lines).encode() + b"".join(
            b"%x\r\n%s\r\n" % (1000, data[i : i + 1000]) for i in range(0, 20_000, 1000)
        )
        sent += b"0\r\n\r\n"
    else:
        sent = http_request(path_of(dialect), data, "Connection: close")
    head, _, body = work(talk(slow_server, sent)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert is_error(dialect, json.loads(body))
    assert asked(slow_server, COMPLETIONS, KNOWN)[0] == 200


# -- who may ask ----------------------------------------------------------------------------------------------------


def test_with_an_api_key_every_route_but_health_wants_it(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, http={"api_key": "geheim-ß"})
    with launch(config, *STUB) as server:
        assert asked(server, "/health")[0] == 200

        async def statuses(*headers: str) -> set[int]:
            """Of one request for each route, with these headers."""
            found = set()
            for dialect in DIALECTS:
                http = protocols.get(dialect).encode(request(2))
                found.add(await status_of(http_request(http.path, http.body, "Connection: close", *headers)))
            for path in ("/metrics", "/metrics-json", "/v1/models", "/info", "/serving/get_bs"):
                head = "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", "Connection: close", *headers, "", ""])
                found.add(await status_of(head.encode("latin-1")))
            return found

        async def status_of(data: bytes) -> int:
            return int((await talk(server, data)).split(b" ")[1])

        assert work(statuses()) == {401}
        for wrong in (
            "Bearer",
            "Bearer geheim",
            "Basic Z2VoZWlt",
            "Bearer \xff\xfe",
        ):
            assert work(statuses(f"Authorization: {wrong}")) == {401}
        assert work(statuses("Authorization: Bearer " + "geheim-ß".encode().decode("latin-1"))) == {200}
        status, body, _ = asked(server, COMPLETIONS, KNOWN)
        assert status == 401
        assert is_error("openai_completions", body)
        assert "Traceback" not in server.log


def test_no_more_clients_than_allowed_are_served_at_once(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, http={"max_connections": 3})
    with launch(config, *STUB) as server:

        async def served() -> tuple[int, dict[str, str]]:
            held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
            try:
                status, body, headers = await fetched(server, COMPLETIONS, KNOWN)
                assert is_error("openai_completions", body)
            finally:
                for _, writer in held:
                    writer.close()
                    await writer.wait_closed()
            await eventually(answered, "the three that have gone make room")
            return status, headers

        async def answered() -> bool:
            return (await fetched(server, COMPLETIONS, KNOWN))[0] == 200

        status, headers = work(served())
        assert (status, headers["retry-after"]) == (503, "1")


# -- the end --------------------------------------------------------------------------------------------------------


def test_told_to_stop_it_finishes_its_answers_and_takes_no_more(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, http={"drain_s": 30.0}, limits={"max_batch": 8})
    with launch(config, *STUB, "--step-time", "0.02") as server:

        async def stopped() -> tuple[list[Record], tuple[int, Any, dict[str, str]]]:
            async with client(server) as sender:
                answers = [asyncio.ensure_future(sender.send(request(40))) for _ in range(12)]
                await until(server, num_requests_running=8, num_requests_waiting=4)
                server.process.terminate()
                await eventually(lambda: stopping(server), "it refuses new requests")
                refused = await fetched(server, COMPLETIONS, KNOWN)
                return await asyncio.gather(*answers), refused

        answers, (status, body, headers) = work(stopped())
        assert [(record.status, record.num_tokens) for record in answers] == [("answered", 40)] * 12
        assert (status, headers["retry-after"]) == (503, "1")
        assert body["error"]["message"] == "the server is stopping"
        assert server.process.wait(30) == 0
        assert ended(server.agent_pid)
        assert not shared_memory()
        assert "Traceback" not in server.log


def test_told_twice_to_stop_it_does_not_wait_for_answers(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, http={"drain_s": 60.0})
    with launch(config, *STUB, "--step-time", "0.05") as server:

        async def stopped() -> tuple[list[Record], float]:
            async with client(server) as sender:
                answers = [asyncio.ensure_future(sender.send(request(LONG))) for _ in range(5)]
                await until(server, num_requests_running=5)
                server.process.terminate()
                await eventually(lambda: stopping(server), "it refuses new requests")
                again = time.monotonic()
                server.process.terminate()
                return await asyncio.gather(*answers), again

        answers, again = work(stopped())
        assert {record.status for record in answers} == {"failed"}
        assert server.process.wait(30) == 0
        assert time.monotonic() - again < 10
        for record in answers:  # those who have heard nothing yet get a status
            assert "the server is stopping" in record.reason or "error304" in record.reason
        assert ended(server.agent_pid)
        assert not shared_memory()


def test_answers_that_take_longer_than_the_drain_end_with_an_error(launch: Launch, tmp_path: Path) -> None:
    config = settings(tmp_path, http={"drain_s": 0.3})
    with launch(config, *STUB, "--step-time", "0.05") as server:

        async def stopped() -> list[Record]:
            async with contextlib.AsyncExitStack() as stack:
                clients = [await stack.enter_async_context(client(server, dialect)) for dialect in DIALECTS]
                answers = [asyncio.ensure_future(each.send(request(LONG))) for each in clients]
                await until(server, num_requests_running=len(DIALECTS))
                server.process.terminate()
                return await asyncio.gather(*answers)

        for record in work(stopped()):
            assert record.status == "failed"
            assert "the server is stopping" in record.reason or "error304" in record.reason
        assert server.process.wait(30) == 0
        assert not shared_memory()


# -- prompts and lengths at the limits --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of 64 tokens, with few blocks, that several tests share."""
    folder = tmp_path_factory.mktemp("limited")
    config = settings(
        folder, limits={"max_model_len": 64, "max_batch": 4, "max_tokens_per_step": 16}, kv_cache={"num_blocks": 5}
    )
    with Serving(config, "--model", "random:tiny", "--threads", "1", log=folder / "log") as serving:
        yield serving.wait_until_ready()


def completion(server: Serving, prompt: Any, number: int, **more: Any) -> tuple[int, Any]:
    return asked(server, COMPLETIONS, {"prompt": prompt, "max_tokens": number, "temperature": 0, **more})[:2]


def test_a_prompt_and_an_answer_at_the_limit_fit_and_one_more_is_refused(limited: Serving) -> None:
    for num_prompt in (1, 15, 16, 17, 32, 63):
        prompt = [5 + i for i in range(num_prompt)]
        status, body = completion(limited, prompt, 64 - num_prompt, ignore_eos=True)
        assert (status, body["usage"]["total_tokens"]) == (200, 64)
        status, body = completion(limited, prompt, 65 - num_prompt)
        assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    status, body = completion(limited, [5] * 64, 0, echo=True, logprobs=1)
    assert (status, len(body["choices"][0]["logprobs"]["tokens"])) == (200, 64)
    assert completion(limited, [5] * 65, 0, echo=True, logprobs=1)[0] == 400
    assert completion(limited, [5] * 100_000, 1)[0] == 400
    idle(limited)


@pytest.mark.parametrize("number", [0, -1, -(2**31), 2**31 - 1, 2**31, 2**63, 10**30, 1.5, "8", "many", None, [], True])
def test_any_number_of_new_tokens_is_answered(limited: Serving, number: Any) -> None:
    async def everywhere() -> list[int]:
        found = []
        for name in ("max_tokens", "max_new_tokens", "max_completion_tokens"):
            for dialect in DIALECTS:
                http = protocols.get(dialect).encode(request(5))
                body = json.loads(http.body)
                inner = body.get("parameters", body)
                for other in ("max_tokens", "max_new_tokens", "max_completion_tokens"):
                    inner.pop(other, None)
                inner[name] = number
                found.append((await fetched(limited, http.path, body))[0])
        return found

    assert set(work(everywhere())) <= {200, 400, 422}
    idle(limited)
    assert completion(limited, "Hi", 4)[0] == 200


@pytest.mark.parametrize(
    "prompt", ["", [], [0], [5, 0, 6], "<unk>", "a <unk> b", " ", "\x00", "\ud7ff\ue000", [2], [1], [2047]]
)
def test_any_prompt_is_answered(limited: Serving, prompt: Any) -> None:
    status, _ = completion(limited, prompt, 3)
    assert status == (400 if prompt in ("", [], [0], [5, 0, 6], "<unk>", "a <unk> b") else 200)
    if isinstance(prompt, str):
        status, answer, _ = asked(
            limited, "/models/llama2/generate", {"inputs": prompt, "parameters": {"max_new_tokens": 3}}
        )
        assert status == 200
        wrong = "<unk>" in prompt
        assert answer["finish_reason"] == ("prompt_token_ids_empty" if wrong else "length")
    assert completion(limited, "Hi", 4)[0] == 200


def test_bad_prompts_that_come_together_with_good_ones_are_all_answered(limited: Serving) -> None:
    prompts: list[Any] = [[5, 6], [0], "Hi", [5] * 65, [7, 0], [8] * 63, "<unk>", [9]]

    async def together() -> list[int]:
        bodies = [{"prompt": prompt, "max_tokens": 1, "temperature": 0} for prompt in prompts]
        answers: list[Awaitable[tuple[int, Any, dict[str, str]]]] = [
            fetched(limited, COMPLETIONS, each) for each in bodies
        ]
        return [status for status, _, _ in await asyncio.gather(*answers)]

    assert work(together()) == [200, 400, 200, 400, 400, 200, 400, 200]
    status, body = completion(limited, [[5], [0], [0, 0], [6]], 1)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    status, body = completion(limited, [[5], [6]], 1)
    assert (status, len(body["choices"])) == (200, 2)
    idle(limited)


def test_a_header_that_is_no_text_and_settings_that_no_model_has_are_answered(limited: Serving) -> None:
    """Each of these once was a 500, or ended the agent or the server."""

    async def asked_with(*headers: str, **more: Any) -> bytes:
        body = {"prompt": "Hi", "max_tokens": 2, "temperature": 0, **more}
        return await talk(limited, http_request(COMPLETIONS, body, "Connection: close", *headers))

    for answer in (
        work(asked_with("X-Request-Id: \xff\xfe")),
        work(asked_with("X-Request-Id: " + "x" * 5000)),
        work(asked_with(min_tokens=1, stop_token_ids=[2048, 2**31 - 1])),
        work(asked_with(repetition_penalty=1e-300)),
        work(asked_with(repetition_penalty=1e300)),
        work(asked_with(temperature=1e300, min_tokens=2)),
    ):
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert asked(limited, "/health/timed-" + "9" * 5000)[0] == 422
    contest = {"inputs": "Hi", "parameters": {"max_new_tokens": 2, "temperature": 10**309}}
    assert asked(limited, "/models/llama2/generate", contest)[0] == 422
    assert "lost" not in limited.log
    assert "Traceback" not in limited.log
