"""Triton's dialect as MindIE speaks it. Shapes: ascend-formats.md, section 7.3."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbench.errors import AgentDied, ConfigError, Overloaded, RequestError
from llmbench.protocols import HttpResponse, triton
from llmbench.types import Request, Sampling
from tests.protocols.conftest import (
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

BASE = "/v2/models/tiny"
STREAM, WHOLE, INFER = f"{BASE}/generate_stream", f"{BASE}/generate", f"{BASE}/infer"
DIALECT = triton.dialect(clock=ticks())
TENSOR = {"name": "input0", "shape": [1, 2], "datatype": "UINT32", "data": [1, 5]}


def asked(path: str, fields: dict[str, Any] | None = None, **parameters: Any) -> Any:
    """On a clock of its own, so that every answer's times begin anew."""
    return ask(triton.dialect(clock=ticks()), path, {"text_input": "Hi", "parameters": parameters} | (fields or {}))


def got(path: str) -> HttpResponse:
    return DIALECT.answer("GET", path, b"", Host())


def rejected(path: str) -> HttpResponse:
    with pytest.raises(RequestError) as caught:
        DIALECT.parse(path, b'{"text_input": "Hi"}', {}, Host().status())
    return DIALECT.reject(caught.value)


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(asked(STREAM, {"id": "a1"})),
    "stream_details": lambda: finished(asked(STREAM, {"id": "a1"}, details=True, perf_stat=True)),
    "whole": lambda: finished(asked(WHOLE)),
    "whole_details": lambda: finished(asked(WHOLE, {"id": "a1"}, details=True)),
    "infer": lambda: finished(asked(INFER, {"id": "a1", "inputs": [TENSOR], "outputs": [{"name": "output0"}]})),
    "broken_off": lambda: broken_off(asked(STREAM), AgentDied("the agent process ended")),
    "overloaded": lambda: asked(STREAM).refuse(Overloaded("100 requests are waiting", retry_after_s=2.3)),
    "other_model": lambda: rejected("/v2/models/large/generate"),
    "server": lambda: got("/v2"),
    "model": lambda: got(BASE),
    "config": lambda: got(f"{BASE}/config"),
    "no_model": lambda: got("/v2/models/large/config"),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    check_transcript(f"triton_{name}", TRANSCRIPTS[name]())


# -- the server's half ------------------------------------------------------------------------------------------------


def test_a_stream_has_no_space_behind_data_and_times_only_with_details() -> None:
    plain = list(event_values(rendered(asked(STREAM)), b"data:"))
    assert all("details" not in one and "prefill_time" not in one for one in plain)
    detailed = list(event_values(rendered(asked(STREAM, details=True)), b"data:"))
    assert [one["prefill_time"] for one in detailed] == [1.5, None, None, None, None]
    assert [one["details"]["generated_tokens"] for one in detailed] == [1, 2, 3, 4, 5]
    assert [one["details"].get("finish_reason") for one in detailed] == [None] * 4 + ["length"]


@pytest.mark.parametrize(
    ("fields", "headers", "name", "request_id"),
    [
        ({}, {}, None, ""),
        ({"id": "a-1_B"}, {}, "a-1_B", "a-1_B"),
        ({}, {"x_request_id": "h"}, "h", "h"),
        ({"id": "a"}, {"x_request_id": "h"}, "a", "h"),
    ],
)
def test_the_id_comes_back(fields: dict[str, Any], headers: dict[str, str], name: Any, request_id: str) -> None:
    reply = ask(DIALECT, WHOLE, {"text_input": "Hi"} | fields, **headers)
    assert reply.requests[0].request_id == request_id
    assert json.loads(rendered(reply)[0])["id"] == name


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        (WHOLE, {"text_input": None}, "text_input"),
        (WHOLE, {"id": "a b"}, "id"),
        (WHOLE, {"id": "a" * 257}, "id"),
        (WHOLE, {"id": 5}, "id"),
        (WHOLE, {"parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        (INFER, {}, "inputs"),
        (INFER, {"inputs": [TENSOR, TENSOR]}, "inputs"),
        (INFER, {"inputs": [TENSOR | {"datatype": "INT64"}]}, "inputs[0].datatype"),
        (INFER, {"inputs": [TENSOR | {"shape": [1, 3]}]}, "inputs[0].shape"),
        (INFER, {"inputs": [TENSOR | {"data": [1, 2048]}]}, "inputs[0].data"),
    ],
)
def test_a_wrong_body_is_refused_with_422(path: str, fields: dict[str, Any], field: str) -> None:
    status, body = refused(DIALECT, path, {"text_input": "Hi"} | fields)
    assert (status, body["error_type"]) == (422, "Input Validation Error")
    assert body["error"].startswith(f"{field}: ")


def test_token_ids_go_in_and_come_out() -> None:
    reply = asked(INFER, {"inputs": [TENSOR]})
    assert reply.requests[0].prompt == (1, 5)
    (body,) = rendered(reply)
    assert json.loads(body)["outputs"][0]["data"] == [700, 701, 702, 703, 704]


# -- the client's half ------------------------------------------------------------------------------------------------


def test_the_client_names_the_model_in_the_path() -> None:
    http = triton.dialect("llama2-7b").encode(Request(prompt="Hi", max_new_tokens=5, request_id="r-1"))
    assert (http.path, http.body) == (
        "/v2/models/llama2-7b/generate_stream",
        b'{"id":"r-1","text_input":"Hi","parameters":{"max_new_tokens":5,"do_sample":false,"details":true}}',
    )
    assert DIALECT.encode(Request(prompt="Hi", stream=False)).path == "/v2/models/_/generate"


@pytest.mark.parametrize("model", ["", "a/b", "a b", "a?b"])
def test_a_model_that_cannot_stand_in_a_path_is_a_wrong_setting(model: str) -> None:
    with pytest.raises(ConfigError, match="model: must be a name"):
        triton.dialect(model)


def test_the_client_says_every_setting_that_the_dialect_has() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, top_p=0.5, seed=5, repetition_penalty=1.5, stop=("x",))
    http = DIALECT.encode(Request(prompt="Hi", sampling=sampling))
    assert ask(DIALECT, WHOLE, json.loads(http.body)).requests[0].sampling == sampling


def test_the_client_reads_our_stream_and_our_answer() -> None:
    deltas = read(DIALECT, rendered(asked(STREAM, details=True)))
    assert "".join(delta.text for delta in deltas) == TEXT
    assert [delta.num_tokens for delta in deltas] == [1] * 5
    assert (last(deltas).finish_reason, last(deltas).total_tokens) == ("length", 5)
    whole = read(DIALECT, rendered(asked(WHOLE, details=True)), stream=False)
    assert (last(whole).full_text, last(whole).finish_reason, last(whole).total_tokens) == (TEXT, "length", 5)


def test_the_growth_of_the_count_is_the_tokens_of_an_event() -> None:
    def event(text: str, count: int, **more: Any) -> bytes:
        return (
            b"data:"
            + json.dumps({"text_output": text, "details": {"generated_tokens": count} | more}).encode()
            + b"\n\n"
        )

    deltas = read(DIALECT, [event("ab", 2), event("cde", 5), event("", 6, finish_reason="eos_token")])
    assert [delta.num_tokens for delta in deltas] == [2, 3, 1]
    assert last(deltas).finish_reason == "eos"
