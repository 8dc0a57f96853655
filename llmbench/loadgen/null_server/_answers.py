"""Answers rendered in advance: the dialects make their bytes once, with marks where the instants will stand.

A mark has as many digits as an instant, so that lengths do not change when it is filled in. The dialects' own
rendering of a token takes ten times as long as filling one mark.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmbench import plugins, protocols
from llmbench.errors import LlmbenchError
from llmbench.loadgen.null_server import Settings
from llmbench.loadgen.null_server._fate import Fate
from llmbench.protocols import Dialect, HttpResponse, Reply, Status
from llmbench.protocols._openai import Stamp
from llmbench.tokenizer import Tokenizer
from llmbench.types import Delta, FinishReason, Request, TokenLogprob

MODEL = "null"
_RECEIVED = 8 * 10**18  # the mark for the instant of the request
_EMITTED = 9 * 10**18  # plus the number of the event: the mark for its instant. No uptime comes near either
_MARK = re.compile(rb"8000000000000000000|90000000000\d{8}")
_STAND_IN = "the prompt that llmbench left out"
_PROMPTS = ("prompt", "messages", "inputs", "text_input")
_MOST_SCRIPTS = 4096
_TOKEN_ID = 5

Event = tuple[bytes, ...] | bytes
"""What stands before, between and behind the marks of the event's own instant; or a text with marks of others."""


class Script(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of an answer. An event without bytes only has an instant: the answer is sent whole at the end."""

    head: bytes
    """Of the response, without its first line and the date."""
    events: list[Event]
    tokens: list[int]
    """How many tokens are sent or have been with each event and those before it."""
    num_prompt_tokens: int
    finish_reason: FinishReason


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A posted body, with the prompt taken out of it."""

    dialect: Dialect
    path: str
    body: bytes
    prompt: Any
    prompt_key: str | None
    num_prompt_tokens: int


class Wall:
    """The wall clock that a server says it has."""

    def __init__(self) -> None:
        self.now_s = 0.0


class Answers:
    """Reads requests and renders answers. The wall clock's time is set by whoever asks."""

    def __init__(self, settings: Settings) -> None:
        self.wall = Wall()
        self.dialects = [_dialect(name, self.wall) for name in plugins.names("protocols")]
        self._settings = settings
        self._tokenizer = Tokenizer.from_file(Path(settings.tokenizer)) if settings.tokenizer else None
        self._routes = {path: re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for d in self.dialects for path in d.posts}
        self._scripts: dict[tuple[object, ...], Script] = {}

    def read(self, path: str, body: bytes) -> Asked | None:
        """Whose request it is and what it asks; None when nobody's."""
        speakers = [d for d in self.dialects for post in d.posts if self._routes[post].fullmatch(path)]
        if not speakers:
            return None
        dialect = next((one for one in speakers[:-1] if one.wants(path, body)), speakers[-1])
        try:
            fields = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            fields = None
        if not isinstance(fields, dict):  # the dialect says what is wrong with it
            return Asked(dialect=dialect, path=path, body=body, prompt=None, prompt_key=None, num_prompt_tokens=0)
        fields.pop("model", None)  # it answers for any
        key = next((name for name in _PROMPTS if name in fields), None)
        prompt = fields.get(key) if key else None
        if key and (isinstance(prompt, str) or key == "messages"):
            fields[key] = _STAND_IN if isinstance(prompt, str) else [{"role": "user", "content": _STAND_IN}]
        return Asked(
            dialect=dialect,
            path=path,
            body=msgspec.json.encode(fields),
            prompt=prompt,
            prompt_key=key,
            num_prompt_tokens=self._count(prompt),
        )

    def script(self, asked: Asked, fate: Fate) -> Script:
        """The answer, kept for the next request that differs in the prompt only. Raises LlmbenchError."""
        key = (asked.path, asked.body, asked.num_prompt_tokens, fate.kept, fate.cached, int(fate.clock_shift_s))
        found = self._scripts.get(key)
        if found is None:
            found = self._make(asked, asked.body, fate)
            if any(_mentions(event) for event in found.events):  # as with `echo`
                return self._make(asked, _with_prompt(asked), fate)
            if len(self._scripts) >= _MOST_SCRIPTS:
                self._scripts.clear()
            self._scripts[key] = found
        return found

    def refusal(self, asked: Asked, error: LlmbenchError) -> HttpResponse:
        """How the dialect says an error."""
        return asked.dialect.reject(error)

    def _make(self, asked: Asked, body: bytes, fate: Fate) -> Script:
        reply = asked.dialect.parse(asked.path, body, {}, STATUS)
        limit = reply.requests[0].max_new_tokens
        number = max(1, int((self._settings.num_tokens if limit is None else limit) * fate.kept))
        reason: FinishReason = "eos" if limit is None else "length"
        size = self._settings.faults.tokens_per_event
        tokens = [*range(size, number, size), number]
        rendered = []
        for event, (before, after) in enumerate(zip([0, *tokens], tokens)):  # noqa: B905 (one longer)
            last = after == number
            delta = msgspec.structs.replace(
                _piece(reply.requests[0], event, after - before),
                num_tokens=after - before + (self._settings.faults.usage_off_by if last else 0),
                finish_reason=reason if last else None,
                num_prompt_tokens=asked.num_prompt_tokens if last else None,
                num_cached_tokens=asked.num_prompt_tokens if last and fate.cached else None,
            )
            rendered.append(_render(reply, delta))
        if reply.stream:
            rendered[-1] += b"0\r\n\r\n"
        shape = "Transfer-Encoding: chunked" if reply.stream else f"Content-Length: {sum(map(len, rendered))}"
        lines = [*(f"{name}: {value}" for name, value in reply.headers), shape]
        same: dict[Event, Event] = {}  # the middle of most answers is one event many times
        events = [_compiled(data, number) for number, data in enumerate(rendered)]
        return Script(
            head="".join(f"{line}\r\n" for line in lines).encode() + b"\r\n",
            events=[same.setdefault(event, event) for event in events],
            tokens=tokens,
            num_prompt_tokens=asked.num_prompt_tokens,
            finish_reason=reason,
        )

    def _count(self, prompt: Any) -> int:
        """Tokens of a prompt: text, ids, a list of texts, or messages."""
        if isinstance(prompt, str):
            return len(self._tokenizer.encode(prompt)) if self._tokenizer else max(1, len(prompt.split()))
        if isinstance(prompt, list):
            return sum(1 if isinstance(item, int) else self._count(item) for item in prompt)
        return self._count(prompt.get("content")) if isinstance(prompt, dict) else 0


def filled(event: Event, stamps: Sequence[bytes], received: bytes) -> bytes:
    """An event's bytes with the instants in the place of their marks; the last stamp is the event's own."""
    if isinstance(event, tuple):
        return stamps[-1].join(event)
    return _MARK.sub(lambda mark: received if mark[0][:1] == b"8" else stamps[int(mark[0][1:])], event)


def _piece(request: Request, event: int, num_tokens: int) -> Delta:
    """The tokens of one event; they share its instant."""
    text = f" {_EMITTED + event}"
    first = f" R{_RECEIVED}" if event == 0 else ""
    scores = [TokenLogprob(token_id=_TOKEN_ID, text=text, logprob=-1.0)] * num_tokens
    return Delta(
        text=first + text * num_tokens,
        token_ids=(_TOKEN_ID,) * num_tokens,
        logits=(1.0,) * num_tokens,
        logprobs=tuple(scores) if request.sampling.num_logprobs is not None else (),
    )


def _render(reply: Reply, delta: Delta) -> bytes:
    """What one event of every request in the body brings, as HTTP frames it."""
    chunks = [chunk for index in range(len(reply.requests)) for chunk in reply.render(delta, index)]
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) if reply.stream else chunk for chunk in chunks if chunk)


