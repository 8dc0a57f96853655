"""Random and mutated requests to every route of every dialect, and bytes that are no HTTP at all.

What is sent follows from a seed: a failure names the number of its request, and `LLMBENCH_FUZZ_SEED` changes the seed.
The slow variant sends 100,000 bodies; `LLMBENCH_FUZZ` changes how many.
"""

import asyncio
import json
import os
import random
import re
import string
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

import psutil
import pytest
import yaml

from llmbench import plugins, protocols
from llmbench.loadgen._http import HttpError, ResponseParser
from tests.conftest import Serving, poll

DIALECTS = [protocols.get(name) for name in plugins.names("protocols")]
POSTS = sorted({path for dialect in DIALECTS for path in dialect.posts})
OTHERS = sorted({route for dialect in DIALECTS for route in dialect.others})
SEED = int(os.environ.get("LLMBENCH_FUZZ_SEED", "20240601"))
CONNECTIONS = 16
HANGS_AFTER_S = 30.0
KNOWN = {"prompt": "The quick brown fox", "max_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": 2}

NUMBERS: tuple[Any, ...] = (
    *(0, 1, 2, 3, 7, 16, 127, 128, 129, -1, -2, 2047, 2048, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, -(2**63)),
    *(
        10**18,
        10**25,
        10**309,
        -(10**25),
        0.0,
        -0.0,
        0.5,
        1.0,
        1.5,
        0.999999,
        1e-5,
        1e-6,
        1e-45,
        1e-300,
        5e-324,
        2.0,
        3.4e38,
    ),
    *(1e39, 1e300, 1.7e308, -0.5, -1.0, -2.0, -1e300),
)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "Hello",
        "x" * 300,
        "word " * 400,
        "\x00",
        "\n",
        "\r\n",
        "\u2028",
        "\ud7ff",
        "\ufeff",
        "世界",
        "👩‍🚀",
        "é",
    ),
    *("<s>", "</s>", "<unk>", "</s>" * 5, "true", "false", "None", "null", "nan", "inf", "-1", "1e9", "0x10", "[DONE]"),
    *("data: {}\n\n", "Error202: prompt out of range", "\\", '"', "{", "../../x", "%s%n", "a" * 70_000),
)
RAW = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-0",
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b"9" * 5000,
    b"[" * 3000,
    b'"\xff"',
)
"""What Python's JSON writer does not write, and some of its readers read."""
FIELDS = (
    *(
        "prompt",
        "inputs",
        "input_id",
        "text_input",
        "messages",
        "parameters",
        "stream",
        "stream_options",
        "model",
        "id",
    ),
    *(
        "max_tokens",
        "max_new_tokens",
        "max_completion_tokens",
        "min_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "n",
    ),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "stop", "stop_token_ids", "ignore_eos", "echo"),
    *("logprobs", "top_logprobs", "include_stop_str_in_output", "details", "decoder_input_details", "return_full_text"),
    *(
        "do_sample",
        "typical_p",
        "watermark",
        "perf_stat",
        "return_protocol",
        "top_n_tokens",
        "best_of",
        "truncate",
        "suffix",
    ),
    *(
        "logit_bias",
        "min_p",
        "tokens",
        "add_special_tokens",
        "do_decode",
        "outputs",
        "use_beam_search",
        "response_format",
    ),
)
HEADERS = (
    *("", "", "", "X-Request-Id: r-1", "X-Request-Id: \xff\xfe", "X-Request-Id: " + "x" * 3000, "X-Request-Id:"),
    *(
        "Content-Type: text/plain",
        "Content-Type: application/json; charset=utf-16",
        "Content-Type: \xff",
        "Accept: */*",
    ),
    *(
        "Content-Type: multipart/form-data; boundary=x",
        "Authorization: Bearer \xff",
        "Expect: 100-continue",
        "Cookie: a=\xff",
    ),
    *(
        "Accept-Encoding: gzip",
        "Content-Encoding: identity",
        "X-Forwarded-For: 1.2.3.4",
        "Range: bytes=0-1",
        "TE: trailers",
    ),
)
GOOD: dict[str, Callable[[random.Random], Any]] = {
    "temperature": lambda rng: rng.choice((0, 0.7, 1, 5)),
    "top_p": lambda rng: rng.choice((0.1, 0.9, 1)),
    "top_k": lambda rng: rng.choice((0, 1, 5, 3000)),
    "seed": lambda rng: rng.choice((0, 7, 2**63)),
    "stop": lambda rng: rng.choice(("e", ["a", "the"], ["", "\n"], [])),
    "stop_token_ids": lambda rng: rng.choice(([2], [5, 5, 2047], [2**31 - 1], [])),
    "min_tokens": lambda rng: rng.randrange(5),
    "ignore_eos": lambda rng: rng.random() < 0.5,
    "repetition_penalty": lambda rng: rng.choice((0.5, 1.1, 1e-300, 1e300, 3)),
    "presence_penalty": lambda rng: rng.uniform(-2, 2),
    "frequency_penalty": lambda rng: rng.uniform(-2, 2),
    "logprobs": lambda rng: rng.choice((0, 1, 5, 20, True)),
    "top_logprobs": lambda rng: rng.choice((0, 3, 20)),
    "echo": lambda rng: rng.random() < 0.5,
    "details": lambda rng: rng.random() < 0.5,
    "decoder_input_details": lambda rng: rng.random() < 0.5,
    "stream": lambda rng: rng.random() < 0.5,
    "do_sample": lambda rng: rng.random() < 0.5,
    "return_full_text": lambda rng: rng.random() < 0.5,
    "perf_stat": lambda rng: rng.random() < 0.5,
    "include_stop_str_in_output": lambda rng: rng.random() < 0.5,
    "stream_options": lambda rng: {"include_usage": True, "continuous_usage_stats": rng.random() < 0.5},
    "max_tokens": lambda rng: rng.choice((0, 1, 4)),
}


