"""A chain of hashes over the files of a folder: who changes one of them afterwards cannot hide where.

Link n is sha256(link n-1 | file name | number of the piece | piece); the pieces of JSON and text files are their lines,
those of all others blocks of 1 MiB. `chain.json` has the first 64 bits of every link, by which the first piece that
does not fit is found, and all 256 of the last one, the head. Whoever can write the folder can write another chain as
well: the head has to be known from elsewhere, as from the screen of the run.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from llmbench.errors import InputError

FILE = "chain.json"
_BY_LINE = (".json", ".jsonl", ".txt", ".csv")
_BLOCK_BYTES = 1 << 20
_SHOWN = 16  # hex digits of a link


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the chain and its links, one for each piece; a file without a piece has one for its name."""

    file: str
    links: list[str]


class Chain(msgspec.Struct, frozen=True, kw_only=True):
    """What `chain.json` holds. `head` is the last link."""

    kind: str = "llmbench chain 1"
    head: str
    parts: list[Part]

    @property
    def num_links(self) -> int:
        return sum(len(part.links) for part in self.parts)


class Break(msgspec.Struct, frozen=True, kw_only=True):
    """The first place where a folder is not what its chain says; `piece` counts lines or blocks from 1, 0 is none."""

    file: str
    piece: int = 0
    why: str

    def __str__(self) -> str:
        unit = "line" if _by_line(self.file) else "MiB"
        return f"{self.file}{f', {unit} {self.piece}' if self.piece else ''}: {self.why}"


def seal(folder: Path, files: Sequence[str]) -> Chain:
    """Write the chain over these files of a folder, named by their path in it, in this order. Raises InputError."""
    parts, link = [], b""
    for file in files:
        links = []
        try:
            for after in _links(link, folder, file):
                link = after
                links.append(link.hex()[:_SHOWN])
        except OSError as error:
            raise InputError(f"{folder / file}: cannot be sealed ({error.strerror})") from error
        parts.append(Part(file=file, links=links))
    chain = Chain(head=link.hex(), parts=parts)
    aside = folder / f".{FILE}.part"
    aside.write_bytes(msgspec.json.encode(chain) + b"\n")
    os.replace(aside, folder / FILE)
    return chain


def read(folder: Path) -> Chain | None:
    """The chain of a folder; None without one. Raises InputError when it is something else."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Chain)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"{folder / FILE}: not a chain of llmbench ({error})") from error


def verify(folder: Path, chain: Chain, files: Sequence[str]) -> Break | None:
    """The first place where the folder is not what the chain says; None when all of it is.

    `files` are those that there are now: one that the chain does not know was added.
    """
    link = b""
    for part in chain.parts:
        number = 0
        try:
            for number, after in enumerate(_links(link, folder, part.file), 1):
                link = after
                if number > len(part.links):
                    return Break(file=part.file, piece=number, why="was added after it was sealed")
                if link.hex()[:_SHOWN] != part.links[number - 1]:
                    return Break(file=part.file, piece=number, why="is not what was sealed")
        except OSError as error:
            return Break(file=part.file, why=f"was sealed and cannot be read ({error.strerror})")
        if number < len(part.links):
            return Break(file=part.file, piece=number + 1, why="was sealed and is missing")
    if link.hex() != chain.head:
        return Break(file=FILE, why=f"its head {chain.head[:_SHOWN]} is not that of its links")
    known = {part.file for part in chain.parts}
    added = next((file for file in files if file not in known), None)
    return None if added is None else Break(file=added, why="was added after the run was sealed")


def _links(link: bytes, folder: Path, file: str) -> Iterator[bytes]:
    """The links of a file's pieces, from the one before it on."""
    with (folder / file).open("rb") as opened:
        pieces = iter(opened) if _by_line(file) else iter(lambda: opened.read(_BLOCK_BYTES), b"")
        number = 0
        for number, piece in enumerate(pieces, 1):
            link = _link(link, file, number, piece)
            yield link
    if number == 0:
        yield _link(link, file, 0, b"")


def _link(before: bytes, file: str, number: int, piece: bytes) -> bytes:
    return hashlib.sha256(b"%b\n%b\n%d\n%b" % (before, file.encode(), number, piece)).digest()


def _by_line(file: str) -> bool:
    return file.endswith(_BY_LINE)
