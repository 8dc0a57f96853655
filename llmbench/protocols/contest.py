"""The dialect of the 2024 Ascend contest's llm-serving stack, byte for byte.

Its streams are bare JSON lines, not SSE frames: the original handlers yield bytes, which sse_starlette passes through
untouched. `data` is a one-element list in the original server and the object itself in a well-known variant of it;
`data_shape` chooses, and the client here reads both. The original never sends the text of an answer's last token
(it marks the answer finished before it detokenises); `drop_last_token` keeps that, because reference texts lack it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from llmbench.errors import AgentDied, ConfigError, LlmbenchError, PromptEmpty, PromptTooLong, RequestError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status
from llmbench.protocols._http import retry_after
from llmbench.types import Delta, FinishReason, Request, Sampling

DataShape = Literal["list", "object"]

# The three errors that the original answers with HTTP 200: text, finish_reason, token id.
_OUT_OF_RANGE = ("Error202: prompt out of range", "prompt_out_of_range", 0)
_EMPTY = ("Error203: prompt token empty", "prompt_token_ids_empty", 0)
_FAILED = ("error304: generation task stop abnormally!, please retry!", "predict_failed", -1)
_ERROR_TEXTS = ("Error20", "error304")

_BASE = "/models/llama2"  # the segment is literal, whatever the model
_DEFAULT_NEW_TOKENS = 300
_DEFAULT_TOP_K = 3
_TOP_K_CEILING = 100  # what the sampler of the original cuts top_k to


def dialect(data_shape: DataShape = "list", drop_last_token: bool = True, docker_label: str = "") -> "Contest":
    """The contest dialect. Raises ConfigError for an unknown `data_shape`."""
    if data_shape not in get_args(DataShape):
        raise ConfigError(f"data_shape: must be list or object, got {data_shape!r}")
    return Contest(data_shape, drop_last_token, docker_label)


class Contest:
    """Both halves of the dialect."""

    name = "contest"
    posts: Sequence[str] = tuple(
        f"/models/{model}{tail}" for model in ("llama2", "internlm") for tail in ("", "/generate", "/generate_stream")
    )
    others: Sequence[tuple[str, str]] = (
        ("GET", "/serving/get_bs"),
        ("GET", "/serving/get_request_numbers"),
        ("GET", "/serving/get_serverd_model_info"),
    )

    def __init__(self, data_shape: DataShape, drop_last_token: bool, docker_label: str) -> None:
        self.data_shape = data_shape
        self.drop_last_token = drop_last_token
        self.docker_label = docker_label

    def encode(self, request: Request) -> HttpRequest:
        """The original client's body, its string booleans included; without its `Connection: close`."""
        if not isinstance(request.prompt, str):
            raise RequestError("the contest dialect takes a prompt as text only, not as token ids")
        parameters: dict[str, Any] = {}
        if request.max_new_tokens is not None:
            parameters["max_new_tokens"] = request.max_new_tokens
        sampling = request.sampling
        parameters["do_sample"] = str(not sampling.greedy)
        if not sampling.greedy:
            parameters |= {"temperature": sampling.temperature, "top_p": sampling.top_p}
            if sampling.top_k:
                parameters["top_k"] = sampling.top_k
        parameters["return_full_text"] = "True"
        headers = [("Content-Type", "application/json")]
        if request.request_id:
            headers.append(("X-Request-Id", request.request_id))
        return HttpRequest(
            path=f"{_BASE}/generate_stream" if request.stream else f"{_BASE}/generate",
            headers=tuple(headers),
            body=json.dumps({"inputs": request.prompt, "parameters": parameters}).encode(),
        )

    def decoder(self, request: Request, headers: Mapping[str, str]) -> "ContestDecoder":
        """Reads streams and whole answers of either `data` shape, framed as SSE or bare."""
        return ContestDecoder()

    def wants(self, path: str, body: bytes) -> bool:
        """These paths are the contest's alone."""
        return True

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "ContestReply":
        """Read a body as pydantic 1 read it: strings are coerced, unknown keys ignored. Raises RequestError."""
        fields = _object(body)
        inputs = _field(fields, "inputs", _as_str, where="inputs")
        values = _parameters(fields.get("parameters"))
        wants_stream = _field(fields, "stream", _as_bool, where="stream", default=False)
        stream = path.endswith("/generate_stream") or (not path.endswith("/generate") and wants_stream)
        request = Request(
            prompt=inputs,
            max_new_tokens=_new_tokens(values["max_new_tokens"]),
            sampling=_sampling(values, status.vocab_size),
            stream=stream,
            request_id=headers.get("x-request-id", ""),
        )
        sse = values["return_protocol"] == "sse"
        return ContestReply(request, self, sse=sse, full_text=values["return_full_text"])

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """FastAPI's 422 for a body that is wrong; a plain `detail` for the rest."""
        if isinstance(error, InvalidBody):
            detail: Any = [{"loc": ["body", *error.where], "msg": error.message, "type": error.kind}]
            return HttpResponse(status=422, body=json.dumps({"detail": detail}).encode())
        headers = _JSON_HEADERS + retry_after(error)
        return HttpResponse(status=error.http_status, body=json.dumps({"detail": str(error)}).encode(), headers=headers)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """The three management routes; unlike the streams these are real SSE events."""
        status = host.status()
        if path.endswith("model_info"):
            # "max_total_tokens" is the batch size in the original too
            text = json.dumps(
                {
                    "docker_label": self.docker_label,
                    "max_batch_total_tokens": status.max_model_len * status.max_batch,
                    "max_concurrent_requests": status.num_waiting,
                    "max_input_length": status.max_model_len,
                    "max_total_tokens": status.max_batch,
                    "model_device_type": "CANN",
                    "model_dtype": status.model_dtype,
                    "model_id": status.model_name,
                    "model_pipeline_tag": "text-generation",
                    "version": "2.3",
                }
            )
        else:
            number = status.max_batch if path.endswith("get_bs") else status.num_waiting
            text = json.dumps({"event": "message", "retry": 30000, "data": number})
        return HttpResponse(status=200, body=f"data: {text}\r\n\r\n".encode(), headers=_STREAM_HEADERS)