class Sent(NamedTuple):
    """One request as bytes."""

    number: int
    path: str
    data: bytes

    def __str__(self) -> str:
        return f"request {self.number} of seed {SEED}, {self.path}: {self.data[-600:]!r}"


class Maker:
    """Makes requests, a different one for each number."""

    def __init__(self, model: str, seed: int = SEED) -> None:
        self._model = model
        self._seed = seed

    def make(self, number: int) -> Sent:
        """Request `number`."""
        rng = random.Random(f"{self._seed} {number}")
        method, route = ("POST", rng.choice(POSTS)) if rng.random() < 0.85 else rng.choice(OTHERS)
        path = re.sub(r"\{\w+\}", lambda _: self._segment(rng), route)
        body = self._body(rng, route) if method == "POST" or rng.random() < 0.1 else b""
        headers = [header for header in {rng.choice(HEADERS), rng.choice(HEADERS)} if header]
        names = [header.partition(":")[0] for header in headers]
        headers = headers[:1] if len(set(names)) < len(names) else headers
        if rng.random() < 0.05:
            coding, framed = "Transfer-Encoding: chunked", _chunked(rng, body)
        else:
            coding, framed = f"Content-Length: {len(body)}", body
        head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *sorted(headers), coding, "", ""])
        return Sent(number, path, head.encode("latin-1") + framed)

    def _segment(self, rng: random.Random) -> str:
        return rng.choice(
            (
                "_",
                "_",
                "_",
                self._model,
                "other",
                "%ff",
                "%00",
                "a%2Fb",
                "9" * 20,
                "9" * 5000,
                quote("世界"),
                "..",
                "x" * 4000,
                "1",
            )
        )

    def _body(self, rng: random.Random, route: str) -> bytes:
        kind = rng.random()
        if kind < 0.03:
            return rng.choice((b"", b" ", b"null", b"[]", b"{}", b'"a"', b"1", b"{", b"\xef\xbb\xbf{}", b"\x00", *RAW))
        if kind < 0.05:
            return rng.randbytes(rng.randrange(200))
        value = self._good(rng, route)
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 6))):
            _mutate(rng, value)
        data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            data = data.replace(b'"HOLE"', rng.choice(RAW))
        return _spoil(rng, data) if rng.random() < 0.1 else data

    def _good(self, rng: random.Random, route: str) -> dict[str, Any]:
        """A body that the route understands, with a few more of the fields that it may have."""
        value = _prompt(rng, route)
        inner: dict[str, Any] = {}
        for name in rng.sample(sorted(GOOD), rng.randrange(6)):
            inner[name] = GOOD[name](rng)
        if route.startswith("/v1/") or rng.random() < 0.2:
            return value | {"max_tokens": rng.randrange(1, 6)} | inner
        return value | {"parameters": {"max_new_tokens": rng.randrange(1, 6)} | inner, "stream": rng.random() < 0.5}


