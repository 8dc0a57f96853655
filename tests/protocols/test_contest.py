"""The contest's dialect, byte for byte. Numbers such as "server 2" are those of contest-stack.md, section 11.

The golden transcripts in tests/golden/contest_*.txt are written by
    LLMBENCH_WRITE_GOLDEN=1 python -m pytest tests/protocols/test_contest.py -k transcript
and were read against sections 1.3, 1.4, 1.5 and 1.7 of that document.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.errors import AgentDied, ConfigError, LlmbenchError, Overloaded, PromptEmpty, PromptTooLong, RequestError
from llmbench.protocols import HttpResponse, Status, contest
from llmbench.protocols.contest import Contest, ContestReply
from llmbench.types import Delta, Request, Sampling

GOLDEN = Path(__file__).parents[1] / "golden"
STATUS = Status(
    model_name="llama_7b",
    model_dtype="float16",
    vocab_size=32_000,
    max_model_len=4096,
    max_batch=128,
    max_tokens_per_step=512,
    max_waiting=10_000,
    num_running=2,
    num_waiting=7,
    num_blocks=1023,
    num_free_blocks=1000,
    block_size=16,
    ready=True,
)
STREAM, WHOLE = "/models/llama2/generate_stream", "/models/llama2/generate"
SEPARATORS = "\x85\u2028\u2029"  # str.splitlines splits on these, and the original client reads with it


class Host:
    """A server that answers a dialect's questions with STATUS."""

    def status(self) -> Status:
        return STATUS

    def tokenize(self, text: str) -> list[int]:
        return [1, *text.encode()]

    def detokenize(self, ids: list[int]) -> str:
        return bytes(ids[1:]).decode()


def delta(text: str, token_id: int, logit: float, reason: Any = None) -> Delta:
    return Delta(text=text, token_ids=(token_id,), logits=(logit,), num_tokens=1, finish_reason=reason)


ANSWER = (
    delta("Hel", 22172, 17.203125),
    delta("lo", 417, 16.5),
    delta("", 30793, 3.0),  # held back until its character is whole
    delta(" 世\u2028界", 31618, -2.25),
    delta("!", 2, 21.0, "eos"),
)


def ask(
    dialect: Contest, path: str = STREAM, prompt: str = "Hi", headers: dict[str, str] | None = None, **parameters: Any
) -> ContestReply:
    body = json.dumps({"inputs": prompt, "parameters": parameters}).encode()
    return dialect.parse(path, body, headers or {}, STATUS)


def body(reply: ContestReply, deltas: tuple[Delta, ...] = ANSWER) -> bytes:
    return b"".join(chunk for piece in deltas for chunk in reply.render(piece))


def events(data: bytes) -> list[Any]:
    """The lines as the original client reads them."""
    return [json.loads(line) for line in data.decode().splitlines() if line]


def transcript(reply: ContestReply, chunks: list[bytes]) -> HttpResponse:
    return HttpResponse(status=200, body=b"".join(chunks), headers=reply.headers)


def finished(path: str, options: dict[str, Any] | None = None, **parameters: Any) -> HttpResponse:
    reply = ask(contest.dialect(**(options or {})), path, **parameters)
    return transcript(reply, [body(reply)])


def refused(path: str, error: LlmbenchError) -> HttpResponse:
    return ask(contest.dialect(), path).refuse(error)


def broken_off(path: str) -> HttpResponse:
    reply = ask(contest.dialect(), path)
    return transcript(reply, [*reply.render(ANSWER[0]), *reply.abort(AgentDied("gone"))])


def rejected(posted: bytes) -> HttpResponse:
    dialect = contest.dialect()
    with pytest.raises(RequestError) as caught:
        dialect.parse(STREAM, posted, {}, STATUS)
    return dialect.reject(caught.value)


