"""OpenAI's completions with vLLM's extras; laid out as openai's client and lm-eval read them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from llmbench.errors import AgentDied, LlmbenchError, Overloaded, PromptEmpty, PromptTooLong, RequestError
from llmbench.protocols import HttpResponse, openai_completions
from llmbench.protocols._openai import Stamp
from llmbench.types import Delta, Request, Sampling
from tests.protocols.conftest import (
    ANSWER,
    SCORED,
    TEXT,
    Host,
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

PATH = "/v1/completions"
DIALECT = openai_completions.dialect(stamp=Stamp(wall=lambda: 1_700_000_000.5, new_id=lambda: "0123"))
STREAM = {"prompt": "Hi", "stream": True}
USAGE = {"stream_options": {"include_usage": True}}


def asked(fields: dict[str, Any], **headers: str) -> Any:
    return ask(DIALECT, PATH, fields, **headers)


def request(**fields: Any) -> Request:
    (one,) = asked({"prompt": "Hi"} | fields).requests
    assert isinstance(one, Request)
    return one


TRANSCRIPTS: dict[str, Callable[[], HttpResponse]] = {
    "stream": lambda: finished(asked(STREAM)),
    "stream_usage": lambda: finished(asked(STREAM | USAGE, x_request_id="r-1")),
    "stream_echo_logprobs": lambda: finished(asked(STREAM | {"echo": True, "logprobs": 1}), SCORED),
    "whole": lambda: finished(asked({"prompt": "Hi"})),
    "whole_echo_logprobs": lambda: finished(asked({"prompt": "Hi", "echo": True, "logprobs": 1}), SCORED),
    "broken_off": lambda: broken_off(asked(STREAM), AgentDied("the agent process ended")),
    "too_long": lambda: asked(STREAM).refuse(PromptTooLong("1000 and 300")),
    "overloaded": lambda: asked(STREAM).refuse(Overloaded("100 requests are waiting", retry_after_s=2.3)),
    "models": lambda: DIALECT.answer("GET", "/v1/models", b"", Host()),
    "model": lambda: DIALECT.answer("GET", "/v1/models/tiny", b"", Host()),
    "no_model": lambda: DIALECT.answer("GET", "/v1/models/large", b"", Host()),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_the_bytes_are_those_of_the_golden_transcript(name: str) -> None:
    check_transcript(f"openai_completions_{name}", TRANSCRIPTS[name]())


# -- the server's half ------------------------------------------------------------------------------------------------


def test_the_list_of_models_says_what_of_one_is_of_8_bits() -> None:
    answer = DIALECT.answer("GET", "/v1/models", b"", Host(quantisation="w8a8+kv8"))
    assert answer is not None
    assert json.loads(answer.body)["data"][0]["quantization"] == "w8a8+kv8"


def test_the_defaults_are_openais() -> None:
    assert request() == Request(
        prompt="Hi", max_new_tokens=16, sampling=Sampling(temperature=1.0), stream=False, joined=True
    )


def test_every_setting_reaches_the_request() -> None:
    fields = {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 7,
        "seed": -2,
        "repetition_penalty": 1.5,
        "presence_penalty": -1,
        "frequency_penalty": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [5, 6],
        "include_stop_str_in_output": True,
        "ignore_eos": True,
        "min_tokens": 3,
        "logprobs": 4,
    }
    expected = Sampling(
        temperature=0.5,
        top_p=0.25,
        top_k=7,
        seed=2**64 - 2,
        repetition_penalty=1.5,
        presence_penalty=-1.0,
        frequency_penalty=2.0,
        stop=("a", "b"),
        stop_token_ids=(5, 6),
        include_stop=True,
        ignore_eos=True,
        min_new_tokens=3,
        num_logprobs=4,
    )
    assert (request(**fields).sampling, request(**fields).max_new_tokens) == (expected, 9)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Hi", ["Hi"]),
        ([5, 6], [(5, 6)]),
        (["Hi", "Yo"], ["Hi", "Yo"]),
        ([[5], [6, 7]], [(5,), (6, 7)]),
        (["Hi", [5]], ["Hi", (5,)]),
    ],
)
def test_a_prompt_is_text_or_ids_or_a_list_of_either(prompt: Any, prompts: list[Any]) -> None:
    assert [one.prompt for one in asked({"prompt": prompt}).requests] == prompts


def test_several_prompts_have_ids_of_their_own() -> None:
    requests = asked({"prompt": ["a", "b"]}, x_request_id="r").requests
    assert [one.request_id for one in requests] == ["r-0", "r-1"]
    assert [one.request_id for one in asked({"prompt": ["a", "b"]}).requests] == ["", ""]


@pytest.mark.parametrize(
    ("fields", "scored"),
    [({}, None), ({"logprobs": 2}, 2), ({"prompt": [5]}, 0), ({"prompt": [5], "logprobs": 3}, 3)],
)
def test_an_echo_scores_the_prompt_only_where_it_must(fields: dict[str, Any], scored: int | None) -> None:
    assert request(echo=True, **fields).sampling.prompt_logprobs == scored
    assert request(**fields).sampling.prompt_logprobs is None


def test_a_prompt_can_be_scored_alone() -> None:
    assert request(echo=True, max_tokens=0).max_new_tokens == 0
    reply = asked({"prompt": "Hi", "echo": True, "max_tokens": 0, "logprobs": 1})
    (body,) = reply.render(Delta(prompt=SCORED[0].prompt, logprobs=SCORED[0].logprobs, finish_reason="length"))
    (choice,) = json.loads(body)["choices"]
    assert choice["logprobs"]["token_logprobs"] == [None, -2.5]
    assert choice["text"] == "Hi"


def test_the_echo_of_ids_is_their_texts() -> None:
    (body,) = rendered(asked({"prompt": [1, 500], "echo": True}), SCORED)
    assert json.loads(body)["choices"][0]["text"] == "<s> Hiab"


def test_the_logprobs_are_what_lm_eval_sums() -> None:
    """Its parser takes `token_logprobs[ctxlen:-1]`, and greedy for a score that is the top's best."""
    (body,) = rendered(asked({"prompt": "Hi", "echo": True, "logprobs": 1}), SCORED)
    logprobs = json.loads(body)["choices"][0]["logprobs"]
    assert logprobs == {
        "text_offset": [0, 3, 6, 7],
        "token_logprobs": [None, -2.5, -0.25, -9999.0],  # JSON has no minus infinity
        "tokens": ["<s>", " Hi", "a", "b"],
        "top_logprobs": [None, {" Yo": -0.5, " Hi": -2.5}, {"a": -0.25, "b": -1.5}, {"c": -0.125, "b": -9999.0}],
    }


