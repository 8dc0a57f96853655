"""One request inside the scheduler."""

from dataclasses import dataclass, field

from llmbench.types import FinishReason, Sampling

Score = tuple[float, list[tuple[int, float]]]
"""A token's log-probability, and the likeliest ids at its place with theirs."""


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """A prompt and what has been generated from it.

    `num_cached` tokens have their keys and values in `blocks`; `num_hits` of them came from the prefix cache. `slot` is
    its row in the arena while it runs, -1 else. `arrival_s` is wall time and different for every sequence of a server.
    """

    request_id: str
    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    eos_ids: frozenset[int] = frozenset()
    arrival_s: float = 0.0
    output_ids: list[int] = field(default_factory=list)
    num_cached: int = 0
    blocks: list[int] = field(default_factory=list)
    slot: int = -1
    num_hits: int = 0
    num_preemptions: int = 0
    num_overtakes: int = 0
    scores: list[Score] = field(default_factory=list)
    """Of answer tokens that have not been handed out yet."""
    prompt_scores: list[Score] = field(default_factory=list)
    """Of the prompt's tokens behind the first."""
    plain: bool = field(init=False)
    """Whether it asks for nothing but its next token."""

    def __post_init__(self) -> None:
        sampling = self.sampling
        scores = sampling.num_logprobs is not None or sampling.prompt_logprobs is not None
        self.plain = not (scores or sampling.penalised or sampling.min_new_tokens)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_missing(self) -> int:
        """Tokens that are not in the cache: one in decode, the rest of the prompt in prefill."""
        return self.num_tokens - self.num_cached

    @property
    def max_tokens(self) -> int:
        """The longest it can get."""
        return len(self.prompt_ids) + self.max_new_tokens

    @property
    def running(self) -> bool:
        return self.slot >= 0

    def tokens(self, start: int = 0, end: int | None = None) -> list[int]:
        """Ids from position `start` to before `end`, prompt and output as one."""
        end = self.num_tokens if end is None else end
        num_prompt = len(self.prompt_ids)
        if start >= num_prompt:
            return self.output_ids[start - num_prompt : end - num_prompt]
        return self.prompt_ids[start:end] + self.output_ids[: max(0, end - num_prompt)]

    def append(self, token_id: int) -> FinishReason | None:
        """Take a new token; says why the sequence is finished, if it is. One that only scores its prompt takes none."""
        if self.max_new_tokens:
            self.output_ids.append(token_id)
        if len(self.output_ids) > self.sampling.min_new_tokens:
            if token_id in self.eos_ids and not self.sampling.ignore_eos:
                return "eos"
            if token_id in self.sampling.stop_token_ids:
                return "stop"
        return "length" if len(self.output_ids) >= self.max_new_tokens else None
