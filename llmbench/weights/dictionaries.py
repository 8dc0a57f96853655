"""Dictionaries of arrays in .npy files, as `np.save(path, {name: array})` writes them and tools of Ascend take them.

Such a file holds a pickle, and loading one runs what it names. That is never done here: the opcodes are followed by a
machine that knows lists, tuples, dictionaries, numbers, texts and bytes; what a pickle would call stays a name with its
arguments, and of names only those by which NumPy rebuilds arrays are let through. What has the form of an array is then
read from its place in the file, by rows.
"""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.weights.tensors import Bits

_PROTOCOL = 3  # as NumPy's: without frames, so that items can be put in one after another
_HELD_BYTES = 256  # longer ones stay in the file
_CODE = re.compile(r"[fiu][1248]")
_CORES = ("numpy.core", "numpy._core")  # before NumPy 2, and since
_ARRAY = tuple(f"{core}.multiarray._reconstruct" for core in _CORES)
_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in _CORES)
_SCALAR = tuple(f"{core}.multiarray.scalar" for core in _CORES)
_DTYPE, _LATIN = "numpy.dtype", "_codecs.encode"
_KNOWN = {*_ARRAY, *_BUFFER, *_SCALAR, _DTYPE, _LATIN, "numpy.ndarray"}
_npy: Any = np.lib.format  # which has no types


class _Broken(Exception):
    """What is there is no dictionary of arrays; the text says what it is instead."""


class _Place(NamedTuple):
    """Bytes that are left in the file."""

    offset: int
    num_bytes: int


class _Name(NamedTuple):
    """What a pickle would import."""

    path: str


class _Made:
    """What a pickle would make by a call, and the state that it would set."""

    def __init__(self, path: str, args: tuple[Any, ...]) -> None:
        self.path = path
        self.args = args
        self.state: Any = None


class Array(msgspec.Struct, frozen=True, kw_only=True):
    """An array in a pickle; its bytes are at a place in the file, or, if they are few, here."""

    path: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    data: bytes | _Place

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
            root = _Machine(file).run()
        return {name: _array(path, value) for name, value in _dictionary(root).items()}
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror})") from error
    except _Broken as error:
        raise InputError(f"{path}: not read: {error}") from error
    # what a damaged pickle leads to: ends too early, an empty stack, a key that is none
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