def test_a_stream_carries_the_logprobs_of_each_piece_at_its_offset() -> None:
    chunks = list(event_values(rendered(asked(STREAM | {"logprobs": 1}), SCORED)))
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks[:-1]]
    assert [one["tokens"] for one in logprobs] == [["a"], ["b"]]
    assert [one["text_offset"] for one in logprobs] == [[0], [1]]


def test_several_choices_end_with_one_usage() -> None:
    reply = asked({"prompt": ["a", "b"]} | {"stream": True} | USAGE)
    chunks = [*reply.render(piece("x", 5), 1), *reply.render(piece("y", 6, "eos"), 1)]
    assert not any(b"[DONE]" in chunk for chunk in chunks)
    chunks += reply.render(piece("z", 7, "length"), 0)
    *pieces, usage, done = event_values(chunks)
    choices = [chunk["choices"][0] for chunk in pieces]
    assert [(one["index"], one["text"], one["finish_reason"]) for one in choices] == [
        (1, "x", None),
        (1, "y", "stop"),
        (0, "z", "length"),
    ]
    assert (usage["choices"], done) == ([], "[DONE]")
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (6, 3)


def test_a_whole_answer_waits_for_the_last_choice() -> None:
    reply = asked({"prompt": ["a", "b"]})
    assert reply.render(piece("x", 5, "length"), 1) == []
    (body,) = reply.render(piece("y", 6, "stop", stop_reason="!"), 0)
    choices = json.loads(body)["choices"]
    assert [(one["index"], one["text"], one["stop_reason"]) for one in choices] == [(0, "y", "!"), (1, "x", None)]