def _compiled(data: bytes, number: int) -> Event:
    own = b"%d" % (_EMITTED + number)
    return tuple(data.split(own)) if set(_MARK.findall(data)) <= {own} else data


def _mentions(event: Event) -> bool:
    return _STAND_IN.encode() in (b"".join(event) if isinstance(event, tuple) else event)


def _with_prompt(asked: Asked) -> bytes:
    fields = msgspec.json.decode(asked.body)
    return msgspec.json.encode(fields | {asked.prompt_key: asked.prompt})


def _dialect(name: str, wall: Wall) -> Dialect:
    """A dialect that sends every token's text, and whose times and ids are not drawn."""
    stamp = Stamp(wall=lambda: wall.now_s, new_id=lambda: "null")
    options: dict[str, dict[str, object]] = {
        "contest": {"drop_last_token": False},
        "openai_completions": {"stamp": stamp},
        "openai_chat": {"stamp": stamp},
    }
    return protocols.get(name, **options.get(name, {}))


STATUS = Status(
    model_name=MODEL,
    model_dtype="float32",
    vocab_size=32_000,
    max_model_len=1 << 20,
    max_batch=1 << 16,
    max_tokens_per_step=1 << 20,
    max_waiting=1 << 20,
    num_running=0,
    num_waiting=0,
    num_blocks=1 << 20,
    num_free_blocks=1 << 20,
    block_size=16,
    ready=True,
)
