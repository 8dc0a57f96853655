"""A server without a server: what dialects are told about it, an answer in pieces, and transcripts to compare with.

Golden transcripts in tests/golden/ are written by
    LLMBENCH_WRITE_GOLDEN=1 python -m pytest tests/protocols -k transcript
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.errors import RequestError
from llmbench.protocols import Dialect, HttpResponse, Reply, Status
from llmbench.types import Delta, FinishReason, Request, TokenLogprob

GOLDEN = Path(__file__).parents[1] / "golden"
STATUS = Status(
    model_name="tiny",
    model_dtype="float32",
    vocab_size=2048,
    max_model_len=1024,
    max_batch=8,
    max_tokens_per_step=512,
    max_waiting=100,
    num_running=3,
    num_waiting=2,
    num_blocks=64,
    num_free_blocks=60,
    block_size=16,
    ready=True,
)


class Host:
    """A server that answers a dialect's questions with a status; its tokens are bytes."""

    def __init__(self, **changes: Any) -> None:
        self._status = msgspec.structs.replace(STATUS, **changes)

    def status(self) -> Status:
        return self._status

    def tokenize(self, text: str) -> list[int]:
        return [1, *(3 + byte for byte in text.encode())]

    def detokenize(self, ids: list[int]) -> str:
        return bytes(token_id - 3 for token_id in ids if token_id >= 3).decode("utf-8", "replace")


def piece(text: str, token_id: int, reason: FinishReason | None = None, **more: Any) -> Delta:
    return Delta(
        text=text,
        token_ids=(token_id,),
        logits=(1.5,),
        num_tokens=1,
        finish_reason=reason,
        num_prompt_tokens=3 if reason else None,
        num_cached_tokens=0 if reason else None,
        **more,
    )


ANSWER = (piece("Hel", 700), piece("lo", 701), piece("", 702), piece(" 世\u2028界", 703), piece("!", 704, "length"))
"""The third token is the start of a character, held back until it is whole."""
TEXT = "".join(delta.text for delta in ANSWER)

PROMPT_SCORES = (
    TokenLogprob(token_id=1, text="<s>", logprob=None),
    TokenLogprob(token_id=500, text=" Hi", logprob=-2.5, top=((" Yo", -0.5),)),
)
SCORED = (
    piece(
        "a",
        600,
        prompt=PROMPT_SCORES,
        logprobs=(TokenLogprob(token_id=600, text="a", logprob=-0.25, top=(("a", -0.25), ("b", -1.5))),),
    ),
    piece(
        "b",
        601,
        "stop",
        stop_reason="!",
        logprobs=(TokenLogprob(token_id=601, text="b", logprob=float("-inf"), top=(("c", -0.125),)),),
    ),
)
"""Two tokens with their log-probabilities, and the prompt's on the first."""


def ticks(step_ns: int = 1_500_000) -> Callable[[], int]:
    """A clock that goes on by the same time whenever it is read."""
    instants = count(0, step_ns)
    return lambda: next(instants)


def ask(dialect: Dialect, path: str, fields: Any, **headers: str) -> Any:
    """The Reply to a posted object; any, because a test looks into what its dialect made of it."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return dialect.parse(path, json.dumps(fields).encode(), given, STATUS)


def refused(dialect: Dialect, path: str, posted: Any) -> tuple[int, Any]:
    """Status and body of the answer to an object, or to bytes, that cannot be parsed."""
    body = posted if isinstance(posted, bytes) else json.dumps(posted).encode()
    with pytest.raises(RequestError) as caught:
        dialect.parse(path, body, {}, STATUS)
    response = dialect.reject(caught.value)
    return response.status, json.loads(response.body)


def rendered(reply: Reply, deltas: Sequence[Delta] = ANSWER) -> list[bytes]:
    return [chunk for delta in deltas for chunk in reply.render(delta)]


def finished(reply: Reply, deltas: Sequence[Delta] = ANSWER) -> HttpResponse:
    return HttpResponse(status=200, body=b"".join(rendered(reply, deltas)), headers=reply.headers)


def broken_off(reply: Reply, error: Any) -> HttpResponse:
    body = b"".join([*reply.render(ANSWER[0]), *reply.abort(error)])
    return HttpResponse(status=200, body=body, headers=reply.headers)


def check_transcript(name: str, response: HttpResponse) -> None:
    """Compare a response with its golden transcript."""
    head = "".join(f"{key}: {value}\n" for key, value in response.headers)
    found = f"{response.status}\n{head}\n".encode() + response.body
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("LLMBENCH_WRITE_GOLDEN"):
        path.write_bytes(found)
    assert found == path.read_bytes()


def read(
    dialect: Dialect,
    parts: Sequence[bytes],
    *,
    stream: bool = True,
    headers: dict[str, str] | None = None,
    **asked: Any,
) -> list[Delta]:
    """What the client makes of a response's body."""
    request = msgspec.structs.replace(Request(prompt="Hi", max_new_tokens=5, stream=stream), **asked)
    decoder = dialect.decoder(request, headers or {})
    return [delta for part in parts for delta in decoder.feed(part)] + decoder.close()


def last(deltas: Sequence[Delta]) -> Delta:
    """The one piece that ends an answer; nothing comes behind it."""
    (index,) = [i for i, delta in enumerate(deltas) if delta.finish_reason is not None]
    assert index == len(deltas) - 1
    return deltas[index]


def event_values(chunks: Sequence[bytes], prefix: bytes = b"data: ") -> Iterator[Any]:
    """The JSON of server-sent events, one for each chunk; `[DONE]` as text."""
    for chunk in chunks:
        assert chunk.startswith(prefix)
        assert chunk.endswith(b"\n\n")
        payload = chunk[len(prefix) : -2]
        yield "[DONE]" if payload == b"[DONE]" else json.loads(payload)
