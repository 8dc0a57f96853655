"""W8A8S: most of a weight on a grid of 4 bits, a few outliers at 8, all of it int8 as W8A8 stores and computes it.

msModelSlim's knobs are documented, its algorithm is closed (ascend-formats, 4.6); this one is llmbench's own. Of a
matrix W [out, in], n a channel (row) of it:

1. Outliers are the `fraction` of a channel's weights with the largest |W|, or those beyond `sigma_factor` standard
   deviations (around 0, as the grid is); where both are given, those that are both. top[n] is the largest |W| among
   the others.
2. The others become one of 15 levels, the same in all channels: +-round(reach * (i / 7) ** power), i = 0 ... 7, the
   nearest to W / scale. The power is 1; of `nonuniform` that of `POWERS` with the least squared error, with which
   levels are closer where weights are more.
3. Outliers become round(W / scale), in all of the 8 bits.
4. reach is the largest with which the outliers of every channel are within 127, but at least `LEAST_REACH`;
   scale[n] = max(top[n] / reach, max|W[n]| / 127), so that a channel with outliers too far out has a coarser grid.

5. Where inputs of the linear are known, what a weight loses is made up for by those behind it (GPTQ, arXiv 2210.17323):
   channels of the input are taken in groups of up to `GROUP`, in a group those first that have the largest inputs; with
   U the upper Cholesky factor of (X^T X + damping)^-1, the error e of a column j changes each later one k by
   -e U[j, k] / U[j, j]. Outliers stay those of the weights before.

Few values, and many zeros, make it compress well (`weights compress`); it is not faster by itself.
"""

from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import ConfigError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
Bools = npt.NDArray[np.bool_]
Floats = Float32 | Float64

