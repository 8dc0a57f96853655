"""Quantised models for tests: every linear by the published formulas in float64, its inputs taken to be in a range."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from llmbench.weights import export, sources
from llmbench.weights.config import ModelConfig
from llmbench.weights.export import Form, Quantised
from llmbench.weights.model import Model, of_weights
from llmbench.weights.quantised import W8A8, W8A16, DeqForm, Kind, KVScales, Linear, float_linears

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def w8a8(weight: Float64, bias: Float64, low: float, high: float) -> W8A8:
    """A linear whose inputs are between low and high."""
    low, high = min(low, 0.0), max(high, 0.0)
    input_scale = float(np.float32((high - low) / 255))
    offset = round(-low / input_scale) - 128
    scale = np.abs(weight).max(axis=1) / 127
    rounded = np.clip(np.rint(weight / scale[:, None]), -128, 127)
    deq_scale = (input_scale * scale).astype(np.float32)
    quant_bias = np.rint(bias / deq_scale.astype(np.float64) - rounded.sum(axis=1) * offset)
    return W8A8(
        weight=rounded.astype(np.int8),
        input_scale=input_scale,
        input_offset=offset,
        quant_bias=quant_bias.astype(np.int32),
        deq_scale=deq_scale,
    )


def w8a16(weight: Float64, bias: Float64 | None) -> W8A16:
    """A linear whose weights are between its least and its largest."""
    low, high = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    scale = ((high - low) / 255).astype(np.float32)
    offset = np.rint(-low / scale - 128).astype(np.float32)
    return W8A16(
        weight=np.clip(np.rint(weight / scale + offset), -128, 127).astype(np.int8),
        weight_scale=scale,
        weight_offset=offset,
        bias_=None if bias is None else bias.astype(np.float32),
    )


def output(linear: W8A8, x: Float64) -> Float64:
    """What a linear gives, exactly: [tokens, in] to [tokens, out]."""
    quantised = np.clip(np.rint(x / linear.input_scale + linear.input_offset), -128, 127)
    whole: Float64 = quantised @ linear.weight.astype(np.float64).T + linear.quant_bias
    return whole * linear.deq_scale.astype(np.float64)


def linears(
    model: Model, kinds: Mapping[str, Kind], floats: Mapping[str, Float32] = MappingProxyType({})
) -> Iterator[tuple[str, Linear]]:
    """Each of these linears of a float model, with biases in `floats`; what is fed the same has the same range."""
    there = set(model.names())
    for name, kind in kinds.items():
        weight, own = model.tensor(f"{name}.weight").astype(np.float64), f"{name}.bias"
        found = floats.get(own, model.tensor(own) if own in there else None)
        bias = None if found is None else found.astype(np.float64)
        if kind == "W8A16":
            yield name, w8a16(weight, bias)
        else:
            high = 5.0 if name.endswith(("q_proj", "k_proj", "v_proj")) else 4.0
            yield name, w8a8(weight, np.zeros(len(weight)) if bias is None else bias, -4.5, high)


def every_linear(config: ModelConfig, kind: Kind = "W8A8") -> dict[str, Kind]:
    """All linears of the decoder layers."""
    return dict.fromkeys(float_linears({}, config.num_layers), kind)


def kv_scales(config: ModelConfig) -> dict[int, KVScales]:
    """Scales of all layers, each channel with another."""
    channels = np.arange(config.num_kv_heads * config.head_dim)
    return {
        layer: KVScales(
            key_scale=(0.05 + channels / 1000 + layer).astype(np.float32),
            key_offset=(channels % 7 - 3).astype(np.float32),
            value_scale=(0.04 + channels / 2000).astype(np.float32),
            value_offset=(channels % 5 - 2).astype(np.float32),
        )
        for layer in range(config.num_layers)
    }


def norms_with_biases(model: Model) -> dict[str, Float32]:
    """The tensors by which a model becomes one with biases, as an anti-outlier with a shift leaves it."""
    rng = np.random.default_rng(3)
    config, found = model.config, {}
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{layer}{norm}.bias"] = rng.normal(0, 0.3, config.hidden_size).astype(np.float32)
        for part in ("self_attn.q", "self_attn.k", "self_attn.v", "mlp.gate", "mlp.up"):
            name = f"{layer}{part}_proj"
            num_out = model.shape(f"{name}.weight")[0]
            found[f"{name}.bias"] = rng.normal(0, 0.5, num_out).astype(np.float32)
    return found


def write(
    out: Path,
    spec: str = "random:tiny",
    kinds: Mapping[str, Kind] | None = None,
    *,
    form: Form = "modelslim",
    deq_scale: DeqForm = "int64",
    kv: bool = False,
    norm_bias: bool = False,
) -> Path:
    """A quantised model as a folder; all linears are W8A8 unless `kinds` says otherwise."""
    opened = sources.open_weights(spec, sources.How())
    model = of_weights(opened)
    found = every_linear(model.config) if kinds is None else kinds
    floats = norms_with_biases(model) if norm_bias else {}
    what = Quantised(
        kinds=found,
        linears=linears(model, found, floats),
        floats=floats,
        kv=kv_scales(model.config) if kv else {},
    )
    export.write(out, opened, what, form, deq_scale)
    return out
