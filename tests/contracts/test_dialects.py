"""What every HTTP dialect promises; a new file in the room is tested the moment it exists."""

import json
import re
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmbench import plugins, protocols
from llmbench.errors import AgentDied, InputError, LlmbenchError, Overloaded, PromptEmpty, PromptTooLong, ServingError
from llmbench.protocols import Dialect, HttpResponse, Reply, Status
from llmbench.types import Delta, FinishReason, Request, Sampling

NAMES = plugins.names("protocols")
STATUS = Status(
    model_name="tiny",
    model_dtype="float32",
    vocab_size=2048,
    max_model_len=2048,
    max_batch=8,
    max_tokens_per_step=512,
    max_waiting=100,
    num_running=1,
    num_waiting=0,
    num_blocks=64,
    num_free_blocks=60,
    block_size=16,
    ready=True,
)
TEXTS = ("Héllo", " wörld", "", " 世界 👩‍🚀", '\n"quoted" \\ \t', "\u2028\x85 data: {", "[DONE]", "")
ERRORS = (PromptTooLong("long"), PromptEmpty("empty"), Overloaded("busy"), AgentDied("gone"), ServingError("broken"))


class Host:
    """A server that answers a dialect's questions with STATUS."""

    def status(self) -> Status:
        return STATUS

    def tokenize(self, text: str) -> list[int]:
        return [1, *text.encode()]

    def detokenize(self, ids: list[int]) -> str:
        return bytes(token_id % 256 for token_id in ids).decode("latin-1")


@pytest.fixture(scope="module", params=NAMES)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return protocols.get(request.param)


def sent(dialect: Dialect, request: Request) -> Reply:
    """What the server makes of the client's bytes."""
    http = dialect.encode(request)
    headers = {name.lower(): value for name, value in http.headers}
    return dialect.parse(http.path, http.body, headers, STATUS)


def deltas(reason: FinishReason = "length") -> list[Delta]:
    last = len(TEXTS) - 1
    return [
        Delta(text=text, token_ids=(i + 5,), logits=(1.5,), num_tokens=1, finish_reason=reason if i == last else None)
        for i, text in enumerate(TEXTS)
    ]


def rendered(dialect: Dialect, stream: bool, reason: FinishReason = "length") -> tuple[Request, Reply, bytes]:
    request = Request(prompt="Hi", max_new_tokens=len(TEXTS), stream=stream, request_id="r1")
    reply = sent(dialect, request)
    return request, reply, b"".join(chunk for delta in deltas(reason) for chunk in reply.render(delta))


def decoded(dialect: Dialect, request: Request, reply: Reply, parts: list[bytes]) -> list[Delta]:
    headers = {name.lower(): value for name, value in reply.headers}
    decoder = dialect.decoder(request, headers)
    return [delta for part in parts for delta in decoder.feed(part)] + decoder.close()


def said(read: list[Delta]) -> tuple[str, FinishReason | None]:
    """The text and the reason that a client takes from what it read."""
    whole = [delta.full_text for delta in read if delta.full_text is not None]
    text = whole[-1] if whole else "".join(delta.text for delta in read)
    reasons = [delta.finish_reason for delta in read if delta.finish_reason is not None]
    return text, reasons[0] if reasons else None


def matches(path: str, route: str) -> bool:
    pattern = "".join(part if i % 2 == 0 else "[^/]+" for i, part in enumerate(re.split(r"\{(\w+)\}", route)))
    return re.fullmatch(pattern, path) is not None


def test_a_dialect_bears_the_name_of_its_file(dialect: Dialect) -> None:
    assert dialect.name in NAMES
    assert protocols.get(dialect.name).name == dialect.name


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["Hi", 'líne\n"two" 世界 \u2028 👩‍🚀', " "])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.75, top_k=5, top_p=0.5)])
def test_what_the_client_encodes_the_server_parses_to_the_same(
    dialect: Dialect, stream: bool, prompt: str, sampling: Sampling
) -> None:
    asked = Request(prompt=prompt, max_new_tokens=7, sampling=sampling, stream=stream, request_id="r-1")
    http = dialect.encode(asked)
    assert any(matches(http.path, route) for route in dialect.posts)
    json.loads(http.body)
    reply = sent(dialect, asked)
    (parsed,) = reply.requests
    assert reply.stream is stream
    assert (parsed.max_new_tokens, parsed.request_id) == (7, "r-1")
    assert isinstance(parsed.prompt, str)
    assert prompt in parsed.prompt  # a chat dialect puts it into a template
    assert parsed.sampling.greedy is sampling.greedy
    if not sampling.greedy:
        assert parsed.sampling.temperature == sampling.temperature