def _prompt(rng: random.Random, route: str) -> dict[str, Any]:
    text = rng.choice(TEXTS) if rng.random() < 0.3 else "".join(rng.choices(string.printable, k=rng.randrange(1, 40)))
    ids = [rng.randrange(1, 2048) for _ in range(rng.randrange(1, 20))]
    if "chat" in route:
        return {"messages": [{"role": "user", "content": text}]}
    if route == "/v1/completions":
        return {"prompt": rng.choice((text, ids, [text, "b"], [ids, [5]]))}
    if route == "/infer" and rng.random() < 0.5:
        return {"input_id": ids}
    if route.endswith("/infer"):
        return {"inputs": [{"name": "input0", "shape": [1, len(ids)], "datatype": "UINT32", "data": ids}]}
    if route.startswith("/v2"):
        return {"text_input": text}
    if route in ("/detokenize",):
        return {"tokens": ids}
    return (
        {"prompt": text} if route == "/tokenize" or (route == "/generate" and rng.random() < 0.5) else {"inputs": text}
    )


def _weird(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return rng.choice(TEXTS[:-1]) if rng.random() < 0.98 else TEXTS[-1]
    if kind == 4:
        return rng.choice((True, False, None, "HOLE"))
    if kind == 5:
        return [rng.randrange(-1, 2050) for _ in range(rng.randrange(4))]
    if kind == 6:
        return [_weird(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {rng.choice(FIELDS): _weird(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [{"role": rng.choice(("user", "system", "assistant", "x")), "content": _weird(rng, depth + 1)}]


def _mutate(rng: random.Random, value: Any) -> None:
    """Change something, somewhere inside, in place."""
    while True:
        inside = [
            each
            for each in (value.values() if isinstance(value, dict) else value)
            if isinstance(each, dict | list) and each
        ]
        if not inside or rng.random() < 0.5:
            break
        value = rng.choice(inside)
    if isinstance(value, list):
        if value and rng.random() < 0.7:
            value[rng.randrange(len(value))] = _weird(rng)
        else:
            value.insert(rng.randrange(len(value) + 1), _weird(rng))
        return
    kind = rng.random()
    if kind < 0.2 and value:
        del value[rng.choice(sorted(value))]
    elif kind < 0.6 and value:
        value[rng.choice(sorted(value))] = _weird(rng)
    else:
        value[rng.choice(FIELDS)] = _weird(rng)


def _spoil(rng: random.Random, data: bytes) -> bytes:
    """Bytes that are changed, lost or doubled."""
    spoilt = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(spoilt) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            spoilt[at : at + 1] = rng.randbytes(1)
        elif kind == 1:
            del spoilt[at : at + rng.randrange(1, 10)]
        elif kind == 2:
            spoilt[at:at] = rng.randbytes(rng.randrange(1, 4))
        else:
            spoilt[at:at] = spoilt[: rng.randrange(1, 20)]
    return bytes(spoilt)


def _chunked(rng: random.Random, body: bytes) -> bytes:
    """A body in chunks of any size."""
    parts, at = [], 0
    while at < len(body):
        piece = body[at : at + rng.randrange(1, len(body) + 1)]
        parts.append(b"%x\r\n%s\r\n" % (len(piece), piece))
        at += len(piece)
    return b"".join([*parts, b"0\r\n\r\n"])


class Sender:
    """One kept connection. What is wrong with an answer goes to `wrong`."""

    def __init__(self, port: int, wrong: list[str], statuses: dict[int, int]) -> None:
        self._port = port
        self._wrong = wrong
        self._statuses = statuses
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, sent: Sent) -> None:
        """Send, and look at what comes back."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        parser = ResponseParser()
        try:
            await asyncio.wait_for(self._exchange(sent.data, parser), HANGS_AFTER_S)
        except asyncio.TimeoutError:
            self._wrong.append(f"no answer within {HANGS_AFTER_S} s: {sent}")
        except (ConnectionError, HttpError) as error:
            self._wrong.append(f"{error!r} after status {parser.status}: {sent}")
        self._statuses[parser.status] = self._statuses.get(parser.status, 0) + 1
        busy = parser.status == 503 and "retry-after" in parser.headers
        not_ready = parser.status == 503 and "health" in sent.path
        if parser.status >= 500 and not busy and not not_ready:
            self._wrong.append(f"status {parser.status}: {sent}")
        if not (parser.complete and parser.keep_alive):
            self.close()

    async def _exchange(self, data: bytes, parser: ResponseParser) -> None:
        assert self._streams is not None
        reader, writer = self._streams
        writer.write(data)
        while not parser.complete:
            received = await reader.read(1 << 16)
            if received:
                parser.feed(received)
            else:
                parser.close()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None


async def bombard(port: int, maker: Maker, numbers: Iterator[int]) -> tuple[list[str], dict[int, int]]:
    """Send the requests of these numbers over a few connections; what went wrong, and how often which status came."""
    wrong: list[str] = []
    statuses: dict[int, int] = {}

    async def one() -> None:
        sender = Sender(port, wrong, statuses)
        for number in numbers:  # each takes the next one
            await sender.send(maker.make(number))
            if len(wrong) > 20:
                break
        sender.close()

    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return wrong, statuses


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Short answers from a real engine."""
    folder = tmp_path_factory.mktemp("fuzz")
    config = folder / "serve.yaml"
    limits = {
        "max_model_len": 128,
        "max_new_tokens": 4,
        "max_batch": 16,
        "max_tokens_per_step": 256,
        "prefix_cache": True,
    }
    config.write_text(yaml.safe_dump({"limits": limits, "http": {"body_timeout_s": 5.0}}))
    with Serving(str(config), "--model", "random:tiny", "--threads", "1", log=folder / "log") as serving:
        yield serving.wait_until_ready()


def posted(server: Serving, path: str, body: Any) -> tuple[int, bytes]:
    data = json.dumps(body).encode()

    async def exchange() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        )
        writer.write(data)
        answer = await asyncio.wait_for(reader.read(), HANGS_AFTER_S)
        writer.transport.abort()
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]), rest

    return asyncio.run(exchange())


def known(server: Serving) -> Any:
    """The answer that is always the same: its text and its log-probabilities."""
    status, data = posted(server, "/v1/completions", KNOWN)
    assert status == 200, data
    return json.loads(data)["choices"]


def metrics(server: Serving) -> dict[str, float]:
    async def read() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        text = await asyncio.wait_for(reader.read(), HANGS_AFTER_S)
        writer.transport.abort()
        return text

    found = re.findall(r'^([\w:]+)\{model_name="[^"]*"\} (\S+)$', asyncio.run(read()).decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


def fuzz(server: Serving, count: int) -> None:
    before = known(server)
    start = time.monotonic()
    wrong, statuses = asyncio.run(bombard(server.port, Maker("random:tiny"), iter(range(count))))
    print(f"{count} requests in {time.monotonic() - start:.1f} s: {dict(sorted(statuses.items()))}")
    assert not wrong, "\n".join(wrong)
    assert sum(statuses.values()) == count
    assert statuses[200] > count / 10, "most were refused before they came anywhere"
    assert set(statuses) <= {200, 400, 404, 405, 413, 415, 417, 422, 503}
    assert known(server) == before
    assert poll(lambda: metrics(server)["vllm:num_requests_running"] == 0, 10)
    after = metrics(server)
    assert after["vllm:kv_cache_usage_perc"] == 0
    assert after["request_failed_total"] == 0, "a step failed"
    assert "Traceback" not in server.log
    assert "are lost" not in server.log


def test_random_bodies_to_every_route_are_answered_and_never_with_an_error_of_ours(served: Serving) -> None:
    fuzz(served, 5_000)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_100000_random_bodies_are_answered_and_never_with_an_error_of_ours(served: Serving) -> None:
    fuzz(served, int(os.environ.get("LLMBENCH_FUZZ", "100000")))


# -- what is no HTTP --------------------------------------------------------------------------------------------------

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
BROKEN = (
    b"",
    b"\r\n\r\n\r\n",
    b"\x00" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / SMTP/1.1\r\n\r\n",
    b"get / http/1.1\r\n\r\n",
    b"GET  /  HTTP/1.1\r\n\r\n",
    b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET " + b"/a" * 20_000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
    b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n: nothing\r\n\r\n",
    b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET / HTTP/1.1\r\nX\x00Y: z\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET //// HTTP/1.1\r\nHost: \xff\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: abc\r\n\r\n{}",
    HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n{}",
    HEAD + b"Content-Length: 100\r\n\r\n{}",
    HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nab\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nab\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n",
    HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
    HEAD + b"Content-Encoding: deflate\r\nContent-Length: 9\r\n\r\n\x78\x9c\xff\xff\xff\xff\xff\xff\xff",
    HEAD + b"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
    HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n",
    HEAD + b"Expect: tea\r\nContent-Length: 2\r\n\r\n{}",
    HEAD + b"Content-Length: 2\r\n\r\n{}" + b"garbage" * 20,
)


def alive(server: Serving, before: Any) -> None:
    """It answers as before, and holds nothing for those who have gone."""
    assert known(server) == before
    process = psutil.Process(server.process.pid)
    kinds = (psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT)

    def held() -> int:
        return sum(each.status not in kinds for each in process.net_connections("tcp"))

    assert poll(lambda: held() <= 3, 30), "connections of clients that have gone"  # one is the agent's
    assert "this is a bug" not in server.log
    assert "are lost" not in server.log


async def shout(port: int, data: bytes, rng: random.Random, patience_s: float) -> bytes:
    """Send bytes in a few pieces; what comes back until the server closes or patience ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        at = rng.randrange(len(data) + 1)
        writer.write(data[:at])
        await asyncio.sleep(0)
        writer.write(data[at:])
        return await asyncio.wait_for(reader.read(), patience_s)
    except (asyncio.TimeoutError, ConnectionError):
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("data", BROKEN, ids=lambda data: repr(data[:40]))
def test_bytes_that_are_no_request_are_refused_or_waited_for_and_the_server_lives(served: Serving, data: bytes) -> None:
    answer = asyncio.run(shout(served.port, data, random.Random(0), patience_s=0.3))
    assert re.match(rb"HTTP/1\.[01] (4\d\d|505|100)|$", answer), answer[:80]
    assert served.process.poll() is None


def test_spoilt_http_leaves_the_server_as_it_was(served: Serving) -> None:
    before = known(served)
    maker = Maker("random:tiny", SEED + 1)

    async def shouts() -> set[bytes]:
        found = set()
        for start in range(0, 400, 40):
            rngs = [random.Random(f"{SEED} {number}") for number in range(start, start + 40)]
            spoilt = [
                _spoil(rng, maker.make(start + i).data[: rng.choice((40, 400, 100_000))]) for i, rng in enumerate(rngs)
            ]
            answers = await asyncio.gather(
                *(shout(served.port, data, rng, 0.2) for data, rng in zip(spoilt, rngs, strict=True))
            )
            found |= {answer[9:12] for answer in answers}
        return found

    statuses = asyncio.run(shouts())
    assert b"400" in statuses
    assert not {status for status in statuses if status.startswith(b"5")} - {b"505"}
    alive(served, before)
