"""Dictionaries of arrays in .npy files, as `np.save(path, {name: array})` writes them and tools of Ascend take them.

Such a file holds a pickle, which is followed and never run (see `_pickles`). What has the form of an array of NumPy's,
or of a tensor of torch's, is read from its place in the file, by rows.
"""

import io
import math
import pickle
import pickletools
import re
from pathlib import Path
from tokenize import TokenError
from types import TracebackType
from typing import IO, Any

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.weights import _pickles as pickles
from llmbench.weights._pickles import Broken, Made, Name, Place
from llmbench.weights.tensors import Bits

_npy: Any = np.lib.format  # which has no types

_PROTOCOL = 3  # as NumPy's: without frames, so that items can be put in one after another
_CODE = re.compile(r"[fiu][1248]")
_CORES = ("numpy.core", "numpy._core")  # before NumPy 2, and since
_ARRAY = tuple(f"{core}.multiarray._reconstruct" for core in _CORES)
_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in _CORES)
_SCALAR = tuple(f"{core}.multiarray.scalar" for core in _CORES)
_DTYPE = "numpy.dtype"
_TENSOR, _STORAGE = "torch._utils._rebuild_tensor_v2", "torch.storage._load_from_bytes"
_NAMES = {*_ARRAY, *_BUFFER, *_SCALAR, _DTYPE, "numpy.ndarray", _TENSOR, _STORAGE, "collections.OrderedDict"}
_STORAGES: dict[str, np.dtype[Any]] = {
    "torch.CharStorage": np.dtype("i1"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.DoubleStorage": np.dtype("<f8"),
}
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class Array(msgspec.Struct, frozen=True, kw_only=True):
    """An array in a pickle; its bytes are at a place in the file, or, if they are few, here."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    data: bytes | Place

    def whole(self) -> Bits:
        """All of it."""
        if isinstance(self.data, bytes):
            values = np.frombuffer(self.data, self.dtype)
        else:
            values = self._read(self.data.offset, math.prod(self.shape))
        return values.reshape(self.shape, order="F" if self.fortran else "C")

    def rows(self, start: int, stop: int) -> Bits:
        """[stop - start, ...]: some of its rows."""
        if self.fortran or isinstance(self.data, bytes):
            return self.whole()[start:stop]
        row = math.prod(self.shape[1:])
        values = self._read(self.data.offset + start * row * self.dtype.itemsize, (stop - start) * row)
        return values.reshape(stop - start, *self.shape[1:])

    def _read(self, offset: int, count: int) -> Bits:
        try:
            values: Bits = np.fromfile(self.path, self.dtype, count=count, offset=offset)
        except OSError as error:
            raise InputError(f"{self.path}: cannot read ({error.strerror})") from error
        if values.size != count:
            raise InputError(f"{self.path}: the file became shorter while it was read")
        return values


def read(path: Path) -> dict[str, Array]:
    """The arrays of a dictionary by their names; numbers are arrays of no dimension. Nothing of the pickle is run.

    Raises InputError for a file that holds anything else.
    """
    try:
        with path.open("rb") as file:
            _read_header(file)
            root = pickles.follow(file, _NAMES)
        return {name: _array(path, value) for name, value in _dictionary(root).items()}
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from error
    except Broken as error:
        raise InputError(f"{path}: not read: {error}") from error
    except (SyntaxError, TokenError) as error:  # what NumPy raises besides ValueError for a damaged header
        raise InputError(f"{path}: not an .npy file, or damaged") from error
    # what a damaged pickle leads to: it ends too early, has an empty stack, a key that is none
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path}: not a dictionary of arrays as np.save writes it, or damaged") from error


class Writer:
    """Writes a dictionary array by array; `np.load(path, allow_pickle=True).item()` gives it back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        array = np.empty((), object)
        array[()] = {}
        _npy.write_array_header_1_0(self._file, _npy.header_data_from_array_1_0(array))
        around = _pickled(array)
        inside = 1 + next(at or 0 for opcode, _, at in pickletools.genops(around) if opcode.name == "EMPTY_DICT")
        self._file.write(around[:inside])
        self._end = around[inside:]

    def put(self, name: str, values: Bits) -> None:
        """Add an array."""
        item = _pickled(name)[2:-1] + _pickled(np.ascontiguousarray(values))[2:-1]  # less protocol and stop
        self._file.write(item + pickle.SETITEM)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            self._file.write(self._end)


def _pickled(value: Any) -> bytes:
    """A pickle that remembers nothing, so that it can be put into another."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, _PROTOCOL)
    pickler.fast = True
    pickler.dump(value)
    return file.getvalue()


def _read_header(file: IO[bytes]) -> None:
    version = _npy.read_magic(file)
    read_header = _npy.read_array_header_1_0 if version == (1, 0) else _npy.read_array_header_2_0
    _, _, dtype = read_header(file)
    if dtype.kind != "O":
        raise Broken(f"an array of {dtype}, not a dictionary of arrays")


def _dictionary(root: Any) -> dict[str, Any]:
    """The dictionary in an array of objects without dimensions."""
    if not (isinstance(root, Made) and root.path in _ARRAY and len(root.state) == 5):
        raise Broken("its pickle holds no dictionary")
    held = root.state[4]
    if not (isinstance(held, list) and len(held) == 1 and isinstance(held[0], dict)):
        raise Broken("its pickle holds no dictionary")
    if not all(isinstance(name, str) for name in held[0]):
        raise Broken("not all names in its dictionary are texts")
    return held[0]


def _array(path: Path, value: Any) -> Array:
    """What stands for an array or a tensor, or is a number."""
    if isinstance(value, int | float):
        return Array(path=path, dtype=np.dtype("<f8"), shape=(), fortran=False, data=np.float64(value).tobytes())
    if not isinstance(value, Made):
        raise Broken("a value in its dictionary is no array")
    if value.path == _TENSOR:
        return _tensor(path, value)
    if value.path in _ARRAY:
        _, shape, dtype, fortran, data = value.state
    elif value.path in _SCALAR:
        (dtype, data), shape, fortran = value.args, (), False
    elif value.path in _BUFFER:
        data, dtype, shape, order = value.args
        fortran = order == "F"
    else:
        raise Broken("a value in its dictionary is no array")
    found = _dtype(dtype)
    _check_shape(shape)
    num_bytes = data.num_bytes if isinstance(data, Place) else len(data)
    if not isinstance(data, bytes | Place) or num_bytes != math.prod(shape) * found.itemsize:
        raise Broken(f"{num_bytes} bytes do not hold an array of {list(shape)} of {found}")
    return Array(path=path, dtype=found, shape=shape, fortran=bool(fortran), data=data)


def _check_shape(shape: Any) -> None:
    if not (isinstance(shape, tuple) and all(isinstance(length, int) and length >= 0 for length in shape)):
        raise Broken("an array in its dictionary has no shape")


def _dtype(made: Any) -> np.dtype[Any]:
    """The dtype that a pickle describes: a number of so many bytes, and their order."""
    if not (isinstance(made, Made) and made.path == _DTYPE and isinstance(made.args[0], str)):
        raise Broken("an array in its dictionary has no dtype")
    code = made.args[0]
    order = made.state[1] if made.state is not None else "="
    if not _CODE.fullmatch(code) or order not in ("<", ">", "|", "="):
        raise Broken(f"an array in its dictionary is of {code!r}, which are no numbers")
    return np.dtype(order + code)


def _tensor(path: Path, made: Made) -> Array:
    """A tensor of torch's: its storage is a file in the file, as torch.save wrote it before it wrote zip archives."""
    storage, first, shape, strides = made.args[:4]
    _check_shape(shape)
    if not (isinstance(storage, Made) and storage.path == _STORAGE and isinstance(first, int)):
        raise Broken("a tensor in its dictionary has no storage")
    (blob,) = storage.args
    with path.open("rb") if isinstance(blob, Place) else io.BytesIO(blob) as file:
        end = len(blob)
        if isinstance(blob, Place):
            file.seek(blob.offset)
            end = blob.offset + blob.num_bytes
        magic, _, _, found, keys = (pickles.follow(file, _STORAGES) for _ in range(5))
        _, kind, key, _, num_elements, *_ = found.key
        begin = file.tell() + 8  # behind the number of elements
        if magic != _TORCH_MAGIC or keys != [key] or not isinstance(kind, Name):
            raise Broken("a tensor in its dictionary has a storage that is not as torch.save writes it")
        dtype = _STORAGES[kind.path]
        if begin + num_elements * dtype.itemsize != end:
            raise Broken(f"a tensor in its dictionary has {end - begin} bytes, not {num_elements} of {dtype}")
        start, num_bytes = begin + first * dtype.itemsize, math.prod(shape) * dtype.itemsize
        if not begin <= start <= start + num_bytes <= end:
            raise Broken("a tensor in its dictionary lies outside its storage")
        file.seek(start)
        data = Place(start, num_bytes) if isinstance(blob, Place) else file.read(num_bytes)
    in_rows, in_columns = (_strides(order) for order in (shape[::-1], shape))
    if math.prod(shape) > 1 and strides not in (in_rows[::-1], in_columns):
        raise Broken("a tensor in its dictionary lies in pieces; save it as tensor.contiguous()")
    return Array(path=path, dtype=dtype, shape=shape, fortran=strides != in_rows[::-1], data=data)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """How far apart neighbours are along each axis, in elements, where the first axis is the fastest."""
    return tuple(math.prod(shape[:i]) for i in range(len(shape)))
