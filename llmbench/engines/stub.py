"""An engine without weights: tokens out of nothing in a declared time, to measure everything around an engine."""

import time

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Capacity, EngineSettings, StepResult
from llmbench.errors import ServingError
from llmbench.weights.model import Model

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

_LOGIT = np.float32(10.0)  # of the token that is given; the others have 0
_FIRST_TEXT_ID = 259  # behind unk, bos, eos and the 256 bytes that a sentencepiece vocabulary begins with


class Stub:
    """Tokens depend on the seed and the position of a sequence only, and never end it; sampling is not looked at."""

    name = "stub"
    dtype = "float32"

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        self._vocab_size = model.config.vocab_size
        self._step_time_s = settings.step_time_s
        longest = -(-model.config.max_positions // settings.block_size)
        num_blocks = settings.num_blocks or settings.max_batch * longest
        self._capacity = Capacity(
            num_blocks=num_blocks,
            block_size=settings.block_size,
            max_model_len=min(model.config.max_positions, num_blocks * settings.block_size),
        )

    def capacity(self) -> Capacity:
        """What a real engine with this many blocks could hold."""
        return self._capacity

    def step(self, batch: Batch) -> StepResult:
        """Give a token to each sequence that wants one, when the declared time has passed."""
        deadline = time.perf_counter() + self._step_time_s
        if batch.context_lens.max() > self._capacity.max_model_len:
            raise ServingError(
                f"a sequence of {batch.context_lens.max()} tokens; at most {self._capacity.max_model_len} fit"
            )
        wants = batch.wants_token
        tokens = _tokens(batch.sampling["seed"][wants], batch.context_lens[wants], self._vocab_size)
        result = _result(tokens, wants, self._vocab_size if batch.want_logits else None)
        if batch.score_prompts is not None:
            rows = np.flatnonzero(batch.score_prompts)
            result = msgspec.structs.replace(
                result, prompt_logits=tuple(self._prompt_logits(batch, i) for i in rows.tolist())
            )
        if self._step_time_s:
            time.sleep(max(0.0, deadline - time.perf_counter()))
        return result

    def _prompt_logits(self, batch: Batch, i: int) -> Float32:
        """float32 [query_len, vocab]: one-hot rows of the token that would follow each new one."""
        query_len, context_len = batch.query_lens[i], batch.context_lens[i]
        lengths = np.arange(context_len - query_len + 1, context_len + 1, dtype=np.int32)
        seeds = np.repeat(batch.sampling["seed"][i : i + 1], query_len)
        return _one_hot(_tokens(seeds, lengths, self._vocab_size), self._vocab_size)

    def close(self) -> None:
        """There is nothing to give back."""


def engine(model: Model, settings: EngineSettings) -> Stub:
    """Make a stub with the vocabulary and the longest sequence of a model; its weights are not read."""
    return Stub(model, settings)


def _tokens(seeds: npt.NDArray[np.uint64], context_lens: Int32, vocab_size: int) -> Int32:
    """int32 [m] ids of text, spread evenly by splitmix64 of seed and position."""
    first = _FIRST_TEXT_ID if vocab_size > 2 * _FIRST_TEXT_ID else 3
    mixed = seeds * np.uint64(0xD1342543DE82EF95) + context_lens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    tokens: Int32 = (np.uint64(first) + mixed % np.uint64(vocab_size - first)).astype(np.int32)
    return tokens


def _result(tokens: Int32, wants: npt.NDArray[np.bool_], vocab_size: int | None) -> StepResult:
    """The result of a step; with logits, one-hot rows float32 [m, vocab]."""
    token_ids = np.full(len(wants), -1, np.int32)
    token_ids[wants] = tokens
    chosen = np.where(wants, _LOGIT, np.float32(0))
    if vocab_size is None:
        return StepResult(token_ids=token_ids, chosen_logits=chosen)
    return StepResult(token_ids=token_ids, chosen_logits=chosen, logits=_one_hot(tokens, vocab_size))


def _one_hot(tokens: Int32, vocab_size: int) -> Float32:
    logits = np.zeros((len(tokens), vocab_size), np.float32)
    logits[np.arange(len(tokens)), tokens] = _LOGIT
    return logits
