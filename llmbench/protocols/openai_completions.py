"""OpenAI's `/v1/completions` with vLLM's extras, and `/v1/models`.

The log-probabilities are laid out as vLLM does and lm-eval reads them: with `echo` the prompt's tokens come first, the
very first with null; `top_logprobs` always holds the token itself; `text_offset` counts the characters of `tokens`.
An answer's text continues its prompt's: the space between the two is kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llmbench.errors import LlmbenchError, RequestError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status, _openai
from llmbench.protocols._body import FieldError, Fields, UnknownModel, decode
from llmbench.protocols._http import JSON_HEADERS, STREAM_HEADERS, answer, check_carried, client_headers, is_stream
from llmbench.protocols._openai import REAL, OpenAiReader, Stamp, StreamOptions, Usage
from llmbench.protocols._sampling import CARRIED, client_fields, generation
from llmbench.protocols._sse import DONE, Events, JsonDecoder, Whole, event
from llmbench.types import Delta, Request, TokenLogprob

_DEFAULT_NEW_TOKENS = 16
_MAX_PROMPTS = 1024
_MODELS = "/v1/models"


def dialect(
    model: str = "", continuous_usage: bool = False, token_ids: bool = False, stamp: Stamp = REAL
) -> "OpenAiCompletions":
    """OpenAI's completions; `model` is what the client names, nothing if empty.

    With `continuous_usage` the client asks for a token count in every chunk, which vLLM and SGLang can give, with
    `token_ids` for the ids of every chunk's tokens, which vLLM can.
    """
    return OpenAiCompletions(model, _openai.Extras(continuous_usage, token_ids), stamp)


class OpenAiCompletions:
    """Both halves of the dialect."""

    name = "openai_completions"
    posts: Sequence[str] = ("/v1/completions",)
    others: Sequence[tuple[str, str]] = (("GET", _MODELS), ("GET", f"{_MODELS}/{{model}}"))

    def __init__(self, model: str, extras: _openai.Extras, stamp: Stamp) -> None:
        self.model = model
        self.extras = extras
        self._stamp = stamp

    def encode(self, request: Request) -> HttpRequest:
        """As OpenAI's client, with vLLM's extras where they are needed; a stream asks for `usage`."""
        check_carried(request, self.name, (*CARRIED, "num_logprobs", "prompt_logprobs"))
        prompt = request.prompt
        body: dict[str, Any] = {"model": self.model} if self.model else {}
        body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
        body |= client_fields(request, "max_tokens")
        if request.sampling.num_logprobs is not None:
            body["logprobs"] = request.sampling.num_logprobs
        if request.sampling.prompt_logprobs is not None:
            body |= _echo(request)
        body |= _openai.client_stream(request, self.extras)
        return HttpRequest(path=self.posts[0], headers=client_headers(request), body=msgspec.json.encode(body))

    def decoder(self, request: Request, headers: Mapping[str, str]) -> JsonDecoder:
        """Reads streams and whole answers."""
        stream = is_stream(request, headers)
        reader = OpenAiReader(request, whole=not stream, text_of=_text, scores_of=_scores, logprobs_of=_logprobs)
        return JsonDecoder(Events() if stream else Whole(), reader, reader.again if stream else None)

    def wants(self, path: str, body: bytes) -> bool:
        """This path is OpenAI's alone."""
        return True

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "CompletionsReply":
        """Read a body. Raises RequestError."""
        fields = Fields(decode(body))
        _openai.check_model(fields, status)
        fields.refuse({"suffix": ("",)})
        echo = fields.flag("echo")
        new_tokens, sampling = generation(
            fields, status.vocab_size, "max_tokens", default=_DEFAULT_NEW_TOKENS, lowest=0 if echo else 1
        )
        num_logprobs = fields.integer("logprobs", 0, _openai.MAX_LOGPROBS)
        stream, options = fields.flag("stream"), _openai.stream_options(fields)
        prompts = _prompts(fields, status.vocab_size)
        names = _openai.request_ids(headers.get("x-request-id", ""), len(prompts))
        requests = tuple(
            Request(
                prompt=prompt,
                max_new_tokens=new_tokens,
                sampling=msgspec.structs.replace(
                    sampling, num_logprobs=num_logprobs, prompt_logprobs=_echoed(echo, prompt, num_logprobs)
                ),
                stream=stream,
                joined=True,
                request_id=name,
            )
            for prompt, name in zip(prompts, names, strict=True)
        )
        with_ids = fields.flag("return_token_ids")  # vLLM's
        return CompletionsReply(requests, status.model_name, self._stamp, options, echo=echo, with_ids=with_ids)

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """OpenAI's error object."""
        return _openai.refusal(error)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """The models: the one that is served."""
        found = _openai.models(host.status(), self._stamp.wall())
        if path == _MODELS:
            return answer({"object": "list", "data": found})
        name = path.removeprefix(f"{_MODELS}/")
        if name != found[0]["id"]:
            return self.reject(UnknownModel(f"the model {name!r} does not exist; this server has {found[0]['id']!r}"))
        return answer(found[0])


