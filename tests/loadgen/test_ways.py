"""The ways to a server: TLS, proxies, headers, time-outs, connections that are open before; on real sockets."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench import protocols
from llmbench.errors import InputError, ServingError
from llmbench.loadgen import journal, preflight
from llmbench.loadgen.client import Client, Sender, Timeouts
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import run, sender
from llmbench.loadgen.target import Way, header, locate
from llmbench.types import Request
from tests.loadgen.conftest import LAST_CHUNK, STREAM_HEAD, Do, Script, Step, ToyServer, answer, chunk, token_event
from tests.loadgen.relay import Certificate, Proxy, Threaded, tls_front
from tests.loadgen.test_run import make_plan

Serve = Callable[[Script], ToyServer]
CONTEST = protocols.get("contest")
ABC = ["a", " b", " c"]


def abc(n: int, body: bytes) -> list[Step]:
    return answer(ABC)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with closing(Proxy()) as found:
        yield found


def ask(url: str, number: int = 1, timeouts: Timeouts = Timeouts(), way: Way = Way()) -> list[Record]:  # noqa: B008
    """Send requests one after the other."""

    async def work() -> list[Record]:
        client = sender(locate(url, way=way), CONTEST, timeouts)
        try:
            return [await one(client, index) for index in range(number)]
        finally:
            await client.close()

    return asyncio.run(work())


async def one(client: Sender, index: int = 0) -> Record:
    record = Record(index=index, due_ns=0)
    over: asyncio.Future[Record] = asyncio.get_running_loop().create_future()
    request = Request(prompt="a prompt", max_new_tokens=3, request_id="r-1")
    client.start(client.prepare(request), request, record, over.set_result)
    return await over


def in_order(record: Record) -> bool:
    instants = [record.sent_ns, record.connected_ns, record.first_byte_ns, *record.stamps_ns, record.done_ns]
    return None not in instants and instants == sorted(instants, key=lambda at_ns: at_ns or 0)


# -- TLS


def test_a_tls_server_with_a_trusted_certificate_is_measured(serve: Serve, certificate: Certificate) -> None:
    with closing(tls_front(certificate, serve(abc).port)) as front:
        way = Way(cacert=str(certificate.path))
        records = ask(f"https://localhost:{front.port}", number=2, way=way)
    assert [(record.status, record.text) for record in records] == [("answered", "a b c")] * 2, records[0].reason
    assert [record.connection for record in records] == ["new", "reused"]
    assert all(in_order(record) for record in records)
    first = records[0]
    assert first.connected_ns is not None
    assert first.sent_ns is not None
    assert first.connected_ns - first.sent_ns > 300_000  # the handshake is in it


def test_an_unknown_certificate_is_refused_with_the_way_out(serve: Serve, certificate: Certificate) -> None:
    with closing(tls_front(certificate, serve(abc).port)) as front:
        with pytest.raises(ServingError, match=r"self-signed certificate.*--cacert and --insecure"):
            locate(f"https://localhost:{front.port}")
        (record,) = ask(f"https://localhost:{front.port}", way=Way(insecure=True))
    assert record.status == "answered", record.reason


def test_a_certificate_of_another_name_is_refused(serve: Serve, tmp_path: Path) -> None:
    other = Certificate(tmp_path, "DNS:elsewhere.example")
    with (
        closing(tls_front(other, serve(abc).port)) as front,
        pytest.raises(ServingError, match=r"not trusted .*localhost"),
    ):
        locate(f"https://localhost:{front.port}", way=Way(cacert=str(other.path)))


def test_a_file_that_holds_no_certificate_is_named(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "empty.pem").write_text("")
    with pytest.raises(InputError, match="--cacert"):
        locate(f"https://127.0.0.1:{serve(abc).port}", way=Way(cacert=str(tmp_path / "empty.pem")))


def test_a_plain_server_is_no_https_server(serve: Serve) -> None:
    with pytest.raises(ServingError, match="nobody answers at https"):
        locate(f"https://127.0.0.1:{serve(abc).port}", timeout_s=2, way=Way(insecure=True))


def test_the_journal_says_what_carried_the_requests(serve: Serve, certificate: Certificate, tmp_path: Path) -> None:
    with closing(tls_front(certificate, serve(abc).port)) as front:
        target = locate(f"https://localhost:{front.port}", way=Way(insecure=True))
        outcome = run(make_plan([0.0, 0.01]), target, CONTEST, Timeouts(), tmp_path / "journal.jsonl")
    assert journal.read(tmp_path / "journal.jsonl").header.transport == "https"
    assert {record.status for record in outcome.records} == {"answered"}


# -- proxies


def test_a_plain_target_is_asked_through_the_proxy(serve: Serve, proxy: Proxy) -> None:
    server = serve(abc)
    (record,) = ask(server.url, way=Way(proxy=proxy.url))
    assert (record.status, record.text, record.num_tokens) == ("answered", "a b c", 3), record.reason
    assert proxy.asked == [f"POST {server.url}/models/llama2/generate_stream HTTP/1.1"]
    assert in_order(record)


def test_an_https_target_is_asked_through_a_tunnel(serve: Serve, proxy: Proxy, certificate: Certificate) -> None:
    with closing(tls_front(certificate, serve(abc).port)) as front:
        way = Way(proxy=proxy.url, cacert=str(certificate.path))
        records = ask(f"https://localhost:{front.port}", number=2, way=way)
    assert [record.status for record in records] == ["answered"] * 2, records[0].reason
    assert proxy.asked[0] == f"CONNECT localhost:{front.port} HTTP/1.1"
    assert [record.connection for record in records] == ["new", "reused"]


def test_a_proxied_request_is_sent_as_a_direct_one(serve: Serve, proxy: Proxy) -> None:
    server = serve(abc)
    ask(server.url)
    ask(server.url, way=Way(proxy=proxy.url))
    assert server.bodies[0] == server.bodies[1]
    direct, proxied = (dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:-2]) for head in server.heads)
    assert {name.lower(): value for name, value in direct.items()} == {
        name.lower(): value for name, value in proxied.items()
    }


def test_the_proxy_of_the_environment_is_not_used(serve: Serve, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(abc)
    assert ask(server.url)[0].status == "answered"
    assert ask(server.url, way=Way(proxy=proxy.url))[0].status == "answered"


@pytest.mark.parametrize(
    ("steps", "status", "reason"),
    [
        ([b"HTTP/1.1 503 No\r\nContent-Length: 4\r\n\r\nfull"], "failed", "HTTP 503: full"),
        ([STREAM_HEAD, chunk(token_event("a")), Do.RESET], "failed", "connection lost: "),
        ([STREAM_HEAD, chunk(token_event("a")), LAST_CHUNK], "failed", "the response ended before the answer"),
        ([STREAM_HEAD, Do.STALL], "failed", "time-out: no first token in 0.5 s"),
        ([chunk(token_event("a")), Do.STALL], "failed", "connection lost: "),
    ],
)
def test_failures_behind_a_proxy_are_records(
    serve: Serve, proxy: Proxy, steps: list[Step], status: str, reason: str
) -> None:
    timeouts = Timeouts(first_token_s=0.5, total_s=20)
    (record,) = ask(serve(lambda n, body: steps).url, timeouts=timeouts, way=Way(proxy=proxy.url))
    assert record.status == status
    assert record.reason.startswith(reason)


def test_a_run_goes_through_a_proxy_and_says_so(serve: Serve, proxy: Proxy, tmp_path: Path) -> None:
    target = locate(serve(abc).url, way=Way(proxy=proxy.url))
    outcome = run(make_plan([0.0, 0.01, 0.02]), target, CONTEST, Timeouts(), tmp_path / "journal.jsonl")
    assert {record.status for record in outcome.records} == {"answered"}
    assert outcome.header.transport == "aiohttp through a proxy"


def test_a_proxy_that_is_not_there_is_named(serve: Serve) -> None:
    with pytest.raises(ServingError, match=r"nobody answers at the proxy 127\.0\.0\.1:9 "):
        locate(serve(abc).url, way=Way(proxy="http://127.0.0.1:9"))


# -- headers


@pytest.mark.parametrize("through", [False, True])
def test_headers_of_the_user_go_along_and_take_the_place_of_ours(serve: Serve, proxy: Proxy, through: bool) -> None:
    server = serve(abc)
    given = (("Authorization", "Bearer secret"), ("content-type", "application/x"))
    ask(server.url, way=Way(headers=given, proxy=proxy.url if through else None))
    lines = server.heads[0].decode().split("\r\n")
    assert "Authorization: Bearer secret" in lines
    assert [line.lower() for line in lines if line.lower().startswith("content-type")] == [
        "content-type: application/x"
    ]


@pytest.mark.parametrize(
    "text", ["no colon", "a b: c", "x: é", "x: a\r\nHost: b", ": x", "Host: x", "content-length: 1"]
)
def test_what_is_no_header_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--header"):
        header(text)


def test_a_header_is_a_name_and_a_value() -> None:
    assert header("X-Key: a:b ") == ("X-Key", "a:b")


# -- time-outs


PIECE = chunk(token_event("a"))


@pytest.mark.parametrize(
    ("timeouts", "steps", "reason"),
    [
        (Timeouts(head_s=0.3), [Do.STALL], "no response in 0.3 s"),
        (Timeouts(total_s=0.3), [STREAM_HEAD, PIECE, Do.STALL], "no end of the response in 0.3 s"),
        (Timeouts(first_token_s=0.3), [STREAM_HEAD, b"1\r\n \r\n", Do.STALL], "no first token in 0.3 s"),
        (Timeouts(first_token_s=0.3), [Do.STALL], "no first token in 0.3 s"),
        (
            Timeouts(idle_s=0.4, first_token_s=0.3),
            [STREAM_HEAD, PIECE, 0.2, PIECE, 0.2, PIECE, Do.STALL],
            "nothing more of the response for 0.4 s",
        ),
    ],
)
def test_every_time_out_has_its_own_reason(serve: Serve, timeouts: Timeouts, steps: list[Step], reason: str) -> None:
    (record,) = ask(serve(lambda n, body: steps).url, timeouts=timeouts)
    assert (record.status, record.reason) == ("failed", f"time-out: {reason}")


def test_a_slow_stream_that_never_stops_for_long_is_not_idle(serve: Serve) -> None:
    steps = [step for event in answer(ABC) for step in (0.15, event)]
    (record,) = ask(serve(lambda n, body: steps).url, timeouts=Timeouts(idle_s=0.4, first_token_s=5))
    assert record.status == "answered", record.reason


def test_no_connection_has_a_limit_of_its_own() -> None:
    """A server that takes connections and never shakes hands."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def work(port: int) -> Record:
        target = msgspec.structs.replace(locate(f"http://127.0.0.1:{port}"), tls_name="localhost")
        client = Client(target, CONTEST, Timeouts(connect_s=0.3))
        record = await one(client)
        await client.close()
        return record

    with closing(Threaded(silent)) as server:
        record = asyncio.run(work(server.port))
    assert (record.status, record.reason) == ("failed", "time-out: no connection in 0.3 s")


