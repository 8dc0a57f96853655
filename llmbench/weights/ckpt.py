"""MindSpore's .ckpt: protobuf messages one behind another, of which only the places of the tensors are held.

    message Checkpoint { repeated Value value = 1; }
    message Value { required string tag = 1; TensorProto tensor = 2; MapTensorProto maptensor = 3; }
    message TensorProto { repeated int64 dims = 1; required string tensor_type = 2; required bytes tensor_content = 3; }

as `mindspore.train.checkpoint_pb2` has it. A large tensor is in several values of the same tag, one behind another;
the file may end with `crc_num` and the CRC-32 of all before it in ten bytes. These three messages are read and written
here, because a protobuf library would hold the whole file.
"""

import binascii
import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.weights.tensors import STORED, Bits, Tensor

DTYPES = {
    "Float32": "float32",
    "Float16": "float16",
    "BFloat16": "bfloat16",
    "Int8": "int8",
    "Int32": "int32",
    "Int64": "int64",
}
"""What MindSpore calls the dtypes that can be read."""

_NAMES = {name: theirs for theirs, name in DTYPES.items()}
_CHUNK_BYTES = 512 << 20  # MindSpore's own: the most of a tensor in one value
_CRC_MARK = b"crc_num"
_CRC_BYTES = len(_CRC_MARK) + 10
_READ_BYTES = 16 << 20
_FOREIGN = {b"PK": "a zip archive, such as PyTorch writes", b"\x80": "a pickle, which can run code"}


class _Broken(Exception):
    """What is there is no protobuf message of this kind."""


class _Field(NamedTuple):
    """A protobuf field: its number, its value if it is a varint, else where its bytes are."""

    number: int
    value: int | None
    start: int
    stop: int


class _Place(NamedTuple):
    offset: int
    num_bytes: int


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bytes of a tensor lie; `dtype` as MindSpore calls it."""

    dtype: str
    shape: tuple[int, ...]
    places: list[_Place]

    @property
    def num_bytes(self) -> int:
        """How many bytes there are of it."""
        return sum(place.num_bytes for place in self.places)


class Checkpoint:
    """The tensors of a .ckpt file. Only their places are held; the file does not stay open."""

    container = "ckpt"

    def __init__(self, path: Path) -> None:
        self.source = str(path)
        self._path = path
        self._entries = _scan(path)

    def names(self) -> list[str]:
        """The names of all tensors, in file order."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """What a tensor is stored as, such as "bfloat16"."""
        stored = self._entries[name].dtype
        return DTYPES.get(stored, stored.lower())

    def rows(self, name: str, start: int, stop: int) -> Bits:
        """[stop - start, ...]: rows of a tensor as stored. Raises InputError for a dtype that is not read."""
        entry = self._entries[name]
        if entry.dtype not in DTYPES:
            raise InputError(f"{self._path}: {name}: stored as {entry.dtype}; readable: {', '.join(DTYPES.values())}")
        stored = STORED[DTYPES[entry.dtype]]
        row = math.prod(entry.shape[1:]) * stored.itemsize
        found = bytearray((stop - start) * row)
        _read(self._path, entry.places, start * row, memoryview(found))
        return np.frombuffer(found, stored).reshape(stop - start, *entry.shape[1:])


def values(name: str, tensor: Tensor) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor in a .ckpt file, in pieces: what `mindspore.save_checkpoint` writes."""
    left = tensor.num_bytes
    if not left:
        yield _head(name, tensor, 0)
    in_value = 0
    for _, block in tensor.blocks():
        data = np.ascontiguousarray(block).data.cast("B")
        while data:
            if not in_value:
                in_value = min(left, _CHUNK_BYTES)
                yield _head(name, tensor, in_value)
            piece = data[:in_value]
            yield piece
            in_value, left, data = in_value - len(piece), left - len(piece), data[len(piece) :]


def _head(name: str, tensor: Tensor, num_bytes: int) -> bytes:
    """All of a value but the last `num_bytes` bytes, which are the tensor's."""
    kind = _NAMES[tensor.dtype].encode()
    proto = b"".join(b"\x08" + _encoded(length) for length in tensor.shape)
    proto += b"\x12" + _encoded(len(kind)) + kind + b"\x1a" + _encoded(num_bytes)
    tag = name.encode()
    value = b"\x0a" + _encoded(len(tag)) + tag + b"\x12" + _encoded(len(proto) + num_bytes) + proto
    return b"\x0a" + _encoded(len(value) + num_bytes) + value


