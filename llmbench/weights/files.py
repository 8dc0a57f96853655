"""Weights in safetensors files, read by tensor and by rows; pickle files are refused, since opening one can run code.

The header is parsed here and not by the safetensors library, because its NumPy side cannot read bfloat16.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llmbench.errors import ConfigError, InputError
from llmbench.weights.ckpt import Checkpoint
from llmbench.weights.tensors import STORED, Bits

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
INDEX_END = ".safetensors.index.json"  # of quantised models it begins otherwise
NAME_MAP = "param_name_map.json"
"""What MindFormers calls the index: the file of each tensor, without anything around it."""

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "I32": "int32", "I64": "int64"}
"""What safetensors calls the dtypes that can be read."""

_KINDS = {name: kind for kind, name in DTYPES.items()}
_PICKLES = (".bin", ".pth", ".pt", ".pkl")
_READ_BYTES = 16 << 20
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tensor lies: `offset` in bytes from the start of the file; `dtype` as safetensors calls it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class Safetensors:
    """The tensors of one or more safetensors files. Only the headers are held; no file stays open."""

    container = "safetensors"

    def __init__(self, paths: list[Path]) -> None:
        self._entries: dict[str, Entry] = {}
        for path in paths:
            found = read_header(path)
            twice = next((name for name in found if name in self._entries), None)
            if twice is not None:
                raise InputError(f"{path}: {twice}: this tensor is in {self._entries[twice].path.name} already")
            self._entries.update(found)
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
        return DTYPES.get(stored, stored.lower())

    def rows(self, name: str, start: int, stop: int) -> Bits:
        """[stop - start, ...]: rows of a tensor as stored. Raises InputError for a dtype that is not read."""
        entry = self._entry(name)
        if entry.dtype not in DTYPES:
            raise InputError(f"{entry.path}: {name}: stored as {entry.dtype}; readable: {', '.join(DTYPES.values())}")
        stored, row = STORED[DTYPES[entry.dtype]], math.prod(entry.shape[1:])
        offset = entry.offset + start * row * stored.itemsize
        try:
            values = np.fromfile(entry.path, stored, count=(stop - start) * row, offset=offset)
        except OSError as error:
            raise InputError(f"{entry.path}: {name}: cannot read ({error.strerror})") from error
        if values.size != (stop - start) * row:
            raise InputError(f"{entry.path}: {name}: the file became shorter while it was read")
        return values.reshape(stop - start, *entry.shape[1:])

    def _entry(self, name: str) -> Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise InputError(f"{self.source}: no tensor {name!r} among its {len(self._entries)}") from None


Weights = Safetensors | Checkpoint


def open_folder(folder: Path) -> Weights:
    """The weights in a folder, single or sharded. Raises InputError when there are none, or more than one set."""
    if (folder / SINGLE).exists():
        return Safetensors([folder / SINGLE])
    for index in (*sorted(folder.glob(f"*{INDEX_END}")), folder / NAME_MAP):
        if index.exists():
            return _open_sharded(index)
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return Safetensors(found)
    if found:
        raise InputError(f"{folder}: {len(found)} safetensors files but no {INDEX} that says which of them to read")
    checkpoints = sorted(folder.glob("*.ckpt"))
    if len(checkpoints) == 1:
        return Checkpoint(checkpoints[0])
    if checkpoints:
        raise InputError(f"{folder}: {len(checkpoints)} *.ckpt files; give the path of one of them, or leave only one")
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise InputError(
            f"{folder / pickles[0]}: a pickle file is not opened, since it can run code; save the model as safetensors"
            " (transformers: model.save_pretrained)"
        )
    raise InputError(f"{folder}: no *.safetensors in this folder, and no *.ckpt")


def open_file(path: Path) -> Weights:
    """The weights in one file, by its ending. Raises InputError for another than .safetensors and .ckpt."""
    if path.suffix == ".safetensors":
        return Safetensors([path])
    if path.suffix == ".ckpt":
        return Checkpoint(path)
    raise InputError(f"{path}: not a folder but a file, and neither *.safetensors nor *.ckpt")


def head(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], framework: str, **metadata: str
) -> tuple[bytes, dict[str, int]]:
    """The head of a safetensors file of these tensors, (dtype, shape) each, and where each of them begins.

    It is padded so that what follows is aligned; wide dtypes come first, so that each tensor is.
    """
    order = sorted(tensors, key=lambda name: -STORED[tensors[name][0]].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": framework, **metadata}}
    starts: dict[str, int] = {}
    end = 0
    for name in order:
        dtype, shape = tensors[name]
        starts[name], end = end, end + math.prod(shape) * STORED[dtype].itemsize
        header[name] = {"dtype": _KINDS[dtype], "shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    found = len(text).to_bytes(8, "little") + text
    return found, {name: len(found) + start for name, start in starts.items()}


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one file by name. Raises InputError when the file is not safetensors or is cut off."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise InputError(f"{path}: not a safetensors file, or cut off ({size} bytes)")
            header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _unique(path, pairs))
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not a safetensors file (its header is not JSON)") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: not a safetensors file (its header is no JSON object)")
    header.pop("__metadata__", None)
    entries = {name: _entry(path, name, fields, 8 + length, size) for name, fields in header.items()}
    _refuse_overlaps(path, entries)
    return entries


def header_text(path: Path) -> bytes:
    """The header of a file that `read_header` has read, as it is written there."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def contents(entry: Entry) -> Iterator[bytes]:
    """The bytes of a tensor, some at a time. Raises InputError when there are fewer than there were."""
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        left = entry.num_bytes
        while left:
            chunk = file.read(min(left, _READ_BYTES))
            if not chunk:
                raise InputError(f"{entry.path}: the file became shorter while it was read")
            left -= len(chunk)
            yield chunk


