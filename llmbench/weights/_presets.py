"""The dimensions that `random:<preset>` knows: fields of a ModelConfig; what a preset leaves out is as in `tiny`."""

from typing import Any

from llmbench import config, tokenizer

_TINY: dict[str, Any] = {
    "architecture": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_positions": 2048,
    "tie_embeddings": False,
    "attention_bias": False,
    "bos_id": 1,
    "eos_ids": (2,),
    "dtype": "float32",
}

_OTHERS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "110m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_layers": 12,
        "num_heads": 12,
        "num_kv_heads": 12,
        "head_dim": 64,
        "vocab_size": 32000,
    },
    "llama2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 32,
        "head_dim": 128,
        "vocab_size": 32000,
        "max_positions": 4096,
    },
    "llama2-13b": {
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_layers": 40,
        "num_heads": 40,
        "num_kv_heads": 40,
        "head_dim": 128,
        "vocab_size": 32000,
        "max_positions": 4096,
    },
    "qwen2-7b": {
        "architecture": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_layers": 28,
        "num_heads": 28,
        "num_kv_heads": 4,
        "head_dim": 128,
        "vocab_size": 152064,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_positions": 32768,
        "attention_bias": True,
        "bos_id": 151643,
        "eos_ids": (151645, 151643),
    },
}


def names() -> list[str]:
    """The presets, smallest first."""
    return list(_OTHERS)


def fields(preset: str) -> dict[str, Any]:
    """The fields of one preset; `tiny` has the embedded tokenizer's vocabulary, to be served with it."""
    return {"vocab_size": _embedded_vocab_size(), **_TINY, **_OTHERS[preset]}


def _embedded_vocab_size() -> int:
    return int(config.read(tokenizer.embedded_path().parent / "config.json")["vocab_size"])
