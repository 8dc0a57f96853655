"""The kernels of the numba engine: integers exactly, and rounding and exponentials as NumPy has them."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("numba")

import numba

from llmbench.engines import _numba_kernels as kernels
from llmbench.engines import _numba_weights as weights
from llmbench.native import VARIABLE
from llmbench.native.isa import ISA
from llmbench.weights.quantised import W8A8, W8A16

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@numba.njit
def _multiply(rows: int, x: Any, weight: Any, num: int, scale: Any, bias: Any, out: Any) -> None:
    for panel in range(len(weight)):
        kernels.multiply_integer(
            rows,
            np.int64(x.ctypes.data),
            x.shape[1],
            np.int64(weight[panel].ctypes.data),
            num,
            0,  # these weights have no offsets
            np.int64(scale[panel].ctypes.data),
            np.int64(bias[panel].ctypes.data),
            np.int64(out.ctypes.data) + panel * kernels.PANEL_ROW,
            out.shape[1] * 4,
            0,
            np.int64(weight.ctypes.data),
            0,
        )


@numba.njit
def _quantise(x: Any, scale: float, offset: float, out: Any) -> None:
    kernels.quantise(np.int64(x.ctypes.data), len(x), np.float32(scale), np.float32(offset), np.int64(out.ctypes.data))


def quantised(x: Float32, scale: float, offset: float) -> npt.NDArray[Any]:
    """As the engine has activations, and filled up with a few bytes that must make no difference."""
    out = np.full(len(x) + 4, 7, np.uint8 if kernels.BYTES == 1 else np.int16)
    _quantise(x, scale, offset, out)
    return out


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (130, 75), (977, 304), (16, 2048)])
def test_integer_products_are_exact(shape: tuple[int, int]) -> None:
    """Also where all products are as large as they can be."""
    rng = np.random.default_rng(1)
    num_out, num_in = shape
    for extreme in (False, True):
        weight = np.full(shape, -128, np.int8) if extreme else rng.integers(-128, 128, shape).astype(np.int8)
        values = np.full((6, num_in), -128.0) if extreme else rng.integers(-128, 128, (6, num_in))
        linear = W8A8(
            weight=weight,
            input_scale=1.0,
            input_offset=0,
            quant_bias=rng.integers(-(2**20), 2**20, num_out).astype(np.int32),
            deq_scale=np.ones(num_out, np.float32),
        )
        product = weights._integer(linear, 0)
        for rows in range(1, ISA.rows + 1):
            x = np.array([quantised(row.astype(np.float32), 1.0, 0.0) for row in values[:rows]])
            out = np.zeros((rows, product.panels * ISA.width), np.float32)
            by_panel = (array.reshape(product.panels, -1) for array in (product.scale, product.bias))
            _multiply(rows, x.view(np.uint8), product.weight, product.num, *by_panel, out)
            expected = values[:rows].astype(np.int64) @ weight.T.astype(np.int64) + linear.quant_bias
            assert (out[:, :num_out] == expected.astype(np.float32)).all()


@pytest.mark.parametrize(("scale", "offset"), [(0.03125, 0), (0.0371, -17), (1e-3, 127), (2.5, -128)])
def test_activations_are_rounded_as_the_formula_says(scale: float, offset: int) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([rng.normal(0, 3, 1001), [0, -0.0, 1e30, -1e30, np.inf, -np.inf]]).astype(np.float32)
    x[:256] = (np.arange(-128, 128) + 0.5) * np.float32(scale)  # halves, to even
    found = quantised(x, scale, offset)[: len(x)].astype(np.int64) - kernels.RAISED
    expected = np.clip(np.rint(x / np.float32(scale) + np.float32(offset)), -128, 127)
    assert (found == expected).all()


@numba.njit
def _gate(gates: Any, ups: Any, out: Any) -> None:
    kernels.gate(np.int64(gates.ctypes.data), np.int64(ups.ctypes.data), len(gates), np.int64(out.ctypes.data))


def test_silu_is_right_to_the_last_places_wherever_it_can_be() -> None:
    gates = np.linspace(-120, 120, 1 << 14, dtype=np.float32)
    found = np.empty_like(gates)
    _gate(gates, np.ones_like(gates), found)
    wide = gates.astype(np.float64)
    expected = wide / (1 + np.exp(-wide))
    assert (abs(found - expected) <= 4e-7 * abs(expected) + 1e-36).all()
    odd = np.full(ISA.width, np.nan, np.float32)
    odd[:2] = np.inf, -np.inf
    found = np.empty_like(odd)
    _gate(odd, np.ones_like(odd), found)
    assert found[0] == np.inf
    assert np.isnan(found[2:]).all()


def test_weights_of_w8a16_are_packed_with_their_offsets() -> None:
    rng = np.random.default_rng(3)
    linear = W8A16(
        weight=rng.integers(-128, 128, (70, 9)).astype(np.int8),
        weight_scale=rng.random((70, 1)).astype(np.float32),
        weight_offset=rng.integers(-9, 9, (70, 1)).astype(np.float32),
    )
    product = weights._narrow(linear, 0)
    whole = product.weight[..., 0].transpose(0, 2, 1).reshape(-1, 9)
    found = (whole - product.offset[:, None]) * product.scale[:, None]
    assert (found[:70] == linear.dequantised()).all()


@pytest.mark.skipif(VARIABLE in os.environ, reason="it is the process of this test")
@pytest.mark.parametrize("isa", ["avx512", "avx2", "portable"])
def test_the_kernels_of_other_instruction_sets_are_as_exact(isa: str) -> None:
    if isa == "avx512" and not ISA.name.startswith("avx512"):
        pytest.skip("this processor has none")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env={**os.environ, VARIABLE: isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
