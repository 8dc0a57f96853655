"""MindIE's own dialect. Shapes: ascend-formats.md, section 7.3."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbench.errors import AgentDied, PromptTooLong, RequestError
from llmbench.protocols import HttpResponse, mindie, tgi, vllm
from llmbench.types import Request, Sampling
from tests.protocols.conftest import (
    ANSWER,
    TEXT,
    Host,
    ask,
    broken_off,
    check_transcript,
    event_values,
    finished,
    last,
    read,
    refused,
    rendered,
    ticks,
)

PATH = "/infer"


def asked(fields: dict[str, Any] | None = None, **parameters: Any) -> Any:
    """On a clock of its own, so that every answer's times begin anew."""
    dialect = mindie.dialect(ticks())
    return ask(dialect, PATH, {"inputs": "Hi", "parameters": parameters} | (fields or {}))


DIALECT = mindie.dialect(ticks())
STREAM = {"stream": True}


def got(path: str, **status: Any) -> HttpResponse:
    return DIALECT.answer("GET", path, b"", Host(**status))


def tokenized(fields: Any) -> HttpResponse:
    return DIALECT.answer("POST", "/v1/tokenizer", json.dumps(fields).encode(), Host())


def rejected(path: str, body: bytes) -> HttpResponse:
    with pytest.raises(RequestError) as caught:
        DIALECT.parse(path, body, {}, Host().status())
    return DIALECT.reject(caught.value)


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(asked(STREAM)),
    "stream_details": lambda: finished(asked(STREAM, details=True, seed=7)),
    "whole": lambda: finished(asked()),
    "whole_details": lambda: finished(asked(details=True)),
    "broken_off": lambda: broken_off(asked(STREAM), AgentDied("the agent process ended")),
    "too_long": lambda: asked(STREAM).refuse(PromptTooLong("1000 and 300")),
    "nothing_to_generate": lambda: rejected("/generate", b'{"text": "Hi"}'),
    "no_inputs": lambda: rejected(PATH, b"{}"),
    "info": lambda: got("/info"),
    "slots": lambda: got("/v2/models/tiny/getSlotCount"),
    "no_model": lambda: got("/v2/models/large/getSlotCount"),
    "tokenizer": lambda: tokenized({"inputs": "Hi"}),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    check_transcript(f"mindie_{name}", TRANSCRIPTS[name]())


# -- the server's half ------------------------------------------------------------------------------------------------


def test_the_prompt_is_text_or_ids_but_not_both() -> None:
    (one,) = ask(DIALECT, PATH, {"input_id": [1, 5]}).requests
    assert one == Request(prompt=(1, 5), max_new_tokens=20, stream=False)
    for fields in ({"input_id": [1], "inputs": "Hi"}, {"input_id": ["a"]}, {"input_id": [2048]}):
        assert refused(DIALECT, PATH, fields)[0] == 422


def test_times_are_those_between_the_pieces() -> None:
    events = list(event_values(rendered(asked(STREAM))))
    assert [one["prefill_time"] for one in events] == [1.5, None, None, None, None]
    assert [one["decode_time"] for one in events] == [None, 1.5, 1.5, 1.5, 1.5]


def test_the_last_tokens_text_is_only_in_the_whole() -> None:
    *pieces, end = event_values(rendered(asked(STREAM)))
    assert "".join(one["token"]["text"] for one in pieces) == TEXT.removesuffix("!")
    assert (end["token"], end["generated_text"]) == ({"id": [704], "text": None}, TEXT)


@pytest.mark.parametrize("body", [b"{}", b"", b"{", b"[]", b'{"text": "Hi"}', b"\xff", b"[" * 100_000])
def test_a_generate_that_asks_nothing_is_mindies_and_no_other_dialect_wants_it(body: bytes) -> None:
    assert DIALECT.wants("/generate", body)
    assert not tgi.dialect().wants("/generate", body)
    assert not vllm.dialect().wants("/generate", body)
    status, answer = refused(DIALECT, "/generate", body)
    assert (status, answer["error_type"]) == (422, "Input Validation Error")
    inner = json.loads(answer["error"])  # JSON in a string inside JSON
    assert inner["error_type"] == "validation"
    assert inner["Error"].startswith("`inputs` or `prompt` must be necessary")


