"""Picks the next token of every row of logits at once: greedy, or by temperature, top-k and top-p."""

import numpy as np
import numpy.typing as npt

from llmbench.errors import ServingError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def pick(logits: Float32, sampling: npt.NDArray[np.void]) -> tuple[Int32, Float32]:
    """int32 [m] tokens and float32 [m] their raw logits, from logits [m, vocab] and SAMPLING [m].

    Greedy rows take the lowest id of the largest logit. A sampled row depends on its own logits, seed and step only,
    not on the batch. Raises ServingError for a row without a finite maximum.
    """
    rows = np.arange(len(logits))
    tokens = logits.argmax(axis=1)  # finds a NaN where there is one, so that checking its value is enough
    _check_finite(logits[rows, tokens])
    sampled = np.flatnonzero((sampling["temperature"] > 0) & (sampling["top_k"] != 1))
    if len(sampled):
        tokens[sampled] = _draw(logits[sampled], logits[sampled, tokens[sampled]], sampling[sampled])
    return tokens.astype(np.int32), logits[rows, tokens]


def _check_finite(best: Float32) -> None:
    wrong = np.flatnonzero(~np.isfinite(best))
    if len(wrong):
        raise ServingError(
            f"logits of row {wrong[0]} have the maximum {best[wrong[0]]} ({len(wrong)} such rows of {len(best)}):"
            " no token can be chosen; the weights are broken or overflow in this dtype"
        )


def _draw(logits: Float32, best: Float32, sampling: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """The sampled tokens [m] by inverting the cumulative distribution, in the order of the vocabulary."""
    scaled = (logits - best[:, None]).astype(np.float64) / sampling["temperature"][:, None].astype(np.float64)
    _cut_top_k(scaled, sampling["top_k"])
    _cut_top_p(scaled, sampling["top_p"])
    cumulative = np.exp(scaled).cumsum(axis=1)
    target = _uniform(sampling["seed"], sampling["step"]) * cumulative[:, -1]
    tokens: npt.NDArray[np.intp] = (cumulative > target[:, None]).argmax(axis=1)
    return tokens


def _cut_top_k(scaled: Float64, top_k: Int32) -> None:
    """Set to -inf, in place, what is below the k-th largest of a row; ties with it stay. 0 cuts nothing."""
    vocab = scaled.shape[1]
    for row in np.flatnonzero((top_k > 0) & (top_k < vocab)):
        threshold = np.partition(scaled[row], vocab - top_k[row])[vocab - top_k[row]]
        scaled[row][scaled[row] < threshold] = -np.inf


def _cut_top_p(scaled: Float64, top_p: Float32) -> None:
    """Set to -inf, in place, what lies behind the first tokens that together have probability top_p; ties stay."""
    rows = np.flatnonzero(top_p < 1)
    if not len(rows):
        return
    descending = -np.sort(-scaled[rows], axis=1)
    cumulative = np.exp(descending).cumsum(axis=1)
    last = (cumulative >= top_p[rows, None] * cumulative[:, -1:]).argmax(axis=1)
    threshold = descending[np.arange(len(rows)), last]
    scaled[rows] = np.where(scaled[rows] < threshold[:, None], -np.inf, scaled[rows])


def _uniform(seeds: npt.NDArray[np.uint64], steps: Int32) -> Float64:
    """float64 [m] in [0, 1): the random number that belongs to a seed and a step.

    32 bits and not 53, so that the number times a sum never rounds up to the sum itself.
    """
    pairs = zip(seeds.tolist(), steps.tolist(), strict=True)
    raws = [np.random.Philox(key=seed, counter=step).random_raw() for seed, step in pairs]
    high: npt.NDArray[np.uint64] = np.array(raws, np.uint64) >> np.uint64(32)
    return high.astype(np.float64) * 2.0**-32
