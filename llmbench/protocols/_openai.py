"""What OpenAI's completions and chat routes share, as vLLM extends them: errors, ids, usage, reading a response."""

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from llmbench.errors import LlmbenchError, PromptTooLong, RequestError
from llmbench.protocols import HttpResponse, Status
from llmbench.protocols._body import FieldError, Fields, UnknownModel
from llmbench.protocols._http import answer, retry_after
from llmbench.protocols._sse import DONE, event
from llmbench.types import Delta, FinishReason, Request, TokenLogprob

OWNER = "llmbench"
MAX_LOGPROBS = 20
_UNKNOWN_ID = -1  # of a token that a response gives by its text only
_LEAST_LOGPROB = -9999.0  # OpenAI's sign for "very unlikely"; JSON has no minus infinity
_REASONS: dict[FinishReason | None, str] = {"eos": "stop", "stop": "stop", "length": "length"}


class Stamp(msgspec.Struct, frozen=True, kw_only=True):
    """Where `created` and ids come from; wall time and random, unless a test says otherwise."""

    wall: Callable[[], float] = time.time
    new_id: Callable[[], str] = lambda: secrets.token_hex(16)


REAL = Stamp()


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`usage` in a chunk at the end, as OpenAI has it, or (vLLM) in every chunk as well."""

    usage: bool = False
    continuous: bool = False


class Extras(NamedTuple):
    """What the client asks for beyond OpenAI's own, to know how many tokens each chunk is."""

    continuous_usage: bool = False
    token_ids: bool = False


# -- the server's side --------------------------------------------------------------------------------------------


def error_body(error: LlmbenchError) -> dict[str, Any]:
    """OpenAI's error object."""
    code = "model_not_found" if isinstance(error, UnknownModel) else None
    code = "context_length_exceeded" if isinstance(error, PromptTooLong) else code
    kind = "invalid_request_error" if isinstance(error, RequestError) else "server_error"
    param = (error.field or None) if isinstance(error, FieldError) else None
    if isinstance(error, UnknownModel):
        param = "model"
    return {"error": {"message": str(error), "type": kind, "param": param, "code": code}}


def refusal(error: LlmbenchError) -> HttpResponse:
    """The response that says an error."""
    return answer(error_body(error), error.http_status, retry_after(error))


def abort(error: LlmbenchError) -> list[bytes]:
    """How a stream ends with an error: its object in an event, then `[DONE]`, as vLLM."""
    return [event(error_body(error)), DONE]


def check_model(fields: Fields, status: Status) -> None:
    """Raise UnknownModel when a body names another model; one that names none means the one there is."""
    model = fields.text("model")
    if model is not None and model != status.model_name:
        raise UnknownModel(f"the model {model!r} does not exist; this server has {status.model_name!r}")


def stream_options(fields: Fields) -> StreamOptions:
    """`stream_options`, which only a stream may have."""
    given = fields.object("stream_options")
    if "stream_options" in fields and not fields.flag("stream"):
        raise fields.error("stream_options", "only allowed together with stream: true")
    return StreamOptions(usage=given.flag("include_usage"), continuous=given.flag("continuous_usage_stats"))


def models(status: Status, created: float) -> list[dict[str, Any]]:
    """The one model that is served; `max_model_len` is vLLM's, `quantization` is there for a quantised model."""
    name = status.model_name
    return [
        {
            "id": name,
            "object": "model",
            "created": int(created),
            "owned_by": OWNER,
            "root": name,
            "parent": None,
            "max_model_len": status.max_model_len,
            **({"quantization": status.quantisation} if status.quantisation else {}),
        }
    ]


def request_ids(given: str, count: int) -> list[str]:
    """Ids for the requests of one body: the client's own, numbered when there are several."""
    return [given] if count == 1 else [f"{given}-{i}" if given else "" for i in range(count)]


def reason_name(delta: Delta) -> str | None:
    """`stop` or `length`; null before the end."""
    return None if delta.finish_reason is None else _REASONS.get(delta.finish_reason, delta.finish_reason)


class Usage:
    """Tokens of all answers to one body."""

    def __init__(self) -> None:
        self.num_prompt = 0
        self.num_completion = 0
        self.num_cached = 0

    def add(self, delta: Delta) -> None:
        """Count a piece; the prompt's tokens come with the last one."""
        self.num_completion += delta.num_tokens
        self.num_prompt += delta.num_prompt_tokens or 0
        self.num_cached += delta.num_cached_tokens or 0

    def value(self) -> dict[str, Any]:
        """The object `usage`."""
        return {
            "prompt_tokens": self.num_prompt,
            "total_tokens": self.num_prompt + self.num_completion,
            "completion_tokens": self.num_completion,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }


def scored(delta: Delta) -> tuple[TokenLogprob, ...]:
    """The log-probabilities of a piece's tokens; nothing for a piece that has none, as when a prompt is only scored."""
    return delta.logprobs if delta.token_ids else ()


def bounded(logprob: float) -> float:
    """A log-probability that JSON can say."""
    return max(logprob, _LEAST_LOGPROB)


# -- the client's side --------------------------------------------------------------------------------------------


