"""The values that cross rooms: what is asked, and what is answered."""

from typing import Literal

import msgspec

FinishReason = Literal["eos", "length", "stop", "error", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen, and when to stop. The defaults change nothing: greedy until eos.

    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 cut nothing off. `repetition_penalty` divides the positive
    logits, and multiplies the negative ones, of tokens in the prompt or the answer (Keskar et al. 2019);
    `presence_penalty` and `frequency_penalty` are subtracted once, and once per occurrence, for tokens in the answer
    (OpenAI). `stop` are texts and `stop_token_ids` ids that end the answer; the text is cut before a stop text unless
    `include_stop`. Before `min_new_tokens` nothing of that ends it, eos neither. `num_logprobs` asks for the
    log-probability of each new token and of so many most likely ones, `prompt_logprobs` for those of the prompt.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    min_new_tokens: int = 0
    num_logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0 or self.top_k == 1

    @property
    def penalised(self) -> bool:
        """Whether the choice depends on the tokens so far."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One generation request, free of any dialect.

    `prompt` is text, or token ids that are used as they are. `max_new_tokens` None means the server's default; 0 only
    scores the prompt. `joined` asks for text that continues the prompt's, so that its leading space is kept; the
    contest's stack and chats begin anew. `request_id` travels in the header `X-Request-Id`, so that rows captured by a
    server can be joined with the requests of a run; an empty one is made up by the server.
    """

    prompt: str | tuple[int, ...]
    max_new_tokens: int | None = None
    sampling: Sampling = Sampling()
    stream: bool = True
    joined: bool = False
    request_id: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token with its natural log-probability and the most likely ones at its place, likeliest first.

    `logprob` is None for the first token of a prompt, which nothing precedes. `token_id` is -1 on the client's side,
    which is told the texts only.
    """

    token_id: int
    text: str
    logprob: float | None
    top: tuple[tuple[str, float], ...] = ()


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer: on the server what one step adds, on the client what one event says.

    `token_ids` and `logits` (raw logit of each chosen token, float32) are empty where the dialect does not carry
    them; `num_tokens` counts the tokens that the piece stands for. `logprobs` is there for each token when it was
    asked for; `prompt` are the tokens of the prompt, on the first piece, when those were. The last piece has a
    `finish_reason`, and `stop_reason` is the stop text or id that ended it; `full_text`, `total_tokens` and
    `num_prompt_tokens` are what the server says about the whole answer, where it does. `error` is the reason when
    `finish_reason` is "error". On the client `assumed` says that nobody told how many tokens the piece is, and
    `reasoning` that it is what the model thinks before its answer.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logits: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt: tuple[TokenLogprob, ...] = ()
    num_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    full_text: str | None = None
    total_tokens: int | None = None
    num_prompt_tokens: int | None = None
    num_cached_tokens: int | None = None
    error: str | None = None
    assumed: bool = False
    reasoning: bool = False