# -- connections and buffers


def test_warm_connections_are_open_before_the_first_request(serve: Serve, tmp_path: Path) -> None:
    server = serve(lambda n, body: [0.1, *answer(ABC)])
    target = locate(server.url, way=Way(warm_connections=3))
    outcome = run(make_plan([0.0] * 4), target, CONTEST, Timeouts(), tmp_path / "journal.jsonl")
    assert sorted(record.connection for record in outcome.records) == ["new", "reused", "reused", "reused"]


def test_long_prompts_and_large_pieces_are_not_throttled(serve: Serve) -> None:
    """A prompt of 50,000 tokens and pieces of as many: no text is lost, and nothing waits for a small buffer."""
    text = "word " * 50_000
    server = serve(lambda n, body: answer([text] * 16))

    async def work() -> Record:
        client = Client(locate(server.url), CONTEST, Timeouts(total_s=60))
        try:
            return await client.send(Request(prompt=text, max_new_tokens=16))
        finally:
            await client.close()

    record = asyncio.run(work())
    assert record.status == "answered", record.reason
    assert (len(record.text), record.num_tokens) == (16 * len(text), 16)
    assert json.loads(server.bodies[0])["inputs"] == text


# -- preflight


def openai_script(served: str) -> Script:
    """Completions by one model name; 404 for others."""

    def play(n: int, body: bytes) -> list[Step]:
        if json.loads(body).get("model") != served:
            said = json.dumps({"error": {"message": f"no such model; there is {served}"}}).encode()
            return [b"HTTP/1.1 404 Not Found\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said)]
        event = {"choices": [{"index": 0, "text": "yes", "finish_reason": "length"}]}
        return [STREAM_HEAD, chunk(b"data: " + json.dumps(event).encode() + b"\n\ndata: [DONE]\n\n"), LAST_CHUNK]

    return play


def test_the_preflight_asks_for_two_tokens_with_a_prompt_of_its_own(serve: Serve) -> None:
    server = serve(openai_script("m"))
    record = preflight.check(locate(server.url), protocols.get("openai_completions", model="m"), Timeouts())
    assert record.status == "answered"
    asked = json.loads(server.bodies[0])
    assert (asked["max_tokens"], asked["prompt"]) == (2, "Is anybody there? Say yes.")


def test_a_wrong_model_name_is_wrong_input_in_the_servers_own_words(serve: Serve) -> None:
    server = serve(openai_script("m"))
    with pytest.raises(InputError, match=r"HTTP 404:.*no such model; there is m.*--served-model"):
        preflight.check(locate(server.url), protocols.get("openai_completions", model="x"), Timeouts())


def test_a_server_that_fails_is_no_wrong_input(serve: Serve) -> None:
    server = serve(lambda n, body: [b"HTTP/1.1 503 No\r\nContent-Length: 7\r\n\r\nloading"])
    with pytest.raises(ServingError, match="HTTP 503: loading"):
        preflight.check(locate(server.url), CONTEST, Timeouts())


def test_an_answer_in_another_dialect_is_found_out(serve: Serve) -> None:
    with pytest.raises(ServingError, match="does not answer in dialect tgi"):
        preflight.check(locate(serve(abc).url), protocols.get("tgi"), Timeouts())


@pytest.mark.parametrize(
    ("status", "body", "names"),
    [
        (200, b'{"data": [{"id": "m"}, {"id": "other"}]}', ["m", "other"]),
        (200, b'{"data": []}', []),
        (200, b'{"models": []}', []),
        (200, b"<html>", []),
        (404, b"{}", []),
    ],
)
def test_the_names_of_models_are_asked_for(status: int, body: bytes, names: list[str]) -> None:
    heads = []

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d OK\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        await reader.read()

    with closing(Threaded(page)) as server:
        assert preflight.models(locate(f"http://127.0.0.1:{server.port}"), Timeouts()) == names
    assert heads[0].startswith(b"GET /v1/models HTTP/1.1")


# -- tokens


def streamed(serve: Serve, *events: dict[str, Any]) -> Record:
    """The record of a chat whose answer is these events, each in a chunk of its own."""
    data = [chunk(b"data: " + json.dumps(event).encode() + b"\n\n") for event in events]
    paused = [step for one in data for step in (one, 0.01)]
    server = serve(lambda n, body: [STREAM_HEAD, *paused, chunk(b"data: [DONE]\n\n"), LAST_CHUNK])

    async def work() -> Record:
        client = Client(locate(server.url), protocols.get("openai_chat"), Timeouts())
        try:
            return await client.send(Request(prompt="x"))
        finally:
            await client.close()

    return asyncio.run(work())


def said(**delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def usage(number: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": number}}


LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(("total", "exact"), [(2, True), (5, False), (None, False)])
def test_tokens_per_piece_are_exact_when_told_or_when_the_total_agrees(
    serve: Serve, total: int | None, exact: bool
) -> None:
    ending = [] if total is None else [usage(total)]
    record = streamed(serve, said(content="a"), said(content=" b"), LAST, *ending)
    assert record.status == "answered", record.reason
    assert (record.exact_tokens, record.num_tokens) == (exact, total or 2)


def test_the_first_token_of_the_answer_is_told_from_that_of_the_reasoning(serve: Serve) -> None:
    record = streamed(serve, said(reasoning="hm"), said(reasoning="so"), said(content="Yes"), said(content="."), LAST)
    assert record.text == "hmsoYes."
    assert record.first_answer_ns == record.stamps_ns[2] > record.stamps_ns[0]


def test_without_reasoning_there_is_no_first_token_of_the_answer_apart(serve: Serve) -> None:
    assert streamed(serve, said(content="Yes"), LAST).first_answer_ns is None
