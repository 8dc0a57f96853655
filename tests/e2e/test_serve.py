"""`llmbench serve` as a user runs it: a process, sockets, signals. Numbers such as "server 4" are those of
contest-stack.md, section 11."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmbench.tokenizer import Tokenizer, embedded_path
from tests.conftest import ROOT, Launch, Serving, ended, poll

pytestmark = pytest.mark.alone

TINY = ("--model", "random:tiny", "--threads", "1")
STREAM, WHOLE = "/models/llama2/generate_stream", "/models/llama2/generate"
LONG = 1900  # tokens: seconds of work, so that something can happen meanwhile
ERROR304 = "error304: generation task stop abnormally!, please retry!"


def shared_memory() -> set[Path]:
    """What lies in shared memory of processes that have ended."""
    paths = Path("/dev/shm").glob("llmbench-*-*")
    return {path for path in paths if ended(int(path.name.split("-")[1]))}


def body(prompt: str = "Hello", number: int = 8, **parameters: Any) -> bytes:
    return json.dumps(
        {"inputs": prompt, "parameters": {"max_new_tokens": number, "do_sample": False, **parameters}}
    ).encode()


class Asking:
    """One request on a connection of its own."""

    def __init__(self, server: Serving, path: str, posted: bytes | None, host: str = "127.0.0.1") -> None:
        self.connection = http.client.HTTPConnection(host, server.port, timeout=60)
        self.connection.request("GET" if posted is None else "POST", path, posted)
        self.response = self.connection.getresponse()

    def lines(self) -> Iterator[dict[str, Any]]:
        """The events of a stream as they come."""
        while line := self.response.readline():
            yield json.loads(line)["data"][0]

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self.connection.close()


def asked(server: Serving, path: str, posted: bytes | None = None, host: str = "127.0.0.1") -> tuple[int, bytes]:
    with Asking(server, path, posted, host) as asking:
        return asking.response.status, asking.response.read()


def answer(server: Serving, posted: bytes) -> dict[str, Any]:
    status, data = asked(server, WHOLE, posted)
    assert status == 200, data
    whole: dict[str, Any] = json.loads(data)
    return whole


def token_ids(whole: dict[str, Any]) -> list[int]:
    return [token["id"] for token in whole["tokens"]]


def metric(server: Serving, name: str) -> float:
    text = asked(server, "/metrics")[1].decode()
    found = re.search(rf"^{re.escape(name)}[{{,].*?}} (\S+)$", text, re.MULTILINE)
    assert found, f"no {name} in the metrics"
    return float(found[1])


def num_running(server: Serving) -> int:
    return int(metric(server, "vllm:num_requests_running"))


@pytest.fixture(scope="module", params=["random:tiny", "embedded"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server for each model that needs nothing but the package."""
    if request.param == "random:tiny":
        yield request.getfixturevalue("server")
        return
    log = tmp_path_factory.mktemp("embedded") / "serve.log"
    with Serving("--model", request.param, "--threads", "1", log=log) as serving:
        yield serving.wait_until_ready()


# -- answers --------------------------------------------------------------------------------------------------------


def test_the_ready_line_says_where_and_what(server: Serving) -> None:
    assert re.fullmatch(
        r"llmbench serve: ready on http://127\.0\.0\.1:\d+ \(model random:tiny, engine numpy_llama float32, "
        r"batch 32, up to 2048 tokens, \d+ blocks of 16, agent \d+\)\n",
        server.ready_line,
    )
    assert asked(server, "/health") == (200, b"ready\n")


def test_a_stream_and_a_whole_answer_have_the_same_tokens_and_text(model: Serving) -> None:
    whole = answer(model, body(number=24))
    with Asking(model, STREAM, body(number=24)) as asking:
        *events, last = asking.lines()
    assert last == {"details": None} | {key: value for key, value in whole.items() if key != "details"}
    assert [event["tokens"] for event in events] == whole["tokens"]
    assert "".join(event["generated_text"] for event in events) == whole["generated_text"]
    assert whole["generated_tokens"] == len(events) <= 24
    assert whole["finish_reason"] in ("length", "eos")


def test_the_plain_path_picks_by_the_stream_flag(server: Serving) -> None:
    """Server 1."""
    for stream, lines in ((True, 6), (False, 1)):
        posted = json.dumps({**json.loads(body(number=5)), "stream": stream}).encode()
        assert len(asked(server, "/models/llama2", posted)[1].splitlines()) == lines