def managed(path: str) -> HttpResponse:
    return contest.dialect().answer("GET", path, b"", Host())


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(STREAM),
    "stream_object": lambda: finished(STREAM, {"data_shape": "object"}),
    "stream_whole_text": lambda: finished(STREAM, {"drop_last_token": False}),
    "stream_pieces_only": lambda: finished(STREAM, return_full_text=False),
    "stream_plain": lambda: finished(STREAM, return_protocol="plain"),
    "whole": lambda: finished(WHOLE),
    "whole_text": lambda: finished(WHOLE, {"drop_last_token": False}),
    "too_long_stream": lambda: refused(STREAM, PromptTooLong("4000 and 300")),
    "too_long_whole": lambda: refused(WHOLE, PromptTooLong("4000 and 300")),
    "empty_stream": lambda: refused(STREAM, PromptEmpty("pad")),
    "empty_whole": lambda: refused(WHOLE, PromptEmpty("pad")),
    "agent_died_stream": lambda: broken_off(STREAM),
    "agent_died_whole": lambda: broken_off(WHOLE),
    "overloaded": lambda: refused(STREAM, Overloaded("10000 requests are waiting already; try again later")),
    "no_json": lambda: rejected(b"{'inputs': 'Hi'}"),
    "no_inputs": lambda: rejected(b"{}"),
    "wrong_parameter": lambda: rejected(b'{"inputs": "Hi", "parameters": {"max_new_tokens": "many"}}'),
    "get_bs": lambda: managed("/serving/get_bs"),
    "get_request_numbers": lambda: managed("/serving/get_request_numbers"),
    "get_serverd_model_info": lambda: managed("/serving/get_serverd_model_info"),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    response = TRANSCRIPTS[name]()
    head = "".join(f"{key}: {value}\n" for key, value in response.headers)
    wire = f"{response.status}\n{head}\n".encode() + response.body
    path = GOLDEN / f"contest_{name}.txt"
    if os.environ.get("LLMBENCH_WRITE_GOLDEN"):
        path.write_bytes(wire)
    assert wire == path.read_bytes()


# -- server ---------------------------------------------------------------------------------------------------------


def test_the_three_paths_pick_stream_or_whole_as_the_original_does() -> None:
    """Server 1; and the same under the original's other name."""
    dialect = contest.dialect()
    for model in ("llama2", "internlm"):
        base = f"/models/{model}"
        assert {base, f"{base}/generate", f"{base}/generate_stream"} <= set(dialect.posts)
        for wanted in (True, False):
            posted = json.dumps({"inputs": "Hi", "stream": wanted}).encode()
            assert dialect.parse(base, posted, {}, STATUS).stream is wanted
            assert dialect.parse(f"{base}/generate", posted, {}, STATUS).stream is False
            assert dialect.parse(f"{base}/generate_stream", posted, {}, STATUS).stream is True
    assert dialect.parse("/models/llama2", b'{"inputs": "Hi"}', {}, STATUS).stream is False


def test_every_event_is_one_bare_json_line_whose_data_is_a_list_of_one() -> None:
    """Server 2."""
    data = finished(STREAM).body
    assert [event["data"][0]["generated_text"] for event in events(data)][:3] == ["Hel", "lo", ""]
    assert all(len(event["data"]) == 1 for event in events(data))
    assert data.startswith(b'{"event": "message", "retry": 30000, "data": [{"details": null, "generated_text": "Hel"')


def test_an_option_makes_data_the_object_itself() -> None:
    """Server 3."""
    data = finished(STREAM, {"data_shape": "object"}).body
    assert [event["data"]["generated_text"] for event in events(data)][:3] == ["Hel", "lo", ""]


def test_another_shape_of_data_is_refused() -> None:
    with pytest.raises(ConfigError, match="data_shape: must be list or object, got 'tuple'"):
        contest.dialect(data_shape="tuple")  # type: ignore[arg-type]


def test_each_chunk_is_one_line_with_its_newline() -> None:
    """Server 4."""
    reply = ask(contest.dialect())
    for piece in ANSWER:
        for chunk in reply.render(piece):
            assert chunk.endswith(b"\n")
            assert len(chunk.decode().splitlines()) == 1


def test_the_content_type_of_a_stream_says_its_charset() -> None:
    """Server 5."""
    assert dict(ask(contest.dialect()).headers)["Content-Type"] == "text/event-stream; charset=utf-8"


def test_no_comment_and_no_blank_line_is_ever_in_a_stream() -> None:
    """Server 6 and 7: the original client feeds every line to json.loads and times the first one."""
    lines = finished(STREAM).body.split(b"\n")
    assert lines.pop() == b""
    assert all(line.startswith(b"{") for line in lines)


