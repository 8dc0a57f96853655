"""The dialect of Hugging Face's text-generation-inference (TGI), and of MindIE, which speaks its version 0.9.4.

`stream: true` on `/` or `/generate` streams as `/generate_stream` does; a whole answer on `/` is a list of one.
`flavour` chooses the server's half: `mindie` gives a token's ids as a list and `special` as null, one event per step,
and cuts the text before a stop text; `huggingface` gives one event per token with `index`, keeps the stop text, and the
space between prompt and answer.
The client reads both. `logprob` is null in both unless `decoder_input_details` is asked for, because every token's
would cost the engine time that a benchmark would measure.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from llmbench.errors import ConfigError, LlmbenchError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status, _mindie
from llmbench.protocols._body import Fields, decode, prompt_key
from llmbench.protocols._http import JSON_HEADERS, STREAM_HEADERS, check_carried, client_headers, is_stream, text_prompt
from llmbench.protocols._sse import Events, JsonDecoder, Whole, event
from llmbench.types import Delta, Request, TokenLogprob

Flavour = Literal["mindie", "huggingface"]


def dialect(flavour: Flavour = "mindie") -> "Tgi":
    """The TGI dialect. Raises ConfigError for an unknown `flavour`."""
    if flavour not in get_args(Flavour):
        raise ConfigError(f"flavour: must be mindie or huggingface, got {flavour!r}")
    return Tgi(flavour)


class Tgi:
    """Both halves of the dialect."""

    name = "tgi"
    posts: Sequence[str] = ("/", "/generate", "/generate_stream")
    others: Sequence[tuple[str, str]] = ()

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour

    def encode(self, request: Request) -> HttpRequest:
        """As TGI's own client asks: with `details`, which say why an answer ended."""
        check_carried(request, self.name, ("stop", "frequency_penalty"))
        parameters = _mindie.parameters(request) | {"details": True}
        if request.sampling.stop:
            parameters["stop"] = list(request.sampling.stop)
        if request.sampling.frequency_penalty:
            parameters["frequency_penalty"] = request.sampling.frequency_penalty
        body = {"inputs": text_prompt(request, self.name), "parameters": parameters}
        return HttpRequest(
            path="/generate_stream" if request.stream else "/generate",
            headers=client_headers(request),
            body=msgspec.json.encode(body),
        )

    def decoder(self, request: Request, headers: Mapping[str, str]) -> JsonDecoder:
        """Reads streams and whole answers of either flavour."""
        return JsonDecoder(Events() if is_stream(request, headers) else Whole(), _mindie.TokenReader())

    def wants(self, path: str, body: bytes) -> bool:
        """`/generate` is shared: bodies with `inputs` are TGI's."""
        return path != "/generate" or prompt_key(body) == "inputs"

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "TgiReply":
        """Read a body. Raises RequestError."""
        fields = Fields(decode(body))
        prompt = fields.prompt("inputs")
        given = fields.object("parameters")
        stream = path == "/generate_stream" or fields.flag("stream")
        scored = given.flag("decoder_input_details")
        if scored and stream:
            raise given.error("decoder_input_details", "must be false for a stream")
        sampling = msgspec.structs.replace(
            _mindie.sampling(given, status.vocab_size),
            include_stop=self.flavour == "huggingface",
            num_logprobs=0 if scored else None,
            prompt_logprobs=0 if scored else None,
        )
        request = Request(
            prompt=prompt,
            max_new_tokens=_mindie.new_tokens(given),
            sampling=sampling,
            stream=stream,
            joined=self.flavour == "huggingface",  # MindIE begins anew: "am", where TGI has " am"
            request_id=headers.get("x-request-id", ""),
        )
        return TgiReply(
            request,
            self.flavour,
            details=given.flag("details") or scored,
            prefix=prompt if given.flag("return_full_text") else "",
            as_list=path == "/",
        )

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """422 with `error` and `error_type`."""
        return _mindie.rejection(error)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """There are no management routes: `/info` and the like are MindIE's."""
        raise AssertionError(f"no route {method} {path}")


class TgiReply:
    """One answer on the server's side."""

    def __init__(self, request: Request, flavour: Flavour, *, details: bool, prefix: str, as_list: bool) -> None:
        self.requests: tuple[Request, ...] = (request,)
        self.stream = request.stream
        self.headers: tuple[tuple[str, str], ...] = STREAM_HEADERS if request.stream else JSON_HEADERS
        self._huggingface = flavour == "huggingface"
        self._details = details
        self._as_list = as_list
        self._pieces = [prefix]
        self._tokens: list[dict[str, Any]] = []
        self._prefill: list[dict[str, Any]] = []
        self._num_generated = 0

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """An event for the piece, the last one with the whole text; or the answer at the end."""
        self._pieces.append(delta.text)
        self._num_generated += delta.num_tokens
        if self.stream:
            return [event(value) for value in self._events(delta)]
        if self._details:
            self._tokens += self._each(delta)
            self._prefill += [_token(token.token_id, None, token, None) for token in delta.prompt]
        return [] if delta.finish_reason is None else [msgspec.json.encode(self._whole(delta))]

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """The error with its own status."""
        return _mindie.refusal(error)

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """An event with the error, or its object when nothing else was sent."""
        return _mindie.abort(error, self.stream)

    def _events(self, delta: Delta) -> list[dict[str, Any]]:
        events: list[dict[str, Any]]
        nothing = {"generated_text": None, "details": None}
        if self._huggingface:
            first = self._num_generated - delta.num_tokens + 1
            # a last piece without a token still needs an event: the special token 0 stands for it
            tokens = self._each(delta) or [_token(0, delta.text, None, not delta.text)]
            events = [{"index": first + i, "token": token} | nothing for i, token in enumerate(tokens)]
        else:
            token = {"id": list(delta.token_ids), "text": delta.text, "logprob": None, "special": None}
            events = [{"token": token} | nothing]
        if delta.finish_reason is not None:
            events[-1]["generated_text"] = "".join(self._pieces)
            events[-1]["details"] = self._counts(delta) if self._details else None
        return events

    def _each(self, delta: Delta) -> list[dict[str, Any]]:
        """One object for each token; the text of a step belongs to its last one."""
        last = len(delta.token_ids) - 1
        scores: Iterable[TokenLogprob | None] = delta.logprobs or [None] * (last + 1)
        ended = delta.finish_reason == "eos"
        return [
            _token(
                token_id, delta.text if i == last else "", score, (ended and i == last) if self._huggingface else None
            )
            for i, (token_id, score) in enumerate(zip(delta.token_ids, scores, strict=True))
        ]

    def _counts(self, delta: Delta) -> dict[str, Any]:
        num_prompt = delta.num_prompt_tokens or 0
        prompt = {"input_length": num_prompt} if self._huggingface else {"prompt_tokens": num_prompt}
        return {
            **prompt,
            "finish_reason": _mindie.reason_name(delta.finish_reason),
            "generated_tokens": self._num_generated,
            "seed": self.requests[0].sampling.seed,
        }

    def _whole(self, delta: Delta) -> Any:
        whole: dict[str, Any] = {"generated_text": "".join(self._pieces)}
        if self._details:
            counts = self._counts(delta) | {"prefill": self._prefill, "tokens": self._tokens}
            whole["details"] = counts
        return [whole] if self._as_list else whole


def _token(token_id: int, text: str | None, score: TokenLogprob | None, special: bool | None) -> dict[str, Any]:
    return {
        "id": token_id,
        "text": score.text if text is None and score else text,
        "logprob": score.logprob if score else None,
        "special": special,
    }
