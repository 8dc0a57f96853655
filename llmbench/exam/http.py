"""A server behind HTTP as an Answerer: loadgen's client and load loop, any dialect, some requests at once."""

import asyncio
import http.client
import json
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from llmbench.evals import Ask, Reply
from llmbench.loadgen.client import Target, Timeouts
from llmbench.loadgen.listening import Heard, Listening
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import drive
from llmbench.protocols import ClientHalf
from llmbench.types import Request, Sampling
from llmbench.workload.plan import PlannedRequest

TOP = 20
"""How many next tokens are asked for: as many as vLLM gives by default."""


class HttpAnswerer:
    """Sends every Ask as a request that is not streamed, `concurrency` at a time."""

    def __init__(self, target: Target, dialect: ClientHalf, concurrency: int, timeouts: Timeouts) -> None:
        self._target = target
        self._dialect = dialect
        self._concurrency = concurrency
        self._timeouts = timeouts

    def answer(self, asks: Sequence[Ask], replied: Callable[[int, Reply], None]) -> None:
        """Answer all. Raises RequestError when the dialect cannot ask for what is wanted."""
        if asks:
            asyncio.run(self._answer(asks, replied))

    async def _answer(self, asks: Sequence[Ask], replied: Callable[[int, Reply], None]) -> None:
        heard = Listening(self._dialect)

        def finished(record: Record) -> None:
            replied(record.index, _reply(record, heard.take(record.request_id)))

        planned = [PlannedRequest(index=i, due_s=0.0, request=_request(i, ask)) for i, ask in enumerate(asks)]
        await drive(planned, self._target, heard, self._timeouts, finished, self._concurrency)


def served(target: Target, timeout_s: float = 5.0) -> list[dict[str, Any]]:
    """The models that a server says that it serves, by `/v1/models`, without times; none when it does not say."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # as loadgen: straight to the server
    try:
        with opener.open(f"http://{target.authority}{target.prefix}/v1/models", timeout=timeout_s) as answer:
            models = json.load(answer)["data"]
        return [{key: model.get(key) for key in ("id", "root", "parent", "max_model_len")} for model in models]
    except (http.client.HTTPException, OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _request(index: int, ask: Ask) -> Request:
    scored = {"text": (None, None), "next": (TOP, None), "prompt": (None, 1)}[ask.want]
    return Request(
        prompt=ask.prompt,
        max_new_tokens=ask.max_new_tokens,
        sampling=Sampling(num_logprobs=scored[0], prompt_logprobs=scored[1]),
        stream=False,
        joined=True,
        request_id=f"eval-{index:06d}",
    )


def _reply(record: Record, heard: Heard) -> Reply:
    if record.status != "answered":
        return Reply(error=record.reason or record.status)
    top: dict[str, float] = {}
    for first in heard.new[:1]:
        alone = () if first.logprob is None else ((first.text, first.logprob),)
        for text, logprob in (*first.top, *alone):
            top[text] = max(logprob, top.get(text, logprob))
    return Reply(text=record.text, top=top, tokens=tuple((token.text, token.logprob) for token in heard.prompt))
