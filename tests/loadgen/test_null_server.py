"""The oracle itself, a real process on real sockets: its instants are true, and each fault is on the wire."""

import asyncio
import contextlib
import http.client
import json
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest

from llmbench import plugins, protocols
from llmbench.errors import ConfigError, InvalidMeasurement
from llmbench.loadgen.client import Client, Timeouts, locate
from llmbench.loadgen.null_server import READY, Faults, Settings, Share, Truth, flags, launched, truth
from llmbench.loadgen.null_server.__main__ import parser, settings
from llmbench.loadgen.null_server._fate import Fate, fate
from llmbench.loadgen.record import Record
from llmbench.types import Request
from tests.conftest import poll

QUICK = Settings(ttft_s=0.002, gap_s=0.001)
WORDS = "one two three"


def faulty(**faults: Any) -> Settings:
    return Settings(ttft_s=0.002, gap_s=0.001, faults=Faults(**faults))


def ask(
    url: str,
    prompts: Sequence[str] = (WORDS,),
    num_tokens: int = 5,
    dialect: str = "openai_completions",
    total_s: float = 20.0,
    together: bool = False,
) -> list[Record]:
    """The records of requests sent one after the other, or all at once."""

    async def work() -> list[Record]:
        client = Client(locate(url), protocols.get(dialect), Timeouts(head_s=20, total_s=total_s))
        requests = [Request(prompt=prompt, max_new_tokens=num_tokens) for prompt in prompts]
        if together:
            records = list(await asyncio.gather(*map(client.send, requests)))
        else:
            records = [await client.send(request, index) for index, request in enumerate(requests)]
        await client.close()
        return records

    return asyncio.run(work())