def test_a_dialect_wants_the_bodies_of_its_own_client(dialect: Dialect) -> None:
    for stream in (True, False):
        http = dialect.encode(Request(prompt="Hi", max_new_tokens=7, stream=stream))
        assert dialect.wants(http.path, http.body)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("reason", ["eos", "length"])
def test_what_the_server_renders_the_client_reads(
    dialect: Dialect, stream: bool, reason: Literal["eos", "length"]
) -> None:
    request, reply, data = rendered(dialect, stream, reason)
    text, finish = said(decoded(dialect, request, reply, [data]))
    assert text == "".join(TEXTS)
    assert finish in (reason, "stop")  # some dialects do not tell eos from a stop text
    assert finish != "stop" or reason == "eos"


@pytest.mark.parametrize("stream", [True, False])
def test_any_cut_of_the_bytes_gives_the_same_pieces(dialect: Dialect, stream: bool) -> None:
    """Also inside a character, an escape, a line end."""
    request, reply, data = rendered(dialect, stream)
    whole = decoded(dialect, request, reply, [data])
    for i in range(len(data)):
        assert decoded(dialect, request, reply, [data[:i], data[i:]]) == whole, data[:i]
    assert decoded(dialect, request, reply, [bytes([byte]) for byte in data]) == whole


def test_a_stream_gives_each_token_its_own_stamp(dialect: Dialect) -> None:
    """The tokens of the pieces add up, and each chunk that the server writes brings its piece at once."""
    request = Request(prompt="Hi", max_new_tokens=len(TEXTS))
    reply = sent(dialect, request)
    decoder = dialect.decoder(request, {name.lower(): value for name, value in reply.headers})
    for delta in deltas()[:4]:
        read = [piece for chunk in reply.render(delta) for piece in decoder.feed(chunk)]
        assert "".join(piece.text for piece in read) == delta.text


@pytest.mark.parametrize("stream", [True, False])
def test_a_response_that_was_cut_off_is_never_taken_for_a_whole_one(dialect: Dialect, stream: bool) -> None:
    request, reply, data = rendered(dialect, stream)
    whole = said(decoded(dialect, request, reply, [data]))
    for i in range(len(data)):
        text, reason = said(decoded(dialect, request, reply, [data[:i]]))
        assert reason == "error" or (text, reason) == whole, data[:i]


@pytest.mark.parametrize("garbage", [b"data: {\n\n", b"data: nonsense\n\n", b"data: 5\n\n", b"data: \xff\xfe\n\n"])
def test_a_malformed_event_is_an_error_and_no_exception(dialect: Dialect, garbage: bytes) -> None:
    request = Request(prompt="Hi", max_new_tokens=len(TEXTS))
    reply = sent(dialect, request)
    first = b"".join(reply.render(deltas()[0]))
    text, reason = said(decoded(dialect, request, reply, [first, garbage]))
    assert (text, reason) == (TEXTS[0], "error")


@pytest.mark.parametrize("stream", [True, False])
@given(data=st.binary(max_size=200))
@example(data=b"[DONE]")
@example(data=b"data: [DONE]\n\n")
@example(data=b"null")
def test_random_bytes_for_a_response_are_an_error_and_no_exception(dialect: Dialect, stream: bool, data: bytes) -> None:
    request = Request(prompt="Hi", max_new_tokens=7, stream=stream)
    reply = sent(dialect, request)
    assert said(decoded(dialect, request, reply, [data]))[1] == "error"


# What the responses of the known dialects are made of.
SAID = (
    "data", "choices", "text", "index", "finish_reason", "usage", "completion_tokens", "prompt_tokens", "token_ids",
    "delta", "message", "content", "role", "generated_text", "generated_tokens", "tokens", "token", "id", "logprob",
    "logprobs", "special", "details", "text_output", "error", "object", "prefill", "token_logprobs",
)  # fmt: skip
RESPONSES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 5), st.floats(), st.sampled_from(["", "eos", "stop", "a"])),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(SAID), inner, max_size=6),
    max_leaves=12,
)