_STREAM_HEADERS = (
    ("Content-Type", "text/event-stream; charset=utf-8"),
    ("Cache-Control", "no-cache"),
    ("X-Accel-Buffering", "no"),
)
_JSON_HEADERS = (("Content-Type", "application/json"),)
_PLAIN_HEADERS = (("Content-Type", "text/plain; charset=utf-8"),)


class ContestReply:
    """One answer on the server's side: the pieces so far, because the last event repeats them all."""

    def __init__(self, request: Request, dialect: Contest, *, sse: bool, full_text: bool) -> None:
        self.requests = (request,)
        self.stream = request.stream
        self._dialect = dialect
        self._full_text = full_text
        self._sse = sse
        self._texts: list[str] = []
        self._tokens: list[str] = []  # as JSON: each stands in its own event twice, and in the last one again
        self._num_generated = 0  # the token that carries an error is not one
        stream_headers = _STREAM_HEADERS if sse else _PLAIN_HEADERS
        self.headers: tuple[tuple[str, str], ...] = stream_headers if request.stream else _JSON_HEADERS
        self._before, self._after = _wrapping(sse, dialect.data_shape)

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """One line for each token, and after the last one the whole answer."""
        last = delta.finish_reason is not None
        events = []
        for i, (token_id, logit) in enumerate(
            zip(delta.token_ids, delta.logits, strict=True), 1 - len(delta.token_ids)
        ):
            # the text of a step belongs to its last token; the original loses that of the answer's last one
            lost = i < 0 or (last and self._dialect.drop_last_token)
            events.append(self._event("" if lost else delta.text, token_id, logit))
        self._num_generated += len(events)
        lines = [self._line(event) for event in events] if self.stream else []
        return lines + self._end(str(delta.finish_reason)) if last else lines

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """The original's HTTP 200 with the error as the answer's text, where it has one; a `detail` else."""
        if _known(error) is None:
            return self._dialect.reject(error)
        return HttpResponse(status=200, body=b"".join(self.abort(error)), headers=self.headers)

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """The error as one more token, then the end."""
        text, reason, token_id = _known(error) or _FAILED
        event = self._event(text, token_id, 0.0)
        return ([self._line(event)] if self.stream else []) + self._end(reason)

    def _event(self, text: str, token_id: int, logit: float) -> str:
        """One token; `special` means that it has no text."""
        quoted = _quote(text)
        special = "false" if text else "true"
        token = f'{{"id": {token_id}, "logprob": {logit!r}, "special": {special}, "text": {quoted}}}'
        self._texts.append(text)
        self._tokens.append(token)
        return f'{{"details": null, "generated_text": {quoted}, "tokens": {token}, "top_tokens": [{token}]}}'

    def _end(self, reason: str) -> list[bytes]:
        """The event with the whole answer, if it was wanted; for an answer that is not streamed, the answer."""
        first = self._tokens[0] if self._tokens else ""
        whole = (
            f'"generated_text": {_quote("".join(self._texts))}, "finish_reason": {_quote(reason)}, '
            f'"generated_tokens": {self._num_generated}, "prefill": [{first}], "seed": 0, '
            f'"tokens": [{", ".join(self._tokens)}], "top_tokens": [[{first}]]'
        )
        if not self.stream:
            return [_encode(f'{{{whole}, "details": null}}')]
        if not self._full_text:
            return []
        # SSE streams of the original have `details` first here
        return [self._line(f'{{"details": null, {whole}}}' if self._sse else f'{{{whole}, "details": null}}')]

    def _line(self, event: str) -> bytes:
        return _encode(f"{self._before}{event}{self._after}")


