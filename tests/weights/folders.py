"""Model folders for tests, written and read here by hand, so that the code under test does neither."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llmbench.weights.config import expected_shapes, from_hf

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 45,  # odd, so that no number of ranks divides it
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 48}
TIED = QWEN2 | {"tie_word_embeddings": True, "num_key_value_heads": 4}
CONFIGS = {"llama": LLAMA, "qwen2": QWEN2, "tied": TIED}

_KINDS = {"float32": ("F32", "<u4"), "float16": ("F16", "<u2"), "bfloat16": ("BF16", "<u2")}


class Stored(NamedTuple):
    """A tensor as it lies in a safetensors file."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = dict[str, Stored]


def random_tensors(config: dict[str, Any], dtype: str, seed: int = 0) -> Tensors:
    """All tensors of a model, each bit pattern drawn so that it is a number of moderate size."""
    rng = np.random.default_rng(seed)
    kind, _ = _KINDS[dtype]
    found = {}
    for name, shape in expected_shapes(from_hf(config, (), "test")).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if dtype == "float16":
            data = values.astype(np.float16).tobytes()
        elif dtype == "bfloat16":
            data = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            data = values.tobytes()
        found[name] = Stored(kind, shape, data)
    return found


def write_file(path: Path, tensors: Tensors) -> Path:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensor.data for tensor in tensors.values()))
    return path


def read_file(path: Path) -> Tensors:
    """What is in a safetensors file."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, fields in header.items():
        begin, end = fields["data_offsets"]
        found[name] = Stored(fields["dtype"], tuple(fields["shape"]), content[start + begin : start + end])
    return found


def read_folder(folder: Path) -> Tensors:
    """What is in all safetensors files of a folder."""
    found: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= read_file(path)
    return found


def write_folder(folder: Path, config: dict[str, Any], dtype: str = "float32", tensors: Tensors | None = None) -> Path:
    """A Hugging Face folder with a tokenizer's file and a generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": dtype}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 5]}')
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    (folder / "training_args.bin").write_bytes(b"a pickle")
    write_file(folder / "model.safetensors", random_tensors(config, dtype) if tensors is None else tensors)
    return folder