@pytest.mark.parametrize("stream", [True, False])
@given(values=st.lists(RESPONSES, max_size=3))
@example(values=[{"text": [None]}])
@example(values=[{"choices": [{"text": 5}]}])
@example(values=[{"choices": [{"delta": {"content": 5}, "message": {"content": 5}}]}])
@example(values=[{"choices": [{"text": "a", "finish_reason": "stop"}], "usage": {"completion_tokens": "5"}}])
@example(values=[{"text_output": 5, "details": {"finish_reason": "eos"}}])
@example(values=[{"text_output": "a", "details": {"generated_tokens": "5", "finish_reason": "eos"}}])
@example(values=[{"token": {"id": 5, "text": 5, "special": False}}])
@example(values=[{"generated_text": 5, "token": {"id": 5, "text": "a"}, "details": {"finish_reason": "eos"}}])
def test_whatever_a_server_says_the_pieces_are_what_the_client_can_add_up(
    dialect: Dialect, stream: bool, values: list[Any]
) -> None:
    """Text is text and numbers of tokens are numbers, or the piece is an error; and it always ends."""
    request = Request(prompt="Hi", max_new_tokens=7, stream=stream)
    reply = sent(dialect, request)
    bodies = [json.dumps(value).encode() for value in values]
    for framed in (b"".join(b"data: %s\n\n" % each for each in bodies), b"\n".join(bodies), b"\0".join(bodies)):
        read = decoded(dialect, request, reply, [framed])
        assert said(read)[1] is not None
        for delta in read:
            assert type(delta.text) is str
            assert type(delta.num_tokens) is int
            assert delta.num_tokens >= 0
            assert all(type(token_id) is int for token_id in delta.token_ids)
            for text in (delta.full_text, delta.error):
                assert text is None or type(text) is str
            for number in (delta.total_tokens, delta.num_prompt_tokens, delta.num_cached_tokens):
                assert number is None or type(number) is int


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_before_the_first_piece_is_answered(dialect: Dialect, stream: bool, error: LlmbenchError) -> None:
    """With a status that says so; or with 200, and then the dialect's own client reads it as a failure."""
    request = Request(prompt="Hi", max_new_tokens=7, stream=stream)
    reply = sent(dialect, request)
    response = reply.refuse(error)
    assert response.body
    if response.status != 200:
        assert response.status == error.http_status
    else:
        assert said(decoded(dialect, request, reply, [response.body]))[1] == "error"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_in_the_middle_of_a_stream_reaches_the_client(dialect: Dialect, error: LlmbenchError) -> None:
    request = Request(prompt="Hi", max_new_tokens=7)
    reply = sent(dialect, request)
    data = b"".join([*reply.render(deltas()[0]), *reply.abort(error)])
    assert said(decoded(dialect, request, reply, [data])) == (TEXTS[0], "error")


# What the bodies of the known dialects are made of, so that random ones come far.
KEYS = (
    "inputs", "parameters", "prompt", "messages", "role", "content", "model", "stream", "max_tokens", "max_new_tokens",
    "temperature", "top_p", "top_k", "stop", "n", "logprobs", "seed", "do_sample", "return_full_text", "details",
    "text_input", "return_protocol", "echo", "best_of", "stream_options", "use_beam_search", "ignore_eos", "id",
    "repetition_penalty", "presence_penalty", "min_tokens", "prompt_logprobs", "truncate", "type", "text",
)  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-2, 5),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["user", "True", "1", "0.5", "nan", "sse", "\ud800", "text"]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=8,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8).map(lambda value: json.dumps(value).encode()),
    st.builds(
        lambda prompt, rest: json.dumps(
            {"inputs": "a", "prompt": prompt, "text_input": "a", "messages": [{"role": "user", "content": "a"}]} | rest
        ).encode(),
        JSON,
        st.dictionaries(st.sampled_from(KEYS), JSON, max_size=8),
    ),
)


@given(body=BODIES, data=st.data())
def test_any_body_is_parsed_or_refused(dialect: Dialect, body: bytes, data: st.DataObject) -> None:
    """Only errors of ours come out, each with an answer; what is parsed has values that the server can work with."""
    route = data.draw(st.sampled_from(list(dialect.posts)))
    path = re.sub(r"\{\w+\}", "tiny", route)
    assert isinstance(dialect.wants(path, body), bool)
    try:
        reply = dialect.parse(path, body, {}, STATUS)
    except InputError as error:
        response: Any = dialect.reject(error)
        assert isinstance(response, HttpResponse)
        assert 400 <= response.status < 500
        json.loads(response.body)
        return
    for request in reply.requests:
        assert isinstance(request.prompt, str | tuple)
        if isinstance(request.prompt, str):
            request.prompt.encode()
        assert request.max_new_tokens is None or request.max_new_tokens >= 0
        assert 0 <= request.sampling.temperature < float("inf")
        assert 0 < request.sampling.top_p <= 1
        assert request.sampling.top_k >= 0


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"prompt": 5, "text": 5, "ids": ["a"], "inputs": 5}'])
def test_every_management_route_answers_whatever_is_posted(dialect: Dialect, body: bytes) -> None:
    for method, route in dialect.others:
        path = re.sub(r"\{\w+\}", "tiny", route)
        response: Any = dialect.answer(method, path, body, Host())
        assert isinstance(response, HttpResponse)
        assert 200 <= response.status < 500
