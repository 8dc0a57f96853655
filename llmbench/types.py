"""The values that cross rooms: what is asked, and what is answered."""

from typing import Literal

import msgspec

FinishReason = Literal["eos", "length", "stop", "error", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One generation request, free of any dialect.

    `max_new_tokens` None means the server's default. `request_id` travels in the header `X-Request-Id`, so that rows
    captured by a server can be joined with the requests of a run; an empty one is made up by the server.
    """

    prompt: str
    max_new_tokens: int | None = None
    sampling: Sampling = Sampling()
    stream: bool = True
    request_id: str = ""


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer: on the server what one step adds, on the client what one event says.

    `token_ids` and `logits` (raw logit of each chosen token, float32) are empty where the dialect does not carry
    them; `num_tokens` counts the tokens that the piece stands for. The last piece has a `finish_reason`; `full_text`
    and `total_tokens` are what the server says about the whole answer, where it does. `error` is the reason when
    `finish_reason` is "error".
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logits: tuple[float, ...] = ()
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    full_text: str | None = None
    total_tokens: int | None = None
    error: str | None = None
