"""The formulas of int8, of one linear: ascend-formats, section 4.2. All is computed in float64 and rounded once."""

import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError
from llmbench.weights.quantised import W8A8, W8A16, Linear

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Floats = Float32 | Float64
Int8 = npt.NDArray[np.int8]

EPS = float(np.finfo(np.float32).eps)
"""The least scale of an input."""
_INT32 = 2**31 - 1


def activation(low: float, high: float) -> tuple[float, int]:
    """Scale and offset of values from `low` to `high`, asymmetric: 0 is always one of the 256 numbers.

    scale = max((high - low) / 255, eps), a float32; offset = round(-low / scale) - 128.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32(max((high - low) / 255, EPS)))
    return scale, min(round(-low / scale) - 128, 127)


def channel_activations(low: Float64, high: Float64) -> tuple[Float32, Float32]:
    """The same of each channel, [n]: the scales, and the offsets as float32."""
    pairs = [activation(*ends) for ends in zip(low.tolist(), high.tolist(), strict=True)]
    scales, offsets = np.array(pairs, np.float32).T
    return scales, offsets


def rounded(x: Floats, scale: float, offset: int) -> Int8:
    """int8: clamp(round(x / scale + offset), -128, 127), ties to even."""
    found: Int8 = np.clip(np.rint(x / np.float64(scale) + offset), -128, 127).astype(np.int8)
    return found


def symmetric(weight: Floats) -> tuple[Int8, Float32]:
    """A weight [out, in] as int8, and the scale of each output, float32 [out]: max|W[n]| / 127; 1 where that is 0."""
    largest = np.abs(weight).max(axis=1).astype(np.float64)
    scale = np.where(largest == 0, 1.0, largest / 127).astype(np.float32)
    quantised: Int8 = np.clip(np.rint(weight / scale[:, None].astype(np.float64)), -128, 127).astype(np.int8)
    return quantised, scale


def w8a8(
    name: str,
    weight: Floats,
    bias: Floats | None,
    scale: float,
    offset: int,
    as_int8: tuple[Int8, Float32] | None = None,
) -> W8A8:
    """A linear [out, in] whose input has this scale and offset; `as_int8` is its weight with its scales, if known.

    deq_scale = input scale * weight scale; quant_bias = round(bias / deq_scale - offset * sum of the row's int8).
    Raises InputError, which names the linear, for a bias that int32 does not hold.
    """
    quantised, weight_scale = symmetric(weight) if as_int8 is None else as_int8
    deq_scale = (scale * weight_scale.astype(np.float64)).astype(np.float32)
    correction = quantised.sum(axis=1, dtype=np.int64) * offset
    fp_bias: Float64 = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    exact = np.rint(fp_bias / deq_scale - correction)
    # the sum over an input's channels comes on top
    if np.abs(exact).max(initial=0) + 128 * 128 * weight.shape[1] > _INT32:
        raise InputError(
            f"{name}: its bias of up to {np.abs(fp_bias).max():.4g} is no int32 in units of {deq_scale.min():.3g};"
            " keep this linear float: --float-linears REGEX"
        )
    return W8A8(
        weight=quantised,
        input_scale=scale,
        input_offset=offset,
        quant_bias=exact.astype(np.int32),
        deq_scale=deq_scale,
    )


def w8a16(weight: Floats, bias: Floats | None, *, asymmetric: bool = False) -> W8A16:
    """A linear of which only the weight is int8, by output channel: w = (q - offset) * scale."""
    if asymmetric:
        low, high = weight.min(axis=1).astype(np.float64), weight.max(axis=1).astype(np.float64)
        scale, offset = channel_activations(low, high)
        exact = np.rint(weight / scale[:, None].astype(np.float64) + offset[:, None])
        quantised = np.clip(exact, -128, 127).astype(np.int8)
    else:
        quantised, scale = symmetric(weight)
        offset = np.zeros_like(scale)
    return W8A16(
        weight=quantised,
        weight_scale=scale[:, None],
        weight_offset=offset[:, None],
        bias_=None if bias is None else np.asarray(bias, np.float32),
    )


def output(linear: Linear, x: Floats) -> Float64:
    """float64 [n, out]: what a linear makes of x [n, in]; int8 products are added up exactly."""
    if isinstance(linear, W8A16):
        weight = (linear.weight - linear.weight_offset.astype(np.float64)) * linear.weight_scale
        y: Float64 = np.asarray(x, np.float64) @ weight.T
        return y if linear.bias_ is None else y + linear.bias_
    xq = rounded(x, linear.input_scale, linear.input_offset)
    sums: Float64 = xq.astype(np.float64) @ linear.weight.T.astype(np.float64) + linear.quant_bias
    return sums * linear.deq_scale.astype(np.float64)


def relative_error(linear: Linear, weight: Floats, bias: Floats | None, x: Floats) -> float:
    """|y' - y| / |y| (Frobenius) over rows x [n, in]; 0 where y is all zeros."""
    y = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
    if bias is not None:
        y += bias
    size = float(np.linalg.norm(y))
    return float(np.linalg.norm(output(linear, x) - y)) / size if size else 0.0