def test_continuous_usage_counts_in_every_chunk() -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    *chunks, done = event_values(rendered(asked(STREAM | options)))
    assert done == "[DONE]"
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [2048]}, "prompt"),
        ({"prompt": [[5], [True]]}, "prompt"),
        ({"prompt": {"text": "Hi"}}, "prompt"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    status, body = refused(DIALECT, PATH, {"prompt": "Hi"} | fields)
    assert status == 400
    assert (body["error"]["type"], body["error"]["param"]) == ("invalid_request_error", param)
    assert body["error"]["message"].startswith(f"{param}: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "best_of": 1, "suffix": "", "logit_bias": {}, "skip_special_tokens": True, "min_p": 0.0},
        {"model": "tiny", "user": "somebody", "max_token": 5},
        {"model": None, "stream": None, "stop": None, "seed": None},
        {"top_k": -1, "stop": [""]},
    ],
)
def test_what_asks_for_nothing_is_taken(fields: dict[str, Any]) -> None:
    assert request(**fields) == request()


def test_another_model_is_not_found() -> None:
    status, body = refused(DIALECT, PATH, {"prompt": "Hi", "model": "gpt"})
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (PromptEmpty("nothing"), 400, "invalid_request_error"),
        (PromptTooLong("much"), 400, "invalid_request_error"),
        (Overloaded("full"), 503, "server_error"),
        (AgentDied("gone"), 500, "server_error"),
    ],
)
def test_errors_keep_their_status(error: LlmbenchError, status: int, kind: str) -> None:
    response = asked(STREAM).refuse(error)
    assert (response.status, json.loads(response.body)["error"]["type"]) == (status, kind)
    assert dict(response.headers).get("Retry-After") == ("1" if status == 503 else None)


# -- the client's half ------------------------------------------------------------------------------------------------


def test_the_client_asks_as_openais_does() -> None:
    http = openai_completions.dialect(model="m").encode(Request(prompt="Hi", max_new_tokens=5, request_id="r-1"))
    assert (http.method, http.path) == ("POST", PATH)
    assert http.headers == (("Content-Type", "application/json"), ("X-Request-Id", "r-1"))
    assert http.body == (
        b'{"model":"m","prompt":"Hi","max_tokens":5,"temperature":0.0,"stream":true,'
        b'"stream_options":{"include_usage":true}}'
    )