@pytest.mark.parametrize("path", [STREAM, WHOLE])
@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators_of_lines_inside_a_text_arrive_escaped(separator: str, path: str) -> None:
    """Server 8."""
    reply = ask(contest.dialect(drop_last_token=False), path)
    data = body(reply, (delta(f"a{separator}b", 5, 1.0), delta("c", 6, 1.0, "length")))
    read = events(data)
    assert len(read) == (3 if path == STREAM else 1)
    last = read[-1]["data"][0] if path == STREAM else read[-1]
    assert last["generated_text"] == f"a{separator}bc"


def test_other_characters_are_not_escaped() -> None:
    assert "世".encode() in finished(STREAM).body


def test_the_whole_text_is_the_last_line_when_it_is_asked_for() -> None:
    """Server 9."""
    wanted = events(finished(STREAM, {"drop_last_token": False}, return_full_text=True).body)
    assert wanted[-1]["data"][0]["generated_text"] == "Hello 世\u2028界!"
    assert len(wanted) == len(ANSWER) + 1
    unwanted = events(finished(STREAM, return_full_text=False).body)
    assert len(unwanted) == len(ANSWER)


def test_the_last_line_tells_what_a_whole_answer_tells() -> None:
    last = events(finished(STREAM).body)[-1]["data"][0]
    whole = json.loads(finished(WHOLE).body)
    assert last == whole
    assert next(iter(last)) == "details"
    assert list(whole)[-1] == "details"
    assert whole["generated_tokens"] == len(whole["tokens"]) == len(ANSWER)
    assert whole["prefill"] == whole["tokens"][:1]
    assert whole["top_tokens"] == [whole["tokens"][:1]]
    assert whole["tokens"][0] == {"id": 22172, "logprob": 17.203125, "special": False, "text": "Hel"}
    assert whole["tokens"][-1] == {"id": 2, "logprob": 21.0, "special": True, "text": ""}


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ({"max_new_tokens": "56"}, {"max_new_tokens": 56}),
        ({"max_new_tokens": 56.9}, {"max_new_tokens": 56}),
        ({"topk_k": 5, "nonsense": [1]}, {}),
        ({"do_sample": "True", "temperature": "0.8", "top_k": "5", "top_p": "0.9"}, {"sampling": (0.8, 5, 0.9)}),
        ({"do_sample": "False", "temperature": 0.8}, {"sampling": (0.0, 0, 1.0)}),
        ({"do_sample": "off"}, {"sampling": (0.0, 0, 1.0)}),
        ({"stop": ["x"], "seed": 7, "typical_p": 1, "watermark": "yes"}, {}),
    ],
)
def test_strings_are_coerced_and_unknown_keys_ignored(given: dict[str, Any], asked: dict[str, Any]) -> None:
    """Server 10."""
    request = ask(contest.dialect(), do_sample=given.pop("do_sample", "False"), **given).requests[0]
    assert request.prompt == "Hi"
    assert request.max_new_tokens == asked.get("max_new_tokens", 300)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == asked.get("sampling", (0.0, 0, 1.0))


def test_the_stream_flag_may_be_text_and_other_keys_beside_it_are_ignored() -> None:
    for text, stream in (("True", True), ("false", False), ("1", True), ("no", False)):
        posted = json.dumps({"inputs": "Hi", "stream": text, "user": {"id": 5}}).encode()
        assert contest.dialect().parse("/models/llama2", posted, {}, STATUS).stream is stream


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (1.0, 3, 1.0)),
        ({"top_k": 0}, (1.0, 1, 1.0)),
        ({"top_k": -1}, (1.0, 1, 1.0)),
        ({"top_k": 32_000}, (1.0, 1, 1.0)),
        ({"top_k": 31_999}, (1.0, 100, 1.0)),
        ({"top_k": 101}, (1.0, 100, 1.0)),
        ({"top_k": None}, (1.0, 3, 1.0)),
        ({"top_p": 0.0}, (1.0, 3, 0.01)),
        ({"top_p": -1}, (1.0, 3, 0.01)),
        ({"top_p": 0.005}, (1.0, 3, 0.005)),
        ({"top_p": 1.5}, (1.0, 3, 1.0)),
        ({"top_p": float("nan")}, (1.0, 3, 1.0)),
        ({"temperature": 0.5}, (0.5, 3, 1.0)),
        ({"temperature": 65_536}, (65_536.0, 3, 1.0)),
        ({"temperature": 65_537}, (0.0, 0, 1.0)),
        ({"temperature": 1e-5}, (0.0, 0, 1.0)),
        ({"temperature": -1}, (0.0, 0, 1.0)),
        ({"temperature": 0}, (0.0, 0, 1.0)),
    ],
)
def test_sampling_parameters_are_clamped_as_in_the_original(
    given: dict[str, Any], expected: tuple[float, int, float]
) -> None:
    """Section 1.2; without parameters at all the original samples with top_k 3."""
    sampling = ask(contest.dialect(), **given).requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == expected


