"""OpenAI's own client: what it parses, streams and raises (checked with openai 3.51.0)."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

openai = pytest.importorskip("openai")

pytestmark = pytest.mark.clients

Client = Any  # openai.OpenAI, which mypy need not have
MODEL = "random:tiny"
PROMPT = "The quick brown fox"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_models_are_listed(client: Client) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "llmbench"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_completion_has_text_reason_and_usage(client: Client) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=6, temperature=0)
    (choice,) = answer.choices
    assert choice.finish_reason in ("length", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert choice.finish_reason == "stop" or answer.usage.completion_tokens == 6


def test_a_streamed_completion_is_the_whole_one(client: Client) -> None:
    whole = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0)
    stream = client.completions.create(
        model=MODEL,
        prompt=PROMPT,
        max_tokens=12,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert (last.choices, last.usage) == ([], whole.usage)


def test_several_prompts_are_answered_in_one_response(client: Client) -> None:
    prompts = [PROMPT, "Once upon a time"]
    answer = client.completions.create(model=MODEL, prompt=prompts, max_tokens=5, temperature=0)
    each = [client.completions.create(model=MODEL, prompt=one, max_tokens=5, temperature=0) for one in prompts]
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in each]


def test_log_probabilities_of_prompt_and_answer_line_up(client: Client) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=2, temperature=0, logprobs=3, echo=True)
    (choice,), usage = answer.choices, answer.usage
    assert choice.text.startswith(PROMPT)
    assert choice.logprobs is not None
    assert usage is not None
    scores, tokens, tops = choice.logprobs.token_logprobs, choice.logprobs.tokens, choice.logprobs.top_logprobs
    assert scores is not None
    assert tokens is not None
    assert tops is not None
    assert len(tokens) == len(scores) == len(tops) == usage.prompt_tokens + usage.completion_tokens
    assert (scores[0], tops[0]) == (None, None)
    places = list(zip(tokens, scores, tops, strict=True))
    assert all(score < 0 and top[token] == score for token, score, top in places[1:])
    assert all(score == max(top.values()) for _, score, top in places[-2:])  # the answer is greedy


def test_scoring_a_prompt_alone_generates_nothing(client: Client) -> None:
    answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=0, logprobs=0, echo=True)
    assert answer.choices[0].text == PROMPT
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0


def test_a_seed_repeats_a_sampled_answer(client: Client) -> None:
    def text(seed: int) -> str:
        answer = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=1, seed=seed)
        return str(answer.choices[0].text)

    assert text(7) == text(7) != text(8)


def test_a_stop_text_ends_an_answer_before_it(client: Client) -> None:
    free = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0).choices[0].text
    stop = free[4:6]
    cut = client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=12, temperature=0, stop=[stop])
    assert cut.choices[0].text == free[: free.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_a_chat_answers_whole_and_streamed(client: Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    whole = client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=8, temperature=0)
    message = whole.choices[0].message
    assert (message.role, whole.choices[0].finish_reason) == ("assistant", "length")
    stream = client.chat.completions.create(
        model=MODEL,
        messages=messages,
        max_completion_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage == whole.usage


def test_a_chat_gives_log_probabilities(client: Client) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4, logprobs=True, top_logprobs=2,
        temperature=0,
    )  # fmt: skip
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    assert all(token.token == token.top_logprobs[0].token for token in logprobs.content)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"model": "gpt-4", "prompt": "Hi"}, "NotFoundError"),
        ({"model": MODEL, "prompt": "Hi", "n": 2}, "BadRequestError"),
        ({"model": MODEL, "prompt": "Hi", "max_tokens": 1_000_000}, "BadRequestError"),
        ({"model": MODEL, "prompt": ""}, "BadRequestError"),
    ],
)
def test_an_error_is_raised_as_its_own_kind(client: Client, asked: dict[str, object], error: str) -> None:
    with pytest.raises(getattr(openai, error)) as caught:
        client.completions.create(**asked)
    assert caught.value.body["message"]


def test_the_asynchronous_client_can_leave_a_stream(url: str) -> None:
    async def first_chunk() -> str:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            stream = await client.completions.create(model=MODEL, prompt=PROMPT, max_tokens=500, stream=True)
            async for chunk in stream:
                await stream.close()
                return str(chunk.object)
        return ""

    assert asyncio.run(first_chunk()) == "text_completion"