class OpenAiReader:
    """The client's side of a response. `text_of` and `scores_of` find a choice's text and its log-probabilities.

    `reasons` says whether all of the text is what the model thinks before its answer.

    How many tokens a chunk stands for is told, from the best to the worst witness, by a running `usage`, `token_ids`,
    `logprobs`, or by there being text. The last piece is held back until `usage`, `[DONE]` or the end of the body, so
    that it can bring the totals.
    """

    def __init__(
        self,
        request: Request,
        *,
        whole: bool,
        text_of: Callable[[dict[str, Any]], str],
        scores_of: Callable[[dict[str, Any]], list[Any]],
        reasons: Callable[[dict[str, Any]], bool] = lambda choice: False,
        logprobs_of: Callable[[dict[str, Any]], Iterable[TokenLogprob]] | None = None,
    ) -> None:
        self._request = request
        self._whole = whole
        self._text_of = text_of
        self._scores_of = scores_of
        self._reasons = reasons
        asked = request.sampling
        wanted = asked.num_logprobs is not None or asked.prompt_logprobs is not None
        self._logprobs_of = logprobs_of if wanted else None
        self._begun = False
        self._running = False  # usage comes with every chunk
        self._num_tokens = 0
        self._reasoning = False
        self._reason: FinishReason | None = None
        self._totals = Delta()

    def read(self, event: dict[str, Any]) -> Iterable[Delta]:
        """A chunk of a stream, or the whole answer."""
        choices, usage = event["choices"], event.get("usage")
        self._begun = True
        choice = next((one for one in choices if one.get("index", 0) == 0), None)
        if usage:
            self._take_totals(usage)
        pieces = [] if choice is None else self._piece(choice, usage)
        last = self._whole or not choices
        return [*pieces, *(self.end(done=False) if last else ())]

    def again(self, text: str) -> Delta:
        """What `read` gives for an event that is the last one but for its text, whose token was assumed."""
        self._num_tokens += 1
        return Delta(text=text, num_tokens=1, assumed=True, reasoning=self._reasoning)

    def end(self, done: bool) -> Iterable[Delta]:
        """The last piece. A server that ended with `[DONE]` and gave no reason has said at least that it is done."""
        reason = self._reason
        if reason is None and done and self._begun and not self._whole:
            reason = "stop"
        return [] if reason is None else [msgspec.structs.replace(self._totals, finish_reason=reason)]

    def _take_totals(self, usage: dict[str, Any]) -> None:
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        self._totals = Delta(
            total_tokens=usage.get("completion_tokens"),
            num_prompt_tokens=usage.get("prompt_tokens"),
            num_cached_tokens=cached,
        )

    def _piece(self, choice: dict[str, Any], usage: dict[str, Any] | None) -> list[Delta]:
        text = self._text_of(choice)
        reason = choice.get("finish_reason")
        if reason is not None:
            self._reason = "length" if reason == "length" else "stop"
        ids = tuple(map(int, choice.get("token_ids") or ()))
        logprobs = () if self._logprobs_of is None else tuple(self._logprobs_of(choice))
        if self._whole:
            return [self._answer(text, ids, logprobs)]
        self._running = self._running or (usage is not None and reason is None)
        if usage and self._running:
            num_tokens = max(0, usage["completion_tokens"] - self._num_tokens)
        else:
            num_tokens = len(ids) or len(self._scores_of(choice))
        assumed = not num_tokens and bool(text) and not (usage and self._running)
        num_tokens += assumed
        self._num_tokens += num_tokens
        if not text and not num_tokens:
            return []
        self._reasoning = reasoning = self._reasons(choice)
        return [
            Delta(
                text=text,
                token_ids=ids,
                num_tokens=num_tokens,
                logprobs=logprobs,
                assumed=assumed,
                reasoning=reasoning,
            )
        ]

    def _answer(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> Delta:
        """A whole answer; one that echoes its prompt has the prompt's tokens first, as many as `usage` says."""
        if self._request.sampling.prompt_logprobs is None:
            return Delta(full_text=text, token_ids=ids, logprobs=logprobs)
        num_prompt = self._totals.num_prompt_tokens
        if num_prompt is None or num_prompt > len(logprobs):
            raise ValueError("an echoed prompt without its log-probabilities, or without usage.prompt_tokens")
        if isinstance(self._request.prompt, str):
            text = text.removeprefix(self._request.prompt)
        return Delta(full_text=text, token_ids=ids, logprobs=logprobs[num_prompt:], prompt=logprobs[:num_prompt])


def read_logprob(text: Any, logprob: Any, top: Iterable[tuple[Any, Any]]) -> TokenLogprob:
    """A token as a response tells it, the likeliest at its place in order. Raises TypeError when it is none."""
    told = [(text, 0.0 if logprob is None else logprob), *top]
    if not all(isinstance(name, str) and isinstance(value, int | float) for name, value in told):
        raise TypeError(f"expected tokens and their log-probabilities, found {told!r}")
    likeliest = sorted(told[1:], key=lambda pair: -pair[1])
    return TokenLogprob(token_id=_UNKNOWN_ID, text=text, logprob=logprob, top=tuple(likeliest))


def client_stream(request: Request, extras: Extras) -> dict[str, Any]:
    """The client's fields of a stream: `usage` at the end, in every chunk where that is wished; ids of tokens."""
    ids = {"return_token_ids": True} if extras.token_ids else {}
    if not request.stream:
        return {"stream": False, **ids}
    options = {"include_usage": True} | ({"continuous_usage_stats": True} if extras.continuous_usage else {})
    return {"stream": True, "stream_options": options, **ids}