@pytest.mark.parametrize("parameters", [b"", b', "parameters": null', b', "parameters": {}'])
def test_without_parameters_the_defaults_hold(parameters: bytes) -> None:
    reply = contest.dialect().parse(STREAM, b'{"inputs": "Hi"' + parameters + b"}", {}, STATUS)
    (request,) = reply.requests
    assert request.max_new_tokens == 300
    assert not request.sampling.greedy
    assert events(body(reply))[-1]["data"][0]["finish_reason"] == "eos"  # return_full_text is true


def test_the_id_of_a_request_travels_in_a_header() -> None:
    assert ask(contest.dialect(), headers={"x-request-id": "r7"}).requests[0].request_id == "r7"
    assert ask(contest.dialect()).requests[0].request_id == ""


@pytest.mark.parametrize("path", [STREAM, WHOLE])
@pytest.mark.parametrize(
    ("error", "text", "reason", "token_id"),
    [
        (PromptTooLong("x"), "Error202: prompt out of range", "prompt_out_of_range", 0),
        (PromptEmpty("x"), "Error203: prompt token empty", "prompt_token_ids_empty", 0),
        (AgentDied("x"), "error304: generation task stop abnormally!, please retry!", "predict_failed", -1),
    ],
)
def test_the_three_errors_of_the_original_come_with_status_200(
    error: LlmbenchError, text: str, reason: str, token_id: int, path: str
) -> None:
    """Server 11."""
    response = refused(path, error)
    assert response.status == 200
    token = {"id": token_id, "logprob": 0.0, "special": False, "text": text}
    whole = {
        "details": None,
        "generated_text": text,
        "finish_reason": reason,
        "generated_tokens": 0,
        "prefill": [token],
        "seed": 0,
        "tokens": [token],
        "top_tokens": [[token]],
    }
    if path == WHOLE:
        assert json.loads(response.body) == whole
    else:
        first, last = (event["data"][0] for event in events(response.body))
        assert first == {"details": None, "generated_text": text, "tokens": token, "top_tokens": [token]}
        assert last == whole


@pytest.mark.parametrize(
    ("posted", "where"),
    [
        (b"", ["body", 0]),
        (b"{", ["body", 1]),
        (b"\xff\xfe", None),
        (b"[]", ["body"]),
        (b"null", ["body"]),
        (b"{}", ["body", "inputs"]),
        (b'{"inputs": null}', ["body", "inputs"]),
        (b'{"inputs": ["a"]}', ["body", "inputs"]),
        (b'{"inputs": "\\ud800"}', ["body", "inputs"]),
        (b'{"inputs": "a", "stream": "maybe"}', ["body", "stream"]),
        (b'{"inputs": "a", "stream": null}', ["body", "stream"]),
        (b'{"inputs": "a", "parameters": []}', ["body", "parameters"]),
        (b'{"inputs": "a", "parameters": {"do_sample": null}}', ["body", "parameters", "do_sample"]),
        (b'{"inputs": "a", "parameters": {"do_sample": 2}}', ["body", "parameters", "do_sample"]),
        (b'{"inputs": "a", "parameters": {"top_k": "x"}}', ["body", "parameters", "top_k"]),
        (b'{"inputs": "a", "parameters": {"top_k": Infinity}}', ["body", "parameters", "top_k"]),
        (b'{"inputs": "a", "parameters": {"top_p": {}}}', ["body", "parameters", "top_p"]),
        (b'{"inputs": "a", "parameters": {"stop": "x"}}', ["body", "parameters", "stop"]),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": 0}}', ["body", "parameters", "max_new_tokens"]),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": -5}}', ["body", "parameters", "max_new_tokens"]),
        (b'{"inputs": "a", "parameters": {"max_new_tokens": ' + b"9" * 5000 + b"}}", None),
        (b'{"inputs": ' + b"[" * 100_000, None),
    ],
)
def test_a_wrong_body_gives_422_with_a_detail(posted: bytes, where: list[Any] | None) -> None:
    """Server 11; that no new token is asked for never ends in the original, and is refused here."""
    response = rejected(posted)
    assert response.status == 422
    (detail,) = json.loads(response.body)["detail"]
    assert set(detail) == {"loc", "msg", "type"}
    assert where is None or detail["loc"] == where