FRACTION = 0.011
"""That of the example for LLaMA2."""
LEVELS = 7
"""Of each sign, beside 0: what 4 bits hold."""
LEAST_REACH = 35
"""With it the levels of each power are still different ones."""
POWERS = (1.05, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
GROUP = 2048
DAMPING = 0.03
"""Of the mean of X^T X's diagonal. 0.01 is GPTQ's; here there are fewer inputs."""
_BATCH = 64  # columns after which the errors go to the rest of a group
_BLOCK = 1 << 22  # values that are worked on at once
_SAMPLED_ROWS = 256  # by which the power is chosen


class Knobs(msgspec.Struct, frozen=True, kw_only=True):
    """Which weights keep 8 bits: a `fraction` of each channel, or those beyond `sigma_factor` deviations.

    With neither it is `FRACTION`, with both those that are both. `compensate` makes up for errors, if inputs are known.
    """

    fraction: float | None = None
    sigma_factor: float | None = None
    nonuniform: bool = False
    compensate: bool = True


class Sparse(NamedTuple):
    """A matrix: int8 [out, in], float32 [out] scales; W is near values * scale. `reach` and `power` are the grid's."""

    values: Int8
    scale: Float32
    reach: int
    power: float
    num_outliers: int


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a matrix; `error` is |W' - W| / |W| (Frobenius), `num_distinct` how many int8 there are in it."""

    zeros: float
    num_distinct: int
    outliers: float
    power: float
    error: float


class _Channels(NamedTuple):
    """Of each channel, [out]: the largest |W|, the largest that is no outlier, and how many outliers there are."""

    largest: Float64
    top: Float64
    num_outliers: int


def check(knobs: Knobs) -> None:
    """Raise ConfigError for knobs out of their range."""
    if knobs.fraction is not None and not 0 <= knobs.fraction <= 0.5:
        raise ConfigError(f"--fraction: must be from 0 to 0.5, got {knobs.fraction:g}; 0.01 to 0.1 is usual")
    if knobs.sigma_factor is not None and not 0 < knobs.sigma_factor <= 10:
        raise ConfigError(f"--sigma-factor: must be above 0 and up to 10, got {knobs.sigma_factor:g}; 3 to 4 is usual")


def quantised(weight: Floats, knobs: Knobs, inputs: Float32 | None = None) -> Sparse:
    """A weight [out, in] as W8A8S; `inputs` [n, in] are what it is multiplied with, as far as that is known."""
    found = _channels(weight, knobs)
    known = found.largest > 0
    shares = found.top[known] / found.largest[known]
    reach = max(LEAST_REACH, int(127 * shares.min(initial=1.0)))
    scale = np.maximum(found.top / reach, found.largest / 127)
    scale[~known] = 1.0
    own = scale.astype(np.float32)
    power = _power(weight, found.top, own, reach) if knobs.nonuniform else 1.0
    levels = _levels(reach, power)
    values = np.empty(weight.shape, np.int8)
    if inputs is not None and knobs.compensate:
        for start in range(0, weight.shape[1], GROUP):
            some = slice(start, start + GROUP)
            values[:, some] = _compensated(weight[:, some], found.top, own, levels, inputs[:, some])
    else:
        for rows in _blocks(weight):
            values[rows] = _placed(weight[rows], found.top[rows], own[rows], levels)
    return Sparse(values, own, reach, power, found.num_outliers)


def figures(weight: Floats, found: Sparse) -> Figures:
    """How a matrix was changed."""
    return Figures(
        zeros=1 - int(np.count_nonzero(found.values)) / found.values.size,  # NumPy 2 counts in its own integers
        num_distinct=int(np.count_nonzero(np.bincount(found.values.reshape(-1).view(np.uint8), minlength=256))),
        outliers=found.num_outliers / found.values.size,
        power=found.power,
        error=_error(weight, found.values, found.scale),
    )


def _channels(weight: Floats, knobs: Knobs) -> _Channels:
    """What is large in each channel."""
    largest, top = np.zeros(len(weight)), np.zeros(len(weight))
    num_outliers = 0
    for rows in _blocks(weight):
        size = np.abs(weight[rows])
        is_outlier = size > _threshold(size, knobs)[:, None]
        largest[rows] = size.max(axis=1)
        top[rows] = np.where(is_outlier, 0, size).max(axis=1)
        num_outliers += int(is_outlier.sum())
    return _Channels(largest, top, num_outliers)


def _threshold(size: Floats, knobs: Knobs) -> Float64:
    """The largest |W| of each row, [m], that is no outlier."""
    found = np.zeros(len(size))
    if knobs.sigma_factor is not None:
        found += knobs.sigma_factor * np.sqrt(np.square(size, dtype=np.float64).mean(axis=1))
    fraction = FRACTION if knobs.fraction is None and knobs.sigma_factor is None else knobs.fraction
    if fraction is not None:
        num_left = size.shape[1] - round(fraction * size.shape[1])
        found = np.maximum(found, np.partition(size, num_left - 1, axis=1)[:, num_left - 1])
    return found


def _levels(reach: int, power: float) -> Float64:
    """float64 [8]: 0 and the levels above it, whole numbers."""
    found: Float64 = np.rint(reach * (np.arange(LEVELS + 1) / LEVELS) ** power)
    return found


def _compensated(weight: Floats, top: Float64, scale: Float32, levels: Float64, inputs: Float32) -> Int8:
    """A group of columns as int8 [out, k], each making up for the errors of those before it."""
    gram = inputs.T.astype(np.float64) @ inputs
    gram[np.diag_indices_from(gram)] += DAMPING * gram.trace() / len(gram) + np.finfo(np.float32).tiny
    order = np.argsort(-gram.diagonal(), kind="stable")
    factor = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    left = weight.T[order].astype(np.float64)  # a column of the weight is a row here, so that it lies in one piece
    is_outlier = np.abs(weight.T[order]) > top
    values = np.empty(left.shape, np.int8)
    for start in range(0, len(order), _BATCH):
        stop = min(start + _BATCH, len(order))
        errors = np.empty((stop - start, len(weight)))
        for j in range(start, stop):
            values[j] = _rounded(left[j], is_outlier[j], scale, levels)
            errors[j - start] = (left[j] - values[j] * scale.astype(np.float64)) / factor[j, j]
            left[j + 1 : stop] -= factor[j, j + 1 : stop, None] * errors[j - start]
        left[stop:] -= factor[start:stop, stop:].T @ errors
    found = np.empty_like(weight, np.int8)
    found[:, order] = values.T
    return found


def _placed(weight: Floats, top: Float64, scale: Float32, levels: Float64) -> Int8:
    """Some rows as int8 [m, in]."""
    return _rounded(weight, np.abs(weight) > top[:, None], scale[:, None], levels)


def _rounded(weight: Floats, is_outlier: Bools, scale: Float32, levels: Float64) -> Int8:
    """int8: outliers of 8 bits, the others the nearest of the levels."""
    units = np.abs(weight) / scale
    places = np.zeros(weight.shape, np.uint8)
    for middle in (levels[1:] + levels[:-1]) / 2:
        places += units > middle
    values = np.where(is_outlier, np.minimum(np.rint(units), 127), levels[places])
    return np.copysign(values, weight).astype(np.int8)


def _power(weight: Floats, top: Float64, scale: Float32, reach: int) -> float:
    """The power with the least squared error, by some rows from all over the matrix."""
    some = slice(None, None, -(-len(weight) // _SAMPLED_ROWS))

    def error(power: float) -> float:
        return _error(weight[some], _placed(weight[some], top[some], scale[some], _levels(reach, power)), scale[some])

    return min(POWERS, key=error)


def _error(weight: Floats, values: Int8, scale: Float32) -> float:
    size = float(np.linalg.norm(weight))
    return float(np.linalg.norm(values * scale[:, None] - weight)) / size if size else 0.0


def _blocks(weight: Floats) -> list[slice]:
    """Rows that are worked on at once."""
    step = max(1, _BLOCK // weight.shape[1])
    return [slice(start, start + step) for start in range(0, len(weight), step)]
