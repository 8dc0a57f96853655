"""A server behind HTTP as an Answerer: texts, next tokens, scored prompts, and what was not answered."""

import json
import socket
from collections.abc import Callable

import pytest

from llmbench import protocols
from llmbench.errors import RequestError
from llmbench.evals import Ask, Reply
from llmbench.exam.http import HttpAnswerer, served
from llmbench.loadgen.client import Target, Timeouts, locate
from tests.loadgen.conftest import Script, Step, ToyServer, serve

__all__ = ["serve"]

Serve = Callable[[Script], ToyServer]


def response(value: object, status: str = "200 OK") -> list[Step]:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return [head.encode() + body]


def completion(text: str, **more: object) -> list[Step]:
    choice = {"index": 0, "text": text, "finish_reason": "length", **more}
    return response({"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 1}})


def asked(server: ToyServer, asks: list[Ask], concurrency: int = 4) -> dict[int, Reply]:
    replies: dict[int, Reply] = {}
    dialect = protocols.get("openai_completions")
    HttpAnswerer(locate(server.url), dialect, concurrency, Timeouts(total_s=10)).answer(asks, replies.__setitem__)
    return replies


def test_every_ask_gets_its_own_reply_at_any_concurrency(serve: Serve) -> None:
    server = serve(lambda _, body: [0.01, *completion(json.loads(body)["prompt"].upper())])
    replies = asked(server, [Ask(prompt=f"a{n}", max_new_tokens=3) for n in range(20)])
    assert replies == {n: Reply(text=f"A{n}") for n in range(20)}
    assert 2 <= server.most_at_once <= 4
    fields = json.loads(server.bodies[0])
    assert (fields["max_tokens"], fields["temperature"], fields["stream"]) == (3, 0.0, False)


def test_the_next_tokens_are_the_likeliest_of_the_first_place(serve: Serve) -> None:
    logprobs = {
        "tokens": [" B"], "token_logprobs": [-0.5], "top_logprobs": [{" A": -1.0, "A": -3.0}], "text_offset": [0],
    }  # fmt: skip
    server = serve(lambda _, __: completion(" B", logprobs=logprobs))
    replies = asked(server, [Ask(prompt="x", want="next")])
    assert replies[0].top == {" A": -1.0, "A": -3.0, " B": -0.5}
    assert json.loads(server.bodies[0])["logprobs"] == 20


def test_a_scored_prompt_is_its_tokens_without_the_new_one(serve: Serve) -> None:
    logprobs = {"tokens": ["Hi", " yo", "x"], "token_logprobs": [None, -2.0, -3.0], "top_logprobs": [None, {}, {}]}
    server = serve(lambda _, __: completion("Hi yox", logprobs=logprobs))
    replies = asked(server, [Ask(prompt="Hi yo", want="prompt")])
    assert replies[0].tokens == (("Hi", None), (" yo", -2.0))
    fields = json.loads(server.bodies[0])
    assert (fields["echo"], fields["max_tokens"], fields["logprobs"]) == (True, 1, 1)


def test_what_a_server_refuses_is_an_error_with_its_words(serve: Serve) -> None:
    server = serve(
        lambda n, _: response({"error": {"message": "too long"}}, "400 Bad Request") if n else completion("a")
    )
    replies = asked(server, [Ask(prompt="a"), Ask(prompt="b")], concurrency=1)
    assert replies[0] == Reply(text="a")
    assert replies[1].error.startswith("HTTP 400:")
    assert "too long" in replies[1].error


NOWHERE = Target(url="http://x", authority="x", prefix="", family=socket.AF_INET, host="127.0.0.1", port=9)


def test_a_dialect_that_cannot_ask_for_it_says_so_before_anything_is_sent() -> None:
    answerer = HttpAnswerer(NOWHERE, protocols.get("tgi"), 1, Timeouts())
    with pytest.raises(RequestError, match="num_logprobs"):
        answerer.answer([Ask(prompt="a", want="next")], lambda _, __: None)


def test_nothing_to_ask_is_no_request() -> None:
    HttpAnswerer(NOWHERE, protocols.get("tgi"), 1, Timeouts()).answer([], lambda _, __: None)


def test_a_server_that_is_not_there_is_an_error_of_every_ask() -> None:
    replies: dict[int, Reply] = {}
    answerer = HttpAnswerer(NOWHERE, protocols.get("tgi"), 1, Timeouts())
    answerer.answer([Ask(prompt="a"), Ask(prompt="b")], replies.__setitem__)
    assert all(replies[n].error.startswith("connect: ") for n in (0, 1))


def test_a_server_that_does_not_say_what_it_serves_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert served(locate(f"http://127.0.0.1:{server.getsockname()[1]}"), timeout_s=0.2) == []
