"""Linears of 8 bits: the tensors that are stored of one, its formulas, and the description that says which there are.

Formulas and names are those of Ascend's msmodelslim. W8A8 multiplies 8-bit activations by 8-bit weights, W8A16 keeps
activations as they are; W8A8S is W8A8 with weights that are mostly zero.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import config as settings
from llmbench.errors import ConfigError, InputError
from llmbench.weights.tensors import FLOATS, Bits, Tensor, widen, zeros

Kind = Literal["W8A8", "W8A16", "W8A8S"]
DeqForm = Literal["int64", "float32"]
"""How deq_scale is stored: as the bits of float32 in the low half of int64, for the 310P and float16, or plain."""

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

KINDS: tuple[Kind, ...] = ("W8A8", "W8A16", "W8A8S")
DEQ_FORMS: tuple[DeqForm, ...] = ("int64", "float32")
FLOAT = "FLOAT"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linears of a decoder layer."""

DTYPES: dict[str, tuple[str, ...]] = {
    "weight": ("int8",),
    "quant_bias": ("int32",),
    "deq_scale": ("int64", "float32"),
    "input_offset": ("int8", "int32", *FLOATS),
}
"""What a tensor of a quantised linear may be stored as; the others are floats."""

PARTS = ("input_scale", "input_offset", "quant_bias", "deq_scale", "weight_scale", "weight_offset")
KV_PARTS = ("kv_cache_scale", "kv_cache_offset")
"""What the tensors of a quantised linear are called besides weight and bias, and those of keys and values."""

_DESCRIPTIONS = ("quant_model_description*.json", "quantization_description.json")
_MODULE = re.compile(r"layernorm\.module\.(weight|bias)$")
_FED = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_SHARED = {"q_proj": "q_proj", "k_proj": "q_proj", "v_proj": "q_proj", "gate_proj": "gate_proj", "up_proj": "gate_proj"}


class W8A8(msgspec.Struct, frozen=True, kw_only=True):
    """A linear of which weight int8 [out, in] and activations have 8 bits; one scale and offset for all activations.

    xq = clamp(round(x / input_scale + input_offset), -128, 127), halves to even; y = (xq @ weight.T + quant_bias) *
    deq_scale. quant_bias int32 [out]; deq_scale float32 [out] is input_scale times the scale of each weight row.
    """

    weight: Int8
    input_scale: float
    input_offset: int
    quant_bias: Int32
    deq_scale: Float32

    def dequantised(self) -> Float32:
        """float32 [out, in]: what the int8 weights stand for."""
        scale: Float32 = self.deq_scale / np.float32(self.input_scale)
        weight: Float32 = self.weight * scale[:, None]
        return weight

    def bias(self) -> Float32:
        """float32 [out]: the bias of the float linear, which quant_bias holds less what input_offset adds."""
        # exact until the last product: the sums pass 2^24, and where there is no bias they cancel
        whole = self.quant_bias + self.weight.sum(axis=1, dtype=np.int64) * self.input_offset
        bias: Float32 = (whole * self.deq_scale.astype(np.float64)).astype(np.float32)
        return bias


class W8A16(msgspec.Struct, frozen=True, kw_only=True):
    """A linear of which only the weight has 8 bits: int8 [out, in] stands for (weight - offset) * scale.

    weight_scale and weight_offset are float32 [out, 1], bias_ is float32 [out].
    """

    weight: Int8
    weight_scale: Float32
    weight_offset: Float32
    bias_: Float32 | None = None

    def dequantised(self) -> Float32:
        """float32 [out, in]."""
        weight: Float32 = (self.weight - self.weight_offset) * self.weight_scale
        return weight

    def bias(self) -> Float32:
        """float32 [out]."""
        return np.zeros(len(self.weight), np.float32) if self.bias_ is None else self.bias_


Linear = W8A8 | W8A16


