"""Random weights: each tensor from its own generator, so that it is the same whatever is read before or besides it."""

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_BLOCK_ELEMENTS = 1 << 20  # 4 MiB: what is generated at once, however large the tensor


class RandomWeights:
    """Tensors of given shapes, normal(0, std); a std of None gives ones. Nothing is held."""

    def __init__(self, seed: int, shapes: Mapping[str, tuple[int, ...]], stds: Mapping[str, float | None]) -> None:
        self._seed = seed
        self._shapes = shapes
        self._stds = stds

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """What a tensor is stored as."""
        return "float32"

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: rows of a tensor; equal whichever slices it is read in."""
        shape = self._shapes[name]
        std = self._stds[name]
        if std is None:
            return np.ones((stop - start, *shape[1:]), np.float32)
        out = np.empty((stop - start, *shape[1:]), np.float32)
        step = max(1, _BLOCK_ELEMENTS // int(np.prod(shape[1:], dtype=np.int64)))
        for index in range(start // step, -(-stop // step)):
            first = index * step
            block = self._block(name, index, (min(step, shape[0] - first), *shape[1:]))
            low, high = max(start, first), min(stop, first + step)
            np.multiply(block[low - first : high - first], np.float32(std), out=out[low - start : high - start])
        return out

    def _block(self, name: str, index: int, shape: tuple[int, ...]) -> Float32:
        """Standard normal float32: block number `index` of a tensor, by the counter's high word."""
        key = int.from_bytes(hashlib.sha256(f"{self._seed}:{name}".encode()).digest()[:16], "little")
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
        return generator.standard_normal(shape, dtype=np.float32)