def test_an_error_that_the_original_does_not_know_keeps_its_status() -> None:
    response = refused(STREAM, Overloaded("busy"))
    assert (response.status, json.loads(response.body)) == (503, {"detail": "busy"})


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/serving/get_bs", {"event": "message", "retry": 30000, "data": 128}),
        ("/serving/get_request_numbers", {"event": "message", "retry": 30000, "data": 7}),
        (
            "/serving/get_serverd_model_info",
            {
                "docker_label": "",
                "max_batch_total_tokens": 4096 * 128,
                "max_concurrent_requests": 7,
                "max_input_length": 4096,
                "max_total_tokens": 128,
                "model_device_type": "CANN",
                "model_dtype": "float16",
                "model_id": "llama_7b",
                "model_pipeline_tag": "text-generation",
                "version": "2.3",
            },
        ),
    ],
)
def test_the_management_routes_answer_one_real_sse_event(path: str, told: dict[str, Any]) -> None:
    """Server 12."""
    assert ("GET", path) in contest.dialect().others
    response = managed(path)
    assert response.body.startswith(b"data: {")
    assert response.body.endswith(b"}\r\n\r\n")
    assert json.loads(response.body.removeprefix(b"data: ")) == told


@pytest.mark.parametrize("path", [STREAM, WHOLE])
def test_the_text_of_the_last_token_is_lost_as_in_the_original_unless_told_otherwise(path: str) -> None:
    """Server 13: with `max_new_tokens` 1 the text is empty."""
    for dialect, text in ((contest.dialect(), ""), (contest.dialect(drop_last_token=False), "Hel")):
        data = body(ask(dialect, path, max_new_tokens=1), (delta("Hel", 5, 1.0, "length"),))
        read = events(data)
        assert (read[-1]["data"][0] if path == STREAM else read[-1])["generated_text"] == text
        assert len(read) == (2 if path == STREAM else 1)


# -- client ---------------------------------------------------------------------------------------------------------


def read_by_client(data: bytes, cut: int | None = None) -> list[Delta]:
    decoder = contest.dialect().decoder(Request(prompt="Hi"), {})
    parts = [data] if cut is None else [data[:cut], data[cut:]]
    return [delta for part in parts for delta in decoder.feed(part)] + decoder.close()


READ = [
    *(msgspec.structs.replace(piece, finish_reason=None) for piece in ANSWER[:-1]),
    delta("", 2, 21.0),
    Delta(finish_reason="eos", full_text="Hello 世\u2028界", total_tokens=5),
]


@pytest.mark.parametrize("shape", ["list", "object"])
@pytest.mark.parametrize("prefix", [b"", b"data:", b"data: "])
def test_the_client_reads_bare_and_prefixed_lines_with_data_as_list_or_object(prefix: bytes, shape: str) -> None:
    """Client 1 and 2."""
    lines = finished(STREAM, {"data_shape": shape}).body.splitlines(keepends=True)
    assert read_by_client(b"".join(prefix + line for line in lines)) == READ


def test_the_client_reads_lines_that_are_not_wrapped() -> None:
    assert read_by_client(finished(STREAM, return_protocol="plain").body) == READ


def test_the_client_skips_blank_lines_and_comments_also_the_ping() -> None:
    """Client 3 and 6: the 600 s ping of the original does not cost the answer."""
    ping = b": You can't see this ping\r\n\r\n"
    data = b"\r\n\n" + ping.join(finished(STREAM).body.splitlines(keepends=True)) + ping
    assert read_by_client(data) == READ


def test_the_client_reads_lines_that_end_with_crlf() -> None:
    assert read_by_client(finished(STREAM).body.replace(b"\n", b"\r\n\r\n")) == READ


