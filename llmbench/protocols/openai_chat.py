"""OpenAI's `/v1/chat/completions` with vLLM's extras: text in, text out, one answer.

`chat_template` says how messages become a prompt. `plain`, the default, only joins their texts with line breaks: the
embedded model, and base models in general, have never seen the marks of a template, and continue best what looks like
text. `llama2` and `chatml` are for models that were trained with them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from llmbench.errors import ConfigError, LlmbenchError
from llmbench.protocols import Host, HttpRequest, HttpResponse, Status, _openai
from llmbench.protocols._body import MAX_TEXT_CHARS, FieldError, Fields, decode, text_parts
from llmbench.protocols._http import (
    JSON_HEADERS,
    STREAM_HEADERS,
    check_carried,
    client_headers,
    is_stream,
    text_prompt,
)
from llmbench.protocols._openai import REAL, OpenAiReader, Stamp, StreamOptions, Usage
from llmbench.protocols._sampling import CARRIED, client_fields, generation
from llmbench.protocols._sse import DONE, Events, JsonDecoder, Whole, event
from llmbench.types import Delta, Request, Sampling, TokenLogprob

ChatTemplate = Literal["plain", "llama2", "chatml"]
Message = tuple[str, str]
"""Role and text."""

_ROLES = ("system", "developer", "user", "assistant")
_CHATML_END = "<|im_end|>"
_LONE_BYTE = re.compile(r"\\x[0-9a-f]{2}")  # as the tokenizer shows it, and as OpenAI does
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "tool_choice": ("none",),
    "functions": (),
    "function_call": ("none",),
    "response_format": ({"type": "text"},),
    "audio": (),
    "modalities": (["text"],),
    "chat_template": (),
    "continue_final_message": (False,),
    "echo": (False,),
}


def dialect(
    chat_template: ChatTemplate = "plain",
    model: str = "",
    continuous_usage: bool = False,
    token_ids: bool = False,
    stamp: Stamp = REAL,
) -> "OpenAiChat":
    """OpenAI's chat; `model` is what the client names, nothing if empty. Raises ConfigError for an unknown template.

    With `continuous_usage` the client asks for a token count in every chunk, which vLLM and SGLang can give, with
    `token_ids` for the ids of every chunk's tokens, which vLLM can.
    """
    if chat_template not in get_args(ChatTemplate):
        raise ConfigError(f"chat_template: must be plain, llama2 or chatml, got {chat_template!r}")
    return OpenAiChat(chat_template, model, _openai.Extras(continuous_usage, token_ids), stamp)


class OpenAiChat:
    """Both halves of the dialect."""

    name = "openai_chat"
    posts: Sequence[str] = ("/v1/chat/completions",)
    others: Sequence[tuple[str, str]] = ()

    def __init__(self, chat_template: ChatTemplate, model: str, extras: _openai.Extras, stamp: Stamp) -> None:
        self.chat_template = chat_template
        self.model = model
        self.extras = extras
        self._stamp = stamp

    def encode(self, request: Request) -> HttpRequest:
        """The prompt as one message of the user."""
        check_carried(request, self.name, (*CARRIED, "num_logprobs"))
        body: dict[str, Any] = {"model": self.model} if self.model else {}
        body["messages"] = [{"role": "user", "content": text_prompt(request, self.name)}]
        body |= client_fields(request, "max_tokens")
        if request.sampling.num_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": request.sampling.num_logprobs}
        body |= _openai.client_stream(request, self.extras)
        return HttpRequest(path=self.posts[0], headers=client_headers(request), body=msgspec.json.encode(body))

    def decoder(self, request: Request, headers: Mapping[str, str]) -> JsonDecoder:
        """Reads streams and whole answers; what a model reasons before its answer is text of it too."""
        stream = is_stream(request, headers)
        reader = OpenAiReader(
            request, whole=not stream, text_of=_text, scores_of=_scores, reasons=_reasons, logprobs_of=_logprobs
        )
        return JsonDecoder(Events() if stream else Whole(), reader, reader.again if stream else None)

    def wants(self, path: str, body: bytes) -> bool:
        """This path is OpenAI's alone."""
        return True

    def parse(self, path: str, body: bytes, headers: Mapping[str, str], status: Status) -> "ChatReply":
        """Read a body. Raises RequestError. Without a limit the server's own default holds, not OpenAI's none."""
        fields = Fields(decode(body))
        _openai.check_model(fields, status)
        fields.refuse(_UNSUPPORTED)
        messages = _messages(fields)
        new_tokens, sampling = generation(fields, status.vocab_size, "max_completion_tokens", "max_tokens")
        stream, options = fields.flag("stream"), _openai.stream_options(fields)
        request = Request(
            prompt=_prompt(self.chat_template, messages),
            max_new_tokens=new_tokens,
            sampling=_with_ends(self.chat_template, sampling, _num_logprobs(fields)),
            stream=stream,
            request_id=headers.get("x-request-id", ""),
        )
        return ChatReply(request, status.model_name, self._stamp, options)

    def reject(self, error: LlmbenchError) -> HttpResponse:
        """OpenAI's error object."""
        return _openai.refusal(error)

    def answer(self, method: str, path: str, body: bytes, host: Host) -> HttpResponse:
        """There are no management routes: `/v1/models` is with the completions."""
        raise AssertionError(f"no route {method} {path}")


