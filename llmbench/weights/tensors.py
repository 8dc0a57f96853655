"""Tensors that are read when asked for: cut, joined, regrouped, of another dtype, and never held whole.

Rows are as they are stored: float32, float16, or for bfloat16, which NumPy does not know, its bits as uint16; what is
quantised has integers.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError

Bits = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

STORED: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "int8": np.dtype("i1"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
}
"""The dtypes that can be read and written, and what their rows are as arrays."""

FLOATS = ("float32", "float16", "bfloat16")
"""Those of numbers; the others are of quantised weights, and keep their dtype whatever is asked for."""

_BLOCK_ELEMENTS = 1 << 22  # 16 MiB of float32: what streaming a tensor holds at once


class Source(Protocol):
    """Where tensors come from."""

    def names(self) -> list[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def dtype(self, name: str) -> str:
        """What a tensor is stored as, such as "float16"."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Bits:
        """[stop - start, ...]: some rows of a tensor, as they are stored."""
        ...


class Tensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that is not read yet; `rows(start, stop)` reads some of it."""

    shape: tuple[int, ...]
    dtype: str
    rows: Callable[[int, int], Bits]

    @property
    def num_elements(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """How many bytes it is stored in."""
        return self.num_elements * STORED[self.dtype].itemsize

    def blocks(self) -> Iterator[tuple[int, Bits]]:
        """All rows in pieces of about 4 M values: the first row of each, and the piece."""
        return blocks(self.shape, self.rows)


class Tensors:
    """A source of tensors by name."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """What a tensor is stored as."""
        return self._tensors[name].dtype

    def rows(self, name: str, start: int, stop: int) -> Bits:
        """[stop - start, ...]: some rows of a tensor, as they are stored."""
        return self._tensors[name].rows(start, stop)


def of(source: Source) -> dict[str, Tensor]:
    """The tensors of a source."""
    return {
        name: Tensor(shape=source.shape(name), dtype=source.dtype(name), rows=partial(source.rows, name))
        for name in source.names()
    }


def held(values: Bits) -> Tensor:
    """An array of one of the dtypes that NumPy knows as a tensor."""
    return Tensor(shape=values.shape, dtype=str(values.dtype), rows=lambda start, stop: values[start:stop])


def blocks(shape: tuple[int, ...], rows: Callable[[int, int], Bits]) -> Iterator[tuple[int, Bits]]:
    """The rows of a tensor of this shape in pieces of about 4 M values: the first row of each, and the piece."""
    # 64: readers that tile get whole tiles
    step = max(64, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])) // 64 * 64)
    for start in range(0, shape[0], step):
        yield start, rows(start, min(start + step, shape[0]))


def widen(values: Bits) -> Float32:
    """float32 of what is stored; a bfloat16 is the upper half of a float32."""
    if values.dtype == STORED["bfloat16"]:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def narrow(values: Float32, dtype: str) -> Bits:
    """float32 as it is stored in a dtype, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        with np.errstate(over="ignore"):  # the caller looks for infinity
            return values.astype(STORED[dtype], copy=False)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def is_finite(values: Bits) -> bool:
    """Whether none of what is stored is NaN or infinite."""
    if values.dtype == STORED["bfloat16"]:
        return not bool(((values & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(values).all())


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit by bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    return all(_same_bits(block, other.rows(start, start + len(block))) for start, block in one.blocks())


def piece(tensor: Tensor, axis: int | None, start: int, stop: int) -> Tensor:
    """`start` to `stop` along an axis, 0 or 1; all of it where that is None."""
    if axis is None:
        return tensor
    shape = (*tensor.shape[:axis], stop - start, *tensor.shape[axis + 1 :])
    if axis == 0:
        return Tensor(shape=shape, dtype=tensor.dtype, rows=lambda low, high: tensor.rows(start + low, start + high))
    return Tensor(shape=shape, dtype=tensor.dtype, rows=lambda low, high: tensor.rows(low, high)[:, start:stop])


def padded(tensor: Tensor, num_rows: int) -> Tensor:
    """The tensor with rows of zeros behind it."""
    length, rest = tensor.shape[0], tensor.shape[1:]
    if length == num_rows:
        return tensor

    def rows(start: int, stop: int) -> Bits:
        found = tensor.rows(min(start, length), min(stop, length))
        missing = np.zeros((stop - start - len(found), *rest), found.dtype)
        return np.concatenate([found, missing])

    return Tensor(shape=(num_rows, *rest), dtype=tensor.dtype, rows=rows)


def zeros(tensor: Tensor) -> Tensor:
    """As large as a tensor, and of its dtype."""
    stored, rest = STORED[tensor.dtype], tensor.shape[1:]
    return Tensor(
        shape=tensor.shape, dtype=tensor.dtype, rows=lambda start, stop: np.zeros((stop - start, *rest), stored)
    )


def joined(tensors: Sequence[Tensor], axis: int, name: str) -> Tensor:
    """Tensors one behind another along axis 0 or 1; `name` is what they become. Raises InputError as `interleaved`."""
    if len(tensors) == 1:
        return tensors[0]
    if axis == 0:
        return interleaved(tensors, 1, name)
    dtype = _one_dtype(tensors, name)
    shape = (tensors[0].shape[0], sum(tensor.shape[1] for tensor in tensors), *tensors[0].shape[2:])
    return Tensor(
        shape=shape,
        dtype=dtype,
        rows=lambda start, stop: np.concatenate([tensor.rows(start, stop) for tensor in tensors], axis=1),
    )


def interleaved(tensors: Sequence[Tensor], num_groups: int, name: str) -> Tensor:
    """Tensors whose rows are cut into groups: group 0 of each one behind another, then group 1 of each, and so on.

    `name` is what they become. Raises InputError when they have not the same dtype.
    """
    widths = [tensor.shape[0] // num_groups for tensor in tensors]
    period, rest, dtype = sum(widths), tensors[0].shape[1:], _one_dtype(tensors, name)

    def rows(start: int, stop: int) -> Bits:
        first, last = start // period, -(-stop // period)
        if last - first > 1:
            found = np.empty((last - first, period, *rest), STORED[dtype])
            at = 0
            for tensor, width in zip(tensors, widths, strict=True):
                part = tensor.rows(first * width, last * width)
                found[:, at : at + width] = part.reshape(last - first, width, *rest)
                at += width
            return found.reshape(-1, *rest)[start - first * period : stop - first * period]
        parts = [np.empty((0, *rest), STORED[dtype])]
        at = first * period
        for tensor, width in zip(tensors, widths, strict=True):
            low, high = max(start, at), min(stop, at + width)
            if low < high:
                parts.append(tensor.rows(first * width + low - at, first * width + high - at))
            at += width
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    return Tensor(shape=(period * num_groups, *rest), dtype=dtype, rows=rows)


def uninterleaved(tensor: Tensor, num_groups: int, offset: int, width: int) -> Tensor:
    """One of the tensors that were interleaved: `width` rows of each group, from its row `offset` on."""
    period, rest = tensor.shape[0] // num_groups, tensor.shape[1:]

    def rows(start: int, stop: int) -> Bits:
        first, last = start // width, -(-stop // width)
        if last - first <= 1:
            at = first * period + offset + start - first * width
            return tensor.rows(at, at + stop - start)
        found = tensor.rows(first * period, last * period).reshape(last - first, period, *rest)
        part: Bits = found[:, offset : offset + width].reshape(-1, *rest)
        return part[start - first * width : stop - first * width]

    return Tensor(shape=(num_groups * width, *rest), dtype=tensor.dtype, rows=rows)


def halves_apart(tensor: Tensor, head_dim: int) -> Tensor:
    """The rows of each head from (x0 y0 x1 y1 …), as Meta turns them in RoPE, to (x0 x1 … y0 y1 …), as others do."""
    rest = tensor.shape[1:]

    def rows(start: int, stop: int) -> Bits:
        first, last = start // head_dim, -(-stop // head_dim)
        found = tensor.rows(first * head_dim, last * head_dim).reshape(last - first, head_dim // 2, 2, *rest)
        turned: Bits = found.swapaxes(1, 2).reshape(-1, *rest)
        return turned[start - first * head_dim : stop - first * head_dim]

    return Tensor(shape=tensor.shape, dtype=tensor.dtype, rows=rows)


def cast(tensor: Tensor, dtype: str, name: str) -> Tensor:
    """A tensor in another dtype; its rows raise InputError for a value that this dtype has no number for."""
    if tensor.dtype == dtype:
        return tensor

    def rows(start: int, stop: int) -> Bits:
        values = widen(tensor.rows(start, stop))
        found = narrow(values, dtype)
        if not is_finite(found) and is_finite(values):
            raise InputError(
                f"{name}: its {np.abs(values).max():.6g} is too large for {dtype}; keep it as {tensor.dtype},"
                " or use --dtype bfloat16 or float32"
            )
        return found

    return Tensor(shape=tensor.shape, dtype=dtype, rows=rows)


def finite(tensor: Tensor, name: str) -> Tensor:
    """The same tensor; its rows raise InputError when one of them is NaN or infinite."""

    def rows(start: int, stop: int) -> Bits:
        found = tensor.rows(start, stop)
        if not is_finite(found):
            where = np.argwhere(~np.isfinite(widen(found)))[0]
            where[0] += start
            raise InputError(
                f"{name}: NaN or infinity at {where.tolist()}; the file was damaged, or written while training"
                " diverged (--allow-nonfinite takes it over all the same)"
            )
        return found

    return Tensor(shape=tensor.shape, dtype=tensor.dtype, rows=rows)


def agreeing(tensors: Sequence[Tensor], name: str, holders: Sequence[str]) -> Tensor:
    """Copies of one tensor; its rows raise InputError, with the names of two holders, when they are not the same."""
    first, *others = tensors

    def rows(start: int, stop: int) -> Bits:
        found = first.rows(start, stop)
        for other, holder in zip(others, holders[1:], strict=True):
            if not _same_bits(found, other.rows(start, stop)):
                raise InputError(
                    f"{holder}: {name}: other values than in {holders[0]}, though the strategy says that both hold"
                    " the same; the ranks are not of one model, or one was changed"
                )
        return found

    return Tensor(shape=first.shape, dtype=first.dtype, rows=rows) if others else first


def absent(tensor: Tensor, others: Sequence[Tensor], name: str, holders: Sequence[str]) -> Tensor:
    """The tensor of rank 0; its rows raise InputError when the others, which are zeros, are not."""

    def rows(start: int, stop: int) -> Bits:
        for other, holder in zip(others, holders, strict=True):
            if other.rows(start, stop).any():
                raise InputError(f"{holder}: {name}: not zeros, though the strategy says that only rank 0 has it")
        return tensor.rows(start, stop)

    return Tensor(shape=tensor.shape, dtype=tensor.dtype, rows=rows)


def _one_dtype(tensors: Sequence[Tensor], name: str) -> str:
    dtypes = sorted({tensor.dtype for tensor in tensors})
    if len(dtypes) > 1:
        raise InputError(f"{name}: its parts are {' and '.join(dtypes)}; give one dtype to all of them with --dtype")
    return dtypes[0]


def _same_bits(one: Bits, other: Bits) -> bool:
    """Whether two arrays have the same bytes: NaN is like NaN, 0 unlike -0."""
    return one.tobytes() == other.tobytes()