def sha256(path: Path) -> str:
    """Of a file, hex. Raises InputError."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                digest.update(data)
    except OSError as error:
        raise InputError(f"{path}: cannot read it ({error.strerror})") from error
    return digest.hexdigest()


def check(folder: Path, expected: Mapping[str, str], listed: str) -> None:
    """Raise InputError for a file that is not the one that was written, by its sha256; `listed` is the file with it."""
    for name, digest in expected.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{folder / listed}: files: {name} is outside of this folder")
        found = sha256(path)
        if found != digest:
            raise InputError(
                f"{path}: its sha256 is {found}, {listed} has {digest}; it was changed or damaged after it was written"
            )


def _unique(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: {twice}: twice in the header")
    return found


def _refuse_overlaps(path: Path, entries: Mapping[str, Entry]) -> None:
    before, end = "", 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].num_bytes)):
        if entry.offset < end:
            raise InputError(f"{path}: {name}: its bytes overlap those of {before}; the header is damaged")
        before, end = name, entry.offset + entry.num_bytes


def _open_sharded(index: Path) -> Safetensors:
    folder = index.parent
    try:
        places = json.loads(index.read_text(encoding="utf-8"))
        places = dict(places if index.name == NAME_MAP else places["weight_map"])
        files = sorted({str(shard) for shard in places.values()})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{index}: cannot read its weight_map ({error!r})") from error
    if any(Path(shard).name != shard for shard in files):
        raise InputError(f"{index}: its weight_map names a file outside of this folder")
    shards = Safetensors([folder / shard for shard in files])
    missing = sorted(set(places) - set(shards.names()))
    if missing:
        raise InputError(f"{folder / places[missing[0]]}: no tensor {missing[0]!r}, though {index.name} says so")
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
    if dtype in DTYPES and end - begin != math.prod(shape) * STORED[DTYPES[dtype]].itemsize:
        raise InputError(f"{path}: {name}: {end - begin} bytes do not hold {list(shape)} of {dtype}")
    return Entry(path=path, dtype=dtype, shape=shape, offset=data_start + begin, num_bytes=end - begin)
