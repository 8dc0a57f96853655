"""MindIE's own dialect: `/infer`, the tokenizer, health and info, and the 422 of a `/generate` that asks nothing.

Times in its streams are milliseconds from a clock that is handed in: since the body was read for the first piece, since
the piece before for every other. The text of the last token is null, as MindIE has it; the whole text has it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from llmbench.clock import now_ns
from llmbench.errors import LlmbenchError, RequestError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status, _mindie
from llmbench.protocols._body import FieldError, Fields, decode, prompt_key
from llmbench.protocols._http import JSON_HEADERS, STREAM_HEADERS, answer, check_carried, client_headers, is_stream
from llmbench.protocols._sse import Events, JsonDecoder, Whole, event
from llmbench.types import Delta, Request

_MAX_TIMED_S = 600


def dialect(clock: Callable[[], int] = now_ns) -> "Mindie":
    """MindIE's own dialect; `clock` gives nanoseconds."""
    return Mindie(clock)


class Mindie:
    """Both halves of the dialect."""

    name = "mindie"
    posts: Sequence[str] = ("/infer", "/generate")
    others: Sequence[tuple[str, str]] = (
        ("POST", "/v1/tokenizer"),
        ("GET", "/info"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/{model}/ready"),
        ("GET", "/v2/models/{model}/getSlotCount"),
        ("GET", "/health/timed"),
        ("GET", "/health/timed-{seconds}"),
    )

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock

    def encode(self, request: Request) -> HttpRequest:
        """Text as `inputs`, token ids as `input_id`."""
        check_carried(request, self.name, ("stop",))
        prompt = request.prompt
        body: dict[str, Any] = {"inputs": prompt} if isinstance(prompt, str) else {"input_id": list(prompt)}
        parameters = _mindie.parameters(request) | {"details": True}
        if request.sampling.stop:
            parameters["stop"] = list(request.sampling.stop)
        body |= {"stream": request.stream, "parameters": parameters}
        return HttpRequest(path="/infer", headers=client_headers(request), body=msgspec.json.encode(body))

    def decoder(self, request: Request, headers: Mapping[str, str]) -> JsonDecoder:
        """Reads streams and whole answers."""
        return JsonDecoder(Events() if is_stream(request, headers) else Whole(), _mindie.TokenReader())

    def wants(self, path: str, body: bytes) -> bool:
        """`/infer`, and what neither TGI nor vLLM takes of `/generate`."""
        return path != "/generate" or not prompt_key(body)

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "MindieReply":
        """Read a body. Raises RequestError."""
        if path == "/generate":
            raise NothingToGenerate
        fields = Fields(decode(body))
        given = fields.object("parameters")
        request = Request(
            prompt=_prompt(fields, status.vocab_size),
            max_new_tokens=_mindie.new_tokens(given),
            sampling=_mindie.sampling(given, status.vocab_size),
            stream=fields.flag("stream"),
            request_id=headers.get("x-request-id", ""),
        )
        return MindieReply(request, self._clock, details=given.flag("details"))

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """422 with `error` and `error_type`."""
        return _mindie.rejection(error)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """The management routes."""
        status = host.status()
        try:
            if path == "/v1/tokenizer":
                return _tokenizer(Fields(decode(body)), host)
            if path == "/info":
                return answer(_info(status))
            if path.startswith("/v2/models/"):
                model, route = path.split("/")[3:5]
                _mindie.check_model(model, status)
                return answer(_slots(status)) if route == "getSlotCount" else _ready(status)
            if path.startswith("/health/timed-"):
                _check_seconds(path.removeprefix("/health/timed-"))
        except RequestError as error:
            return self.reject(error)
        return HttpResponse(status=200, body=b"") if path == "/v2/health/live" else _ready(status)


class NothingToGenerate(RequestError):
    """A body on `/generate` with neither `inputs` nor `prompt`. MindIE wraps this one in JSON inside JSON."""

    def __init__(self) -> None:
        inner = {
            "Error": "`inputs` or `prompt` must be necessary and data type must be string.",
            "error_type": "validation",
        }
        super().__init__(msgspec.json.encode(inner).decode())


class MindieReply:
    """One answer on the server's side."""

    def __init__(self, request: Request, clock: Callable[[], int], *, details: bool) -> None:
        self.requests: tuple[Request, ...] = (request,)
        self.stream = request.stream
        self.headers: tuple[tuple[str, str], ...] = STREAM_HEADERS if request.stream else JSON_HEADERS
        self._details = details
        self._lap = _mindie.Lap(clock)
        self._pieces: list[str] = []
        self._ids: list[int] = []

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """An event for the piece, the last one with the whole text; or the answer at the end."""
        self._pieces.append(delta.text)
        self._ids += delta.token_ids
        ended = delta.finish_reason is not None
        if not self.stream:
            return [msgspec.json.encode(self._whole(delta))] if ended else []
        value: dict[str, Any] = self._lap.times()
        if ended:
            value["generated_text"] = "".join(self._pieces)
            value["details"] = self._counts(delta) if self._details else None
        value["token"] = {"id": list(delta.token_ids), "text": None if ended else delta.text}
        return [event(value)]

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """The error with its own status."""
        return _mindie.refusal(error)

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """An event with the error, or its object when nothing else was sent."""
        return _mindie.abort(error, self.stream)

    def _counts(self, delta: Delta) -> dict[str, Any]:
        return {
            "finish_reason": _mindie.reason_name(delta.finish_reason),
            "generated_tokens": len(self._ids),
            "seed": self.requests[0].sampling.seed,
        }

    def _whole(self, delta: Delta) -> dict[str, Any]:
        whole: dict[str, Any] = {"generated_text": "".join(self._pieces)}
        if self._details:
            counts = self._counts(delta)
            seed = counts.pop("seed")
            whole["details"] = counts | {"generated_token_ids": self._ids, "seed": seed}
        return whole


def _prompt(fields: Fields, vocab_size: int) -> str | tuple[int, ...]:
    if "input_id" not in fields:
        return fields.prompt("inputs")
    if "inputs" in fields:
        raise fields.error("input_id", "give either inputs or input_id, not both")
    return fields.ids("input_id", vocab_size)


def _tokenizer(fields: Fields, host: Host) -> HttpResponse:
    """The number of a text's tokens, and unless `do_decode` is false their texts; begin-of-sequence has none."""
    ids = host.tokenize(fields.prompt("inputs"))
    found: dict[str, Any] = {"token_number": len(ids)}
    if fields.flag("do_decode", default=True):
        found["tokens"] = [text for token_id in ids if (text := host.detokenize([token_id]))]
    return answer(found)


def _ready(status: Status) -> HttpResponse:
    """200 when a request sent now would be taken, else 503."""
    full = status.num_waiting >= status.max_waiting
    return HttpResponse(status=200 if status.ready and not full else 503, body=b"")


def _slots(status: Status) -> dict[str, int]:
    return {
        "total_slots": status.max_batch,
        "free_slots": max(0, status.max_batch - status.num_running),
        "available_tokens_length": status.num_free_blocks * status.block_size,
    }


def _check_seconds(text: str) -> None:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= _MAX_TIMED_S):
        raise FieldError("", f"/health/timed-N: N must be 1 to {_MAX_TIMED_S} seconds, got {text[:24]!r}")


def _info(status: Status) -> dict[str, Any]:
    return {
        "docker_label": None,
        "max_batch_total_tokens": status.max_tokens_per_step,
        "max_best_of": 1,
        "max_concurrent_requests": status.max_batch,
        "max_stop_sequences": None,
        "max_waiting_tokens": None,
        "sha": None,
        "validation_workers": None,
        "version": None,
        "waiting_served_ratio": None,
        "models": [
            {
                "model_device_type": "cpu",
                "model_dtype": status.model_dtype,
                "model_id": status.model_name,
                "model_pipeline_tag": "text-generation",
                "model_sha": None,
                "max_total_tokens": status.max_model_len,
            }
        ],
        "max_input_length": status.max_model_len - 1,
    }
