"""The shape of a model: what config.json says, in either direction, and the tensors that follow from it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from llmbench import config as settings
from llmbench import plugins
from llmbench.errors import ConfigError, InputError
from llmbench.weights import quantised
from llmbench.weights.quantised import Kind

Architecture = Literal["llama", "qwen2"]

NORM_BIAS = "norm_bias"
"""The key of config.json by which we say that the norms have biases; Hugging Face has no such models."""

_ARCHITECTURES: dict[str, Architecture] = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a decoder. `attention_bias` is of q, k, v only (Qwen2); `dtype` is that of the stored float weights.

    `quantised` has the kind of each linear that is of 8 bits, by its name without ".weight"; `norm_bias`: the two norms
    of a layer have a bias, and so have q, k, v, gate and up; `kv_cache` is what keys and values are stored as.
    """

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_embeddings: bool
    attention_bias: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    dtype: str
    quantised: dict[str, Kind] = {}
    norm_bias: bool = False
    kv_cache: Literal["int8"] | None = None

    @property
    def num_parameters(self) -> int:
        """How many weights the model has; what belongs to quantisation is none."""
        return sum(math.prod(shape) for shape in _float_tensors(self).values())

    @property
    def quantisation(self) -> str:
        """What is of 8 bits in a word, such as "w8a8" or "w8a16+kv8"; "" for a float model."""
        kinds = sorted({kind.lower() for kind in self.quantised.values()})
        return "+".join([*kinds, "kv8"] if self.kv_cache else kinds)


