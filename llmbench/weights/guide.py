"""The files of the ATB guide: dictionaries of a quantised model's linears, {name: array} in .npy, beside anti_weight.

    quant_weight  int8 [out, in]           input_scale, input_offset  of the activations, a number each
    deq_scale     int64 or float32 [out]   fp_bias                    float32 [out]: the bias before it was quantised
    quant_bias    int32 [out], where a tool wrote it; else it follows from fp_bias
    weight_scale, weight_offset            float32 [out]: of linears whose activations are not quantised (W8A16)
    kv_cache_scale, kv_cache_offset        float32 [kv_heads * head_dim], by the names of k_proj and v_proj
    anti_weight/                           the float model after anti-outlier, a Hugging Face folder

A linear that is not in quant_weight is float. The guide's runtime computes a layer in float as a whole where its
FLOAT_LAYERS names it; those follow from the linears, and are written into float_layers.json.
"""

import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError
from llmbench.weights import dictionaries, quantised
from llmbench.weights.dictionaries import Array
from llmbench.weights.quantised import KV_PARTS, PARTS, W8A16, DeqForm, Kind, Linear
from llmbench.weights.tensors import Bits, Tensor, held, widen

WEIGHTS = "quant_weight.npy"
FLOAT_FOLDER = "anti_weight"
FLOAT_LAYERS = "float_layers.json"

_DICTIONARIES = ("quant_weight", "fp_bias", *PARTS, *KV_PARTS)
_Dictionaries = Mapping[str, Mapping[str, Array]]


class Found(NamedTuple):
    """What the dictionaries hold, under Hugging Face names; `moved` has the file and the key of each tensor."""

    kinds: dict[str, Kind]
    kv_cache: Literal["int8"] | None
    tensors: dict[str, Tensor]
    moved: dict[str, tuple[str, ...]]


def is_there(folder: Path) -> bool:
    """Whether a folder has such dictionaries."""
    return (folder / WEIGHTS).exists()


def read(folder: Path) -> Found:
    """The quantised linears; weights are not read yet. Raises InputError for what is none, or has parts missing."""
    paths = {part: folder / f"{part}.npy" for part in _DICTIONARIES}
    found: _Dictionaries = {part: dictionaries.read(path) if path.exists() else {} for part, path in paths.items()}
    kinds: dict[str, Kind] = {
        name: "W8A16" if name in found["weight_scale"] and name not in found["deq_scale"] else "W8A8"
        for name in found["quant_weight"]
    }
    tensors: dict[str, Tensor] = {}
    for name, kind in kinds.items():
        try:
            parts = _w8a8(name, found) if kind == "W8A8" else _w8a16(name, found)
        except KeyError as error:
            raise InputError(f"{folder / f'{error.args[0]}.npy'}: {name} is missing, which {WEIGHTS} has") from error
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    for part in KV_PARTS:
        tensors |= {f"{name}.{part}": _small(array, np.float32) for name, array in found[part].items()}
    moved: dict[str, tuple[str, ...]] = {name: (_origin(name),) for name in tensors}
    return Found(kinds, "int8" if found[KV_PARTS[0]] else None, tensors, moved)


class Writer:
    """Writes the dictionaries, linear by linear."""

    def __init__(self, folder: Path, deq_form: DeqForm) -> None:
        self._folder = folder
        self._deq_form: DeqForm = deq_form
        self._open = contextlib.ExitStack()
        self._writers: dict[str, dictionaries.Writer] = {}

    def __enter__(self) -> "Writer":
        for part in ("quant_weight", "fp_bias", "input_scale", "input_offset", "deq_scale"):  # there, if empty
            self._writer(part)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def put(self, name: str, linear: Linear) -> None:
        """Add a linear."""
        for own, values in quantised.stored(name, linear, self._deq_form).items():
            part = own.rpartition(".")[2]
            if part != "bias":
                self._writer("quant_weight" if part == "weight" else part).put(name, values)
        if not isinstance(linear, W8A16) or linear.bias_ is not None:
            self._writer("fp_bias").put(name, linear.bias())

    def put_kv(self, tensors: Mapping[str, Bits]) -> None:
        """Add the scales and offsets of keys and values, by the names of their tensors."""
        for own, values in tensors.items():
            name, _, part = own.rpartition(".")
            self._writer(part).put(name, values)

    def _writer(self, part: str) -> dictionaries.Writer:
        if part not in self._writers:
            self._writers[part] = self._open.enter_context(dictionaries.Writer(self._folder / f"{part}.npy"))
        return self._writers[part]


def _w8a8(name: str, found: _Dictionaries) -> dict[str, Tensor]:
    scale = _of(found, "deq_scale", name)
    weight, offset = _weight(found, name), _small(_of(found, "input_offset", name), np.float32, 1)
    deq_scale = _small(scale, np.int64 if scale.dtype.kind == "i" else np.float32)
    bias = found["fp_bias"].get(name)
    if name in found["quant_bias"]:
        quant_bias = _small(found["quant_bias"][name], np.int32)
    else:
        rows = partial(_corrected, weight, offset, deq_scale, None if bias is None else _small(bias, np.float32))
        quant_bias = Tensor(shape=weight.shape[:1], dtype="int32", rows=rows)
    return {
        "weight": weight,
        "input_scale": _small(_of(found, "input_scale", name), np.float32, 1),
        "input_offset": offset,
        "quant_bias": quant_bias,
        "deq_scale": deq_scale,
    }


def _w8a16(name: str, found: _Dictionaries) -> dict[str, Tensor]:
    parts = {part: _small(_of(found, part, name), np.float32, -1, 1) for part in ("weight_scale", "weight_offset")}
    bias = {"bias": _small(found["fp_bias"][name], np.float32)} if name in found["fp_bias"] else {}
    return {"weight": _weight(found, name), **parts, **bias}


def _corrected(
    weight: Tensor, offset: Tensor, deq_scale: Tensor, bias: Tensor | None, start: int, stop: int
) -> npt.NDArray[np.int32]:
    """int32: some of the bias in units of deq_scale, less what the offset of the activations adds to each sum."""
    added = weight.rows(start, stop).sum(axis=1, dtype=np.int64) * int(offset.rows(0, 1)[0])
    exact = -added.astype(np.float64)
    if bias is not None:
        scale = quantised.unpacked(deq_scale.rows(start, stop)).astype(np.float64)
        exact += widen(bias.rows(start, stop)) / scale
    corrected: npt.NDArray[np.int32] = np.rint(exact).astype(np.int32)
    return corrected


def _of(found: _Dictionaries, part: str, name: str) -> Array:
    """Raises KeyError with the name of the dictionary that lacks it."""
    if name not in found[part]:
        raise KeyError(part)
    return found[part][name]


def _weight(found: _Dictionaries, name: str) -> Tensor:
    array = found["quant_weight"][name]
    return Tensor(shape=array.shape, dtype=str(array.dtype), rows=array.rows)


def _small(array: Array, dtype: npt.DTypeLike, *shape: int) -> Tensor:
    """A tensor of few values, read now; tools write them as numbers, arrays of one, or vectors."""
    values: npt.NDArray[Any] = array.whole().astype(dtype).reshape(shape or (-1,))
    return held(values)


def _origin(name: str) -> str:
    linear, _, part = name.rpartition(".")
    return f"{'quant_weight' if part == 'weight' else 'fp_bias' if part == 'bias' else part}.npy: {linear}"