def test_each_chunk_of_a_stream_is_one_line(server: Serving) -> None:
    """Server 4, 5 and 7, on the wire."""
    posted = body(number=6)
    head = f"POST {STREAM} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(posted)}\r\nConnection: close\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(head + posted)
        received = b"".join(iter(lambda: raw.recv(65536), b""))
    got_head, _, rest = received.partition(b"\r\n\r\n")
    headers = {line.split(b":")[0].lower(): line.split(b": ")[1] for line in got_head.split(b"\r\n")[1:]}
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"transfer-encoding"] == b"chunked"
    assert headers[b"cache-control"] == b"no-cache"
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        chunks.append(chunk)
    assert chunks.pop() == b""
    assert len(chunks) == 7
    for chunk in chunks:
        assert chunk.endswith(b"\n")
        assert len(chunk.decode().splitlines()) == 1
        json.loads(chunk)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_the_server_listens_on_both_loopbacks(server: Serving, host: str) -> None:
    """Server 14: the contest's client says `localhost`, which may be ::1 first."""
    if host == "::1":
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 loopback on this machine")
    assert asked(server, "/health", host=host) == (200, b"ready\n")


def test_the_errors_of_the_contest_come_over_the_wire(server: Serving) -> None:
    """Server 11."""
    assert answer(server, body(number=2048))["generated_text"] == "Error202: prompt out of range"
    assert answer(server, body("an <unk> inside"))["generated_text"] == "Error203: prompt token empty"
    with Asking(server, STREAM, body(number=2048)) as asking:
        assert [event["generated_text"] for event in asking.lines()] == ["Error202: prompt out of range"] * 2
    for posted in (b"", b"{", b"[]", b"{}", b'{"inputs": 5, "parameters": {"max_new_tokens": "x"}}', b"\xff"):
        status, data = asked(server, WHOLE, posted)
        assert status == 422
        assert json.loads(data)["detail"]


def test_an_empty_prompt_is_answered(server: Serving) -> None:
    assert answer(server, body(""))["generated_tokens"] > 0


def test_other_paths_and_methods_are_not_found(server: Serving) -> None:
    assert asked(server, "/models/llama3/generate", body())[0] == 404
    assert asked(server, WHOLE)[0] == 405


def test_the_management_routes_tell_the_numbers_of_this_server(server: Serving) -> None:
    """Server 12."""
    told = {}
    for name in ("get_bs", "get_request_numbers", "get_serverd_model_info"):
        status, data = asked(server, f"/serving/{name}")
        assert status == 200
        told[name] = json.loads(data.removeprefix(b"data: "))
    assert told["get_bs"]["data"] == 32
    assert told["get_request_numbers"]["data"] == 0
    assert told["get_serverd_model_info"]["model_id"] == "random:tiny"
    assert told["get_serverd_model_info"]["max_input_length"] == 2048


def test_16_at_once_get_the_tokens_that_each_gets_alone(model: Serving) -> None:
    prompts = [f"Request number {i}: {'and on ' * (5 * i)}" for i in range(20)]
    bodies = [body(prompt, 8 + 3 * (i % 5)) for i, prompt in enumerate(prompts)]
    alone = [token_ids(answer(model, posted)) for posted in bodies]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda posted: token_ids(answer(model, posted)), bodies))
    assert together == alone
    assert len({tuple(ids) for ids in alone}) > 1


def test_pieces_of_text_joined_are_the_text_of_the_tokens(launch: Launch) -> None:
    with launch(*TINY, "--no-drop-last-token") as server:
        whole = answer(server, body("Héllo 世界", number=40))
        tokenizer = Tokenizer.from_file(embedded_path())
        assert whole["generated_text"] == tokenizer.decode(token_ids(whole))
        first = answer(server, body(number=1))
        assert first["generated_text"] == tokenizer.decode(token_ids(first))


def test_the_last_token_is_dropped_by_default_and_the_shape_of_data_can_be_chosen(
    server: Serving, launch: Launch
) -> None:
    """Server 3 and 13."""
    assert answer(server, body(number=1))["generated_text"] == ""
    with launch(*TINY, "--data-shape", "object") as other:
        lines = [json.loads(line) for line in asked(other, STREAM, body(number=3))[1].splitlines()]
    assert all(isinstance(line["data"]["generated_text"], str) for line in lines)


