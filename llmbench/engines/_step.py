"""What engines with a paged cache share around the model: checks, which rows of logits a step needs, its result."""

import numpy as np
import numpy.typing as npt
import psutil

from llmbench.engines import Batch, EngineSettings, StepResult
from llmbench.engines._sampling import pick
from llmbench.errors import InputError, ServingError
from llmbench.weights.config import ModelConfig
from llmbench.weights.model import Model

Intp = npt.NDArray[np.intp]
Float32 = npt.NDArray[np.float32]


def check(batch: Batch, max_model_len: int, vocab_size: int) -> None:
    """Raise ServingError for what would read or write outside the cache or the vocabulary."""
    if batch.context_lens.max() > max_model_len:
        raise ServingError(f"a sequence of {batch.context_lens.max()} tokens; at most {max_model_len} fit")
    if batch.token_ids.min() < 0 or batch.token_ids.max() >= vocab_size:
        raise ServingError(f"a token id is outside the vocabulary of {vocab_size}")


def logit_rows(batch: Batch) -> Intp:
    """The last token of each sequence that wants one, and every token of those in `score_prompts`."""
    last: Intp = np.cumsum(batch.query_lens, dtype=np.intp)[batch.wants_token] - 1
    if batch.score_prompts is None:
        return last
    wanted = np.repeat(batch.score_prompts, batch.query_lens)
    wanted[last] = True
    return np.flatnonzero(wanted)


def result(batch: Batch, logits: Float32) -> StepResult:
    """Tokens from logits [m, vocab] of the tokens in `logit_rows`. Raises ServingError for logits without a maximum."""
    prompt_logits: tuple[Float32, ...] = ()
    if batch.score_prompts is not None:
        rows, ends = logit_rows(batch), np.cumsum(batch.query_lens)
        starts = np.searchsorted(rows, ends - batch.query_lens)[batch.score_prompts]
        counts = batch.query_lens[batch.score_prompts]
        prompt_logits = tuple(logits[start : start + num] for start, num in zip(starts, counts, strict=True))
        logits = logits[np.searchsorted(rows, ends[batch.wants_token] - 1)]
    tokens = np.full(len(batch.query_lens), -1, np.int32)
    chosen = np.zeros(len(batch.query_lens), np.float32)
    wants = batch.wants_token
    if len(logits):
        tokens[wants], chosen[wants] = pick(logits, batch.sampling[wants])
    return StepResult(
        token_ids=tokens,
        chosen_logits=chosen,
        logits=logits if batch.want_logits else None,
        prompt_logits=prompt_logits,
    )


def join(parts: Float32, vocab_size: int) -> Float32:
    """float32 [m, vocab] from the columns of each rank [ranks, m, width], less what fills up those of the last."""
    num_ranks, num, width = parts.shape
    joined: Float32 = parts.swapaxes(0, 1).reshape(num, num_ranks * width)[:, :vocab_size]
    return joined


def nothing(batch: Batch) -> StepResult:
    """What a rank other than 0 gives: nobody looks at it."""
    num = len(batch.query_lens)
    return StepResult(token_ids=np.full(num, -1, np.int32), chosen_logits=np.zeros(num, np.float32))


def used_blocks(batch: Batch, block_size: int) -> npt.NDArray[np.int32]:
    """int32: the blocks that the sequences of a step have, some perhaps several times."""
    needed = -(-batch.context_lens // block_size)
    used: npt.NDArray[np.int32] = batch.block_tables[np.arange(batch.block_tables.shape[1]) < needed[:, None]]
    return used


def check_memory(model: Model, itemsize: int = 4) -> None:
    """Raise InputError when the weights do not fit into the free memory, in numbers of `itemsize` bytes."""
    needed, free = itemsize * model.config.num_parameters, psutil.virtual_memory().available
    if needed > 0.9 * free:
        raise InputError(
            f"model {model.name}: its weights take {needed / 1e9:.1f} GB in float{8 * itemsize}, {free / 1e9:.1f} GB"
            " are free; take a smaller one, or random:<preset>,layers=N for fewer layers"
        )


def choose_num_blocks(config: ModelConfig, settings: EngineSettings, share: float, itemsize: int = 4) -> int:
    """Enough for max_batch of the longest sequences, within a share of the free memory, but for one at least.

    A key or a value has numbers of `itemsize` bytes.
    """
    longest = -(-config.max_positions // settings.block_size)
    block_bytes = itemsize * config.num_layers * settings.block_size * 2 * config.num_kv_heads * config.head_dim
    affordable = int(psutil.virtual_memory().available * share) // block_bytes
    return max(longest, min(settings.max_batch * longest, affordable))