class CompletionsReply:
    """The answers to one body on the server's side: one choice for each prompt."""

    def __init__(
        self,
        requests: tuple[Request, ...],
        model: str,
        stamp: Stamp,
        options: StreamOptions,
        *,
        echo: bool,
        with_ids: bool,
    ) -> None:
        self.requests = requests
        self.stream = requests[0].stream
        self.headers: tuple[tuple[str, str], ...] = STREAM_HEADERS if self.stream else JSON_HEADERS
        self._options = options
        self._envelope = {
            "id": f"cmpl-{requests[0].request_id or stamp.new_id()}",
            "object": "text_completion",
            "created": int(stamp.wall()),
            "model": model,
        }
        self._choices = [_Choice(i, request, echo=echo, with_ids=with_ids) for i, request in enumerate(requests)]
        self._usage = Usage()
        self._num_open = len(requests)

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """A chunk for the piece, and what ends a stream behind the last; or the answer at the end."""
        self._usage.add(delta)
        choice = self._choices[index]
        piece = choice.take(delta)
        self._num_open -= delta.finish_reason is not None
        if not self.stream:
            return [] if self._num_open else [msgspec.json.encode(self._whole())]
        chunks = [event(self._chunk(piece))]
        if not self._num_open:
            if self._options.usage:
                chunks.append(event(self._envelope | {"choices": [], "usage": self._usage.value()}))
            chunks.append(DONE)
        return chunks

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """OpenAI's error object."""
        return _openai.refusal(error)

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """An event with the error object, then the end."""
        return _openai.abort(error)

    def _chunk(self, piece: dict[str, Any]) -> dict[str, Any]:
        chunk = self._envelope | {"choices": [piece]}
        if self._options.continuous:
            return chunk | {"usage": self._usage.value()}
        return chunk | {"usage": None} if self._options.usage else chunk

    def _whole(self) -> dict[str, Any]:
        choices = [choice.whole() for choice in self._choices]
        return self._envelope | {"choices": choices, "usage": self._usage.value()}


class _Choice:
    """What one prompt has brought so far."""

    def __init__(self, index: int, request: Request, *, echo: bool, with_ids: bool) -> None:
        self._index = index
        self._request = request
        self._echo = echo
        self._ids: list[int] | None = [] if with_ids else None
        self._texts: list[str] = []
        self._scores = _Scores() if request.sampling.num_logprobs is not None else None
        self._started = False
        self._ended: dict[str, Any] = {}

    def take(self, delta: Delta) -> dict[str, Any]:
        """The choice as a stream's chunk has it."""
        text, scores = delta.text, list(_openai.scored(delta))
        if self._echo and not self._started:
            prompt = self._request.prompt
            text = (prompt if isinstance(prompt, str) else "".join(token.text for token in delta.prompt)) + text
            scores = [*delta.prompt, *scores]
        self._started = True
        self._ended = {"finish_reason": _openai.reason_name(delta), "stop_reason": delta.stop_reason}
        self._texts.append(text)
        if self._ids is not None:
            self._ids += delta.token_ids
        logprobs = None if self._scores is None else self._scores.take(scores)
        return {"index": self._index, "text": text, "logprobs": logprobs, **self._told(delta.token_ids), **self._ended}

    def whole(self) -> dict[str, Any]:
        """The choice as a whole answer has it."""
        logprobs = None if self._scores is None else self._scores.all
        answer = {"index": self._index, "text": "".join(self._texts), "logprobs": logprobs}
        return {**answer, **self._told(self._ids or ()), **self._ended}

    def _told(self, token_ids: Sequence[int]) -> dict[str, list[int]]:
        """The ids, for a client that wants them."""
        return {} if self._ids is None else {"token_ids": list(token_ids)}