def test_the_client_sends_the_original_body() -> None:
    """Client 4."""
    sent = contest.dialect().encode(Request(prompt="Hi 世", max_new_tokens=56, request_id="r1"))
    assert sent.path == STREAM
    assert json.loads(sent.body) == {
        "inputs": "Hi 世",
        "parameters": {"max_new_tokens": 56, "do_sample": "False", "return_full_text": "True"},
    }
    assert dict(sent.headers) == {"Content-Type": "application/json", "X-Request-Id": "r1"}


def test_the_client_leaves_out_what_is_not_given_and_asks_for_sampling_where_it_is() -> None:
    sampled = Sampling(temperature=0.7, top_k=5, top_p=0.9)
    sent = contest.dialect().encode(Request(prompt="Hi", sampling=sampled, stream=False))
    assert sent.path == WHOLE
    assert json.loads(sent.body)["parameters"] == {
        "do_sample": "True",
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 5,
        "return_full_text": "True",
    }


@pytest.mark.parametrize("path", [STREAM, WHOLE])
@pytest.mark.parametrize("error", [PromptTooLong("x"), PromptEmpty("x"), AgentDied("x")])
def test_the_client_counts_an_error_with_status_200_as_a_failure(error: LlmbenchError, path: str) -> None:
    """Client 5."""
    (read,) = read_by_client(refused(path, error).body)
    assert read.finish_reason == "error"
    assert read.error is not None
    assert read.error.startswith(("Error20", "error304"))


def test_an_answer_that_only_speaks_of_errors_is_no_failure() -> None:
    reply = ask(contest.dialect(drop_last_token=False))
    data = body(reply, (delta("Error202: prompt out of range", 5, 1.0), delta(".", 6, 1.0, "length")))
    assert [piece.finish_reason for piece in read_by_client(data)] == [None, None, "length"]


def test_an_agent_that_dies_in_the_middle_fails_the_request_and_keeps_what_came() -> None:
    first, second = read_by_client(broken_off(STREAM).body)
    assert first.text == "Hel"
    assert second.finish_reason == "error"
    assert read_by_client(broken_off(WHOLE).body)[0].finish_reason == "error"


def test_a_stream_that_ends_early_is_a_failure() -> None:
    data = b"".join(finished(STREAM).body.splitlines(keepends=True)[:-1])
    assert read_by_client(data)[-1].error == "the response ended before the answer's last event"
    assert [piece.error for piece in read_by_client(b"")] == ["the response ended before the answer's last event"]


def test_what_follows_the_last_event_is_not_read() -> None:
    assert read_by_client(finished(STREAM).body + b"garbage\n") == READ


MALFORMED = (
    b"{",
    b"5",
    b"null",
    b'"text"',
    b"[]",
    b"[1]",
    b"{}",
    b'{"data": []}',
    b'{"data": 5}',
    b'{"data": [5]}',
    b'{"data": {"generated_text": 5, "tokens": {"id": 1, "logprob": 0.0}}}',
    b'{"data": {"generated_text": null, "tokens": {"id": 1, "logprob": 0.0}}}',
    b'{"data": {"generated_text": "a"}}',
    b'{"data": {"generated_text": "a", "tokens": []}}',
    b'{"data": {"generated_text": "a", "tokens": {"id": "x", "logprob": 0.0}}}',
    b'{"data": {"generated_text": "a", "tokens": {"id": 1, "logprob": "x"}}}',
    b'{"data": {"generated_text": "a", "generated_tokens": "5", "finish_reason": "eos"}}',
    b'{"data": {"generated_text": 1, "generated_tokens": 5, "finish_reason": "eos"}}',
    b'{"data": {"generated_text": "a", "generated_tokens": 5}}',
    b'{"data": {"generated_text": "a", "generated_tokens": 5, "finish_reason": 7}}',
    b"\xff\xfe",
    b'{"data": [{"generated_text": "\xff"}]}',
    b"<html>502 Bad Gateway</html>",
)


@pytest.mark.parametrize("line", MALFORMED)
def test_a_malformed_line_is_an_error_that_shows_it(line: bytes) -> None:
    read = read_by_client(finished(STREAM).body.split(b"\n")[0] + b"\n" + line + b"\n")
    assert [piece.finish_reason for piece in read] == [None, "error"]
    assert read[1].error is not None
    assert read[1].error.startswith("not a contest event: ")
