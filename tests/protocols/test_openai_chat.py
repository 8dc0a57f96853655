"""OpenAI's chat: messages and templates, chunks with deltas, reasoning."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbench.errors import AgentDied, ConfigError, RequestError
from llmbench.protocols import HttpResponse, openai_chat
from llmbench.protocols._openai import Stamp
from llmbench.types import Delta, Request, Sampling, TokenLogprob
from tests.protocols.conftest import (
    SCORED,
    TEXT,
    ask,
    broken_off,
    check_transcript,
    event_values,
    finished,
    last,
    read,
    refused,
    rendered,
)

PATH = "/v1/chat/completions"
STAMP = Stamp(wall=lambda: 1_700_000_000.5, new_id=lambda: "0123")
DIALECT = openai_chat.dialect(stamp=STAMP)
HI = {"messages": [{"role": "user", "content": "Hi"}]}
STREAM = HI | {"stream": True}
USAGE = {"stream_options": {"include_usage": True}}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi "},
    {"role": "assistant", "content": " Hello"},
    {"role": "user", "content": [{"type": "text", "text": "How are"}, {"type": "text", "text": " you?"}]},
]


def asked(fields: dict[str, Any], **headers: str) -> Any:
    return ask(DIALECT, PATH, fields, **headers)


def request(**fields: Any) -> Request:
    (one,) = asked(HI | fields).requests
    assert isinstance(one, Request)
    return one


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(asked(STREAM)),
    "stream_usage": lambda: finished(asked(STREAM | USAGE, x_request_id="r-1")),
    "stream_logprobs": lambda: finished(asked(STREAM | {"logprobs": True, "top_logprobs": 1}), SCORED),
    "whole": lambda: finished(asked(HI)),
    "whole_logprobs": lambda: finished(asked(HI | {"logprobs": True, "top_logprobs": 1}), SCORED),
    "broken_off": lambda: broken_off(asked(STREAM), AgentDied("the agent process ended")),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    check_transcript(f"openai_chat_{name}", TRANSCRIPTS[name]())


# -- the server's half ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("plain", "Be brief.\nHi \n Hello\nHow are you?"),
        (
            "llama2",
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] How are you? [/INST]",
        ),
        (
            "chatml",
            (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n"
                "<|im_start|>assistant\n Hello<|im_end|>\n<|im_start|>user\nHow are you?<|im_end|>\n"
                "<|im_start|>assistant\n"
            ),
        ),
    ],
)
def test_a_template_makes_a_prompt_of_the_messages(template: Any, prompt: str) -> None:
    (one,) = ask(openai_chat.dialect(template), PATH, {"messages": TURNS}).requests
    assert one.prompt == prompt
    assert one.sampling.stop == (("<|im_end|>",) if template == "chatml" else ())


def test_an_unknown_template_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="chat_template: must be plain, llama2 or chatml"):
        openai_chat.dialect("alpaca")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}],
        [{"role": "system", "content": "Hi"}],
    ],
)
def test_llama2_wants_turns(messages: list[dict[str, str]]) -> None:
    status, body = refused(openai_chat.dialect("llama2"), PATH, {"messages": messages})
    assert (status, body["error"]["param"]) == (400, "messages")


def test_the_defaults_leave_the_length_to_the_server() -> None:
    assert request() == Request(prompt="Hi", max_new_tokens=None, sampling=Sampling(temperature=1.0), stream=False)


@pytest.mark.parametrize(
    ("fields", "number"),
    [({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6), ({"max_tokens": 5, "max_completion_tokens": 6}, 6)],
)
def test_the_newer_name_of_the_limit_wins(fields: dict[str, Any], number: int) -> None:
    assert request(**fields).max_new_tokens == number


@pytest.mark.parametrize(
    ("fields", "number"),
    [
        ({}, None),
        ({"logprobs": False, "top_logprobs": 0}, None),
        ({"logprobs": True}, 0),
        ({"logprobs": True, "top_logprobs": 5}, 5),
    ],
)
def test_logprobs_are_switched_and_then_counted(fields: dict[str, Any], number: int | None) -> None:
    assert request(**fields).sampling.num_logprobs == number


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    status, body = refused(DIALECT, PATH, HI | fields)
    assert (status, body["error"]["param"]) == (400, param)


def test_what_asks_for_nothing_is_taken() -> None:
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}, "n": 1, "model": "tiny"}
    assert request(**nothing) == request()


def test_the_role_comes_once_and_before_the_text() -> None:
    *chunks, done = event_values(rendered(asked(STREAM)))
    assert done == "[DONE]"
    assert [chunk["choices"][0]["delta"].get("role") for chunk in chunks] == ["assistant"] + [None] * 5
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == TEXT


def test_a_lone_byte_is_given_as_its_byte() -> None:
    token = TokenLogprob(token_id=9, text="\\xe4", logprob=-1.0, top=(("世", -0.5),))
    delta = Delta(token_ids=(9,), num_tokens=1, finish_reason="length", logprobs=(token,))
    (body,) = asked(HI | {"logprobs": True}).render(delta)
    (found,) = json.loads(body)["choices"][0]["logprobs"]["content"]
    assert (found["token"], found["bytes"]) == ("\\xe4", [0xE4])
    assert found["top_logprobs"] == [{"token": "世", "logprob": -0.5, "bytes": [228, 184, 150]}]


# -- the client's half ------------------------------------------------------------------------------------------------


def test_the_client_asks_as_openais_does() -> None:
    http = DIALECT.encode(Request(prompt="Hi", max_new_tokens=5, sampling=Sampling(temperature=0.5, seed=3)))
    assert http.body == (
        b'{"messages":[{"role":"user","content":"Hi"}],"max_tokens":5,"temperature":0.5,"seed":3,"stream":true,'
        b'"stream_options":{"include_usage":true}}'
    )
    with pytest.raises(RequestError, match="as text only"):
        DIALECT.encode(Request(prompt=(5, 6)))


def test_the_client_reads_our_stream_and_our_answer() -> None:
    deltas = read(DIALECT, rendered(asked(STREAM | USAGE)))
    assert "".join(delta.text for delta in deltas) == TEXT
    assert (last(deltas).finish_reason, last(deltas).total_tokens, last(deltas).num_prompt_tokens) == ("length", 5, 3)
    assert read(DIALECT, rendered(asked(HI)), stream=False)[0].full_text == TEXT


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    return (
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}).encode() + b"\n\n"
    )


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_text_and_counts_as_tokens(name: str) -> None:
    """A client that passes it over takes the end of the reasoning for the first token."""
    deltas = read(
        DIALECT,
        [
            chunk({"role": "assistant", "content": None, name: ""}),
            chunk({name: "Hm, ", "content": None}),
            chunk({name: None, "content": "4"}),
            chunk({}, "stop"),
        ],
    )
    assert [(delta.text, delta.num_tokens) for delta in deltas] == [("Hm, ", 1), ("4", 1), ("", 0)]
    assert last(deltas).finish_reason == "stop"


def test_reasoning_of_a_whole_answer_is_text_too() -> None:
    message = {"role": "assistant", "content": "4", "reasoning_content": "Hm, "}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": None}).encode()
    assert read(DIALECT, [body], stream=False)[0].full_text == "Hm, 4"


def test_the_role_alone_is_no_token_but_text_with_it_is() -> None:
    deltas = read(
        DIALECT, [chunk({"role": "assistant", "content": ""}), chunk({"role": "assistant", "content": "a"}, "stop")]
    )
    assert [delta.num_tokens for delta in deltas] == [1, 0]
