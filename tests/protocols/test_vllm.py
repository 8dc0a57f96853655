"""vLLM's `/generate`, and its tokenizer routes. Shapes of MindIE: ascend-formats.md, section 7.3."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbench.errors import AgentDied, PromptEmpty, RequestError
from llmbench.protocols import HttpResponse, vllm
from llmbench.types import Request, Sampling
from tests.protocols.conftest import (
    TEXT,
    Host,
    ask,
    broken_off,
    check_transcript,
    finished,
    last,
    piece,
    read,
    refused,
    rendered,
)

DIALECT = vllm.dialect()
PATH = "/generate"
CHUNKED = {"transfer-encoding": "chunked"}


def asked(**fields: Any) -> Any:
    return ask(DIALECT, PATH, {"prompt": "Hi"} | fields)


def request(**fields: Any) -> Request:
    (one,) = asked(**fields).requests
    assert isinstance(one, Request)
    return one


def posted(path: str, fields: Any) -> HttpResponse:
    return DIALECT.answer("POST", path, json.dumps(fields).encode(), Host())


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(asked(stream=True)),
    "whole": lambda: finished(asked()),
    "broken_off": lambda: broken_off(asked(stream=True), AgentDied("the agent process ended")),
    "empty": lambda: asked().refuse(PromptEmpty("the prompt has no tokens")),
    "tokenize": lambda: posted("/tokenize", {"prompt": "Hi"}),
    "detokenize": lambda: posted("/detokenize", {"tokens": [1, 75, 108]}),
    "tokenizer_info": lambda: DIALECT.answer("GET", "/tokenizer_info", b"", Host()),
    "no_prompt": lambda: posted("/tokenize", {}),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    check_transcript(f"vllm_{name}", TRANSCRIPTS[name]())


# -- the server's half ------------------------------------------------------------------------------------------------


def test_the_defaults_are_vllms() -> None:
    assert request() == Request(prompt="Hi", max_new_tokens=16, sampling=Sampling(temperature=1.0), stream=False)


def test_the_example_of_mindies_manual_is_taken() -> None:
    fields = {
        "max_tokens": 20,
        "repetition_penalty": 1.03,
        "presence_penalty": 1.2,
        "frequency_penalty": 1.2,
        "temperature": 0.5,
        "top_p": 0.95,
        "top_k": 10,
        "seed": None,
        "stream": False,
        "stop": None,
        "stop_token_ids": None,
        "model": "None",
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "ignore_eos": False,
    }
    assert request(**fields).sampling == Sampling(
        temperature=0.5,
        top_k=10,
        top_p=0.95,
        repetition_penalty=1.03,
        presence_penalty=1.2,
        frequency_penalty=1.2,
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["Hi", "Yo"]}, "prompt"),
        ({"n": 2}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"model": "some-lora"}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_a_wrong_body_is_refused_with_422(fields: dict[str, Any], field: str) -> None:
    status, body = refused(DIALECT, PATH, {"prompt": "Hi"} | fields)
    assert (status, body["error_type"]) == (422, "Input Validation Error")
    assert body["error"].startswith(f"{field}: ")


def test_bodies_with_a_prompt_and_no_inputs_are_vllms() -> None:
    assert DIALECT.wants(PATH, b'{"prompt": "b"}')
    assert not DIALECT.wants(PATH, b'{"inputs": "a", "prompt": "b"}')
    assert not DIALECT.wants(PATH, b"{}")


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        (
            "/tokenize",
            {"prompt": "Hi", "add_special_tokens": False},
            {"count": 2, "max_model_len": 1024, "tokens": [75, 108]},
        ),
        ("/tokenize", {"prompt": ""}, {"count": 1, "max_model_len": 1024, "tokens": [1]}),
        ("/detokenize", {"tokens": []}, {"prompt": ""}),
    ],
)
def test_the_tokenizer_answers(path: str, fields: Any, answer: Any) -> None:
    assert json.loads(posted(path, fields).body) == answer


@pytest.mark.parametrize("fields", [{"tokens": [2048]}, {"tokens": "5"}, {"tokens": [-1]}, []])
def test_tokens_that_are_none_are_refused(fields: Any) -> None:
    assert posted("/detokenize", fields).status == 422


# -- the client's half ------------------------------------------------------------------------------------------------


def test_the_client_asks_with_vllms_names() -> None:
    sampling = Sampling(temperature=0.5, top_k=3, ignore_eos=True, min_new_tokens=2)
    http = DIALECT.encode(Request(prompt="Hi", max_new_tokens=5, sampling=sampling, request_id="r"))
    assert (http.path, http.body) == (
        PATH,
        b'{"prompt":"Hi","stream":true,"max_tokens":5,"temperature":0.5,"top_k":3,"ignore_eos":true,"min_tokens":2}',
    )
    (parsed,) = ask(DIALECT, PATH, json.loads(http.body)).requests
    assert parsed.sampling == sampling
    with pytest.raises(RequestError, match="num_logprobs"):
        DIALECT.encode(Request(prompt="Hi", sampling=Sampling(num_logprobs=1)))


def test_the_client_reads_our_stream_and_our_answer() -> None:
    deltas = read(DIALECT, rendered(asked(stream=True)))
    assert "".join(delta.text for delta in deltas) == TEXT
    assert [delta.num_tokens for delta in deltas] == [1] * 5
    assert last(deltas).finish_reason == "length"
    whole = read(DIALECT, rendered(asked()), stream=False)
    assert (last(whole).full_text, last(whole).finish_reason) == (TEXT, "length")


@pytest.mark.parametrize(("limit", "reason"), [(2, "length"), (5, "eos"), (None, "eos")])
def test_a_stream_without_a_reason_is_whole_where_http_says_so(limit: int | None, reason: str) -> None:
    """MindIE's streams end like that."""
    body = b'{"text":["a"]}\0{"text":["b"]}\0'
    deltas = read(DIALECT, [body], headers=CHUNKED, max_new_tokens=limit)
    assert (last(deltas).finish_reason, last(deltas).error) == (reason, None)
    assert last(read(DIALECT, [body])).error == "the response ended before the answer did"


def test_an_empty_stream_is_an_error_in_any_case() -> None:
    assert last(read(DIALECT, [b""], headers=CHUNKED)).finish_reason == "error"


def test_an_error_in_a_stream_ends_it() -> None:
    body = b'{"text":["a"]}\0{"error":"out of memory","error_type":"Incomplete Generation"}\0'
    assert last(read(DIALECT, [body], headers=CHUNKED)).error == "out of memory"


@pytest.mark.parametrize("text", ["Hi a", "Hia", "a"])
def test_the_prompt_in_front_of_a_whole_answer_is_cut_off(text: str) -> None:
    body = json.dumps({"text": [text]}).encode()
    assert last(read(DIALECT, [body], stream=False)).full_text == "a"


def test_an_answer_that_ends_at_once_has_its_end() -> None:
    (deltas,) = [read(DIALECT, rendered(asked(stream=True), [piece("", 2, "eos")]))]
    assert (last(deltas).finish_reason, last(deltas).num_tokens) == ("eos", 1)
