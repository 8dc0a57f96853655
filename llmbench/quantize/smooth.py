"""Outliers moved out of what goes into a linear, into its weights: the float model computes the same as before.

The formulas are those of ascend-formats, section 4.4: SmoothQuant (https://arxiv.org/abs/2211.10438), Outlier
Suppression+ (https://arxiv.org/abs/2304.09145), AWQ (https://arxiv.org/abs/2306.00978), and msmodelslim's iterative
smoothing. What a channel j of an input is divided by, s[j], is multiplied into the columns j of the linears behind it,
and what stands in front of the input, a norm or a linear, gives it divided. Of grouped heads, a value goes to several
heads of the output projection: their s are averaged.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from llmbench import plugins
from llmbench.errors import ConfigError
from llmbench.quantize import linears
from llmbench.quantize.forward import NORM_POINTS, POINTS, Tensors
from llmbench.quantize.observers import Channels
from llmbench.weights.config import ModelConfig

Float64 = npt.NDArray[np.float64]
Method: TypeAlias = Literal["none", "m1", "m2", "m3", "m4", "m6"]
Seen = Mapping[str, Channels]
"""By point."""

_GRID = 20
_LEAST = 1e-5


class About(NamedTuple):
    """A method: what it does, and the share alpha of an outlier that goes into the weights; None where it searches."""

    what: str
    alpha: float | None


METHODS: dict[Method, About] = {
    "none": About("nothing is moved", None),
    "m1": About("SmoothQuant: norms to the linears behind them", 0.5),
    "m2": About("shift and scale (Outlier Suppression+): norms get a bias", 0.5),
    "m3": About("AWQ: scales by the mean size of channels, the best of a grid for int8 weights", None),
    "m4": About("iterative: up to down, v to o, norms to linears", 0.9),
    "m6": About("as m4, with the alpha of each place that gives the least error of W8A8", None),
}
_CLOSED = {
    "m5": "CBQ reconstructs blocks by training, its code is closed, and nothing here computes gradients; m4 or m6"
    " moves outliers at the same places"
}


def check(method: str, alpha: float | None) -> None:
    """Raise ConfigError for a method that is not here, or an alpha that it does not take."""
    if method in _CLOSED:
        raise ConfigError(f"--anti {method}: {_CLOSED[method]}")
    known = {str(name): about for name, about in METHODS.items()}
    if method not in known:
        raise ConfigError(f"--anti: {plugins.unknown('method', method, list(known))}")
    if alpha is not None and known[method].alpha is None:
        able = ", ".join(name for name, about in known.items() if about.alpha is not None)
        raise ConfigError(f"--alpha: {method} has none; methods with one: {able}")


def smooth(method: Method, alpha: float | None, own: Tensors, seen: Seen, config: ModelConfig) -> None:
    """Change the weights of one layer; m2 adds biases to both norms and to the linears behind them."""
    layer = _Layer(own, seen, config)
    share = METHODS[method].alpha if alpha is None else alpha
    if method == "m1":
        for point in NORM_POINTS:
            layer.scale(point, layer.factors(point, _size(seen[point]), share or 0.0))
    elif method == "m2":
        for point in NORM_POINTS:
            z = (seen[point].high + seen[point].low) / 2
            layer.shift(point, z)
            layer.scale(point, layer.factors(point, seen[point].high - z, share or 0.0))
    elif method == "m3":
        for point in POINTS:
            layer.scale(point, layer.best(point, _awq(seen[point].size), _weight_error))
    elif method == "m4":
        for point in ("down", "o", *NORM_POINTS):
            layer.scale(point, layer.factors(point, _size(seen[point]), share or 0.0))
    elif method == "m6":
        for point in ("down", "o", *NORM_POINTS):
            size = _size(seen[point])
            candidates = (layer.factors(point, size, k / _GRID) for k in range(_GRID + 1))
            layer.scale(point, layer.best(point, candidates, _error))


def scales(size: Float64, weight: Float64, alpha: float) -> Float64:
    """float64 [width]: size^alpha / weight^(1 - alpha), 1e-5 at least; 1 for channels that are always 0 or unused.

    `size` is the largest magnitude of each channel, `weight` that of its columns in all linears behind it.
    """
    alive = (size > 0) & (weight > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.maximum(size**alpha / weight ** (1 - alpha), _LEAST)
    return np.where(alive, found, 1.0)


class _Layer:
    """The weights of a layer, what was seen of it, and how channels are scaled and shifted."""

    def __init__(self, own: Tensors, seen: Seen, config: ModelConfig) -> None:
        self._own, self._seen, self._config = own, seen, config

    def factors(self, point: str, size: Float64, alpha: float) -> Float64:
        """SmoothQuant's scales."""
        weight = np.max([np.abs(self._own[f"{name}.weight"]).max(axis=0) for name in POINTS[point].linears], axis=0)
        return self._shared(point, scales(size, weight.astype(np.float64), alpha))

    def best(self, point: str, candidates: Iterable[Float64], error: "_Loss") -> Float64:
        """The scales with the least error, summed over the linears, on the rows that were kept; the first of equals."""
        x = self._seen[point].rows.astype(np.float64)
        weights = [self._own[f"{name}.weight"].astype(np.float64) for name in POINTS[point].linears]
        expected = [x @ weight.T for weight in weights]
        found, least = np.ones(x.shape[1]), np.inf
        for s in candidates:
            shared = self._shared(point, s)
            total = sum(error(x / shared, weight * shared, y) for weight, y in zip(weights, expected, strict=True))
            if total < least:
                found, least = shared, total
        return found

    def scale(self, point: str, s: Float64) -> None:
        """Divide the input's channels by s [width], which is the same for what is one value."""
        for name in POINTS[point].linears:
            self._store(f"{name}.weight", self._own[f"{name}.weight"] * s)
        divisor = s if point != "o" else self._by_group(s)[:, 0].reshape(-1)
        for kind in ("weight", "bias"):
            name = f"{POINTS[point].source}.{kind}"
            if name in self._own:
                values = self._own[name]
                self._store(name, values / (divisor if values.ndim == 1 else divisor[:, None]))

    def shift(self, point: str, z: Float64) -> None:
        """Take z [width] from the input's channels."""
        for name in POINTS[point].linears:
            added = self._own[f"{name}.weight"].astype(np.float64) @ z
            self._store(f"{name}.bias", added + self._own.get(f"{name}.bias", 0.0))
        norm = f"{POINTS[point].source}.bias"
        self._store(norm, self._own.get(norm, 0.0) - z)

    def _shared(self, point: str, s: Float64) -> Float64:
        """The same s for all heads that one value goes to: the mean of theirs."""
        if point != "o":
            return s
        grouped = self._by_group(s)
        return np.broadcast_to(grouped.mean(axis=1, keepdims=True), grouped.shape).reshape(-1)

    def _by_group(self, s: Float64) -> Float64:
        """[heads * head_dim] as [kv_heads, heads of each, head_dim]."""
        return s.reshape(self._config.num_kv_heads, -1, self._config.head_dim)

    def _store(self, name: str, values: Float64) -> None:
        self._own[name] = values.astype(np.float32)


def _size(channels: Channels) -> Float64:
    """float64 [width]: the largest magnitude of each channel."""
    return np.maximum(np.abs(channels.low), np.abs(channels.high))


def _awq(size: Float64) -> Iterable[Float64]:
    """AWQ's grid: mean|x|^r, at least 1e-4, over sqrt(max * min), for r of 0, 1/20, … 19/20."""
    for k in range(_GRID):
        s = np.maximum(size ** (k / _GRID), 1e-4)
        yield s / np.sqrt(s.max() * s.min())


_Loss = Callable[[Float64, Float64, Float64], float]
"""The squared error of int8 for an input [n, in] and a weight [out, in], whose exact output is [n, out]."""


def _weight_error(x: Float64, weight: Float64, y: Float64) -> float:
    """Of int8 weights alone."""
    return float(np.square(linears.output(linears.w8a16(weight, None), x) - y).sum())


def _error(x: Float64, weight: Float64, y: Float64) -> float:
    """Of W8A8."""
    ends = linears.activation(float(x.min()), float(x.max()))
    return float(np.square(linears.output(linears.w8a8("", weight, None, *ends), x) - y).sum())