class KVScales(msgspec.Struct, frozen=True, kw_only=True):
    """How keys and values of a layer become int8: clamp(round(x / scale + offset)); float32 [kv_heads * head_dim]."""

    key_scale: Float32
    key_offset: Float32
    value_scale: Float32
    value_offset: Float32


def shapes(kind: Kind, num_out: int, num_in: int) -> dict[str, tuple[int, ...]]:
    """The tensors of a quantised linear by the last part of their names; a W8A16 may have a bias besides."""
    if kind == "W8A16":
        return {"weight": (num_out, num_in), "weight_scale": (num_out, 1), "weight_offset": (num_out, 1)}
    scalar, vector = (1,), (num_out,)
    return {
        "weight": (num_out, num_in),
        "input_scale": scalar,
        "input_offset": scalar,
        "quant_bias": vector,
        "deq_scale": vector,
    }


def dtypes(name: str, kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    """What the tensor of this name may be stored as, in a model of these quantised linears."""
    linear, _, part = name.rpartition(".")
    return DTYPES.get(part, FLOATS) if linear in kinds else FLOATS


def packed(scale: Float32) -> npt.NDArray[np.int64]:
    """int64 of the bits of float32, as deq_scale is stored."""
    return np.ascontiguousarray(scale, np.float32).view(np.int32).astype(np.int64)


def unpacked(stored: Bits) -> Float32:
    """deq_scale, float32, whether it is stored as it is or packed."""
    if stored.dtype != np.int64:
        return widen(stored)
    return (stored & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def in_form(name: str, tensor: Tensor, form: DeqForm | None) -> Tensor:
    """A tensor as it is to be stored: a deq_scale in this form, others as they are."""
    if form is None or tensor.dtype == form or not name.endswith(".deq_scale"):
        return tensor

    def rows(start: int, stop: int) -> Bits:
        scale = unpacked(tensor.rows(start, stop))
        return packed(scale) if form == "int64" else scale

    return Tensor(shape=tensor.shape, dtype=form, rows=rows)


def comparable(name: str, stored: Bits) -> Bits:
    """The values of a tensor, the same however they are stored: integers that are meant as such, else float32."""
    part = name.rpartition(".")[2]
    if part == "deq_scale":
        return unpacked(stored)
    return stored if stored.dtype in (np.int8, np.int32) and part != "input_offset" else widen(stored)


def linear(tensors: Mapping[str, Tensor], name: str, kind: Kind, start: int, stop: int) -> Linear:
    """Outputs `start` to `stop` of a linear, read. Raises InputError for a scale or offset that can be none."""
    weight: Int8 = tensors[f"{name}.weight"].rows(start, stop)
    if kind == "W8A16":
        bias = tensors.get(f"{name}.bias")
        return W8A16(
            weight=weight,
            weight_scale=widen(tensors[f"{name}.weight_scale"].rows(start, stop)),
            weight_offset=widen(tensors[f"{name}.weight_offset"].rows(start, stop)),
            bias_=None if bias is None else widen(bias.rows(start, stop)),
        )
    scale, offset = input_range(tensors, name)
    return W8A8(
        weight=weight,
        input_scale=scale,
        input_offset=offset,
        quant_bias=tensors[f"{name}.quant_bias"].rows(start, stop),
        deq_scale=unpacked(tensors[f"{name}.deq_scale"].rows(start, stop)),
    )


def input_range(tensors: Mapping[str, Tensor], name: str) -> tuple[float, int]:
    """The scale and offset of a linear's activations. Raises InputError for what can be none."""
    scale, offset = (float(widen(tensors[f"{name}.input_{part}"].rows(0, 1))[0]) for part in ("scale", "offset"))
    if not 0 < scale < float("inf"):
        raise InputError(f"{name}.input_scale: {scale:g} is no scale; it must be above 0")
    if not (-128 <= offset <= 127 and offset == round(offset)):
        raise InputError(f"{name}.input_offset: {offset:g} is no whole number between -128 and 127")
    return scale, int(offset)


def kv_scales(tensors: Mapping[str, Tensor], layer: int) -> KVScales:
    """How the keys and values of a layer become int8."""

    def read(linear: str, part: str) -> Float32:
        tensor = tensors[f"model.layers.{layer}.self_attn.{linear}.kv_cache_{part}"]
        return widen(tensor.rows(0, tensor.shape[0]))

    return KVScales(
        key_scale=read("k_proj", "scale"),
        key_offset=read("k_proj", "offset"),
        value_scale=read("v_proj", "scale"),
        value_offset=read("v_proj", "offset"),
    )


def stored(name: str, found: Linear, deq_form: DeqForm = "int64") -> dict[str, Bits]:
    """The tensors of a linear by their whole names, as they are stored."""
    parts: dict[str, Bits] = {"weight": found.weight}
    if isinstance(found, W8A16):
        parts |= {"weight_scale": found.weight_scale, "weight_offset": found.weight_offset}
        if found.bias_ is not None:
            parts["bias"] = found.bias_
    else:
        parts |= {
            "input_scale": np.array([found.input_scale], np.float32),
            "input_offset": np.array([found.input_offset], np.int8),
            "quant_bias": found.quant_bias,
            "deq_scale": packed(found.deq_scale) if deq_form == "int64" else found.deq_scale,
        }
    return {f"{name}.{part}": values for part, values in parts.items()}


def stored_kv(layer: int, scales: KVScales) -> dict[str, Bits]:
    """The tensors of a layer's scales by their whole names."""
    prefix = f"model.layers.{layer}.self_attn."
    return {
        f"{prefix}k_proj.kv_cache_scale": scales.key_scale,
        f"{prefix}k_proj.kv_cache_offset": scales.key_offset,
        f"{prefix}v_proj.kv_cache_scale": scales.value_scale,
        f"{prefix}v_proj.kv_cache_offset": scales.value_offset,
    }


def check_shared(source: str, ranges: Mapping[str, tuple[float, int]]) -> None:
    """Raise InputError where q, k, v or gate, up have not the same input scale and offset.

    They multiply the same activations, which are quantised once; MindIE and vllm-mindspore ask for it, too.
    """
    first: dict[str, str] = {}
    for name, (scale, offset) in ranges.items():
        block, _, own = name.rpartition(".")
        if own not in _SHARED:
            continue
        other = first.setdefault(f"{block}.{_SHARED[own]}", name)
        there = ranges[other]
        if offset != there[1] or not np.isclose(scale, there[0], rtol=1e-5, atol=0):
            raise InputError(
                f"{source}: {name}: its input_scale and input_offset are {scale:.9g} and {offset}, those of {other}"
                f" {there[0]:.9g} and {there[1]}; both multiply the same activations, so that they must be the same"
            )


def float_linears(kinds: Mapping[str, Kind], num_layers: int) -> list[str]:
    """The linears of the decoder layers that are not quantised."""
    places = {own: "mlp" if own in ("gate_proj", "up_proj", "down_proj") else "self_attn" for own in LINEARS}
    names = [f"model.layers.{i}.{places[own]}.{own}" for i in range(num_layers) for own in LINEARS]
    return [name for name in names if name not in kinds]


def float_layers(kinds: Mapping[str, Kind], num_layers: int) -> list[int]:
    """The ATB guide's FLOAT_LAYERS: decoder layers of which a linear, and so there the whole layer, is float."""
    return sorted({int(name.split(".")[2]) for name in float_linears(kinds, num_layers)})


def with_own_norms(source: str, tensors: Mapping[str, Tensor], kinds: Mapping[str, Kind]) -> dict[str, Tensor]:
    """Tensors with one norm where msmodelslim may have two: `…layernorm.module`, with a bias, for quantised linears.

    Layers whose linears are float keep the plain one, with zeros for the biases that the others have. Raises InputError
    for a norm in front of both kinds of linears.
    """
    if not any(_MODULE.search(name) for name in tensors):
        return dict(tensors)
    found = {name: tensor for name, tensor in tensors.items() if not _MODULE.search(name)}
    for name in [name for name in found if name.endswith("layernorm.weight")]:
        norm, (layer, _, own) = name.removesuffix(".weight"), name.removesuffix(".weight").rpartition(".")
        fed = [f"{layer}.{linear}" for linear in _FED[own]]
        of_quantised = [linear in kinds for linear in fed]
        if all(of_quantised):
            for part in ("weight", "bias"):
                if f"{norm}.module.{part}" in tensors:
                    found[f"{norm}.{part}"] = tensors[f"{norm}.module.{part}"]
        elif any(of_quantised) and f"{norm}.module.weight" in tensors:
            raise InputError(
                f"{source}: {norm}: there are two, and the linears behind it are both float and quantised;"
                " quantise all of them, or none"
            )
        for own in (norm, *fed):
            if f"{own}.weight" in tensors and kinds.get(own) in (None, "W8A16"):
                like = msgspec.structs.replace(tensors[name], shape=tensors[f"{own}.weight"].shape[:1])
                found.setdefault(f"{own}.bias", zeros(like))
    return found


class Description(NamedTuple):
    """What a description says: the kind of each quantised linear, and whether the KV cache is int8."""

    kinds: dict[str, Kind]
    kv_cache: Literal["int8"] | None


def model_kind(kinds: Mapping[str, Kind]) -> str:
    """What a model of these linears is called as a whole."""
    found = set(kinds.values())
    return next((kind for kind in ("W8A8S", "W8A8", "W8A16") if kind in found), FLOAT)


def weights_stem(kinds: Mapping[str, Kind]) -> str:
    """What the file of the weights is called, less its ending."""
    return f"quant_model_weight_{model_kind(kinds).lower()}" if kinds else "model"


def describe(names: list[str], kinds: Mapping[str, Kind], kv_cache: str | None) -> dict[str, Any]:
    """The description of a model with these tensors, as msmodelslim writes it."""
    found: dict[str, Any] = {"model_quant_type": model_kind(kinds), "version": "1.0.0"}
    if kv_cache is not None:
        found["kv_cache_type"] = "C8"
    for name in names:
        own, _, part = name.rpartition(".")
        found[name] = "C8" if part.startswith("kv_cache_") else kinds.get(own, FLOAT)
    return found


def description_name(kinds: Mapping[str, Kind]) -> str:
    """The name of the file with the description."""
    return f"quant_model_description_{model_kind(kinds).lower()}.json" if kinds else "quant_model_description.json"


def read_description(folder: Path) -> Description | None:
    """What the description in a folder says; None where there is none.

    Raises ConfigError for more than one, and for a kind of quantisation that is not known.
    """
    paths = [path for pattern in _DESCRIPTIONS for path in sorted(folder.glob(pattern))]
    if not paths:
        return None
    if len(paths) > 1:
        raise ConfigError(
            f"{folder}: {' and '.join(path.name for path in paths)}: leave the one that is of the weights"
        )
    found = settings.read(paths[0])
    kinds: dict[str, Kind] = {}
    for name, given in found.items():
        own, _, part = name.rpartition(".")
        if part != "weight" or given == FLOAT:
            continue
        kind = next((kind for kind in KINDS if kind == given), None)
        if kind is None:
            raise ConfigError(f"{paths[0]}: {name}: {given!r} is not supported; only {', '.join((*KINDS, FLOAT))} are")
        if own.rpartition(".")[2] not in LINEARS:
            raise ConfigError(
                f"{paths[0]}: {name}: {kind} of another tensor than the linears of decoder layers is not supported"
            )
        kinds[own] = kind
    has_kv = any(name.endswith(".kv_cache_scale") for name in found)
    if not kinds and not has_kv:
        raise ConfigError(f"{paths[0]}: it names no quantised tensor; is it of another model?")
    return Description(kinds, "int8" if has_kv else None)