class ContestDecoder:
    """One response on the client's side; takes bytes in any cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended = False

    def feed(self, data: bytes) -> list[Delta]:
        """The Deltas of the lines that these bytes complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [delta for line in lines for delta in self._read(line)]

    def close(self) -> list[Delta]:
        """What stands behind the last newline, or an error when the answer never ended."""
        deltas = self._read(self._rest)
        self._rest = b""
        if not self._ended:
            deltas.append(_error("the response ended before the answer's last event"))
        return deltas

    def _read(self, line: bytes) -> list[Delta]:
        line = line.strip()
        if self._ended or not line or line.startswith(b":"):  # the original's 600 s ping is such a comment
            return []
        try:
            event = msgspec.json.decode(line.removeprefix(b"data:"))
            delta = _delta(_unwrap(event))
        except (msgspec.DecodeError, TypeError, ValueError, IndexError) as error:
            shown = line[:80].decode("utf-8", "replace")
            delta = _error(f"not a contest event: {shown!r} ({type(error).__name__}: {error})")
        self._ended = delta.finish_reason is not None
        return [delta]


class InvalidBody(RequestError):
    """A body that FastAPI would refuse with 422; `where` is the path inside the body, `kind` pydantic's error type."""

    def __init__(self, where: Sequence[str | int], message: str, kind: str) -> None:
        super().__init__(f"{'.'.join(map(str, where)) or 'body'}: {message}")
        self.where, self.message, self.kind = where, message, kind


def _known(error: LlmbenchError) -> tuple[str, str, int] | None:
    """The original's text, finish_reason and token id for an error, if it has any."""
    if isinstance(error, PromptTooLong):
        return _OUT_OF_RANGE
    if isinstance(error, PromptEmpty):
        return _EMPTY
    return _FAILED if isinstance(error, AgentDied) else None


def _wrapping(sse: bool, data_shape: DataShape) -> tuple[str, str]:
    """What stands before and behind the object in a line of a stream."""
    if not sse:
        return "data:", ""
    opened, closed = ("[", "]") if data_shape == "list" else ("", "")
    return f'{{"event": "message", "retry": 30000, "data": {opened}', f"{closed}}}"


_quote = json.JSONEncoder(ensure_ascii=False).encode


def _encode(text: str) -> bytes:
    """One JSON line; what `str.splitlines` would split on is escaped."""
    if not text.isascii():
        for character in "\x85\u2028\u2029":
            text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "surrogatepass") + b"\n"


def _unwrap(event: Any) -> dict[str, Any]:
    """The inner object: of a one-element list, of an object, or the event itself where it is not wrapped."""
    inner = event.get("data", event) if isinstance(event, dict) else event
    inner = inner[0] if isinstance(inner, list) else inner
    if not isinstance(inner, dict):
        raise TypeError(f"expected an object, found {type(inner).__name__}")
    return inner


class _Token(msgspec.Struct):
    id: int
    logprob: float


class _Piece(msgspec.Struct):
    """What the client reads of an event for one token."""

    generated_text: str
    tokens: _Token


class _Whole(msgspec.Struct):
    """What the client reads of the event for a whole answer."""

    generated_text: str
    finish_reason: str
    generated_tokens: int


def _delta(event: dict[str, Any]) -> Delta:
    if "generated_tokens" not in event:
        piece = msgspec.convert(event, _Piece)
        text, token = piece.generated_text, piece.tokens
        if text.startswith(_ERROR_TEXTS) and token.id <= 0:
            return _error(text)
        return Delta(text=text, token_ids=(token.id,), logits=(token.logprob,), num_tokens=1)
    whole = msgspec.convert(event, _Whole)
    text, reason = whole.generated_text, whole.finish_reason
    if reason not in ("eos", "length"):
        return _error(text or reason)
    finish: FinishReason = "eos" if reason == "eos" else "length"
    return Delta(finish_reason=finish, full_text=text, total_tokens=whole.generated_tokens)


