"""Linears as the NumPy engine computes them: y = x Wᵀ + b in floats, or W8A8, with an exact product of integers.

All of them are given the normalised hidden state without the weight of its norm: that is in the float matrix, and is
applied before rounding to int8.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines._matrix import Layout, Matrix
from llmbench.engines._scratch import Scratch

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_EXACT_DEPTH = 1024  # products of two int8 numbers whose sums float32 holds: 1024 * 128 * 128 = 2^24


class Norm(msgspec.Struct, frozen=True):
    """What an RMSNorm does to x / sqrt(sum(x^2)): times `gain` [hidden], plus `bias` [hidden]."""

    gain: Float32
    bias: Float32 | None


class Linear(Protocol):
    """One or more linears of the same input, their outputs side by side."""

    num_out: int

    def multiply(self, x: Float32, scratch: Scratch, name: str) -> Float32:
        """[T, num_out] from x [T, num_in], in the work array of this name."""
        ...


class FloatLinear:
    """A matrix and a bias [num_out]."""

    def __init__(self, matrix: Matrix, bias: Float32 | None) -> None:
        self.num_out = matrix.num_out
        self._matrix = matrix
        self._bias = bias

    def multiply(self, x: Float32, scratch: Scratch, name: str) -> Float32:
        """[T, num_out] from x [T, num_in], in the work array of this name."""
        out = self._matrix.multiply(x, scratch.get(name, len(x), self._matrix.padded))
        if self._bias is not None:
            out += self._bias
        return out


class Int8Linear:
    """W8A8 (see weights.quantised): `matrix` holds int8 numbers as floats, in a layout by `exact`.

    What the ranges of its inputs give is added up in float64, and so is the bias: exactly, for any number of inputs.
    The only roundings are that of the input to int8 and that of the output to a float.
    """

    def __init__(
        self, matrix: Matrix, norm: Norm | None, scale: float, offset: int, quant_bias: Float64, deq_scale: Float64
    ) -> None:
        self.num_out = matrix.num_out
        self._matrix = matrix
        self._norm = norm
        self._scale = scale
        self._offset = offset
        self._quant_bias = quant_bias
        self._deq_scale = deq_scale

    def multiply(self, x: Float32, scratch: Scratch, name: str) -> Float32:
        """[T, num_out] from x [T, num_in], in the work array of this name; NaN stays NaN."""
        rounded = scratch.get("rounded", *x.shape)
        np.divide(x if self._norm is None else self._normed(self._norm, x, rounded), self._scale, out=rounded)
        rounded += self._offset
        np.rint(rounded, out=rounded)
        np.clip(rounded, -128, 127, out=rounded)
        sums = self._matrix.multiply(rounded, scratch.get("sums", len(x), self._matrix.padded, dtype=np.float64))
        sums += self._quant_bias
        out: Float32 = np.multiply(sums, self._deq_scale, out=scratch.get(name, len(x), self.num_out))
        return out

    def _normed(self, norm: Norm, x: Float32, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        np.multiply(x, norm.gain, out=out)
        if norm.bias is not None:
            out += norm.bias
        return out


class Joined:
    """Linears that are computed one by one: of floats beside W8A8, or rounded with other scales."""

    def __init__(self, parts: Sequence[Linear]) -> None:
        self.num_out = sum(part.num_out for part in parts)
        self._parts = parts

    def multiply(self, x: Float32, scratch: Scratch, name: str) -> Float32:
        """[T, num_out] from x [T, num_in], in the work array of this name."""
        out = scratch.get(name, len(x), self.num_out)
        start = 0
        for part in self._parts:
            out[:, start : start + part.num_out] = part.multiply(x, scratch, "part")
            start += part.num_out
        return out


def exact(layout: Layout) -> Layout:
    """The layout, with ranges of inputs so short that float32 holds every sum of products of int8 numbers."""
    return Layout(layout.width, min(layout.depth or _EXACT_DEPTH, _EXACT_DEPTH))
