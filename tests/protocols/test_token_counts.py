"""How many tokens a piece of a stream is, told or assumed, of reasoning or of the answer; how a server can tell."""

import json
from typing import Any

import msgspec
import pytest

from llmbench import protocols
from llmbench.errors import InputError
from llmbench.types import Delta, Request

REQUEST = Request(prompt="p", max_new_tokens=9)
STREAM = {"content-type": "text/event-stream"}


def read(dialect: str, *events: dict[str, Any]) -> list[Delta]:
    """The pieces of a stream of these events."""
    decoder = protocols.get(dialect).decoder(REQUEST, STREAM)
    return [delta for event in events for delta in decoder.feed(b"data: " + json.dumps(event).encode() + b"\n\n")]


def chat(**delta: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def completion(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, **more}]}


def test_a_chunk_of_which_nobody_says_how_many_tokens_it_is_counts_as_one_and_says_so() -> None:
    found = read("openai_chat", chat(role="assistant", content=""), chat(content="a"), chat(content=" b c"))
    assert [(delta.num_tokens, delta.assumed) for delta in found] == [(1, True), (1, True)]


@pytest.mark.parametrize(
    "event",
    [
        completion("a b", token_ids=[7, 8]),
        completion("a b", logprobs={"tokens": ["a", " b"]}),
        {**completion("a b"), "usage": {"completion_tokens": 2}},
    ],
)
def test_ids_log_probabilities_and_running_usage_tell_how_many_tokens_a_chunk_is(event: dict[str, Any]) -> None:
    (found,) = read("openai_completions", event)
    assert (found.num_tokens, found.assumed) == (2, False)


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_is_tokens_and_is_told_from_the_answer(name: str) -> None:
    both = {name: "so", "content": "Yes"}
    found = read("openai_chat", chat(**{name: "hm"}), chat(**both), chat(content="."))
    assert [(delta.text, delta.num_tokens, delta.reasoning) for delta in found] == [
        ("hm", 1, True),
        ("soYes", 1, False),
        (".", 1, False),
    ]


def test_triton_tells_its_tokens_in_details_alone() -> None:
    found = read("triton", {"text_output": "a"}, {"text_output": "b c", "details": {"generated_tokens": 3}})
    assert [(delta.num_tokens, delta.assumed) for delta in found] == [(1, True), (2, False)]


@pytest.mark.parametrize("dialect", ["openai_chat", "openai_completions"])
def test_the_client_asks_for_what_its_options_say(dialect: str) -> None:
    asked = protocols.get(dialect, continuous_usage=True, token_ids=True, model="m").encode(REQUEST)
    body = msgspec.json.decode(asked.body)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert (body["return_token_ids"], body["model"]) == (True, "m")
    plain = msgspec.json.decode(protocols.get(dialect).encode(REQUEST).body)
    assert plain["stream_options"] == {"include_usage": True}
    assert "return_token_ids" not in plain


@pytest.mark.parametrize(
    ("dialect", "text", "found"),
    [
        ("openai_chat", "continuous_usage=true", ("continuous_usage", True)),
        ("openai_chat", "model=a=b", ("model", "a=b")),
        ("contest", "data_shape=object", ("data_shape", "object")),
    ],
)
def test_an_option_is_read_as_its_dialect_has_it(dialect: str, text: str, found: tuple[str, object]) -> None:
    assert protocols.option_value(dialect, text) == found


@pytest.mark.parametrize(
    ("dialect", "text", "message"),
    [
        ("openai_chat", "continous_usage=true", "Did you mean 'continuous_usage'"),
        ("openai_chat", "continuous_usage=yes", "must be true or false"),
        ("openai_chat", "continuous_usage", "KEY=VALUE"),
        ("vllm", "model=x", "Known: none"),
        ("mindie", "clock=1", "Known: none"),
    ],
)
def test_a_wrong_option_is_refused_with_those_that_there_are(dialect: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        protocols.option_value(dialect, text)


def test_an_option_that_a_dialect_does_not_have_is_wrong_input() -> None:
    with pytest.raises(InputError, match=r"dialect tgi: unknown option 'data_shape'.*Known: flavour"):
        protocols.get("tgi", data_shape="list")
