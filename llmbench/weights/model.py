"""Models by what users type: `embedded`, `random:<preset>`, a Hugging Face folder; weights are read when asked for."""

import difflib
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import config as settings
from llmbench import plugins, tokenizer
from llmbench.errors import ConfigError, InputError
from llmbench.weights import _presets as presets
from llmbench.weights import files
from llmbench.weights._random import RandomWeights

Float32 = npt.NDArray[np.float32]
Architecture = Literal["llama", "qwen2"]

_BLOCK_ELEMENTS = 1 << 22  # 16 MiB: what streaming a tensor holds at once
_ARCHITECTURES: dict[str, Architecture] = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a decoder. `attention_bias` is of q, k, v only (Qwen2); `dtype` is that of the stored weights."""

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

    @property
    def num_parameters(self) -> int:
        """How many weights the model has."""
        return sum(math.prod(shape) for shape in expected_shapes(self).values())


class Source(Protocol):
    """Where the tensors of a model come from."""

    def names(self) -> list[str]:
        """The names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def dtype(self, name: str) -> str:
        """What a tensor is stored as, such as "float16"."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: some rows of a tensor."""
        ...


class Model:
    """A model that is open but not read: `config`, and tensors under their Hugging Face names."""

    def __init__(self, name: str, config: ModelConfig, tokenizer_path: Path | None, source: Source) -> None:
        self.name = name
        self.config = config
        self.tokenizer_path = tokenizer_path
        self._source = source
        self._shapes = expected_shapes(config)
        _check_shapes(name, self._shapes, source)

    def names(self) -> list[str]:
        """The tensors that the architecture has; others in the files are left alone."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError when the model has no such tensor."""
        if name not in self._shapes:
            near = difflib.get_close_matches(name, self._shapes, n=1)
            raise InputError(
                f"model {self.name}: no tensor {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return self._shapes[name]

    def tensor(self, name: str) -> Float32:
        """A whole tensor, float32."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: some rows of a tensor, without reading the others."""
        return self._source.rows(name, start, stop)

    def blocks(self, name: str) -> Iterator[tuple[int, Float32]]:
        """A tensor in pieces of about 16 MiB: the first row of each, and float32 [rows, ...]."""
        shape = self.shape(name)
        step = max(64, _BLOCK_ELEMENTS // math.prod(shape[1:]) // 64 * 64)  # 64: readers that tile get whole tiles
        for start in range(0, shape[0], step):
            yield start, self.rows(name, start, min(start + step, shape[0]))

    def fingerprint(self) -> str:
        """The sha256 (hex) over the names, shapes and float32 values of all tensors; it reads the whole model."""
        digest = hashlib.sha256()
        for name in sorted(self._shapes):
            digest.update(json.dumps([name, self._shapes[name]]).encode())
            for _, block in self.blocks(name):
                digest.update(np.ascontiguousarray(block, "<f4").data)
        return digest.hexdigest()


def open_model(spec: str, seed: int = 0) -> Model:
    """Open a model: `embedded`, `random:<preset>[,layers=N][,seed=S]`, or a folder; `seed` is for random weights.

    Raises InputError or ConfigError that names the file, key or tensor. No weights are read.
    """
    if spec == "embedded":
        return _open_folder("embedded", tokenizer.embedded_path().parent)
    kind, colon, rest = spec.partition(":")
    if colon and kind == "random":
        return _open_random(rest, seed)
    folder = Path(spec)
    if not folder.is_dir():
        what = "not a folder but a file" if folder.exists() else "no such folder"
        raise InputError(
            f"model {spec!r}: {what}; expected embedded, random:<{'|'.join(presets.names())}>,"
            " or a folder with config.json and *.safetensors"
        )
    return _open_folder(spec, folder)


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the architecture, by its Hugging Face name."""
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
    if config.attention_bias:
        layer |= {f"self_attn.{part}_proj.bias": (queries if part == "q" else keys,) for part in "qkv"}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for i in range(config.num_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _check_shapes(model: str, expected: dict[str, tuple[int, ...]], source: Source) -> None:
    there = set(source.names())
    for name, shape in expected.items():
        if name not in there:
            raise InputError(f"model {model}: tensor {name} is missing; the files do not fit their config.json")
        if source.shape(name) != shape:
            raise InputError(
                f"model {model}: tensor {name} is {list(source.shape(name))}, but config.json asks for {list(shape)}"
            )


def _open_folder(name: str, folder: Path) -> Model:
    path = folder / "config.json"
    raw = settings.read(path)
    source = files.open_folder(folder)
    stored = source.dtype("model.embed_tokens.weight") if "model.embed_tokens.weight" in source.names() else "float32"
    config = _hf_config(raw, _eos_ids(folder, raw), stored, str(path))
    vocabulary = folder / "tokenizer.model"
    return Model(name, config, vocabulary if vocabulary.exists() else None, source)


def _hf_config(raw: dict[str, Any], eos_ids: tuple[int, ...], dtype: str, source: str) -> ModelConfig:
    """A ModelConfig from config.json as transformers 4 and 5 write it."""
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
            "dtype": dtype,
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


def _open_random(spec: str, seed: int) -> Model:
    preset, *options = spec.split(",")
    if preset not in presets.names():
        raise InputError(plugins.unknown("random model", preset, presets.names()))
    given = _options(spec, options)
    fields = presets.fields(preset)
    config = ModelConfig(**(fields | {"num_layers": given.get("layers", fields["num_layers"])}))
    if config.num_layers < 1:
        raise InputError(f"model random:{spec}: layers must be at least 1, got {config.num_layers}")
    shapes = expected_shapes(config)
    source = RandomWeights(given.get("seed", seed), shapes, {name: _std(name, shape) for name, shape in shapes.items()})
    return Model(f"random:{spec}", config, tokenizer.embedded_path() if preset == "tiny" else None, source)


def _options(spec: str, options: list[str]) -> dict[str, int]:
    """`layers=2,seed=3` as integers. Raises InputError for another key or no integer."""
    found = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in ("layers", "seed"):
            raise InputError(f"model random:{spec}: {plugins.unknown('option', key, ['layers', 'seed'])}")
        if not value.isdecimal():
            raise InputError(f"model random:{spec}: {key} must be a whole number, got {value!r}")
        found[key] = int(value)
    return found


def _std(name: str, shape: tuple[int, ...]) -> float | None:
    """The standard deviation of a random tensor; None for norms, which are ones.

    With the usual 0.02 everywhere greedy text is one token for ever. Embeddings of 1 and matrices of 1/sqrt(inputs) let
    both the last token and its context decide, at any width; logits of 2 are as far apart as a real model's.
    """
    if name.endswith("norm.weight"):
        return None
    if name == "model.embed_tokens.weight":
        return 1.0
    if name.endswith(".bias"):
        return 0.5
    return (2.0 if name == "lm_head.weight" else 1.0) / math.sqrt(shape[1])
