"""An engine without weights: tokens out of nothing in a declared time, to measure everything around an engine."""

import time

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Capacity, EngineSettings, Group, StepResult
from llmbench.errors import ServingError
from llmbench.weights.model import Model

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

_LOGIT = np.float32(10.0)  # of the token that is given; the others have 0
_TABLE_SIZE = np.uint64(1 << 16)
_SPREAD = np.uint64(0xD1342543DE82EF95)  # odd, so that different seeds have different places
_FIRST_TEXT_ID = 259  # behind unk, bos, eos and the 256 bytes that a sentencepiece vocabulary begins with


class Stub:
    """Tokens depend on the seed and the position of a sequence only, and never end it; sampling is not looked at."""

    name = "stub"
    dtype = "float32"
    compiled_s = 0.0

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        self._vocab_size = model.config.vocab_size
        self._step_time_s = settings.step_time_s
        self._table = _table(model.config.vocab_size)
        self._chosen = np.full(settings.max_batch, _LOGIT)
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
        tokens = self._tokens(batch.sampling["seed"], batch.context_lens)
        logits = _one_hot(tokens[batch.wants_token], self._vocab_size) if batch.want_logits else None
        tokens[~batch.wants_token] = -1
        result = StepResult(token_ids=tokens, chosen_logits=self._chosen[: len(tokens)].copy(), logits=logits)
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
        return _one_hot(self._tokens(seeds, lengths), self._vocab_size)

    def _tokens(self, seeds: npt.NDArray[np.uint64], context_lens: Int32) -> Int32:
        """int32 [m]: the table read from a place that the seed gives; few operations, since their cost is measured."""
        tokens: Int32 = self._table[(seeds * _SPREAD + context_lens.astype(np.uint64)) % _TABLE_SIZE]
        return tokens

    def close(self) -> None:
        """There is nothing to give back."""


def engine(model: Model, settings: EngineSettings) -> Stub:
    """Make a stub with the vocabulary and the longest sequence of a model; its weights are not read."""
    return Stub(model, settings)


def sharded(model: Model, settings: EngineSettings, group: Group) -> Stub:
    """The same at every rank: there is nothing to be cut, and nothing to exchange."""
    return Stub(model, settings)


def _table(vocab_size: int) -> Int32:
    """int32 [65536] ids of text, spread evenly by splitmix64 of the place."""
    first = _FIRST_TEXT_ID if vocab_size > 2 * _FIRST_TEXT_ID else 3
    mixed = np.arange(_TABLE_SIZE, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    table: Int32 = (np.uint64(first) + mixed % np.uint64(vocab_size - first)).astype(np.int32)
    return table


def _one_hot(tokens: Int32, vocab_size: int) -> Float32:
    logits = np.zeros((len(tokens), vocab_size), np.float32)
    logits[np.arange(len(tokens)), tokens] = _LOGIT
    return logits