def test_the_client_sends_ids_as_they_are_and_counts_in_every_chunk_if_wished() -> None:
    http = openai_completions.dialect(continuous_usage=True).encode(Request(prompt=(5, 6)))
    fields = json.loads(http.body)
    assert fields["prompt"] == [5, 6]
    assert fields["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}


def test_every_setting_survives_the_way_to_the_server() -> None:
    sampling = Sampling(
        temperature=0.5,
        top_k=3,
        top_p=0.5,
        seed=5,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        stop=("a",),
        stop_token_ids=(7,),
        include_stop=True,
        ignore_eos=True,
        min_new_tokens=2,
        num_logprobs=3,
    )
    http = DIALECT.encode(Request(prompt="Hi", max_new_tokens=5, sampling=sampling))
    (parsed,) = asked(json.loads(http.body)).requests
    assert parsed.sampling == sampling


def test_the_client_does_not_ask_for_what_it_cannot_read() -> None:
    with pytest.raises(RequestError, match="prompt_logprobs"):
        DIALECT.encode(Request(prompt="Hi", sampling=Sampling(prompt_logprobs=1)))


@pytest.mark.parametrize("options", [{}, USAGE])
def test_the_client_reads_our_stream(options: dict[str, Any]) -> None:
    deltas = read(DIALECT, rendered(asked(STREAM | options)))
    assert "".join(delta.text for delta in deltas) == TEXT
    assert last(deltas).finish_reason == "length"
    assert (last(deltas).total_tokens, last(deltas).num_prompt_tokens) == ((5, 3) if options else (None, None))
    assert sum(delta.num_tokens for delta in deltas) == 4  # the one without text cannot be seen


def test_with_continuous_usage_no_token_is_missed() -> None:
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    deltas = read(DIALECT, rendered(asked(STREAM | options)))
    assert [delta.num_tokens for delta in deltas] == [1, 1, 1, 1, 1, 0]


def chunk(choice: dict[str, Any] | None = None, **more: Any) -> bytes:
    choices = [] if choice is None else [{"index": 0, "text": "", "finish_reason": None} | choice]
    return b"data: " + json.dumps({"choices": choices} | more).encode() + b"\n\n"


FIRST, SECOND = chunk({"text": "a"}), chunk({"text": "b"})
ENDED = chunk({"finish_reason": "stop"})
TOTAL = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("parts", "tokens", "reason", "total"),
    [
        ([FIRST, SECOND, ENDED, DONE], [1, 1, 0], "stop", None),
        ([FIRST, SECOND, ENDED], [1, 1, 0], "stop", None),  # no [DONE]
        ([FIRST, SECOND, DONE], [1, 1, 0], "stop", None),  # no reason
        ([chunk(), FIRST, ENDED, DONE], [1, 0], "stop", None),  # Azure begins with a chunk without choices
        ([chunk({}), FIRST, ENDED, DONE], [1, 0], "stop", None),  # an empty first piece is no token
        ([FIRST, chunk({"text": "b", "finish_reason": "length"}), chunk(usage=TOTAL), DONE], [1, 1, 0], "length", 4),
        ([FIRST, chunk({"text": "b", "finish_reason": "stop"}, usage=TOTAL), DONE], [1, 1, 0], "stop", 4),  # MindIE
        ([chunk({"text": "abc", "token_ids": [5, 6, 7]}), ENDED, DONE], [3, 0], "stop", None),  # speculative decoding
        ([chunk({"text": "ab", "logprobs": {"tokens": ["a", "b"]}}), ENDED, DONE], [2, 0], "stop", None),
        (
            [chunk({"text": "ab"}, usage={"completion_tokens": 3}), chunk({"finish_reason": "stop"}, usage=TOTAL)],
            [3, 1, 0],
            "stop",
            4,
        ),
        ([FIRST, chunk({"index": 1, "text": "x"}), ENDED, DONE], [1, 0], "stop", None),
        ([FIRST.replace(b": ", b":", 1).replace(b"\n", b"\r\n"), b": ping\n\n", ENDED, DONE], [1, 0], "stop", None),
    ],
)  # fmt: skip
def test_streams_of_other_servers_are_read(
    parts: list[bytes], tokens: list[int], reason: str, total: int | None
) -> None:
    deltas = read(DIALECT, parts)
    assert [delta.num_tokens for delta in deltas] == tokens
    assert (last(deltas).finish_reason, last(deltas).total_tokens) == (reason, total)
    body = b"".join(parts)
    assert read(DIALECT, [bytes([byte]) for byte in body]) == deltas


def test_ids_come_with_the_piece_that_has_them() -> None:
    deltas = read(DIALECT, [chunk({"text": "ab", "token_ids": [5, 6]}), ENDED])
    assert deltas[0].token_ids == (5, 6)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_wants_ids_is_told_them(stream: bool) -> None:
    fields = json.loads(openai_completions.dialect(token_ids=True).encode(Request(prompt="Hi", stream=stream)).body)
    deltas = read(DIALECT, rendered(asked(fields)), stream=stream)
    assert [token for delta in deltas for token in delta.token_ids] == [700, 701, 702, 703, 704]


def test_an_error_in_a_stream_ends_it() -> None:
    error = b'data: {"error": {"message": "out of memory", "type": "InternalServerError", "code": 500}}\n\n'
    deltas = read(DIALECT, [FIRST, error, DONE])
    assert (deltas[0].text, last(deltas).error) == ("a", "out of memory")


def test_a_whole_answer_has_its_totals_and_no_instants() -> None:
    deltas = read(DIALECT, rendered(asked({"prompt": "Hi"})), stream=False)
    assert (deltas[0].full_text, last(deltas).finish_reason, last(deltas).total_tokens) == (TEXT, "length", 5)
    assert sum(delta.num_tokens for delta in deltas) == 0


def test_a_server_that_does_not_stream_is_seen_by_its_type() -> None:
    body = b"".join(rendered(asked({"prompt": "Hi"}), ANSWER))
    deltas = read(DIALECT, [body], headers={"content-type": "application/json"})
    assert deltas[0].full_text == TEXT