class Answer(NamedTuple):
    """A whole HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = self.body.decode().split("\n\n")
        return [json.loads(line.removeprefix("data: ")) for line in lines if line and "[DONE]" not in line]


def post(url: str, **body: Any) -> Answer:
    """What a body for the completions gets."""
    return post_bytes(url, "/v1/completions", json.dumps({"prompt": WORDS, "max_tokens": 3} | body).encode())


def post_bytes(url: str, path: str, body: bytes) -> Answer:
    with contextlib.closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)) as connection:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return Answer(response.status, dict(response.headers), response.read())


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=20)


def scrape(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics") as response:
        text = response.read().decode()
    return {name: float(value) for name, value in re.findall(r"^(vllm:\S+) (\S+)$", text, re.MULTILINE)}


@pytest.fixture(scope="module")
def quick() -> Iterator[str]:
    with launched(QUICK) as server:
        yield server.url


# -- the truth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", plugins.names("protocols"))
def test_an_answer_in_any_dialect_says_when_each_of_its_tokens_was_sent(quick: str, dialect: str) -> None:
    for record in ask(quick, ["a b", "c d e"], 7, dialect):
        assert record.status == "answered", record.reason
        assert record.num_tokens == 7
        assert record.finish_reason == "length"
        found = truth(record.text)
        assert len(found.emitted_ns) == 7
        assert found.emitted_ns == sorted(set(found.emitted_ns))
        assert record.sent_ns is not None
        assert record.sent_ns <= found.received_ns < found.emitted_ns[0]
        stamps = [at for at, tokens in zip(record.stamps_ns, record.tokens, strict=True) for _ in range(tokens)]
        assert all(stamp >= emitted for stamp, emitted in zip(stamps, found.emitted_ns, strict=True))


def test_no_token_is_sent_before_its_instant(quick: str) -> None:
    (record,) = ask(quick, num_tokens=50)
    found = truth(record.text)
    for number, emitted_ns in enumerate(found.emitted_ns):
        assert emitted_ns >= found.received_ns + 2_000_000 + number * 1_000_000


def test_every_token_is_a_write_of_its_own_when_the_client_keeps_up(quick: str) -> None:
    (record,) = ask(quick, num_tokens=6)
    assert sum(record.tokens) == 6
    assert len(record.stamps_ns) <= 6


def test_an_answer_that_is_not_streamed_has_the_same_text(quick: str) -> None:
    whole = post(quick).json
    found = truth(whole["choices"][0]["text"])
    assert len(found.emitted_ns) == 3 == whole["usage"]["completion_tokens"]
    assert whole["usage"]["prompt_tokens"] == 3


def test_several_prompts_in_one_body_are_answered_at_the_same_instants(quick: str) -> None:
    whole = post(quick, prompt=["a", "b c"]).json
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert len({choice["text"] for choice in whole["choices"]}) == 1
    assert whole["usage"]["completion_tokens"] == 6


def test_an_answer_that_repeats_its_prompt_repeats_its_own(quick: str) -> None:
    texts = [post(quick, prompt=prompt, echo=True).json["choices"][0]["text"] for prompt in ("x", "y")]
    assert [text[:3] for text in texts] == ["x R", "y R"]


def test_usage_in_every_chunk_counts_up(quick: str) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = post(quick, stream=True, stream_options=options).events
    assert [event["usage"]["completion_tokens"] for event in found] == [1, 2, 3, 3]


def test_log_probabilities_are_there_when_they_are_asked_for(quick: str) -> None:
    whole = post(quick, logprobs=1).json
    assert whole["choices"][0]["logprobs"]["token_logprobs"] == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize("text", ["", " R1 2", " R0000000000000000001", "hello", " 0000000000000000001"])
def test_a_text_that_is_no_answer_of_a_null_server_is_refused(text: str) -> None:
    with pytest.raises(InvalidMeasurement, match="null server"):
        truth(text)


def test_the_truth_of_a_text_is_its_numbers() -> None:
    assert truth(" R0000000000000000007 0000000000000000008 0000000000000000011") == Truth(7, [8, 11])


# -- what a server must do -------------------------------------------------------------------------------------------


def test_it_answers_for_any_model_and_lists_one(quick: str) -> None:
    assert post(quick, model="whatever").status == 200
    with urllib.request.urlopen(f"{quick}/v1/models") as response:
        assert json.load(response)["data"][0]["object"] == "model"
    with urllib.request.urlopen(f"{quick}/health") as response:
        assert response.status == 200


def test_a_wrong_body_is_refused_in_the_dialects_own_words(quick: str) -> None:
    response = post(quick, max_tokens=-1)
    assert response.status == 400
    assert "max_tokens" in response.json["error"]["message"]
    assert post_bytes(quick, "/v1/completions", b"{").status == 400
    assert post_bytes(quick, "/nowhere", b"{}").status == 404


def test_a_request_may_come_in_pieces_and_ask_to_close(quick: str) -> None:
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(quick) as connection:
        for byte in head + body:
            connection.sendall(bytes([byte]))
        found = b"".join(iter(lambda: connection.recv(65536), b""))
    assert found.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b'"finish_reason":"length"' in found


def test_it_counts_what_it_did_as_vllm_does() -> None:
    with launched(QUICK) as server:
        records = ask(server.url, ["a b", "c d e", "f"], 4)
        found = scrape(server.url)
    truths = [truth(record.text) for record in records]
    assert found['vllm:request_success_total{finished_reason="length",model_name="null"}'] == 3
    assert found['vllm:prompt_tokens_total{model_name="null"}'] == 6
    assert found['vllm:generation_tokens_total{model_name="null"}'] == 12
    assert found['vllm:num_requests_running{model_name="null"}'] == 0
    for name, last in (("time_to_first_token", 0), ("e2e_request_latency", -1)):
        total = sum(one.emitted_ns[last] - one.received_ns for one in truths) / 1e9
        assert found[f'vllm:{name}_seconds_sum{{model_name="null"}}'] == pytest.approx(total, abs=1e-9)
        assert found[f'vllm:{name}_seconds_count{{model_name="null"}}'] == 3
        assert found[f'vllm:{name}_seconds_bucket{{model_name="null",le="+Inf"}}'] == 3


def test_a_client_that_leaves_is_counted_and_gives_its_slot_to_the_next() -> None:
    with launched(Settings(ttft_s=0.002, gap_s=60.0, slots=1)) as server:
        leaving, waiting = connect(server.url), connect(server.url)
        body = json.dumps({"prompt": "a", "max_tokens": 2, "stream": True}).encode()
        request = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        leaving.sendall(request)
        assert leaving.recv(65536)
        waiting.sendall(request)
        assert poll(lambda: scrape(server.url)['vllm:num_requests_waiting{model_name="null"}'] == 1)
        leaving.close()
        assert waiting.recv(65536).startswith(b"HTTP/1.1 200")
        waiting.close()
        aborted = 'vllm:request_success_total{finished_reason="abort",model_name="null"}'
        assert poll(lambda: scrape(server.url)[aborted] == 2)


def test_with_slots_answers_wait_for_each_other_in_the_order_they_came() -> None:
    with launched(msgspec.structs.replace(QUICK, slots=1)) as server:
        found = sorted(
            (truth(record.text) for record in ask(server.url, [WORDS] * 4, together=True)),
            key=lambda one: one.received_ns,
        )
    for before, after in pairwise(found):
        assert after.emitted_ns[0] >= before.emitted_ns[-1] + 2_000_000


def test_a_longer_prompt_and_a_fuller_server_take_longer() -> None:
    with launched(Settings(ttft_s=0.0, gap_s=0.002, prompt_token_s=0.01, crowding=1.0)) as server:
        found = [truth(record.text) for record in ask(server.url, ["a b c"] * 2, 5, together=True)]
    assert all(one.emitted_ns[0] >= one.received_ns + 30_000_000 for one in found)


def test_prompts_are_counted_with_a_tokenizer_where_one_is_given() -> None:
    from llmbench.tokenizer import Tokenizer, embedded_path

    with launched(msgspec.structs.replace(QUICK, tokenizer=str(embedded_path()))) as server:
        usage = post(server.url, prompt="Name three colors").json["usage"]
    assert usage["prompt_tokens"] == len(Tokenizer.from_file(embedded_path()).encode("Name three colors"))


def test_it_ends_when_its_stdin_closes() -> None:
    command = [sys.executable, "-m", "llmbench.loadgen.null_server", "--until-stdin-closes"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().startswith(READY)
        process.stdin.close()
        assert process.wait(20) == 0


# -- settings --------------------------------------------------------------------------------------------------------


def test_every_setting_and_every_fault_can_be_said_on_the_command_line() -> None:
    def other(value: Any) -> Any:
        return (not value) if isinstance(value, bool) else f"{value}x" if isinstance(value, str) else value + 1

    def changed(part: Any) -> dict[str, Any]:
        return {
            field.name: other(getattr(part, field.name))
            for field in msgspec.structs.fields(part)
            if field.name != "faults" and Share != field.type
        }

    whole = Settings(
        **changed(Settings()), faults=Faults(**{**changed(Faults()), "error_share": 0.5, "error_status": 500})
    )
    assert settings(parser().parse_args(flags(whole))) == whole
    assert flags(Settings()) == []


@pytest.mark.parametrize("wrong", [faulty(error_share=1.5), faulty(tokens_per_event=0), Settings(ttft_s=-1.0)])
def test_a_setting_out_of_its_range_is_refused(wrong: Settings) -> None:
    with pytest.raises(ConfigError), launched(wrong):
        pass


def test_what_becomes_of_a_request_depends_on_the_seed_and_its_number_alone() -> None:
    some = Settings(seed=3, spread=0.2, faults=Faults(error_share=0.3, abort_share=0.3, tenant_slow_down=0.5))
    fates = [fate(some, number, False) for number in range(200)]
    assert fates == [fate(some, number, False) for number in range(200)]
    assert fates != [fate(msgspec.structs.replace(some, seed=4), number, False) for number in range(200)]
    assert 30 <= sum(one.error_status is not None for one in fates) <= 90
    assert any((one.error_status is None) != (one.abort_after is None) for one in fates)
    assert len({one.slowness for one in fates}) == 200


def test_without_faults_nothing_happens_to_anybody() -> None:
    assert {fate(Settings(), number, seen) for number in range(100) for seen in (False, True)} == {Fate()}


# -- each fault on the wire ------------------------------------------------------------------------------------------


def test_merged_tokens_share_one_event_and_one_instant() -> None:
    with launched(faulty(tokens_per_event=3)) as server:
        (record,) = ask(server.url, num_tokens=8)
        found = post(server.url, stream=True, max_tokens=8).events
    emitted = truth(record.text).emitted_ns
    assert [emitted.count(one) for one in sorted(set(emitted))] == [3, 3, 2]
    assert record.num_tokens == 8
    assert [len(event["choices"][0]["text"].split()) for event in found] == [4, 3, 2]  # the first has its request's too


def test_a_buffering_proxy_writes_what_has_gathered() -> None:
    with launched(faulty(flush_s=0.1)) as server:
        (record,) = ask(server.url, num_tokens=10)
    found = truth(record.text)
    assert record.first_byte_ns is not None
    assert record.first_byte_ns >= found.received_ns + 100_000_000
    assert record.num_tokens == 10
    if found.emitted_ns[-1] < found.received_ns + 100_000_000:  # unless the machine held the server up
        assert record.tokens == [10]


def test_a_drip_changes_no_byte_of_the_answer() -> None:
    with launched(faulty(drip_bytes=1)) as server:
        (record,) = ask(server.url)
    assert record.status == "answered"
    assert len(truth(record.text).emitted_ns) == 5


def test_a_slow_drip_makes_the_last_byte_late() -> None:
    with launched(faulty(drip_bytes=40, drip_gap_s=0.003)) as server:
        (record,) = ask(server.url, num_tokens=2)
    found = truth(record.text)
    assert record.done_ns is not None
    assert record.done_ns >= found.emitted_ns[-1] + 4 * 3_000_000  # an event has more than 160 bytes


def test_every_so_manieth_request_stalls() -> None:
    with launched(faulty(stall_every=2, stall_s=0.2, stall_after=3)) as server:
        first, second, third = (truth(record.text).emitted_ns for record in ask(server.url, [WORDS] * 3))
    assert first[3] - first[2] >= 190_000_000
    assert third[3] - third[2] >= 190_000_000
    assert second[3] - second[2] < first[3] - first[2]


def test_the_whole_server_stalls_at_an_instant() -> None:
    with launched(Settings(ttft_s=0.01, gap_s=0.01, faults=Faults(stall_at_s=0.025, stall_s=0.3))) as server:
        (record,) = ask(server.url, num_tokens=4)
    found = truth(record.text)
    assert found.emitted_ns[2] >= found.received_ns + 330_000_000
    assert found.emitted_ns[0] >= found.received_ns + 10_000_000


def test_a_share_of_requests_is_answered_with_an_error() -> None:
    wanted = faulty(error_share=0.5, error_status=503)
    with launched(wanted) as server:
        records = ask(server.url, [WORDS] * 12)
    assert [record.http_status for record in records] == [
        fate(wanted, number, False).error_status or 200 for number in range(12)
    ]
    assert {record.status for record in records} == {"answered", "failed"}
    assert any("planted" in record.reason for record in records)


def test_an_answer_is_broken_off_after_some_tokens() -> None:
    with launched(faulty(abort_share=1.0, abort_after=2)) as server:
        (record,) = ask(server.url)
    assert record.status == "failed"
    assert record.text.count(" ") == 3  # its request's instant and two tokens
    assert "reset" in record.reason.lower()


def test_a_connection_is_closed_without_an_answer() -> None:
    with launched(faulty(drop_share=1.0)) as server:
        (record,) = ask(server.url)
    assert record.status == "failed"
    assert record.first_byte_ns is None


def test_a_connection_is_refused_but_for_the_very_first() -> None:
    with launched(faulty(refuse_share=1.0)) as server:
        with urllib.request.urlopen(f"{server.url}/health") as response:
            assert response.status == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            post(server.url)


def test_a_hanging_answer_stops_and_never_ends() -> None:
    with launched(faulty(hang_share=1.0, hang_after=2)) as server:
        (record,) = ask(server.url, total_s=0.3)
        running = scrape(server.url)['vllm:generation_tokens_total{model_name="null"}']
    assert record.status == "failed"
    assert "time-out" in record.reason
    assert record.text.count(" ") == 3
    assert running == 2


def test_usage_says_another_number_than_was_sent() -> None:
    with launched(faulty(usage_off_by=3)) as server:
        (record,) = ask(server.url)
    assert record.num_tokens == 8
    assert len(truth(record.text).emitted_ns) == sum(record.tokens) == 5


def test_a_truncated_answer_has_fewer_tokens_and_says_length() -> None:
    with launched(faulty(truncate_share=1.0, truncate_to=0.4)) as server:
        (record,) = ask(server.url, num_tokens=10)
    assert len(truth(record.text).emitted_ns) == record.num_tokens == 4
    assert record.finish_reason == "length"


def test_a_prompt_from_before_is_answered_faster() -> None:
    with launched(Settings(ttft_s=0.3, gap_s=0.001, faults=Faults(cache_speed=0.05))) as server:
        first, again = (truth(record.text) for record in ask(server.url, [WORDS] * 2))
    assert first.emitted_ns[0] - first.received_ns >= 300_000_000
    assert 15_000_000 <= again.emitted_ns[0] - again.received_ns < 300_000_000


def test_a_server_may_say_that_a_prompt_came_from_its_cache() -> None:
    with launched(faulty(cache_counted=True)) as server:
        usages = [post(server.url).json["usage"] for _ in range(2)]
        hits = scrape(server.url)['vllm:prefix_cache_hits_total{model_name="null"}']
    assert [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages] == [0, 3]
    assert hits == 3


def test_a_slow_down_moves_every_instant() -> None:
    with launched(Settings(ttft_s=0.02, gap_s=0.01, faults=Faults(slow_down=0.5))) as server:
        (record,) = ask(server.url)
    found = truth(record.text)
    assert found.emitted_ns[0] >= found.received_ns + 30_000_000
    assert found.emitted_ns[4] >= found.received_ns + 90_000_000


def test_other_tenants_are_counted_though_nobody_asked() -> None:
    with launched(faulty(tenant_rate=1000.0)) as server:
        success = 'vllm:request_success_total{finished_reason="length",model_name="null"}'
        assert poll(lambda: scrape(server.url)[success] > 10)
        found = scrape(server.url)
    assert found['vllm:time_to_first_token_seconds_count{model_name="null"}'] == found[success]
    assert found['vllm:generation_tokens_total{model_name="null"}'] == 64 * found[success]


def test_a_jump_of_the_wall_clock_shows_in_what_is_said_and_in_no_instant() -> None:
    with launched(faulty(clock_jump_after=1, clock_jump_s=-86_400.0)) as server:
        before, after = (post(server.url) for _ in range(2))
        created = [answer.json["created"] for answer in (before, after)]
        (record,) = ask(server.url)
    assert -86_500 < created[1] - created[0] < -86_300
    assert before.headers["Date"] != after.headers["Date"]
    found = truth(record.text)
    assert record.sent_ns is not None
    assert record.sent_ns <= found.received_ns < found.emitted_ns[0] <= record.stamps_ns[0]
