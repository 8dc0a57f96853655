"""Meta's checkpoints: params.json and consolidated.00.pth, consolidated.01.pth, …, each a rank's part of the model.

They are pickles, so that they are opened by `torch.load(weights_only=True)`, which admits tensors and dictionaries and
nothing else; torch maps the files, and reads of a tensor what it is asked for.
"""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llmbench import config as settings
from llmbench.errors import ConfigError, InputError, NotInstalled
from llmbench.weights import config as shapes
from llmbench.weights.config import ModelConfig
from llmbench.weights.tensors import STORED, Bits, Tensor, joined

PARAMS = "params.json"

_ASSUMED_POSITIONS = 4096  # Llama 2; params.json does not say how long its sequences are
_SENTENCEPIECE = 32000  # pieces of the tokenizer of Llama 1 and 2, whose bos is 1 and eos 2
_AXES = {  # along which the ranks' parts lie; norms are whole everywhere
    "attention.wq": 0,
    "attention.wk": 0,
    "attention.wv": 0,
    "attention.wo": 1,
    "feed_forward.w1": 0,
    "feed_forward.w2": 1,
    "feed_forward.w3": 0,
    "output": 0,
}


def paths(folder: Path) -> list[Path]:
    """The consolidated files in a folder, in the order of the ranks. Raises InputError when one between is missing."""
    found = sorted(folder.glob("consolidated.*.pth"))
    for index, path in enumerate(found):
        if path.name != f"consolidated.{index:02d}.pth":
            raise InputError(f"{folder / f'consolidated.{index:02d}.pth'}: missing, though there is {found[-1].name}")
    return found


def read(folder: Path) -> tuple[dict[str, Any], ModelConfig, dict[str, Tensor]]:
    """A config.json made of params.json, what it says, and the whole tensors under Meta's names.

    Raises NotInstalled without torch, InputError or ConfigError for files that are something else.
    """
    params = settings.read(folder / PARAMS)
    files = paths(folder)
    parts = [_load(path) for path in files]
    dim = params.get("dim")
    if not isinstance(dim, int):
        raise ConfigError(f"{folder / PARAMS}: dim: this key is missing, or is no number")
    tensors = {name: _whole(name, parts, files, dim) for name in parts[0]}
    raw = _config(params, tensors, folder / PARAMS)
    return raw, shapes.from_hf(raw, (), str(folder / PARAMS)), tensors


def _whole(name: str, parts: list[dict[str, Tensor]], files: list[Path], dim: int) -> Tensor:
    for part, path in zip(parts, files, strict=True):
        if name not in part:
            raise InputError(f"{path}: tensor {name} is missing, which {files[0].name} has")
    pieces = [part[name] for part in parts]
    layer = name.removesuffix(".weight")
    axis = _AXES.get(layer if layer == "output" else ".".join(layer.split(".")[-2:]))
    if layer == "tok_embeddings":  # along their width; Llama 3 along the vocabulary
        axis = 0 if pieces[0].shape[1:] == (dim,) else 1
    if axis is None:
        return pieces[0]
    return joined(pieces, axis, name)


def _config(params: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """The config.json of a model of which params.json says no more than Meta's code asked for."""
    if params.get("use_scaled_rope"):
        raise ConfigError(f"{path}: use_scaled_rope: only models without RoPE scaling are supported")
    needed = {"tok_embeddings.weight", "layers.0.feed_forward.w1.weight"}
    for name in sorted(needed - tensors.keys()):
        raise InputError(f"{path.parent}: tensor {name} is missing; these are no weights of a Llama")
    try:
        num_heads, vocab_size = int(params["n_heads"]), tensors["tok_embeddings.weight"].shape[0]
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": params["dim"],
            "intermediate_size": tensors["layers.0.feed_forward.w1.weight"].shape[0],
            "num_hidden_layers": params["n_layers"],
            "num_attention_heads": num_heads,
            "num_key_value_heads": params.get("n_kv_heads") or num_heads,
            "hidden_act": "silu",
            "vocab_size": vocab_size,
            "rms_norm_eps": params.get("norm_eps", 1e-5),
            "rope_theta": params.get("rope_theta", 10000.0),
            "max_position_embeddings": params.get("max_seq_len", _ASSUMED_POSITIONS),
            "tie_word_embeddings": False,
            "bos_token_id": 1 if vocab_size == _SENTENCEPIECE else None,
            "eos_token_id": 2 if vocab_size == _SENTENCEPIECE else None,
            "torch_dtype": tensors["tok_embeddings.weight"].dtype,
        }
    except KeyError as error:
        raise ConfigError(f"{path}: {error.args[0]}: this key is missing") from error


def _load(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped and not read."""
    try:
        import torch
    except ImportError as error:
        raise NotInstalled(
            f"{path}: torch opens it without running what is in it, and is not installed: pip install torch"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: it holds more than tensors, and was not opened ({_first_line(error)})") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"{path}: not a PyTorch file, or cut off ({_first_line(error)})") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(f"{path}: expected a dictionary of tensors")
    dtypes = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}
    tensors = {}
    for name, value in found.items():
        if value.dtype not in dtypes:
            raise InputError(f"{path}: {name}: stored as {value.dtype}; readable: {', '.join(dtypes.values())}")
        rows: Callable[[int, int], Bits] = partial(_rows, value)
        tensors[str(name)] = Tensor(shape=tuple(value.shape), dtype=dtypes[value.dtype], rows=rows)
    return tensors


def _rows(tensor: Any, start: int, stop: int) -> Bits:
    """[stop - start, ...]: rows of a torch tensor; a bfloat16 as its bits."""
    import torch

    piece = tensor[start:stop].contiguous()
    if piece.dtype is torch.bfloat16:
        bits: Bits = piece.view(torch.int16).numpy().view(STORED["bfloat16"])
        return bits
    found: Bits = piece.numpy()
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
