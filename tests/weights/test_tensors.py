"""Tensors that are put together and taken apart lazily: the same whatever rows are asked for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import InputError
from llmbench.weights import tensors as lazy
from llmbench.weights.tensors import Bits, Tensor


def of(values: Bits, dtype: str = "float32") -> Tensor:
    return Tensor(shape=values.shape, dtype=dtype, rows=lambda start, stop: values[start:stop])


def numbered(num_rows: int, first: int = 0, width: int = 2) -> Bits:
    return np.arange(first, first + num_rows * width, dtype=np.float32).reshape(num_rows, width)


def whole(tensor: Tensor) -> Bits:
    return tensor.rows(0, tensor.shape[0])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5), st.data())
def test_interleaving_goes_group_by_group_and_back_whatever_rows_are_read(
    widths: list[int], num_groups: int, data: st.DataObject
) -> None:
    parts = [numbered(width * num_groups, 1000 * i) for i, width in enumerate(widths)]
    expected = np.concatenate(
        [part[g * w : (g + 1) * w] for g in range(num_groups) for part, w in zip(parts, widths, strict=True)]
    )
    made = lazy.interleaved([of(part) for part in parts], num_groups, "x")
    assert made.shape == expected.shape
    start = data.draw(st.integers(0, len(expected)))
    stop = data.draw(st.integers(start, len(expected)))
    assert (made.rows(start, stop) == expected[start:stop]).all()
    assert made.rows(start, stop).shape == (stop - start, 2)
    for i, part in enumerate(parts):
        back = lazy.uninterleaved(of(expected), num_groups, sum(widths[:i]), widths[i])
        assert (whole(back) == part).all()
        low, high = min(start, len(part)), min(stop, len(part))
        assert (back.rows(low, high) == part[low:high]).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_pieces_joined_are_the_whole(axis: int) -> None:
    values = numbered(9, width=7)
    cuts = [(0, 3), (3, 4), (4, 7)]
    pieces = [lazy.piece(of(values), axis, start, stop) for start, stop in cuts]
    assert (whole(lazy.joined(pieces, axis, "x")) == (values[:7] if axis == 0 else values)).all()
    assert [piece.shape[axis] for piece in pieces] == [3, 1, 3]


def test_parts_of_different_dtypes_are_not_mixed() -> None:
    with pytest.raises(InputError, match=r"w_qkv: its parts are bfloat16 and float32; .* --dtype"):
        lazy.interleaved([of(numbered(2)), of(numbered(2).astype(np.uint16), "bfloat16")], 1, "w_qkv")


def test_metas_pairs_become_halves() -> None:
    values = np.arange(16, dtype=np.float32).reshape(8, 2)
    made = lazy.halves_apart(of(values), 4)
    assert whole(made)[:, 0].tolist() == [0, 4, 2, 6, 8, 12, 10, 14]
    assert (made.rows(3, 6) == whole(made)[3:6]).all()


@given(st.integers(0, 0xFFFF), st.sampled_from([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF]))
def test_bfloat16_is_the_nearest_and_of_two_the_even_one(high: int, low: int) -> None:
    bits = high << 16 | low
    value = np.array([bits], np.uint32).view(np.float32)
    found = lazy.narrow(value, "bfloat16")
    if np.isnan(value[0]):
        assert np.isnan(lazy.widen(found)[0])
        return
    exact = abs(int(bits & 0x7FFFFFFF))  # magnitudes of floats are in the order of their bits
    below, above = exact >> 16, (exact >> 16) + 1
    got = int(found[0]) & 0x7FFF
    assert got in (below, above)
    assert int(found[0]) >> 15 == bits >> 31
    rest = exact & 0xFFFF
    if rest != 0x8000:
        assert got == (below if rest < 0x8000 else above)
    else:
        assert got % 2 == 0


def test_every_bfloat16_and_float16_survives_float32() -> None:
    every = np.arange(1 << 16, dtype=np.uint16)
    numbers = every[np.isfinite(lazy.widen(every))]
    assert (lazy.narrow(lazy.widen(numbers), "bfloat16") == numbers).all()
    half = every.view(np.float16)
    half = half[np.isfinite(half)]
    assert (lazy.narrow(lazy.widen(half), "float16").view(np.uint16) == half.view(np.uint16)).all()


def test_a_value_that_a_dtype_has_no_number_for_is_refused() -> None:
    big = of(np.array([1.0, 70000.0], np.float32))
    with pytest.raises(InputError, match=r"w: its 70000 is too large for float16; .*--dtype bfloat16 or float32"):
        whole(lazy.cast(big, "float16", "w"))
    assert lazy.widen(whole(lazy.cast(big, "bfloat16", "w"))).tolist() == [1.0, 70144.0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_not_finite_is_refused_with_its_place(dtype: str) -> None:
    values = np.zeros((5, 3), np.float32)
    values[3, 1] = np.nan
    tensor = lazy.finite(of(lazy.narrow(values, dtype), dtype), "w")
    assert tensor.rows(0, 3).shape == (3, 3)
    with pytest.raises(InputError, match=r"w: NaN or infinity at \[3, 1\]"):
        tensor.rows(2, 5)


def test_equal_is_bit_by_bit() -> None:
    nan = np.array([np.nan, 0.0], np.float32)
    assert lazy.equal(of(nan), of(nan.copy()))
    assert not lazy.equal(of(nan), of(np.array([np.nan, -0.0], np.float32)))
    assert not lazy.equal(of(nan), of(nan[:1]))
