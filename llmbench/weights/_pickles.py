"""Pickles followed without being run: what one would call stays a name with its arguments.

Loading a pickle imports and calls what it names. The machine here follows the opcodes with lists, tuples, dictionaries,
numbers, texts and bytes alone; a name is let through when it is among those that are expected, and nothing is called.
"""

import pickletools
from collections.abc import Callable, Collection, Mapping
from typing import IO, Any, NamedTuple

_HELD_BYTES = 256  # longer ones stay in the file
_LATIN = "_codecs.encode"  # how pickles of protocol 2 hold bytes


class Broken(Exception):
    """What is there is not what was expected; the text says what it is instead."""


class Place(NamedTuple):
    """Bytes that are left in the file."""

    offset: int
    num_bytes: int


class Name(NamedTuple):
    """What a pickle would import."""

    path: str


class Made:
    """What a pickle would make by a call, and the state that it would set."""

    def __init__(self, path: str, args: tuple[Any, ...]) -> None:
        self.path = path
        self.args = args
        self.state: Any = None


class Stored(NamedTuple):
    """What a pickle says is elsewhere, by how it is called there."""

    key: Any


def follow(file: IO[bytes], names: Collection[str]) -> Any:
    """What the pickle at this place of a file stands for, and the file behind it.

    Raises Broken for one that names something else than `names`, and all kinds of errors for one that is damaged.
    """
    return _Machine(file, names).run()


class _Machine:
    """One run over the opcodes of a pickle."""

    def __init__(self, file: IO[bytes], names: Collection[str]) -> None:
        self._file = file
        self._names = names
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        do = self.actions()
        for opcode, arg, _ in pickletools.genops(self._file):
            if opcode.name == "STOP":
                break
            if opcode.name not in do:
                raise Broken(f"its pickle has {opcode.name}, which no array needs")
            do[opcode.name](arg)
        return self._pop(1)[0]

    def actions(self) -> Mapping[str, Callable[[Any], None]]:
        """What to do at each opcode that is known."""
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
            "BINPERSID": lambda _: push(Stored(self._pop(1)[0])),
        }

    def _pop(self, num: int) -> list[Any]:
        found = self._stack[-num:]
        if len(found) < num:
            raise Broken("its pickle is damaged")
        del self._stack[-num:]
        return found

    def _since_mark(self) -> list[Any]:
        at = self._marks.pop()
        found = self._stack[at:]
        del self._stack[at:]
        return found

    def _bytes(self, value: bytes) -> None:
        """Few bytes as they are, many as their place: they end where the file has been read to."""
        held = len(value) <= _HELD_BYTES
        self._stack.append(bytes(value) if held else Place(self._file.tell() - len(value), len(value)))

    def _append(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise Broken("its pickle is damaged")
        self._stack[-1].extend(values)

    def _set(self, values: list[Any]) -> None:
        if not isinstance(self._stack[-1], dict):
            raise Broken("its pickle is damaged")
        self._stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _name(self, module: str, name: str) -> None:
        path = f"{module}.{name}"
        if path != _LATIN and path not in self._names:
            raise Broken(f"its pickle names {path}, which is nothing that arrays are made of")
        self._stack.append(Name(path))

    def _reduce(self, called: Any, args: Any) -> None:
        if not (isinstance(called, Name) and isinstance(args, tuple)):
            raise Broken("its pickle is damaged")
        if called.path != _LATIN:
            self._stack.append(Made(called.path, args))
            return
        text, encoding = args
        if encoding != "latin1":
            raise Broken(f"its pickle has bytes as {encoding!r}")
        self._stack.append(text.encode("latin1"))

    def _build(self, state: Any) -> None:
        if not isinstance(self._stack[-1], Made):
            raise Broken("its pickle is damaged")
        self._stack[-1].state = state
