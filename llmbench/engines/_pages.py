"""The paged KV cache of one layer in NumPy: floats, or int8 numbers with a scale and an offset for each channel."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from llmbench.engines._scratch import Scratch

Intp = npt.NDArray[np.intp]
Float32 = npt.NDArray[np.float32]


class Pages(Protocol):
    """Keys and values [blocks, block_size, 2 kv_heads, head_dim] of one layer, keys before values."""

    block_size: int

    def write(self, slots: Intp, keys_values: Float32) -> None:
        """Keep [T, 2 kv_heads, head_dim] at `slots` intp [T], counted through all blocks."""
        ...

    def read(self, blocks: Intp, scratch: Scratch, name: str) -> Float32:
        """[*blocks.shape, block_size, 2 kv_heads, head_dim], in the work array of this name."""
        ...

    def clear(self, blocks: npt.NDArray[Any]) -> None:
        """Make what is in these blocks harmless zeros."""
        ...


class FloatPages:
    """As they are."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: npt.DTypeLike) -> None:
        self.block_size = shape[1]
        self.array = np.zeros(shape, dtype)

    def write(self, slots: Intp, keys_values: Float32) -> None:
        """Keep [T, 2 kv_heads, head_dim] at `slots`."""
        self.array.reshape(-1, *self.array.shape[2:])[slots] = keys_values

    def read(self, blocks: Intp, scratch: Scratch, name: str) -> Float32:
        """[*blocks.shape, block_size, 2 kv_heads, head_dim], in the work array of this name."""
        found = scratch.get(name, *blocks.shape, *self.array.shape[1:])
        self.array.take(blocks, axis=0, out=found, mode="clip")  # other modes make `out` a copy first
        return found

    def clear(self, blocks: npt.NDArray[Any]) -> None:
        """Zeros."""
        self.array[blocks] = 0


class Int8Pages:
    """clamp(round(x / scale + offset)), which is read as (q - offset) * scale; both are [2 kv_heads, head_dim]."""

    def __init__(self, shape: tuple[int, int, int, int], scale: Float32, offset: Float32) -> None:
        self.block_size = shape[1]
        self.array = np.zeros(shape, np.int8)
        self._scale = scale
        self._offset = offset

    def write(self, slots: Intp, keys_values: Float32) -> None:
        """Keep [T, 2 kv_heads, head_dim] at `slots`; NaN becomes any number."""
        rounded = keys_values / self._scale
        rounded += self._offset
        np.rint(rounded, out=rounded)
        np.clip(rounded, -128, 127, out=rounded)
        with np.errstate(invalid="ignore"):
            self.array.reshape(-1, *self.array.shape[2:])[slots] = rounded.astype(np.int8)

    def read(self, blocks: Intp, scratch: Scratch, name: str) -> Float32:
        """[*blocks.shape, block_size, 2 kv_heads, head_dim], in the work array of this name."""
        shape = (*blocks.shape, *self.array.shape[1:])
        stored = scratch.get("stored", *shape, dtype=np.int8)
        self.array.take(blocks, axis=0, out=stored, mode="clip")
        found: Float32 = np.subtract(stored, self._offset, out=scratch.get(name, *shape))
        found *= self._scale
        return found

    def clear(self, blocks: npt.NDArray[Any]) -> None:
        """Zeros; there is no NaN among int8 numbers to outlast them."""
        self.array[blocks] = 0
