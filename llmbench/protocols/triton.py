"""Triton's dialect as MindIE speaks it: text on `generate` and `generate_stream`, token ids on `infer`.

Stream events are `data:{...}` without a space. Times are milliseconds from a clock that is handed in; what this server
does not measure (`first_token_cost`, `decode_cost`, `batch_size`, `queue_wait_time`) is null.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llmbench.clock import now_ns
from llmbench.errors import ConfigError, LlmbenchError, RequestError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status, _mindie
from llmbench.protocols._body import Fields, decode
from llmbench.protocols._http import (
    JSON_HEADERS,
    STREAM_HEADERS,
    answer,
    check_carried,
    client_headers,
    is_stream,
    text_prompt,
)
from llmbench.protocols._sse import Events, JsonDecoder, Whole, event
from llmbench.types import Delta, Request

_SERVER = "MindIE Server"
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")
_INPUT, _OUTPUT = "input0", "output0"


def dialect(model: str = _mindie.ANY_MODEL, clock: Callable[[], int] = now_ns) -> "Triton":
    """Triton's dialect; `model` is what the client puts into its paths, `clock` gives nanoseconds.

    The default is understood by our server only: name the model to measure another one. Raises ConfigError for a model
    that cannot stand in a path.
    """
    if not model or re.search(r"[/?#%\s]", model):
        raise ConfigError(f"model: must be a name that can stand in a path, got {model!r}")
    return Triton(model, clock)


class Triton:
    """Both halves of the dialect."""

    name = "triton"
    posts: Sequence[str] = (
        "/v2/models/{model}/generate",
        "/v2/models/{model}/generate_stream",
        "/v2/models/{model}/infer",
    )
    others: Sequence[tuple[str, str]] = (
        ("GET", "/v2"),
        ("GET", "/v2/models/{model}"),
        ("GET", "/v2/models/{model}/config"),
    )

    def __init__(self, model: str, clock: Callable[[], int]) -> None:
        self.model = model
        self._clock = clock

    def encode(self, request: Request) -> HttpRequest:
        """With `details`, without which a stream does not say why it ended; the id is in the body too."""
        check_carried(request, self.name, ("stop",))
        parameters = _mindie.parameters(request) | {"details": True}
        if request.sampling.stop:
            parameters["stop"] = list(request.sampling.stop)
        body: dict[str, Any] = {"text_input": text_prompt(request, self.name), "parameters": parameters}
        if _ID.fullmatch(request.request_id):
            body = {"id": request.request_id} | body
        route = "generate_stream" if request.stream else "generate"
        return HttpRequest(
            path=f"/v2/models/{self.model}/{route}", headers=client_headers(request), body=msgspec.json.encode(body)
        )

    def decoder(self, request: Request, headers: Mapping[str, str]) -> JsonDecoder:
        """Reads streams and whole answers."""
        stream = is_stream(request, headers)
        return JsonDecoder(Events() if stream else Whole(), TritonReader(request, whole=not stream))

    def wants(self, path: str, body: bytes) -> bool:
        """These paths are Triton's alone."""
        return True

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "TritonReply":
        """Read a body. Raises RequestError."""
        model, route = path.split("/")[3:5]
        _mindie.check_model(model, status)
        fields = Fields(decode(body))
        given = fields.object("parameters")
        name = _request_id(fields, headers)
        tokens_only = route == "infer"
        request = Request(
            prompt=_input_ids(fields, status.vocab_size) if tokens_only else fields.prompt("text_input"),
            max_new_tokens=_mindie.new_tokens(given),
            sampling=_mindie.sampling(given, status.vocab_size),
            stream=route == "generate_stream",
            request_id=headers.get("x-request-id", "") or name or "",
        )
        return TritonReply(
            request,
            name,
            status.model_name,
            self._clock,
            details=given.flag("details"),
            perf_stat=given.flag("perf_stat"),
            tokens_only=tokens_only,
        )

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """422 with `error` and `error_type`; 404 for another model."""
        return _mindie.rejection(error)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """What the server and its model are."""
        status = host.status()
        if path == "/v2":
            return answer(_server(status))
        model, _, route = path.removeprefix("/v2/models/").partition("/")
        try:
            _mindie.check_model(model, status)
        except RequestError as error:
            return self.reject(error)
        return answer(_config(status) if route == "config" else _model(status))


