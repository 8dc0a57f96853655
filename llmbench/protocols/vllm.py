"""vLLM's first dialect, `/generate` with a `prompt`, as MindIE speaks it; and vLLM's routes for its tokenizer.

A whole answer is `{"text": ["PROMPT OUTPUT"]}`, with one space between the two. In a stream each object has the new
text only and a zero byte behind it. Neither MindIE nor vLLM says why an answer ended: here the last object has a
`finish_reason` as well, which their clients pass over. The client reads streams that lack it where HTTP itself shows
that nothing was cut off (chunks, or a length).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llmbench.errors import LlmbenchError, RequestError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status, _mindie
from llmbench.protocols._body import FieldError, Fields, decode, prompt_key
from llmbench.protocols._http import JSON_HEADERS, answer, check_carried, client_headers, text_prompt
from llmbench.protocols._sampling import CARRIED, client_fields, generation
from llmbench.protocols._sse import JsonDecoder, Separated, Whole
from llmbench.types import Delta, FinishReason, Request

_DEFAULT_NEW_TOKENS = 16
_STREAM_HEADERS = (("Content-Type", "application/octet-stream"),)
_REASONS: dict[str, FinishReason] = {"eos": "eos", "length": "length", "stop": "stop"}
_NO_LORA = ("None", "")


def dialect() -> "Vllm":
    """The dialect of `/generate` with a `prompt`."""
    return Vllm()


class Vllm:
    """Both halves of the dialect."""

    name = "vllm"
    posts: Sequence[str] = ("/generate",)
    others: Sequence[tuple[str, str]] = (
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/tokenizer_info"),
    )

    def encode(self, request: Request) -> HttpRequest:
        """The fields of vLLM's SamplingParams beside the prompt."""
        check_carried(request, self.name, CARRIED)
        body: dict[str, Any] = {"prompt": text_prompt(request, self.name), "stream": request.stream}
        body |= client_fields(request, "max_tokens")
        return HttpRequest(path="/generate", headers=client_headers(request), body=msgspec.json.encode(body))

    def decoder(self, request: Request, headers: Mapping[str, str]) -> JsonDecoder:
        """Objects with zero bytes behind them, or one object."""
        framed = "transfer-encoding" in headers or "content-length" in headers
        if request.stream:
            return JsonDecoder(Separated(), VllmReader(request, whole=False, framed=framed))
        return JsonDecoder(Whole(), VllmReader(request, whole=True, framed=framed))

    def wants(self, path: str, body: bytes) -> bool:
        """Bodies with a `prompt`, and no `inputs`, which would make them TGI's."""
        return prompt_key(body) == "prompt"

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "VllmReply":
        """Read a body. Raises RequestError."""
        fields = Fields(decode(body))
        prompt = fields.prompt("prompt")
        model = fields.text("model")  # MindIE: the name of LoRA weights
        if model is not None and model not in (*_NO_LORA, status.model_name):
            raise fields.error("model", f"no LoRA weights are served here, found {model!r}")
        new_tokens, sampling = generation(fields, status.vocab_size, "max_tokens", default=_DEFAULT_NEW_TOKENS)
        request = Request(
            prompt=prompt,
            max_new_tokens=new_tokens,
            sampling=sampling,
            stream=fields.flag("stream"),
            request_id=headers.get("x-request-id", ""),
        )
        return VllmReply(request, prompt)

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """MindIE's 422; vLLM's own server has no shape for it."""
        return _mindie.rejection(error)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """What lm-eval's remote tokenizer and other clients of vLLM ask."""
        if path == "/tokenizer_info":
            # sentencepiece's names, which llmbench's tokenizers have and read inside a text
            return answer({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"})
        try:
            fields = Fields(decode(body))
            return _tokenize(fields, host) if path == "/tokenize" else _detokenize(fields, host)
        except RequestError as error:
            return self.reject(error)


class VllmReply:
    """One answer on the server's side."""

    def __init__(self, request: Request, prompt: str) -> None:
        self.requests: tuple[Request, ...] = (request,)
        self.stream = request.stream
        self.headers: tuple[tuple[str, str], ...] = _STREAM_HEADERS if request.stream else JSON_HEADERS
        self._pieces = [prompt, " "]

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """The new text, or at the end all of it."""
        ended = {} if delta.finish_reason is None else {"finish_reason": delta.finish_reason}
        if self.stream:
            return [msgspec.json.encode({"text": [delta.text]} | ended) + b"\0"]
        self._pieces.append(delta.text)
        return [msgspec.json.encode({"text": ["".join(self._pieces)]} | ended)] if ended else []

    def refuse(self, error: LlmbenchError) -> HttpResponse:
        """The error with its own status."""
        return _mindie.refusal(error)

    def abort(self, error: LlmbenchError) -> list[bytes]:
        """An object with the error."""
        body = msgspec.json.encode(_mindie.error_body(error, error.http_status))
        return [body + b"\0" if self.stream else body]


class VllmReader:
    """The client's side of a response; an object of a stream stands for one token, as there are no ids."""

    def __init__(self, request: Request, *, whole: bool, framed: bool) -> None:
        self._request = request
        self._whole = whole
        self._framed = framed
        self._num_tokens = 0

    def read(self, event: dict[str, Any]) -> Iterable[Delta]:
        """The new text of a stream, or prompt and answer."""
        text = event["text"][0]
        reason = _REASONS.get(event.get("finish_reason", ""))
        if not self._whole:
            self._num_tokens += 1
            return [Delta(text=text, num_tokens=1, finish_reason=reason, assumed=True)]
        prompt = str(self._request.prompt)
        text = text.removeprefix(prompt).removeprefix(" ") if text.startswith(prompt) else text
        return [Delta(full_text=text, finish_reason=reason or "stop")]

    def end(self, done: bool) -> Iterable[Delta]:
        """A stream that has come whole has ended, though it does not say why."""
        if not self._framed or not self._num_tokens:
            return []
        limit = self._request.max_new_tokens
        return [Delta(finish_reason="length" if limit is not None and self._num_tokens >= limit else "eos")]


def _tokenize(fields: Fields, host: Host) -> HttpResponse:
    prompt = fields.text("prompt")
    if prompt is None:
        raise FieldError("prompt", "required")
    ids = host.tokenize(prompt)
    ids = ids if fields.flag("add_special_tokens", default=True) else ids[1:]
    return answer({"count": len(ids), "max_model_len": host.status().max_model_len, "tokens": ids})


def _detokenize(fields: Fields, host: Host) -> HttpResponse:
    return answer({"prompt": host.detokenize(list(fields.ids("tokens", host.status().vocab_size)))})