def _encoded(number: int) -> bytes:
    """A varint: seven bits at a time, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read(path: Path, places: list[_Place], start: int, out: memoryview) -> None:
    """Bytes of a tensor, from its byte `start` on, as many as fit into `out`."""
    try:
        with path.open("rb") as file:
            for place in places:
                if start < place.num_bytes and out:
                    piece = out[: place.num_bytes - start]
                    file.seek(place.offset + start)
                    if file.readinto(piece) != len(piece):
                        raise InputError(f"{path}: the file became shorter while it was read")
                    out = out[len(piece) :]
                start = max(0, start - place.num_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights ({error.strerror})") from error


def _scan(path: Path) -> dict[str, Entry]:
    """The tensors of a file by name. Raises InputError when it is something else, cut off or damaged."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise InputError(f"{path}: this checkpoint is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _entries(path, data)
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights ({error.strerror})") from error
    except (_Broken, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a MindSpore checkpoint, or cut off, or encrypted") from error


def _entries(path: Path, data: mmap.mmap) -> dict[str, Entry]:
    what = next((what for mark, what in _FOREIGN.items() if data[: len(mark)] == mark), None)
    if what is not None:
        raise InputError(f"{path}: not a MindSpore checkpoint but {what}; save the model as safetensors")
    end = _end(path, data)
    found: dict[str, Entry] = {}
    last = ""
    for field in _fields(data, 0, end):
        if field.number != 1 or field.value is not None:
            raise _Broken
        name, entry = _value(path, data, field.start, field.stop)
        if name in found:
            before = found[name]
            whole = before.num_bytes >= _expected_bytes(before)
            if name != last or whole or (before.shape, before.dtype) != (entry.shape, entry.dtype):
                raise InputError(f"{path}: {name}: this tensor is twice in the file")
            before.places.extend(entry.places)
        else:
            found[name] = entry
        last = name
    for name, entry in found.items():
        if entry.dtype in DTYPES and entry.num_bytes != _expected_bytes(entry):
            raise InputError(
                f"{path}: {name}: {entry.num_bytes} bytes do not hold {list(entry.shape)} of {entry.dtype}"
            )
    return found


def _expected_bytes(entry: Entry) -> int:
    """How many bytes a tensor has; for dtypes that are not read, none."""
    name = DTYPES.get(entry.dtype)
    return 0 if name is None else math.prod(entry.shape) * STORED[name].itemsize


def _end(path: Path, data: mmap.mmap) -> int:
    """Where the values end: before the CRC, if there is one. Raises InputError when it is not that of the file."""
    end = len(data) - _CRC_BYTES
    if end < 0 or data[end : end + len(_CRC_MARK)] != _CRC_MARK:
        return len(data)
    crc = 0
    for start in range(0, end, _READ_BYTES):
        crc = binascii.crc32(data[start : min(start + _READ_BYTES, end)], crc)
    if crc != int.from_bytes(data[end + len(_CRC_MARK) :], "big"):
        raise InputError(f"{path}: its CRC is not that of its content; the file was damaged")
    return end


def _value(path: Path, data: mmap.mmap, start: int, stop: int) -> tuple[str, Entry]:
    """The name and the tensor of one value."""
    fields = {field.number: field for field in _fields(data, start, stop)}
    if 1 not in fields:
        raise _Broken
    name = data[fields[1].start : fields[1].stop].decode()
    if 2 not in fields:
        raise InputError(f"{path}: {name}: a map parameter, which no Llama or Qwen2 model has")
    shape: list[int] = []
    kind, place = "", None
    for field in _fields(data, fields[2].start, fields[2].stop):
        if field.number == 1:
            shape += [field.value] if field.value is not None else _varints(data, field.start, field.stop)
        elif field.number == 2:
            kind = data[field.start : field.stop].decode()
        elif field.number == 3:
            place = _Place(field.start, field.stop - field.start)
    if not kind or place is None:
        raise _Broken
    scalar = shape == [0] and place.num_bytes > 0  # how MindSpore writes a tensor without dimensions
    return name, Entry(dtype=kind, shape=() if scalar else tuple(shape), places=[place])


def _fields(data: mmap.mmap, at: int, stop: int) -> Iterator[_Field]:
    """The fields of a message. Raises _Broken."""
    while at < stop:
        key, at = _varint(data, at, stop)
        length, at = _varint(data, at, stop)
        if key & 7 == 0:
            yield _Field(key >> 3, length, at, at)
        elif key & 7 == 2 and length <= stop - at:
            yield _Field(key >> 3, None, at, at + length)
            at += length
        else:
            raise _Broken


def _varints(data: mmap.mmap, at: int, stop: int) -> list[int]:
    found = []
    while at < stop:
        number, at = _varint(data, at, stop)
        found.append(number)
    return found


def _varint(data: mmap.mmap, at: int, stop: int) -> tuple[int, int]:
    """A number of at most 64 bits, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= stop:
            raise _Broken
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise _Broken
