"""Numbers of 16 bits kept as float32: arrays rounded in place, and models of which the weights are."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmbench.weights.model import Model

Float32 = npt.NDArray[np.float32]
Round = Callable[[Float32], Float32]


def _to_half(x: Float32) -> Float32:
    with np.errstate(over="ignore"):  # what a float16 does not hold is infinite there, too
        x[...] = x.astype(np.float16)
    return x


def _to_bfloat(x: Float32) -> Float32:
    """To the nearest, ties to even."""
    bits = x.view(np.uint32)
    bits += np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    bits &= np.uint32(0xFFFF0000)
    return x


IN_PLACE: dict[str, Round] = {"float16": _to_half, "bfloat16": _to_bfloat}
"""By dtype: rounds an array in place, and gives it."""


def rounded(model: Model, dtype: str) -> Model:
    """The model with its weights rounded to a dtype, as they are read."""
    return Model(model.name, model.config, model.tokenizer_path, _Rounded(model, dtype))


class _Rounded:
    """The tensors of a model, rounded."""

    def __init__(self, model: Model, dtype: str) -> None:
        self._model = model
        self._dtype = dtype

    def names(self) -> list[str]:
        """The names of all tensors."""
        return self._model.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._model.shape(name)

    def dtype(self, name: str) -> str:
        """What the tensors are rounded to."""
        return self._dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: rows of a tensor."""
        return IN_PLACE[self._dtype](self._model.rows(name, start, stop).copy())