def _error(message: str) -> Delta:
    return Delta(finish_reason="error", error=message)


# -- the body, as pydantic 1 read it --------------------------------------------------------------------------------


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError as error:
        position = getattr(error, "pos", 0)
        raise InvalidBody([position], str(error), "value_error.jsondecode") from error
    except RecursionError as error:
        raise InvalidBody([], "nested too deeply", "value_error.jsondecode") from error
    if not isinstance(value, dict):
        raise InvalidBody([], "value is not a valid dict", "type_error.dict")
    return value


def _as_str(value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError("str type expected")
    text = str(value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("surrogates not allowed")
    return text


def _as_bool(value: Any) -> bool:
    value = value.lower() if isinstance(value, str) else value
    if isinstance(value, str | int | float):
        if value in (1, "1", "on", "t", "true", "y", "yes"):
            return True
        if value in (0, "0", "off", "f", "false", "n", "no"):
            return False
    raise ValueError("value could not be parsed to a boolean")


def _as_int(value: Any) -> int:
    try:
        return int(value)
    except OverflowError as error:
        raise ValueError("value is not a valid integer") from error


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError("value is not a valid float") from error


def _as_list(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise TypeError("value is not a valid list")
    return [_as_str(item) for item in value]


# name, how it is read, default; a default of None may also be given as null
_PARAMETERS: tuple[tuple[str, Callable[[Any], Any], Any], ...] = (
    ("do_sample", _as_bool, True),
    ("top_k", _as_int, None),
    ("top_p", _as_float, None),
    ("temperature", _as_float, None),
    ("repetition_penalty", _as_float, None),  # accepted and never applied, as in the original
    ("max_new_tokens", _as_int, None),
    ("return_full_text", _as_bool, True),
    ("return_protocol", _as_str, "sse"),
    # accepted and ignored in the original too
    ("decoder_input_details", _as_bool, False),
    ("details", _as_bool, False),
    ("watermark", _as_bool, False),
    ("seed", _as_int, 0),
    ("stop", _as_list, []),
    ("top_n_tokens", _as_int, 0),
    ("typical_p", _as_int, 0),
)


def _parameters(given: Any) -> dict[str, Any]:
    """All parameters, coerced, with pydantic's defaults for what is absent."""
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise InvalidBody(["parameters"], "value is not a valid dict", "type_error.dict")
    return {
        name: _field(given, name, read, where=f"parameters.{name}", default=default)
        for name, read, default in _PARAMETERS
    }


def _field(fields: dict[str, Any], name: str, read: Callable[[Any], Any], where: str, default: Any = ...) -> Any:
    path = where.split(".")
    if name not in fields:
        if default is ...:
            raise InvalidBody(path, "field required", "value_error.missing")
        return default
    value = fields[name]
    if value is None:
        if default is None:
            return None
        raise InvalidBody(path, "none is not an allowed value", "type_error.none.not_allowed")
    try:
        return read(value)
    except (TypeError, ValueError) as error:
        raise InvalidBody(path, str(error), f"type_error.{read.__name__.removeprefix('_as_')}") from error


def _new_tokens(value: int | None) -> int:
    """The original takes 0 and below, and then never ends the answer; that is refused here."""
    if value is None:
        return _DEFAULT_NEW_TOKENS
    if value < 1:
        raise InvalidBody(["parameters", "max_new_tokens"], "must be at least 1", "value_error.number.not_ge")
    return value


def _sampling(values: dict[str, Any], vocab_size: int) -> Sampling:
    """The clamps of the original's `send_request`."""
    temperature = 1.0 if values["temperature"] is None else values["temperature"]
    if not values["do_sample"] or not 1e-5 < temperature <= 65_536:
        return Sampling()
    top_k = _DEFAULT_TOP_K if values["top_k"] is None else values["top_k"]
    top_k = min(top_k, _TOP_K_CEILING) if 0 < top_k < vocab_size else 1
    top_p = 1.0 if values["top_p"] is None else values["top_p"]
    if not 0 < top_p <= 1:
        top_p = 1.0 if not top_p < 0.01 else 0.01  # NaN, which the original lets pass, cuts nothing off
    return Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