class ChatReply:
    """One answer on the server's side."""

    def __init__(self, request: Request, model: str, stamp: Stamp, options: StreamOptions) -> None:
        self.requests: tuple[Request, ...] = (request,)
        self.stream = request.stream
        self.headers: tuple[tuple[str, str], ...] = STREAM_HEADERS if request.stream else JSON_HEADERS
        self._options = options
        self._envelope = {
            "id": f"chatcmpl-{request.request_id or stamp.new_id()}",
            "object": "chat.completion.chunk" if request.stream else "chat.completion",
            "created": int(stamp.wall()),
            "model": model,
        }
        self._usage = Usage()
        self._texts: list[str] = []
        self._scored = request.sampling.num_logprobs is not None
        self._scores: list[dict[str, Any]] = []

    def render(self, delta: Delta, index: int = 0) -> list[bytes]:
        """A chunk for the piece, the role before the first, what ends a stream behind the last; or the answer."""
        first = not self._texts
        self._usage.add(delta)
        self._texts.append(delta.text)
        scores = [_score(token) for token in _openai.scored(delta)]
        ended = delta.finish_reason is not None
        if not self.stream:
            self._scores += scores
            return [msgspec.json.encode(self._whole(delta))] if ended else []
        chunks = [self._chunk({"role": "assistant", "content": ""}, None, None)] if first else []
        chunks.append(self._chunk({"content": delta.text}, scores, delta))
        if ended:
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

    def _chunk(self, content: dict[str, str], scores: list[dict[str, Any]] | None, delta: Delta | None) -> bytes:
        choice: dict[str, Any] = {
            "index": 0,
            "delta": content,
            "logprobs": {"content": scores} if self._scored and scores is not None else None,
            "finish_reason": _openai.reason_name(delta) if delta else None,
        }
        if delta is not None and delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        chunk: dict[str, Any] = self._envelope | {"choices": [choice]}
        if self._options.continuous:
            chunk["usage"] = self._usage.value() if delta else Usage().value()
        elif self._options.usage:
            chunk["usage"] = None
        return event(chunk)

    def _whole(self, delta: Delta) -> dict[str, Any]:
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(self._texts)},
            "logprobs": {"content": self._scores} if self._scored else None,
            "finish_reason": _openai.reason_name(delta),
            "stop_reason": delta.stop_reason,
        }
        return self._envelope | {"choices": [choice], "usage": self._usage.value()}


# -- messages and templates ---------------------------------------------------------------------------------------


def _messages(fields: Fields) -> list[Message]:
    """Roles and texts. Raises FieldError for what is not text."""
    value = fields.raw("messages")
    if not isinstance(value, list) or not value:
        raise FieldError("messages", "must be a list of at least one message")
    messages = [_message(item, f"messages[{i}]") for i, item in enumerate(value)]
    length = sum(len(text) for _, text in messages)
    if not 0 < length <= MAX_TEXT_CHARS:
        raise FieldError("messages", f"must have 1 to {MAX_TEXT_CHARS} characters of text, got {length}")
    return messages


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise FieldError(where, "must be an object with role and content")
    fields = Fields(value, f"{where}.")
    role = fields.text("role")
    if role not in _ROLES:
        raise fields.error("role", f"must be one of {', '.join(_ROLES)}, got {role!r}")
    fields.refuse({"tool_calls": (), "function_call": (), "audio": ()})
    content = fields.raw("content")
    if content is None and role == "assistant":  # OpenAI allows it
        return role, ""
    if isinstance(content, list):
        content = "".join(text_parts(content, fields, "content"))
    if not isinstance(content, str):
        raise fields.error("content", "must be a string or a list of text parts")
    return "system" if role == "developer" else role, content