@pytest.mark.parametrize("body", [b'{"inputs": 5}', b'{"prompt": null}'])
def test_a_generate_with_either_key_is_not_mindies(body: bytes) -> None:
    assert not DIALECT.wants("/generate", body)


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v2/models/tiny/ready", "/health/timed", "/health/timed-600"])
@pytest.mark.parametrize(
    ("status", "code"),
    [({}, 200), ({"ready": False}, 503), ({"num_waiting": 100}, 503), ({"num_running": 8}, 200)],
)
def test_ready_is_who_would_take_a_request_now(path: str, status: dict[str, Any], code: int) -> None:
    assert got(path, **status).status == code


def test_a_server_that_is_not_ready_is_alive() -> None:
    assert got("/v2/health/live", ready=False).status == 200


@pytest.mark.parametrize("seconds", ["0", "601", "x", "-1", "", "1.5", "٣"])
def test_a_timed_health_check_has_bounds(seconds: str) -> None:
    assert got(f"/health/timed-{seconds}").status == 422


def test_slots_do_not_fall_below_none() -> None:
    assert json.loads(got("/v2/models/tiny/getSlotCount", num_running=9).body)["free_slots"] == 0


def test_the_tokenizer_counts_the_begin_but_does_not_show_it() -> None:
    assert json.loads(tokenized({"inputs": "Hi"}).body) == {"token_number": 3, "tokens": ["H", "i"]}
    assert json.loads(tokenized({"inputs": "Hi", "do_decode": False}).body) == {"token_number": 3}
    assert tokenized({"inputs": ""}).status == tokenized([]).status == 422


# -- the client's half ------------------------------------------------------------------------------------------------


def test_the_client_sends_text_as_inputs_and_ids_as_input_id() -> None:
    http = DIALECT.encode(
        Request(prompt="Hi", max_new_tokens=5, sampling=Sampling(temperature=0.5, top_k=3, top_p=0.5))
    )
    assert http.path == PATH
    assert http.body == (
        b'{"inputs":"Hi","stream":true,"parameters":{"max_new_tokens":5,"do_sample":true,"temperature":0.5,"top_k":3,'
        b'"top_p":0.5,"details":true}}'
    )
    assert json.loads(DIALECT.encode(Request(prompt=(1, 5))).body)["input_id"] == [1, 5]


def test_the_client_reads_our_stream_and_our_answer() -> None:
    deltas = read(DIALECT, rendered(asked(STREAM, details=True)))
    assert [delta.token_ids for delta in deltas] == [delta.token_ids for delta in ANSWER]
    assert (last(deltas).full_text, last(deltas).finish_reason, last(deltas).total_tokens) == (TEXT, "length", 5)
    whole = read(DIALECT, rendered(asked(details=True)), stream=False)
    assert (last(whole).full_text, last(whole).finish_reason, last(whole).total_tokens) == (TEXT, "length", 5)


def test_the_example_of_an_older_manual_is_read() -> None:
    """There ids were numbers, and an answer without `details` does not say why it ended."""
    events = (
        b'data: {"prefill_time":45.54,"decode_time":null,"token":{"id":626,"text":"am"}}\n\n'
        b'data: {"prefill_time":null,"decode_time":16.80,"generated_text":"am a","details":null,'
        b'"token":{"id":[263],"text":null}}\n\n'
    )
    deltas = read(DIALECT, [events])
    assert [delta.token_ids for delta in deltas] == [(626,), (263,)]
    assert (last(deltas).finish_reason, last(deltas).full_text) == ("stop", "am a")