# -- clients and agents that go ---------------------------------------------------------------------------------------


def test_a_client_that_vanishes_frees_its_blocks(server: Serving) -> None:
    aborted = 'vllm:request_success_total{finished_reason="abort"'
    before = metric(server, aborted)
    with Asking(server, STREAM, body(number=LONG)) as asking:
        next(asking.lines())
        assert num_running(server) == 1
    assert poll(lambda: metric(server, aborted) == before + 1), "it was computed to its end"
    assert num_running(server) == 0
    assert metric(server, "vllm:kv_cache_usage_perc") == 0


def test_a_client_that_vanishes_while_it_waits_for_a_whole_answer_frees_its_blocks(server: Serving) -> None:
    aborted = 'vllm:request_success_total{finished_reason="abort"'
    before = metric(server, aborted)
    posted = body(number=LONG)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as raw:
        raw.sendall(f"POST {WHOLE} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(posted)}\r\n\r\n".encode() + posted)
        assert poll(lambda: num_running(server) == 1)
    assert poll(lambda: metric(server, aborted) == before + 1), "it was computed to its end"
    assert metric(server, "vllm:kv_cache_usage_perc") == 0


def test_when_the_agent_is_killed_those_in_flight_hear_it_at_once_and_the_next_is_answered(launch: Launch) -> None:
    with launch(*TINY) as server:
        expected = answer(server, body())
        streams = [Asking(server, STREAM, body(f"Prompt {i}", LONG)) for i in range(3)]
        for asking in streams:
            assert next(asking.lines())["tokens"]["id"] > 0
        killed_at = time.monotonic()
        os.kill(server.agent_pid, signal.SIGKILL)
        for asking in streams:
            *_, error, last = asking.lines()
            assert error["generated_text"] == ERROR304
            assert error["tokens"] == {"id": -1, "logprob": 0.0, "special": False, "text": ERROR304}
            assert last["finish_reason"] == "predict_failed"
            asking.__exit__()
        assert time.monotonic() - killed_at < 2
        assert answer(server, body()) == expected
        assert "3 requests in flight are lost, starting another agent" in server.log
        assert "Traceback" not in server.log
        assert poll(lambda: asked(server, "/health")[0] == 200)
        assert ended(server.agent_pid)


def test_requests_that_wait_when_the_agent_dies_are_answered_by_the_next_one(launch: Launch) -> None:
    with launch(*TINY, "--max-batch", "1") as server, ThreadPoolExecutor(4) as pool:
        expected = answer(server, body())
        with Asking(server, STREAM, body("First", LONG)) as first:
            next(first.lines())
            waiting = [pool.submit(answer, server, body()) for _ in range(3)]
            assert poll(lambda: metric(server, "vllm:num_requests_waiting") == 3)
            os.kill(server.agent_pid, signal.SIGKILL)
            *_, last = first.lines()
            assert last["finish_reason"] == "predict_failed"
        assert [each.result(60) for each in waiting] == [expected] * 3


def test_a_whole_answer_that_is_lost_is_the_contests_error_too(launch: Launch) -> None:
    with launch(*TINY) as server, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(answer, server, body(number=LONG))
        assert poll(lambda: num_running(server) == 1)
        os.kill(server.agent_pid, signal.SIGKILL)
        whole = lost.result(30)
        assert whole["finish_reason"] == "predict_failed"
        assert whole["generated_text"].endswith(ERROR304)
        assert whole["tokens"][-1]["id"] == -1
        assert whole["generated_tokens"] == len(whole["tokens"]) - 1 < LONG


# -- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_leaves_no_process_and_no_shared_memory(launch: Launch, number: signal.Signals) -> None:
    with launch(*TINY) as server:
        answer(server, body())
        assert server.stop(number) == 0
        assert ended(server.agent_pid)
        assert not shared_memory()
        assert "Traceback" not in server.log