def _prompt(template: ChatTemplate, messages: list[Message]) -> str:
    return _TEMPLATES[template](messages)


def _plain(messages: list[Message]) -> str:
    return "\n".join(text for _, text in messages)


def _llama2(messages: list[Message]) -> str:
    """As the template in Llama 2's tokenizer_config.json; the tokenizer puts the first `<s>` in front."""
    system = ""
    if messages[0][0] == "system":
        system, messages = f"<<SYS>>\n{messages[0][1]}\n<</SYS>>\n\n", messages[1:]
    if not messages or any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(messages)):
        raise FieldError("messages", "user and assistant must take turns, the user first, after at most one system")
    if len(messages) % 2 == 0:
        raise FieldError("messages", "the last message must be the user's")
    parts: list[str] = []
    for i, (role, text) in enumerate(messages):
        if role == "assistant":
            parts.append(f" {text.strip()} </s>")
        else:
            parts.append(f"{'<s>' if i else ''}[INST] {system if i == 0 else ''}{text.strip()} [/INST]")
    return "".join(parts)


def _chatml(messages: list[Message]) -> str:
    turns = "".join(f"<|im_start|>{role}\n{text}{_CHATML_END}\n" for role, text in messages)
    return f"{turns}<|im_start|>assistant\n"


_TEMPLATES: dict[ChatTemplate, Callable[[list[Message]], str]] = {
    "plain": _plain,
    "llama2": _llama2,
    "chatml": _chatml,
}


def _with_ends(template: ChatTemplate, sampling: Sampling, num_logprobs: int | None) -> Sampling:
    """With the text that ends a turn where the template has one that the tokenizer may not know as an id."""
    ends = (_CHATML_END,) if template == "chatml" and not sampling.ignore_eos else ()
    return msgspec.structs.replace(sampling, stop=sampling.stop + ends, num_logprobs=num_logprobs)


def _num_logprobs(fields: Fields) -> int | None:
    wanted, number = fields.flag("logprobs"), fields.integer("top_logprobs", 0, _openai.MAX_LOGPROBS)
    if number and not wanted:
        raise fields.error("top_logprobs", "only allowed together with logprobs: true")
    return (number or 0) if wanted else None


def _score(token: TokenLogprob) -> dict[str, Any]:
    """A token as chat has it, its likeliest rivals inside."""
    return _one(token.text, token.logprob or 0.0) | {"top_logprobs": [_one(*rival) for rival in token.top]}


def _one(text: str, logprob: float) -> dict[str, Any]:
    """One token; a lone byte of a longer character is written `\\x9f`, and its byte is the one that it stands for."""
    found = [int(text[2:], 16)] if _LONE_BYTE.fullmatch(text) else list(text.encode())
    return {"token": text, "logprob": _openai.bounded(logprob), "bytes": found}


def _text(choice: dict[str, Any]) -> str:
    """The text of a chunk or a whole answer, reasoning included: `reasoning_content` (SGLang) or `reasoning` (vLLM)."""
    said = choice.get("delta") or choice.get("message") or {}
    reasoning = said.get("reasoning_content") or said.get("reasoning") or ""
    return str(reasoning + (said.get("content") or ""))


def _reasons(choice: dict[str, Any]) -> bool:
    """Whether a chunk is the model's reasoning and nothing of its answer."""
    said = choice.get("delta") or {}
    return bool(said.get("reasoning_content") or said.get("reasoning")) and not said.get("content")


def _scores(choice: dict[str, Any]) -> list[Any]:
    return (choice.get("logprobs") or {}).get("content") or []


def _logprobs(choice: dict[str, Any]) -> Iterable[TokenLogprob]:
    """The tokens of a choice, each with its rivals inside."""
    for one in _scores(choice):
        rivals = [(rival["token"], rival["logprob"]) for rival in one.get("top_logprobs") or []]
        yield _openai.read_logprob(one["token"], one["logprob"], rivals)
