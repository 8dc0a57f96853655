"""Weights in safetensors files, read by tensor and by rows; pickle files are refused, since opening one can run code.

The header is parsed here and not by the safetensors library, because its NumPy side cannot read bfloat16.
"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError

Float32 = npt.NDArray[np.float32]

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_STORED: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tensor lies: `offset` in bytes from the start of the file; `dtype` as safetensors calls it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class Safetensors:
    """The tensors of one or more safetensors files. Only the headers are held; no file stays open."""

    def __init__(self, paths: list[Path]) -> None:
        self._entries: dict[str, Entry] = {}
        for path in paths:
            self._entries.update(read_header(path))
        self.source = str(paths[0] if len(paths) == 1 else paths[0].parent)

    def names(self) -> list[str]:
        """The names of all tensors, in file order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError for an unknown one."""
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """What a tensor is stored as, such as "bfloat16"."""
        stored = self._entry(name).dtype
        return _NAMES.get(stored, stored.lower())

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: rows of a tensor. Raises InputError for other than f32, f16, bf16."""
        entry = self._entry(name)
        stored = _STORED.get(entry.dtype)
        if stored is None:
            raise InputError(f"{entry.path}: {name}: stored as {entry.dtype}; readable: {', '.join(_NAMES.values())}")
        row = math.prod(entry.shape[1:])
        offset = entry.offset + start * row * stored.itemsize
        try:
            values = np.fromfile(entry.path, stored, count=(stop - start) * row, offset=offset)
        except OSError as error:
            raise InputError(f"{entry.path}: {name}: cannot read ({error.strerror})") from error
        return _widen(values, entry.dtype).reshape(stop - start, *entry.shape[1:])

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"{self.source}: no tensor {name!r} among its {len(self._entries)}") from None


def open_folder(folder: Path) -> Safetensors:
    """The safetensors of a Hugging Face folder, single or sharded. Raises InputError when there are none."""
    if (folder / _SINGLE).exists():
        return Safetensors([folder / _SINGLE])
    if (folder / _INDEX).exists():
        return _open_sharded(folder)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return Safetensors(found)
    if found:
        raise InputError(f"{folder}: {len(found)} safetensors files but no {_INDEX} that says which of them to read")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: a pickle file is not opened, since it can run code; save the model as safetensors"
            " (transformers: model.save_pretrained)"
        )
    raise InputError(f"{folder}: no *.safetensors in this folder")


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file by name. Raises InputError when the file is not safetensors or is cut off."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise InputError(f"{path}: not a safetensors file, or cut off ({size} bytes)")
            header = json.loads(file.read(length))
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not a safetensors file (its header is not JSON)") from error
    header.pop("__metadata__", None)
    return {name: _entry(path, name, fields, 8 + length, size) for name, fields in header.items()}


def _open_sharded(folder: Path) -> Safetensors:
    index = folder / _INDEX
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: cannot read its weight_map ({error!r})") from error
    shards = Safetensors([folder / shard for shard in sorted(set(places.values()))])
    missing = sorted(set(places) - set(shards.names()))
    if missing:
        raise InputError(f"{folder / places[missing[0]]}: no tensor {missing[0]!r}, though {_INDEX} says so")
    return shards


def _entry(path: Path, name: str, fields: dict[str, Any], data_start: int, file_bytes: int) -> Entry:
    """One header entry, its offsets held against its shape and the length of the file."""
    try:
        shape, (begin, end) = tuple(map(int, fields["shape"])), map(int, fields["data_offsets"])
        dtype = str(fields["dtype"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: {name}: broken header entry ({error!r})") from error
    if not 0 <= begin <= end <= file_bytes - data_start:
        raise InputError(f"{path}: {name}: lies outside the file; it is cut off or was not downloaded whole")
    stored = _STORED.get(dtype)
    if stored is not None and end - begin != math.prod(shape) * stored.itemsize:
        raise InputError(f"{path}: {name}: {end - begin} bytes do not hold {list(shape)} of {dtype}")
    return Entry(path=path, dtype=dtype, shape=shape, offset=data_start + begin, num_bytes=end - begin)


def _widen(values: npt.NDArray[Any], dtype: str) -> Float32:
    """float32 of what was stored; a bfloat16 is the upper half of a float32."""
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
