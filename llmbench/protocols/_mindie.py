"""What MindIE's own dialect and its forms of TGI, vLLM and Triton share: errors, `parameters`, finish reasons."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from llmbench.errors import LlmbenchError
from llmbench.protocols import HttpResponse, Status
from llmbench.protocols._body import MAX_INT32, Fields, UnknownModel
from llmbench.protocols._http import answer, retry_after
from llmbench.protocols._sse import event
from llmbench.types import Delta, FinishReason, Request, Sampling

# MindIE's text for each status of an error
_ERROR_TYPES = {
    400: "Bad Request",
    404: "NotFoundError",
    422: "Input Validation Error",
    424: "Generation Error",
    500: "Incomplete Generation",
    503: "Service Unavailable",
}
_REASONS: dict[FinishReason | None, str] = {"eos": "eos_token", "length": "length", "stop": "stop_sequence"}
_NAMES: dict[str, FinishReason] = {"eos_token": "eos", "length": "length", "stop_sequence": "stop"}
DEFAULT_NEW_TOKENS = 20
ANY_MODEL = "_"
"""In a path to a server of ours: the one model there is, so that a client need not know its name."""

# Fields of `parameters` that this server cannot honour, with the values that ask for nothing. `typical_p` and
# `watermark` are not here: MindIE takes and ignores them, and its own examples have them.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "truncate": (),
    "grammar": (),
    "top_n_tokens": (0,),
    "adapter_id": ("None", ""),
}


def error_body(error: LlmbenchError, status: int) -> dict[str, str]:
    """`{"error", "error_type"}`."""
    return {"error": str(error), "error_type": _ERROR_TYPES.get(status, "Incomplete Generation")}


def refusal(error: LlmbenchError, status: int | None = None) -> HttpResponse:
    """The response that says an error in MindIE's shape."""
    status = error.http_status if status is None else status
    return answer(error_body(error, status), status, retry_after(error))


def rejection(error: LlmbenchError) -> HttpResponse:
    """The response to a body that is wrong: MindIE and TGI say 422, not 400."""
    return refusal(error, 422 if error.http_status == 400 else None)


def abort(error: LlmbenchError, stream: bool, prefix: bytes = b"data: ") -> list[bytes]:
    """An event with the error, or its object when nothing else was sent."""
    body = error_body(error, error.http_status)
    return [event(body, prefix) if stream else msgspec.json.encode(body)]


def sampling(fields: Fields, vocab_size: int) -> Sampling:
    """Of `parameters`: `do_sample` decides where it is given; else any setting of the sampler means sampling (TGI)."""
    fields.refuse(_UNSUPPORTED)
    temperature = fields.number("temperature", 0, above=True)
    top_k = fields.integer("top_k", 0)
    top_p = fields.number("top_p", 0, 1, above=True)
    greedy = Sampling(
        seed=fields.seed(),
        repetition_penalty=fields.number("repetition_penalty", 0, above=True) or 1.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        stop=fields.stops(),
    )
    by_default = any(value is not None for value in (temperature, top_k, top_p))
    if not fields.flag("do_sample", by_default):
        return greedy
    return msgspec.structs.replace(
        greedy,
        temperature=1.0 if temperature is None else fields.temperature() or 0.0,
        top_k=min(top_k or 0, vocab_size),
        top_p=1.0 if top_p is None else top_p,
    )


def new_tokens(fields: Fields) -> int:
    """`max_new_tokens`, 20 where it is not given."""
    return fields.integer("max_new_tokens", 1, MAX_INT32) or DEFAULT_NEW_TOKENS


def reason_name(reason: FinishReason | None) -> str:
    """TGI's and MindIE's name for why an answer ended."""
    return _REASONS.get(reason, str(reason))


def reason_of(name: str) -> FinishReason:
    """What a name means; one that is not known is an end that the model chose."""
    return _NAMES.get(name, "eos")


def parameters(request: Request) -> dict[str, Any]:
    """The client's `parameters`, with what differs from the defaults."""
    asked = request.sampling
    values: dict[str, Any] = {}
    if request.max_new_tokens is not None:
        values["max_new_tokens"] = request.max_new_tokens
    values["do_sample"] = not asked.greedy
    if not asked.greedy:
        values["temperature"] = asked.temperature
        if asked.top_k:
            values["top_k"] = asked.top_k
        if asked.top_p < 1:  # TGI and MindIE refuse 1 itself
            values["top_p"] = asked.top_p
    if asked.seed is not None:
        values["seed"] = asked.seed
    if asked.repetition_penalty != 1:
        values["repetition_penalty"] = asked.repetition_penalty
    return values


def details_of(event: dict[str, Any]) -> tuple[FinishReason, int | None, int | None]:
    """Why an answer ended, its tokens and its prompt's, from the event with its whole text.

    Without `details` a server does not say why: then it ended in a way that only it knows.
    """
    details = event.get("details")
    if not details:
        return "stop", None, None
    num_prompt = details.get("prompt_tokens", details.get("input_length"))  # MindIE's name, Hugging Face's
    return reason_of(details["finish_reason"]), details.get("generated_tokens"), num_prompt


class TokenReader:
    """The client's side of a response of TGI or of MindIE's own: events with a `token`, the whole text at the end."""

    def read(self, event: dict[str, Any]) -> Iterable[Delta]:
        """A token with its text, the whole text, or both."""
        text = event.get("generated_text")
        token = event.get("token") if text is not None else event["token"]
        piece = _piece(token) if token is not None else Delta()
        if text is None:
            return [piece]
        reason, num_tokens, num_prompt = details_of(event)
        return [
            msgspec.structs.replace(
                piece, finish_reason=reason, full_text=text, total_tokens=num_tokens, num_prompt_tokens=num_prompt
            )
        ]

    def end(self, done: bool) -> Iterable[Delta]:
        """The whole text is the end; nothing is held back."""
        return []


def _piece(token: dict[str, Any]) -> Delta:
    """One event's tokens; `id` is a number or, with newer MindIE, a list; the text of a special one does not count."""
    ids = token["id"] if isinstance(token["id"], list) else [token["id"]]
    text = "" if token.get("special") else token.get("text") or ""
    return Delta(text=text, token_ids=tuple(map(int, ids)), num_tokens=len(ids))


def check_model(model: str, status: Status) -> None:
    """Raise UnknownModel unless a path names the model that is served; ANY_MODEL does."""
    if model not in (status.model_name, ANY_MODEL):
        raise UnknownModel(f"no model {model!r} here; this server has {status.model_name!r}")


class Lap:
    """Milliseconds between the pieces of one answer, as MindIE's streams say them."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._before_ns = clock()
        self._first = True

    def times(self) -> dict[str, float | None]:
        """Since the start for the first piece, since the piece before for others; to a hundredth."""
        before_ns, self._before_ns = self._before_ns, self._clock()
        took_ms = round((self._before_ns - before_ns) / 1e6, 2)
        first, self._first = self._first, False
        return {"prefill_time": took_ms if first else None, "decode_time": None if first else took_ms}