def test_an_answer_under_way_is_finished_before_the_server_ends(launch: Launch) -> None:
    with launch(*TINY) as server, Asking(server, STREAM, body(number=120)) as asking:
        lines = asking.lines()
        next(lines)
        server.process.terminate()
        *_, last = lines
        assert last["generated_tokens"] == 120
        assert server.process.wait(30) == 0
        assert ended(server.agent_pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_agent_starts_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    with Serving(*TINY, log=tmp_path / "log") as serving:
        server = psutil.Process(serving.process.pid)
        assert poll(lambda: bool(server.children()))
        agents = server.children()
        assert serving.stop(number) == 0
        assert all(ended(agent.pid) for agent in agents)
        assert "Traceback" not in serving.log
    assert not shared_memory()


def test_a_killed_server_takes_its_agent_with_it_and_the_next_start_sweeps_up(launch: Launch) -> None:
    with launch(*TINY) as server:
        server.process.kill()
        server.process.wait(30)
        assert poll(lambda: ended(server.agent_pid)), "the agent lives on"
        left = Path("/dev/shm") / f"llmbench-{server.process.pid}-00ff00ff"
        left.write_bytes(b"as one that was killed before its agent had attached")
        with launch(*TINY) as after:
            assert not shared_memory()
            assert f"removed {left}" in after.log


def test_a_launched_server_ends_with_the_process_that_launched_it() -> None:
    script = (
        "import sys, time\n"
        "from llmbench.serving.launch import launched\n"
        "with launched(['--model', 'random:tiny', '--threads', '1']) as server:\n"
        "    print(server.pid, server.url, flush=True)\n"
        "    time.sleep(3600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[0])
        assert not ended(pid)
        parent.kill()
    assert poll(lambda: ended(pid)), "the server lives on"
    assert not shared_memory()


# -- wrong usage ----------------------------------------------------------------------------------------------------


def said(launched: Serving) -> tuple[int, str]:
    """The exit status and what is on stderr of one that did not start."""
    assert launched.url == ""
    return launched.process.wait(60), launched.log


def test_a_port_that_is_taken_is_one_clear_line(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, errors = said(launch(*TINY, port=port))
    assert status == 2
    assert errors == (
        f"llmbench: cannot listen on 127.0.0.1:{port} (Address already in use); choose another port with --port\n"
    )


def test_of_two_that_start_on_one_port_one_serves_and_the_other_says_why_not(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pair = [Serving(*TINY, log=tmp_path / f"{i}.log", port=port) for i in range(2)]
    with pair[0], pair[1]:
        threads = [threading.Thread(target=serving.wait_until_ready) for serving in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        serving, other = sorted(pair, key=lambda each: each.url == "")
        assert answer(serving, body())["generated_tokens"] > 0
        status, errors = said(other)
        assert status == 2
        assert errors.startswith(f"llmbench: cannot listen on 127.0.0.1:{port} (")
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--modle", "x"), "No such option: --modle"),
        (("--max-batch", "many"), "Invalid value for '--max-batch'"),
        (("--model", "random:tinny"), "llmbench: unknown random model 'tinny'. Did you mean 'tiny'?"),
        (("--model", "/no/such/folder"), "llmbench: model '/no/such/folder': no such folder"),
        (("--model", "random:tiny", "--engine", "nmpy_llama"), "llmbench: unknown engine 'nmpy_llama'. Did you mean"),
        (
            ("--model", "random:tiny", "--max-batch", "0"),
            "llmbench: flags: limits.max_batch: must be at least 1, got 0",
        ),
        (
            ("--model", "random:tiny", "--data-shape", "tuple"),
            "llmbench: data_shape: must be list or object, got 'tuple'",
        ),
        (("--model", "random:110m,layers=1"), "llmbench: tokenizer: random:110m,layers=1 brings none"),
        (("--model", "random:110m,layers=1", "--tokenizer", "/no/t.model"), "llmbench: /no/t.model: cannot read the"),
        (("/no/such.yaml",), "llmbench: /no/such.yaml: cannot read the settings (No such file or directory)"),
        (("--model", "random:tiny", "--capture-every", "5"), "llmbench: flags: capture: "),
    ],
)
def test_wrong_usage_ends_with_status_2_and_says_what_is_wrong(
    launch: Launch, flags: tuple[str, ...], message: str
) -> None:
    status, errors = said(launch(*flags))
    assert status == 2, errors
    plain = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", errors).split())
    assert message in plain
    assert "Traceback" not in errors
    if message.startswith("llmbench: "):
        assert errors.count("\n") == 1


def test_a_port_that_is_none_ends_with_status_2(launch: Launch) -> None:
    assert said(launch(*TINY, port=70_000)) == (
        2,
        "llmbench: flags: port: must be between 0 and 65535, got 70000\n",
    )
