"""The client's side of log-probabilities: what OpenAI's two routes say of tokens comes back as it was."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from llmbench.errors import RequestError
from llmbench.protocols import Dialect, openai_chat, openai_completions
from llmbench.types import Delta, Request, Sampling, TokenLogprob
from tests.protocols.conftest import STATUS

COMPLETIONS, CHAT = openai_completions.dialect(), openai_chat.dialect()
NEW = (
    TokenLogprob(token_id=7, text=" A", logprob=-0.25, top=((" A", -0.25), ("A", -2.5))),
    TokenLogprob(token_id=8, text="\n", logprob=-0.5, top=(("\n", -0.5),)),
)
PROMPT = (
    TokenLogprob(token_id=1, text="<s>", logprob=None),
    TokenLogprob(token_id=500, text=" Hi", logprob=-2.5, top=((" Yo", -0.5), (" Hi", -2.5))),
)


def without_ids(tokens: Sequence[TokenLogprob]) -> list[TokenLogprob]:
    return [msgspec.structs.replace(token, token_id=-1) for token in tokens]


def heard(dialect: Dialect, sampling: Sampling, answer: list[Delta], stream: bool) -> list[Delta]:
    """What the client reads of what the server makes of an answer to the client's own request."""
    request = Request(prompt="Hi", max_new_tokens=2, sampling=sampling, stream=stream)
    http = dialect.encode(request)
    reply = dialect.parse(http.path, http.body, {name.lower(): value for name, value in http.headers}, STATUS)
    body = b"".join(chunk for delta in answer for chunk in reply.render(delta))
    decoder = dialect.decoder(request, {name.lower(): value for name, value in reply.headers})
    return decoder.feed(body) + decoder.close()


ANSWER = [
    Delta(text=" A", token_ids=(7,), num_tokens=1, logprobs=NEW[:1]),
    Delta(text="\n", token_ids=(8,), num_tokens=1, logprobs=NEW[1:], finish_reason="length", num_prompt_tokens=2),
]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", [COMPLETIONS, CHAT], ids=lambda dialect: dialect.name)
def test_each_new_token_comes_with_its_likeliest_rivals(dialect: Dialect, stream: bool) -> None:
    read = heard(dialect, Sampling(num_logprobs=2), ANSWER, stream)
    assert [token for delta in read for token in delta.logprobs] == without_ids(NEW)


@pytest.mark.parametrize("dialect", [COMPLETIONS, CHAT], ids=lambda dialect: dialect.name)
def test_what_was_not_asked_for_is_not_there(dialect: Dialect) -> None:
    assert all(delta.logprobs == () for delta in heard(dialect, Sampling(), ANSWER, stream=False))


def test_an_echoed_prompt_is_told_apart_from_the_answer() -> None:
    answer = [msgspec.structs.replace(ANSWER[0], prompt=PROMPT), ANSWER[1]]
    read = heard(COMPLETIONS, Sampling(prompt_logprobs=2), answer, stream=False)
    assert [token for delta in read for token in delta.prompt] == without_ids(PROMPT)
    assert [token for delta in read for token in delta.logprobs] == without_ids(NEW)
    assert [delta.full_text for delta in read if delta.full_text is not None] == [" A\n"]


def test_a_stream_cannot_ask_for_the_prompts_scores() -> None:
    with pytest.raises(RequestError, match="not with a stream"):
        COMPLETIONS.encode(Request(prompt="Hi", sampling=Sampling(prompt_logprobs=0)))
    with pytest.raises(RequestError, match="cannot ask for prompt_logprobs"):
        CHAT.encode(Request(prompt="Hi", sampling=Sampling(prompt_logprobs=0), stream=False))


@pytest.mark.parametrize(
    "logprobs",
    [
        {"tokens": ["a"], "token_logprobs": []},
        {"tokens": ["a"], "token_logprobs": ["x"]},
        {"tokens": [3], "token_logprobs": [-1.0]},
        {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": None}]},
    ],
)
def test_log_probabilities_that_are_none_are_an_error_and_not_an_answer(logprobs: dict[str, Any]) -> None:
    request = Request(prompt="Hi", sampling=Sampling(num_logprobs=1), stream=False)
    decoder = COMPLETIONS.decoder(request, {"content-type": "application/json"})
    decoder.feed(msgspec.json.encode({"choices": [{"text": "a", "finish_reason": "stop", "logprobs": logprobs}]}))
    (delta,) = decoder.close()
    assert delta.finish_reason == "error"
    assert "not an event of this dialect" in (delta.error or "")


def test_an_echo_without_usage_is_an_error() -> None:
    request = Request(prompt="Hi", sampling=Sampling(prompt_logprobs=0), stream=False)
    decoder = COMPLETIONS.decoder(request, {"content-type": "application/json"})
    logprobs = {"tokens": ["Hi"], "token_logprobs": [None]}
    decoder.feed(msgspec.json.encode({"choices": [{"text": "Hi", "finish_reason": "stop", "logprobs": logprobs}]}))
    assert decoder.close()[0].finish_reason == "error"