class _Scores:
    """Log-probabilities in the four lists of OpenAI's completions, all of them and those of a piece."""

    def __init__(self) -> None:
        self.all = _lists()
        self._offset = 0

    def take(self, tokens: Iterable[TokenLogprob]) -> dict[str, list[Any]]:
        """The lists for new tokens."""
        new = _lists()
        for token in tokens:
            new["text_offset"].append(self._offset)
            new["token_logprobs"].append(None if token.logprob is None else _openai.bounded(token.logprob))
            new["tokens"].append(token.text)
            new["top_logprobs"].append(_top(token))
            self._offset += len(token.text)
        for name, values in new.items():
            self.all[name] += values
        return new


def _lists() -> dict[str, list[Any]]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def _top(token: TokenLogprob) -> dict[str, float] | None:
    """The likeliest tokens by their text, and the token itself; of two with one text the likelier stays."""
    if token.logprob is None:
        return None
    top: dict[str, float] = {}
    for text, logprob in (*token.top, (token.text, token.logprob)):
        top.setdefault(text, _openai.bounded(logprob))
    return top


def _echoed(echo: bool, prompt: str | tuple[int, ...], num_logprobs: int | None) -> int | None:
    """What the prompt must be scored for: its log-probabilities, or for ids only their texts."""
    if not echo:
        return None
    return num_logprobs if isinstance(prompt, str) or num_logprobs is not None else 0


def _prompts(fields: Fields, vocab_size: int) -> list[str | tuple[int, ...]]:
    """One prompt or several, each text or token ids."""
    value = fields.raw("prompt")
    if value is None:
        raise FieldError("prompt", "required")
    if isinstance(value, str):
        return [fields.prompt("prompt")]
    if not isinstance(value, list) or not value:
        raise FieldError("prompt", "must be a string, a list of token ids, or a list of either")
    if isinstance(value[0], int):
        return [fields.ids("prompt", vocab_size)]
    if len(value) > _MAX_PROMPTS:
        raise FieldError("prompt", f"at most {_MAX_PROMPTS} prompts in one request, got {len(value)}")
    each = [Fields({"prompt": item}) for item in value]
    return [
        one.ids("prompt", vocab_size) if isinstance(item, list) else one.prompt("prompt")
        for one, item in zip(each, value, strict=True)
    ]


def _text(choice: dict[str, Any]) -> str:
    return choice["text"] or ""


def _scores(choice: dict[str, Any]) -> list[Any]:
    return (choice.get("logprobs") or {}).get("tokens") or []


def _echo(request: Request) -> dict[str, Any]:
    """The fields that ask for the prompt's log-probabilities. Raises RequestError for a stream, which brings none."""
    if request.stream:
        raise RequestError("prompt_logprobs come with a whole answer only, not with a stream")
    asked = request.sampling
    return {"echo": True, "logprobs": max(asked.num_logprobs or 0, asked.prompt_logprobs or 0)}


def _logprobs(choice: dict[str, Any]) -> Iterable[TokenLogprob]:
    """The tokens of a choice's four lists."""
    lists = choice.get("logprobs") or {}
    texts = lists.get("tokens") or []
    tops = lists.get("top_logprobs") or [None] * len(texts)
    for text, logprob, top in zip(texts, lists.get("token_logprobs") or [], tops, strict=True):
        yield _openai.read_logprob(text, logprob, (top or {}).items())
