"""TGI as MindIE and Hugging Face speak it. Shapes of MindIE: ascend-formats.md, section 7.3."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbench.errors import AgentDied, ConfigError, Overloaded, PromptTooLong, RequestError
from llmbench.protocols import HttpResponse, tgi
from llmbench.types import Delta, Request, Sampling
from tests.protocols.conftest import (
    ANSWER,
    SCORED,
    TEXT,
    ask,
    broken_off,
    check_transcript,
    event_values,
    finished,
    last,
    piece,
    read,
    refused,
    rendered,
)

DIALECT, HUGGINGFACE = tgi.dialect(), tgi.dialect("huggingface")
STREAM, WHOLE = "/generate_stream", "/generate"


def asked(path: str, dialect: Any = DIALECT, **parameters: Any) -> Any:
    return ask(dialect, path, {"inputs": "Hi", "parameters": parameters})


def request(**parameters: Any) -> Request:
    (one,) = asked(WHOLE, **parameters).requests
    assert isinstance(one, Request)
    return one


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(asked(STREAM)),
    "stream_details": lambda: finished(asked(STREAM, details=True, seed=7)),
    "stream_huggingface": lambda: finished(asked(STREAM, HUGGINGFACE, details=True)),
    "whole": lambda: finished(asked(WHOLE)),
    "whole_root": lambda: finished(asked("/")),
    "whole_details": lambda: finished(asked(WHOLE, details=True)),
    "whole_scored": lambda: finished(asked(WHOLE, decoder_input_details=True), SCORED),
    "whole_huggingface": lambda: finished(asked(WHOLE, HUGGINGFACE, details=True)),
    "broken_off": lambda: broken_off(asked(STREAM), AgentDied("the agent process ended")),
    "too_long": lambda: asked(STREAM).refuse(PromptTooLong("1000 and 300")),
    "overloaded": lambda: asked(STREAM).refuse(Overloaded("100 requests are waiting", retry_after_s=2.3)),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    check_transcript(f"tgi_{name}", TRANSCRIPTS[name]())


def test_an_unknown_flavour_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="flavour: must be mindie or huggingface"):
        tgi.dialect("vanilla")  # type: ignore[arg-type]


# -- the server's half ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "fields", "stream"),
    [
        (WHOLE, {}, False),
        (WHOLE, {"stream": True}, True),
        ("/", {}, False),
        ("/", {"stream": True}, True),
        (STREAM, {}, True),
        (STREAM, {"stream": False}, True),
    ],
)
def test_the_path_or_the_body_asks_for_a_stream(path: str, fields: dict[str, Any], stream: bool) -> None:
    assert ask(DIALECT, path, {"inputs": "Hi"} | fields).stream is stream


@pytest.mark.parametrize(
    ("parameters", "sampling"),
    [
        ({}, Sampling()),
        ({"do_sample": True}, Sampling(temperature=1.0)),
        ({"temperature": 0.5}, Sampling(temperature=0.5)),  # any setting of the sampler means sampling
        ({"top_k": 5}, Sampling(temperature=1.0, top_k=5)),
        ({"do_sample": False, "temperature": 0.5, "top_k": 5}, Sampling()),
        ({"do_sample": True, "top_p": 0.5, "top_k": 10**6}, Sampling(temperature=1.0, top_p=0.5, top_k=2048)),
        ({"typical_p": 0.5, "watermark": False, "truncate": None, "adapter_id": "None"}, Sampling()),
        ({"seed": 5, "repetition_penalty": 1.5, "stop": ["x"]}, Sampling(seed=5, repetition_penalty=1.5, stop=("x",))),
    ],
)
def test_parameters_are_read_as_mindie_reads_them(parameters: dict[str, Any], sampling: Sampling) -> None:
    assert (request(**parameters).sampling, request(**parameters).max_new_tokens) == (sampling, 20)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"inputs": None}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"parameters": []}, "parameters"),
        ({"stream": "yes"}, "stream"),
        ({"parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens"),
        ({"parameters": {"temperature": 0}}, "parameters.temperature"),
        ({"parameters": {"top_p": 1.5}}, "parameters.top_p"),
        ({"parameters": {"best_of": 2}}, "parameters.best_of"),
        ({"parameters": {"truncate": 5}}, "parameters.truncate"),
        ({"parameters": {"grammar": {"type": "regex"}}}, "parameters.grammar"),
        ({"stream": True, "parameters": {"decoder_input_details": True}}, "parameters.decoder_input_details"),
    ],
)
def test_a_wrong_body_is_refused_with_422(fields: dict[str, Any], field: str) -> None:
    status, body = refused(DIALECT, WHOLE, {"inputs": "Hi"} | fields)
    assert (status, body["error_type"]) == (422, "Input Validation Error")
    assert body["error"].startswith(f"{field}: ")


def test_the_whole_text_has_the_prompt_in_front_when_that_is_asked() -> None:
    (body,) = rendered(asked(WHOLE, return_full_text=True))
    assert json.loads(body)["generated_text"] == "Hi" + TEXT
    *_, end = event_values(rendered(asked(STREAM, return_full_text=True)))
    assert end["generated_text"] == "Hi" + TEXT


def test_huggingface_keeps_the_stop_text_and_the_space_behind_the_prompt() -> None:
    (one,) = asked(WHOLE, HUGGINGFACE, stop=["x"]).requests
    assert (one.sampling.include_stop, one.joined) == (True, True)
    assert (request(stop=["x"]).sampling.include_stop, request().joined) == (False, False)


def test_huggingface_has_one_event_for_each_token_and_marks_the_special_one() -> None:
    two = Delta(text="ab", token_ids=(5, 6), num_tokens=2)
    events = list(event_values(rendered(asked(STREAM, HUGGINGFACE), [two, piece("", 2, "eos")])))
    assert [one["index"] for one in events] == [1, 2, 3]
    assert [one["token"]["text"] for one in events] == ["", "ab", ""]
    assert [one["token"]["special"] for one in events] == [False, False, True]


def test_bodies_with_inputs_are_tgis() -> None:
    assert DIALECT.wants(WHOLE, b'{"inputs": "a", "prompt": "b"}')
    assert not DIALECT.wants(WHOLE, b'{"prompt": "b"}')
    assert not DIALECT.wants(WHOLE, b"{}")
    assert DIALECT.wants("/", b"{}")


# -- the client's half ------------------------------------------------------------------------------------------------


def test_the_client_asks_for_details() -> None:
    http = DIALECT.encode(Request(prompt="Hi", max_new_tokens=5, sampling=Sampling(temperature=0.5, stop=("x",))))
    assert http.path == STREAM
    assert http.body == (
        b'{"inputs":"Hi","parameters":{"max_new_tokens":5,"do_sample":true,"temperature":0.5,"details":true,'
        b'"stop":["x"]}}'
    )
    assert DIALECT.encode(Request(prompt="Hi", stream=False)).path == WHOLE


@pytest.mark.parametrize("asked_for", [{"ignore_eos": True}, {"min_new_tokens": 2}, {"stop_token_ids": (5,)}])
def test_the_client_does_not_drop_a_setting_that_it_cannot_say(asked_for: dict[str, Any]) -> None:
    (name,) = asked_for
    with pytest.raises(RequestError, match=f"the tgi dialect cannot ask for {name}"):
        DIALECT.encode(Request(prompt="Hi", sampling=Sampling(**asked_for)))


@pytest.mark.parametrize("dialect", [DIALECT, HUGGINGFACE], ids=lambda dialect: dialect.flavour)
def test_the_client_reads_both_flavours(dialect: Any) -> None:
    deltas = read(DIALECT, rendered(asked(STREAM, dialect, details=True)))
    assert [delta.text for delta in deltas] == [delta.text for delta in ANSWER]
    assert [delta.token_ids for delta in deltas] == [delta.token_ids for delta in ANSWER]
    end = last(deltas)
    assert (end.full_text, end.finish_reason, end.total_tokens, end.num_prompt_tokens) == (TEXT, "length", 5, 3)
    whole = read(DIALECT, rendered(asked(WHOLE, dialect, details=True)), stream=False)
    assert (last(whole).full_text, last(whole).finish_reason, last(whole).num_tokens) == (TEXT, "length", 0)


FIRST = {"token": {"id": 5, "text": "a", "logprob": -0.5, "special": False}, "generated_text": None, "details": None}


@pytest.mark.parametrize(
    ("event", "text", "tokens", "reason"),
    [
        ({"token": {"id": 2, "text": "</s>", "special": True}, "generated_text": "a", "details": None}, "", 1, "stop"),
        (
            {"token": {"id": [6, 7], "text": "bc"}, "generated_text": "abc", "details": {"finish_reason": "eos_token"}},
            "bc",
            2,
            "eos",
        ),
        (
            {"token": {"id": 6, "text": "b"}, "generated_text": "ab", "details": {"finish_reason": "stop_sequence"}},
            "b",
            1,
            "stop",
        ),
        ({"generated_text": "a", "details": {"finish_reason": "length", "generated_tokens": 1}}, "", 0, "length"),
    ],
)
def test_ends_of_other_servers_are_read(event: dict[str, Any], text: str, tokens: int, reason: str) -> None:
    deltas = read(DIALECT, [b"data:" + json.dumps(one).encode() + b"\n\n" for one in (FIRST, event)])
    assert (deltas[0].text, deltas[0].num_tokens) == ("a", 1)
    assert (last(deltas).text, last(deltas).num_tokens, last(deltas).finish_reason) == (text, tokens, reason)


def test_an_error_in_a_stream_ends_it() -> None:
    error = {"error": "Request failed during generation: out of memory", "error_type": "generation"}
    deltas = read(DIALECT, [b"data: " + json.dumps(one).encode() + b"\n\n" for one in (FIRST, error)])
    assert last(deltas).error == error["error"]