class _Machine:
    """Follows the opcodes of the pickle in a .npy file. Raises _Broken for one that does more than hold data."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._do = self._actions()

    def run(self) -> Any:
        """What the pickle stands for."""
        version = _npy.read_magic(self._file)
        read_header = _npy.read_array_header_1_0 if version == (1, 0) else _npy.read_array_header_2_0
        _, _, dtype = read_header(self._file)
        if dtype.kind != "O":
            raise _Broken(f"an array of {dtype}, not a dictionary of arrays")
        for opcode, arg, _ in pickletools.genops(self._file):
            if opcode.name == "STOP":
                break
            if opcode.name not in self._do:
                raise _Broken(f"its pickle has {opcode.name}, which no array needs")
            self._do[opcode.name](arg)
        return self._stack.pop()

    def _actions(self) -> Mapping[str, Callable[[Any], None]]:
        push, memo = self._stack.append, self._memo
        numbers = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
        texts = ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
        data = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
        return {
            **dict.fromkeys(numbers + texts, push),
            **dict.fromkeys(data, self._bytes),
            **dict.fromkeys(("PROTO", "FRAME"), lambda _: None),
            "NONE": push,
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_DICT": lambda _: push({}),
            "MARK": lambda _: self._marks.append(len(self._stack)),
            "TUPLE": lambda _: push(tuple(self._since_mark())),
            "TUPLE1": lambda _: push(tuple(self._pop(1))),
            "TUPLE2": lambda _: push(tuple(self._pop(2))),
            "TUPLE3": lambda _: push(tuple(self._pop(3))),
            "APPEND": lambda _: self._append(self._pop(1)),
            "APPENDS": lambda _: self._append(self._since_mark()),
            "SETITEM": lambda _: self._set(self._pop(2)),
            "SETITEMS": lambda _: self._set(self._since_mark()),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda at: memo.__setitem__(at, self._stack[-1])),
            "MEMOIZE": lambda _: memo.__setitem__(len(memo), self._stack[-1]),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda at: push(memo[at])),
            "GLOBAL": lambda name: self._name(*name.split(" ")),
            "STACK_GLOBAL": lambda _: self._name(*self._pop(2)),
            "REDUCE": lambda _: self._reduce(*self._pop(2)),
            "BUILD": lambda _: self._build(self._pop(1)[0]),
        }

    def _pop(self, num: int) -> list[Any]:
        found = self._stack[-num:]
        if len(found) < num:
            raise _Broken("its pickle is damaged")
        del self._stack[-num:]
        return found

    def _since_mark(self) -> list[Any]:
        at = self._marks.pop()
        found = self._stack[at:]
        del self._stack[at:]
        return found

    def _bytes(self, value: bytes) -> None:
        """Few bytes as they are, many as their place: they end where the file has been read to."""
        data = bytes(value)
        self._stack.append(data if len(data) <= _HELD_BYTES else _Place(self._file.tell() - len(data), len(data)))

    def _append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise _Broken("its pickle is damaged")
        self._stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise _Broken("its pickle is damaged")
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _name(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        if path not in _KNOWN:
            hint = "; save its tensors as arrays, tensor.numpy()" if module.startswith("torch") else ""
            raise _Broken(f"its pickle names {path}, which is nothing that arrays are made of{hint}")
        self._stack.append(_Name(path))

    def _reduce(self, called: Any, args: Any) -> None:
        if not (isinstance(called, _Name) and isinstance(args, tuple)):
            raise _Broken("its pickle is damaged")
        if called.path == _LATIN:  # how pickles of protocol 2 hold bytes
            text, encoding = args
            if encoding != "latin1":
                raise _Broken(f"its pickle has bytes as {encoding!r}")
            self._stack.append(text.encode("latin1"))
        else:
            self._stack.append(_Made(called.path, args))

    def _build(self, state: Any) -> None:
        if not isinstance(self._stack[-1], _Made):
            raise _Broken("its pickle is damaged")
        self._stack[-1].state = state


def _dictionary(root: Any) -> dict[str, Any]:
    """The dictionary in an array of objects without dimensions."""
    if not (isinstance(root, _Made) and root.path in _ARRAY and len(root.state) == 5):
        raise _Broken("its pickle holds no dictionary")
    held = root.state[4]
    if not (isinstance(held, list) and len(held) == 1 and isinstance(held[0], dict)):
        raise _Broken("its pickle holds no dictionary")
    if not all(isinstance(name, str) for name in held[0]):
        raise _Broken("not all names in its dictionary are texts")
    return held[0]


def _array(path: Path, value: Any) -> Array:
    """What stands for an array, or is a number."""
    if isinstance(value, int | float):
        return Array(path=path, dtype=np.dtype("<f8"), shape=(), fortran=False, data=np.float64(value).tobytes())
    if not isinstance(value, _Made):
        raise _Broken("a value in its dictionary is no array")
    if value.path in _ARRAY:
        _, shape, dtype, fortran, data = value.state
    elif value.path in _SCALAR:
        (dtype, data), shape, fortran = value.args, (), False
    elif value.path in _BUFFER:
        data, dtype, shape, order = value.args
        fortran = order == "F"
    else:
        raise _Broken("a value in its dictionary is no array")
    found = _dtype(dtype)
    if not (isinstance(shape, tuple) and all(isinstance(length, int) and length >= 0 for length in shape)):
        raise _Broken("an array in its dictionary has no shape")
    num_bytes = data.num_bytes if isinstance(data, _Place) else len(data)
    if not isinstance(data, bytes | _Place) or num_bytes != math.prod(shape) * found.itemsize:
        raise _Broken(f"{num_bytes} bytes do not hold an array of {list(shape)} of {found}")
    return Array(path=path, dtype=found, shape=shape, fortran=bool(fortran), data=data)


def _dtype(made: Any) -> np.dtype[Any]:
    """The dtype that a pickle describes: a number of so many bytes, and their order."""
    if not (isinstance(made, _Made) and made.path == _DTYPE and isinstance(made.args[0], str)):
        raise _Broken("an array in its dictionary has no dtype")
    code = made.args[0]
    order = made.state[1] if made.state is not None else "="
    if not _CODE.fullmatch(code) or order not in ("<", ">", "|", "="):
        raise _Broken(f"an array in its dictionary is of {code!r}, which are no numbers")
    return np.dtype(order + code)