class TritonReply:
    """One answer on the server's side."""

    def __init__(
        self,
        request: Request,
        name: str | None,
        model: str,
        clock: Callable[[], int],
        *,
        details: bool,
        perf_stat: bool,
        tokens_only: bool,
    ) -> None:
        self.requests: tuple[Request, ...] = (request,)
        self.stream = request.stream
        self.headers: tuple[tuple[str, str], ...] = STREAM_HEADERS if request.stream else JSON_HEADERS
        self._name = name
        self._model = model
        self._details = details
        self._perf_stat = perf_stat
        self._tokens_only = tokens_only
        self._lap = _mindie.Lap(clock)
        self._pieces: list[str] = []
        self._ids: list[int] = []
        self._stat: list[tuple[int, float]] = []

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """An event for the piece, or the answer at the end."""
        self._pieces.append(delta.text)
        self._ids += delta.token_ids
        times = self._lap.times()
        took_ms = times["prefill_time"] if times["decode_time"] is None else times["decode_time"]
        self._stat += [(token_id, took_ms or 0.0) for token_id in delta.token_ids]
        if self.stream:
            return [event(self._body(delta, delta.text) | (times if self._details else {}), b"data:")]
        if delta.finish_reason is None:
            return []
        whole = self._output() if self._tokens_only else self._body(delta, "".join(self._pieces))
        return [msgspec.json.encode(whole)]

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """The error with its own status."""
        return _mindie.refusal(error)

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """An event with the error, or its object when nothing else was sent."""
        return _mindie.abort(error, self.stream, b"data:")

    def _body(self, delta: Delta, text: str) -> dict[str, Any]:
        body: dict[str, Any] = {
            "id": self._name,
            "model_name": self._model,
            "model_version": None,
            "text_output": text,
        }
        if self._details:
            ended = delta.finish_reason is not None
            reason = {"finish_reason": _mindie.reason_name(delta.finish_reason)} if ended else {}
            body["details"] = {
                **reason,
                "generated_tokens": len(self._ids),
                "first_token_cost": None,
                "decode_cost": None,
                **({"perf_stat": self._stat} if self._perf_stat else {}),
                "batch_size": None,
                "queue_wait_time": None,
            }
        return body

    def _output(self) -> dict[str, Any]:
        output = {"name": _OUTPUT, "shape": [1, len(self._ids)], "datatype": "UINT32", "data": self._ids}
        return {"id": self._name, "outputs": [output]}


class TritonReader:
    """The client's side of a response. An event's tokens are what its running count grew by."""

    def __init__(self, request: Request, *, whole: bool) -> None:
        self._request = request
        self._whole = whole
        self._num_tokens = 0

    def read(self, event: dict[str, Any]) -> Iterable[Delta]:
        """The new text of a stream, or all of it."""
        text = event["text_output"]
        details = event.get("details") or {}
        name = details.get("finish_reason")
        if self._whole:
            reason = _mindie.reason_of(name) if name else "stop"
            return [Delta(full_text=text, total_tokens=details.get("generated_tokens"), finish_reason=reason)]
        before, self._num_tokens = self._num_tokens, details.get("generated_tokens", self._num_tokens + 1)
        num_tokens = self._num_tokens - before
        assumed = "generated_tokens" not in details
        if name is None:
            return [Delta(text=text, num_tokens=num_tokens, assumed=assumed)]
        return [
            Delta(
                text=text,
                num_tokens=num_tokens,
                finish_reason=_mindie.reason_of(name),
                total_tokens=None if assumed else self._num_tokens,
                assumed=assumed,
            )
        ]

    def end(self, done: bool) -> Iterable[Delta]:
        """Nothing is held back."""
        return []


def _request_id(fields: Fields, headers: Mapping[str, str]) -> str | None:
    name = fields.text("id")
    if name is None:
        return headers.get("x-request-id")
    if not _ID.fullmatch(name):
        raise fields.error("id", "only letters, digits, _ and -, at most 256 of them")
    return name


def _input_ids(fields: Fields, vocab_size: int) -> tuple[int, ...]:
    """The one tensor of `inputs`: row of token ids."""
    tensors = fields.raw("inputs")
    if not isinstance(tensors, list) or len(tensors) != 1 or not isinstance(tensors[0], dict):
        raise fields.error("inputs", "must be a list of one tensor")
    tensor = Fields(tensors[0], "inputs[0].")
    if tensor.text("datatype") != "UINT32":
        raise tensor.error("datatype", "must be UINT32")
    ids = tensor.ids("data", vocab_size)
    if tensor.raw("shape") not in ([len(ids)], [1, len(ids)]):
        raise tensor.error("shape", f"must be [{len(ids)}] or [1, {len(ids)}], as data has so many ids")
    return ids


def _server(status: Status) -> dict[str, Any]:
    extensions = {
        "max_iter_times": status.max_model_len,
        "prefill_policy_type": 0,
        "decode_policy_type": 0,
        "max_prefill_batch_size": status.max_batch,
        "max_prefill_tokens": status.max_tokens_per_step,
    }
    return {"name": _SERVER, "version": None, "extensions": extensions}


def _model(status: Status) -> dict[str, Any]:
    return {
        "name": status.model_name,
        "platform": _SERVER,
        "inputs": [{"name": _INPUT, "shape": [-1], "datatype": "UINT32"}],
        "outputs": [{"name": _OUTPUT, "shape": [-1], "datatype": "UINT32"}],
    }


def _config(status: Status) -> dict[str, Any]:
    return {
        "model_name": status.model_name,
        "input_datatype": "UINT32",
        "output_datatype": "UINT32",
        "max_seq_len": status.max_model_len,
        "npu_mem_size": None,
        "cpu_mem_size": None,
        "world_size": status.num_ranks,
        "model_weight_path": status.model_name,
        "model_instance_type": "Standard",
    }
