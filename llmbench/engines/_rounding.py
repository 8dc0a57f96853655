"""Numbers of 16 bits kept as float32: arrays rounded in place, and models of which the weights are."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from llmbench.weights.model import Model
from llmbench.weights.tensors import Tensor, Tensors, widen

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
    """The model with its float weights rounded to a dtype, as they are read; what is quantised stays as it is."""
    floats = {name for name in model.names() if name.rpartition(".")[0] not in model.config.quantised}
    tensors = {name: _rounded(tensor, dtype) if name in floats else tensor for name, tensor in model.stored().items()}
    return Model(model.name, model.config, model.tokenizer_path, Tensors(tensors))


def _rounded(tensor: Tensor, dtype: str) -> Tensor:
    def rows(start: int, stop: int) -> Float32:
        return IN_PLACE[dtype](widen(tensor.rows(start, stop)).copy())

    return Tensor(shape=tensor.shape, dtype="float32", rows=rows)
