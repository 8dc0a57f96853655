"""A server behind HTTP as a bench: exact lengths in both directions, and what is timed."""

import json
from collections.abc import Callable, Iterator

import pytest

from llmbench import protocols
from llmbench.errors import InputError, RequestError, ServingError
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.record import Record
from llmbench.metrics.sweep import Case
from llmbench.sweep.http import HttpBench, timed
from llmbench.tokenizer import Tokenizer, embedded_path
from tests.conftest import Serving
from tests.loadgen.conftest import LAST_CHUNK, STREAM_HEAD, Script, Step, ToyServer, chunk, serve

__all__ = ["serve"]

Serve = Callable[[Script], ToyServer]
MS = 1_000_000
TOKENIZER = Tokenizer.from_file(embedded_path())
CASE = Case(batch=3, input_len=24, output_len=6)


def bench(url: str, dialect: str = "openai_completions") -> HttpBench:
    return HttpBench(locate(url), protocols.get(dialect), TOKENIZER, Timeouts(total_s=10))


def events(num: int, prompt_tokens: int | None) -> Iterator[bytes]:
    """A stream of OpenAI's completions; without a number of prompt tokens it has no usage."""
    for n in range(num):
        reason = "length" if n == num - 1 else None
        yield json.dumps({"choices": [{"index": 0, "text": f" {n}", "finish_reason": reason}]}).encode()
    if prompt_tokens is not None:
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": num}
        yield json.dumps({"choices": [], "usage": usage}).encode()
    yield b"[DONE]"


def answering(around: int | None = 1, fewer: int = 0) -> Script:
    """A server that puts so many tokens around each text, or does not say; answers have so many tokens less."""

    def script(number: int, body: bytes) -> list[Step]:
        asked = json.loads(body)
        told = None if around is None else len(TOKENIZER.encode(asked["prompt"], bos=False)) + around
        num = max(1, asked["max_tokens"] - fewer)
        return [STREAM_HEAD, *(chunk(b"data: " + event + b"\n\n") for event in events(num, told)), LAST_CHUNK]

    return script


@pytest.mark.parametrize("around", [0, 1, 17])
def test_prompts_have_the_length_that_the_server_counts(serve: Serve, around: int) -> None:
    server = serve(answering(around))
    opened = bench(server.url)
    assert opened.probe() == f"the server puts {around} tokens around a text"
    found = opened.run(CASE, 6)
    asked = [json.loads(body) for body in server.bodies[1:]]
    assert len({each["prompt"] for each in asked}) == 3, "no prompt twice"
    assert [len(TOKENIZER.encode(each["prompt"], bos=False)) for each in asked] == [24 - around] * 3
    assert all((each["max_tokens"], each["temperature"], each["ignore_eos"]) == (6, 0.0, True) for each in asked)
    assert server.most_at_once <= 3
    assert len(found.steps_s) == 5
    assert [len(stream) for stream in found.streams_s] == [6] * 3


def test_a_server_that_does_not_count_is_taken_at_the_tokenizers_word(serve: Serve) -> None:
    server = serve(answering(around=None))
    opened = bench(server.url)
    assert "does not say how many tokens" in opened.probe()
    opened.run(CASE, 6)
    assert len(TOKENIZER.encode(json.loads(server.bodies[1])["prompt"])) == 24


def test_another_tokenizer_than_the_servers_is_found_out(serve: Serve) -> None:
    with pytest.raises(InputError, match=r"the server counts 12 tokens in a text of 32: give its tokenizer\.model"):
        bench(serve(answering(around=-20)).url).probe()
    opened = bench(serve(answering(around=3)).url)
    with pytest.raises(ServingError, match="the server counts 26 tokens in a prompt of 24: give its tokenizer"):
        opened.run(CASE, 6)


def test_an_answer_that_is_too_short_is_no_measurement(serve: Serve) -> None:
    with pytest.raises(ServingError, match=r"an answer has 4 tokens, 6 were asked for$"):
        bench(serve(answering(fewer=2)).url).run(CASE, 6)


def test_a_prompt_with_no_room_for_its_text_does_not_fit(serve: Serve) -> None:
    opened = bench(serve(answering(around=17)).url)
    opened.probe()
    assert opened.unfit(Case(batch=1, input_len=17, output_len=1)) == "17 tokens of a prompt are not its text"
    assert opened.unfit(Case(batch=1, input_len=18, output_len=1)) == ""


@pytest.mark.parametrize(("status", "error"), [("400 Bad Request", RequestError), ("503 Full", ServingError)])
def test_what_the_server_refuses_does_not_fit_and_what_it_cannot_do_fails(
    serve: Serve, status: str, error: type[Exception]
) -> None:
    server = serve(lambda number, body: [f"HTTP/1.1 {status}\r\nContent-Length: 8\r\n\r\ntoo long".encode()])
    with pytest.raises(error, match="too long"):
        bench(server.url).run(CASE, 6)


def test_instants_count_from_the_first_request_and_a_read_stands_for_all_its_tokens() -> None:
    def record(sent_ms: int, stamps_ms: list[int], tokens: list[int]) -> Record:
        stamps_ns = [at * MS for at in stamps_ms]
        done_ns = stamps_ns[-1] + MS
        return Record(index=0, due_ns=0, sent_ns=sent_ms * MS, stamps_ns=stamps_ns, tokens=tokens, done_ns=done_ns)

    found = timed([record(100, [150, 160, 180], [1, 1, 1]), record(102, [170, 190], [1, 2])])
    assert found.streams_s == [[0.05, 0.06, 0.08], [0.07, 0.09, 0.09]]
    assert found.first_s == 0.07
    assert found.steps_s == pytest.approx([(0.01 + 0.02) / 2, (0.02 + 0.0) / 2])
    assert found.total_s == pytest.approx(0.091)


@pytest.mark.parametrize("dialect", ["openai_completions", "openai_chat", "vllm", "tgi", "mindie", "triton", "contest"])
def test_every_dialect_of_the_bundled_stack_can_be_swept(server: Serving, dialect: str) -> None:
    opened = bench(server.url, dialect)
    opened.probe()
    found = opened.run(Case(batch=2, input_len=20, output_len=4), 4)
    assert found.total_s >= found.first_s > 0
    assert opened.what == f"{dialect} at {server.url}"


def test_a_prompt_that_is_longer_than_the_servers_model_does_not_fit(server: Serving) -> None:
    with pytest.raises(RequestError, match="HTTP 400"):
        bench(server.url).run(Case(batch=1, input_len=2040, output_len=20), 20)
