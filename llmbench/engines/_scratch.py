"""Named work arrays."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Scratch:
    """Named work arrays that grow and are used again: fresh large ones would cost page faults at each step."""

    def __init__(self, dtype: npt.DTypeLike = np.float32) -> None:
        self._dtype = dtype
        self._arrays: dict[str, Array] = {}
        self._views: dict[str, Array] = {}

    def get(self, name: str, *shape: int, dtype: npt.DTypeLike | None = None) -> Array:
        """An array of this shape, its values undefined; the one got before under this name is no longer valid.

        It is of this scratch's dtype, or of the one that is always given with its name.
        """
        view = self._views.get(name)
        if view is None or view.shape != shape:
            view = self._views[name] = self._cut(name, shape, dtype)
        return view

    def _cut(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike | None) -> Array:
        size = math.prod(shape)
        flat = self._arrays.get(name)
        if flat is None or flat.size < size:
            flat = self._arrays[name] = np.empty(size, self._dtype if dtype is None else dtype)
        return flat[:size].reshape(shape)