def float_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor as an engine sees it that knows of no quantisation: each W8A8 linear has a float bias."""
    found = _float_tensors(config)
    for linear, kind in config.quantised.items():
        if kind != "W8A16":
            found[f"{linear}.bias"] = found[f"{linear}.weight"][:1]
    return found


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the architecture as it is stored, by its Hugging Face name."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in _float_tensors(config).items():
        linear, _, part = name.rpartition(".")
        kind = config.quantised.get(linear)
        if kind is not None and part == "weight":
            found |= {f"{linear}.{own}": one for own, one in quantised.shapes(kind, *shape).items()}
        elif kind in (None, "W8A16"):  # the bias of a W8A8 is in its quant_bias
            found[name] = shape
    if config.kv_cache is not None:
        keys = (config.num_kv_heads * config.head_dim,)
        for i in range(config.num_layers):
            found |= {
                f"model.layers.{i}.self_attn.{part}_proj.kv_cache_{what}": keys
                for part in "kv"
                for what in ("scale", "offset")
            }
    return found


def _float_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The tensors of the model that was quantised, or was not."""
    hidden, ffn = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "post_attention_layernorm.weight": (hidden,),
        "mlp.gate_proj.weight": (ffn, hidden),
        "mlp.up_proj.weight": (ffn, hidden),
        "mlp.down_proj.weight": (hidden, ffn),
    }
    if config.attention_bias or config.norm_bias:
        layer |= {f"self_attn.{part}_proj.bias": (queries if part == "q" else keys,) for part in "qkv"}
    if config.norm_bias:
        layer |= {"input_layernorm.bias": (hidden,), "post_attention_layernorm.bias": (hidden,)}
        layer |= {"mlp.gate_proj.bias": (ffn,), "mlp.up_proj.bias": (ffn,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def of_rank(config: ModelConfig, num_ranks: int) -> ModelConfig:
    """The shape of one rank's part: its own numbers of heads, MLP width and vocabulary."""
    return msgspec.structs.replace(
        config,
        num_heads=config.num_heads // num_ranks,
        num_kv_heads=max(1, config.num_kv_heads // num_ranks),
        intermediate_size=config.intermediate_size // num_ranks,
        vocab_size=-(-config.vocab_size // num_ranks),
    )


def check_shapes(model: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise InputError for the first tensor that is missing or has another shape than config.json asks for."""
    for name, shape in expected.items():
        if name not in found:
            tied = "; if the head is the embeddings, config.json lacks tie_word_embeddings: true"
            raise InputError(
                f"model {model}: tensor {name} is missing; the files do not fit their config.json"
                + (tied if name == "lm_head.weight" else "")
            )
        if found[name] != shape:
            raise InputError(
                f"model {model}: tensor {name} is {list(found[name])}, but config.json asks for {list(shape)}"
            )


def from_file(path: Path) -> tuple[dict[str, Any], ModelConfig]:
    """A config.json, and what it says; a generation_config.json beside it has the ids that end an answer."""
    raw = settings.read(path)
    return raw, from_hf(raw, _eos_ids(path.parent, raw), str(path))


def from_hf(raw: dict[str, Any], eos_ids: tuple[int, ...], source: str) -> ModelConfig:
    """What config.json, as transformers 4 and 5 write it, says; the dtype of the weights is not known yet: float32."""
    architecture = _architecture(raw, source)
    _refuse_unsupported(raw, architecture, source)
    try:
        num_heads = int(raw["num_attention_heads"])
        values = {
            "architecture": architecture,
            "hidden_size": raw["hidden_size"],
            "intermediate_size": raw["intermediate_size"],
            "num_layers": raw["num_hidden_layers"],
            "num_heads": num_heads,
            "num_kv_heads": raw.get("num_key_value_heads") or num_heads,
            "head_dim": raw.get("head_dim") or int(raw["hidden_size"]) // num_heads,
            "vocab_size": raw["vocab_size"],
            "rms_norm_eps": raw.get("rms_norm_eps", 1e-6),
            "rope_theta": _rope(raw).get("rope_theta") or raw.get("rope_theta", 10000.0),
            "max_positions": raw["max_position_embeddings"],
            "tie_embeddings": raw.get("tie_word_embeddings", False),
            "attention_bias": architecture == "qwen2",
            "bos_id": raw.get("bos_token_id"),
            "eos_ids": eos_ids,
            "dtype": "float32",
            "norm_bias": raw.get(NORM_BIAS, False),
        }
    except KeyError as error:
        raise ConfigError(f"{source}: {error.args[0]}: this key is missing") from error
    config = settings.build(values, ModelConfig, source)
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise ConfigError(f"{source}: num_attention_heads must be a multiple of num_key_value_heads, head_dim be even")
    return config


def _architecture(raw: dict[str, Any], source: str) -> Architecture:
    named = (raw.get("architectures") or [f"{str(raw.get('model_type')).capitalize()}ForCausalLM"])[0]
    if named not in _ARCHITECTURES:
        message = plugins.unknown("architecture", str(named), list(_ARCHITECTURES))
        raise ConfigError(f"{source}: architectures: {message}")
    return _ARCHITECTURES[named]


def _refuse_unsupported(raw: dict[str, Any], architecture: Architecture, source: str) -> None:
    """Raise ConfigError for a key that changes what the model computes and that the engines do not know."""
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"{source}: rope_scaling: {kind!r} is not supported; only models without RoPE scaling are")
    plain = {
        "hidden_act": "silu",
        "mlp_bias": False,
        "use_sliding_window": False,
        "partial_rotary_factor": 1.0,
        "quantization_config": None,
    }
    if architecture == "llama":
        plain["attention_bias"] = False  # with it, LlamaForCausalLM has a bias on o_proj too
    for key, value in plain.items():
        if raw.get(key, value) not in (value, None):
            raise ConfigError(f"{source}: {key}: {raw[key]!r} is not supported; only {value!r} is")


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The RoPE settings: `rope_parameters` in transformers 5, `rope_scaling` before."""
    return raw.get("rope_parameters") or raw.get("rope_scaling") or {}


def _eos_ids(folder: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    """The ids that end an answer: generation_config.json's where there is one, as transformers' generate does."""
    path = folder / "generation_config.json"
    generation = settings.read(path) if path.exists() else {}
    found = generation.get("eos_token_id", raw.get("eos_token_id"))
    return tuple(found) if isinstance(found, list) else () if found is None else (found,)


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model that has none, as transformers reads it."""
    named = {architecture: name for name, architecture in _ARCHITECTURES.items()}
    eos: Any = list(config.eos_ids)
    return {
        "architectures": [named[config.architecture]],
        "model_type": config.architecture,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "torch_dtype": config.dtype,
    }
