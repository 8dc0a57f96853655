"""The files of a run that grow while it goes: `items.jsonl`, one line per marked item, and the reference's `cache.csv`.

Both are only appended to, a line with one write, so that a killed run loses no more than what was under way. A line's
`key` is of the model, the protocol and what was asked: a run that is taken up again keeps the lines whose keys are
its own, so that nothing that another model, another protocol or other questions gave is ever mixed in.
"""

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from llmbench import jsonlines
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.evals import Ask, Item, Marked

ITEMS, CACHE = "items.jsonl", "cache.csv"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of `items.jsonl`: what was asked of whom."""

    kind: Literal["llmbench eval 1"] = "llmbench eval 1"
    protocol: dict[str, Any]
    model: str
    fingerprint: str
    """sha256 of the weights, or of what the server says that it serves."""
    via: str
    """How: `http DIALECT` or `in process`."""
    data: str
    num_items: int
    """How many were planned."""


class Journal:
    """Appends marked items to a folder, each as soon as it is marked; cache.csv in the order of the items.

    With `resume` a folder that was begun before goes on: `done` has the items that need not be asked again. Raises
    InputError when the files cannot be written, InvalidMeasurement when the folder is of another model or protocol.
    """

    def __init__(self, folder: Path, header: Header, items: Sequence[Item], *, resume: bool = False) -> None:
        self._path = folder / ITEMS
        self._keys = {key_of(header, item): number for number, item in enumerate(items)}
        self.done = self._taken_up(header) if resume else {}
        self._items = jsonlines.Appended(self._path, header, "the answers")
        try:
            self._cache = (folder / CACHE).open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"{folder / CACHE}: cannot write ({error.strerror})") from error
        self._next = 0  # of cache.csv
        self._waiting = dict(self.done)
        self._drain()

    def append(self, marked: Marked) -> None:
        """Keep one marked item."""
        self._items.append(marked)
        self.done[marked.number] = marked
        self._waiting[marked.number] = marked
        self._drain()

    def close(self) -> None:
        """Write to cache.csv what stands behind a gap, too, and close."""
        for number in sorted(self._waiting):
            self._cache.write(cache_line(self._waiting[number]))
        self._items.close()
        self._cache.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _taken_up(self, header: Header) -> dict[int, Marked]:
        """The lines of a run that was begun with these keys."""
        if not jsonlines.begun(self._path):  # killed before its first line was whole
            return {}
        found, lines = read(self._path)
        for name in ("fingerprint", "protocol", "via", "num_items"):
            was, now = getattr(found, name), getattr(header, name)
            if was != now:
                raise InvalidMeasurement(f"{self._path}: begun with {name} {was}, not with {now}; leave --resume out")
        own = {line.key: line for line in lines if line.key in self._keys}
        return {self._keys[key]: msgspec.structs.replace(line, number=self._keys[key]) for key, line in own.items()}

    def _drain(self) -> None:
        while self._next in self._waiting:
            self._cache.write(cache_line(self._waiting.pop(self._next)))
            self._next += 1


def read(path: Path) -> tuple[Header, list[Marked]]:
    """What `items.jsonl` holds, of each item its last line; a torn last line is left out. Raises InputError."""
    header, lines = jsonlines.read(path, Header, Marked, "an eval's journal", what="answers")
    return header, list({marked.id: marked for marked in lines}.values())


def key_of(header: Header, item: Item) -> str:
    """sha256 of the model's fingerprint, the protocol and all that is asked for an item."""
    told = (header.fingerprint, sorted(header.protocol.items()), item.id, item.truth, item.notes, item.asks)
    return hashlib.sha256(msgspec.json.encode(told, order="deterministic")).hexdigest()


def prompt_sha256(asks: Sequence[Ask]) -> str:
    """sha256 of what is asked for an item."""
    return hashlib.sha256(msgspec.json.encode(asks)).hexdigest()


def cache_line(marked: Marked) -> bytes:
    """`{question id},{task},{truth},{predict}`, as the reference's cache.csv."""
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([marked.number, marked.group, marked.truth, marked.predicted])
    return line.getvalue().encode()
