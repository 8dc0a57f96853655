"""Folders of quantised weights whose matrices are compressed, and those folders again: file by file, bit by bit.

A folder is whole, or has the folders of ranks that `weights shard` cuts, or MindIE's part0-of-2 …; other folders in
it, such as anti_weight, are left out. In each safetensors file the int8 matrices that the description calls W8A8S
become `NAME.weight`, `NAME.index`, `NAME.info` (tiles); all else lies there as it did, other files are copied.
`compression.json` has the sha256 of every file, as it is now and as it was, and one of itself, so that a folder of
which a bit is not as it was written is refused.
"""

import fnmatch
import hashlib
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import msgspec
import numpy as np

from llmbench import config as settings
from llmbench.errors import InputError
from llmbench.weights import cann, convert, files, guide, quantised, tiles
from llmbench.weights.convert import Meter, Progress, new_folder
from llmbench.weights.files import Entry
from llmbench.weights.quantised import Description
from llmbench.weights.sources import COMPRESSED
from llmbench.weights.tiles import Int8, Triple

FORMAT = "llmbench-compression-1"
WEIGHTS = "quant_model_weight_w8a8sc.safetensors"
DESCRIPTION = "quant_model_description_w8a8sc.json"
Codec = Literal["llmbench", "cann"]

_NOTES: dict[Codec, str] = {
    "llmbench": "llmbench's own codec: `llmbench weights decompress` reads it, an Atlas 300I (310P) does not",
    "cann": "CANN's codec: for an Atlas 300I Duo (310P); nothing else reads it",
}
_HEADER = "header"  # in __metadata__: that of the file as it was
_RANK = re.compile(r"rank_(\d+)|part(\d+)-of-\d+")


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be compressed, and how.

    `disabled` are patterns of linears whose blocks are left as they are; `kinds` are those that the description has.
    `pseudo_sparse` keeps that share of the values and makes the others zero, to see what a codec makes of them.
    """

    kinds: tuple[str, ...] = ("W8A8S",)
    disabled: tuple[str, ...] = ()
    pseudo_sparse: float | None = None
    seed: int = 0
    as_parts: bool = False
    """Folders of ranks become part0-of-2 …, as MindIE calls them."""
    cann: Path | None = None


class Linear(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A matrix [n, k] of int8: the share of its zeros, and its bytes now, index and info among them."""

    shape: tuple[int, int]
    zeros: float
    num_bytes: int
    disabled: bool

    @property
    def num_bytes_before(self) -> int:
        """One for each value."""
        return self.shape[0] * self.shape[1]


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file's sha256; and what it was made of, path and sha256, None for what was not there before."""

    sha256: str
    path_before: str | None
    sha256_before: str | None
    linears: dict[str, Linear] = {}


class Compression(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`compression.json`: all files of the folder but itself; `sha256` is of itself, written with an empty one."""

    format: str
    codec: Codec
    note: str
    pseudo_sparse: float | None
    seed: int
    left_out: list[str]
    """Folders that are none of ranks, such as anti_weight."""
    files: dict[str, File]
    sha256: str = ""

    @property
    def linears(self) -> dict[str, Linear]:
        """Those of all files, by folder and name where there are several folders."""
        folders = {PurePosixPath(path).parent for path, file in self.files.items() if file.linears}
        return {
            name if len(folders) == 1 else f"{PurePosixPath(path).parent}/{name}": linear
            for path, file in self.files.items()
            for name, linear in file.linears.items()
        }


def compress(folder: Path, out: Path, wanted: Wanted, progress: Progress) -> Compression:
    """Write a folder anew with its matrices compressed. Raises InputError, and then leaves nothing behind."""
    chosen = _chosen(folder, wanted)
    homes = [folder, *_parts(folder)]
    paths = [path for home in homes for path in sorted(home.iterdir()) if path.is_file()]
    meter = Meter(progress, sum(entry.num_bytes for linears in chosen.values() for entry in linears.values()))
    written: dict[str, File] = {}
    # a compressed file is put together from what is compressed already
    with new_folder(out, 2 * sum(path.stat().st_size for path in paths)) as aside:
        num_parts = len({path.parent for path in chosen})
        for path in paths:
            there = _renamed(path, folder, wanted, num_parts)
            if path not in chosen:
                written[str(there)] = _copied(path, aside / there, str(path.relative_to(folder)))
                continue
            there = there.with_name(WEIGHTS) if len(list(path.parent.glob("*.safetensors"))) == 1 else there
            written[str(there)] = _compressed(path, chosen[path], aside / there, folder, wanted, meter)
        for parent in {PurePosixPath(name).parent: None for name, file in written.items() if file.linears}:
            written |= _described(aside, parent, written, wanted)
        codec: Codec = "llmbench" if wanted.cann is None else "cann"
        found = Compression(
            format=FORMAT,
            codec=codec,
            note=_NOTES[codec],
            pseudo_sparse=wanted.pseudo_sparse,
            seed=wanted.seed,
            left_out=[path.name for path in sorted(folder.iterdir()) if path.is_dir() and path not in homes],
            files=written,
        )
        found = msgspec.structs.replace(found, sha256=_digest(found))
        (aside / COMPRESSED).write_bytes(_text(found))
    return found


def decompress(folder: Path, out: Path, progress: Progress) -> Compression:
    """Write the folder that was compressed. Raises InputError, and then leaves nothing behind."""
    found = read(folder)
    if found.codec == "cann":
        raise InputError(
            f"{folder}: compressed by CANN's tool, whose stream only a 310P unzips; keep the model it is of"
        )
    meter = Meter(progress, sum(linear.num_bytes_before for linear in found.linears.values()))
    with new_folder(out, 2 * (meter.total + sum((folder / name).stat().st_size for name in found.files))) as aside:
        for name, file in found.files.items():
            if file.path_before is None:
                continue
            target = aside / file.path_before
            target.parent.mkdir(parents=True, exist_ok=True)
            if not file.linears:
                shutil.copyfile(folder / name, target)
                continue
            digest = _decompressed(folder / name, file, target, meter)
            if digest != file.sha256_before:
                raise InputError(
                    f"{folder / name}: what comes out is not what was compressed; compress the model again"
                )
    return found


def read(folder: Path) -> Compression:
    """The `compression.json` of a folder, held against itself and every file. Raises InputError."""
    path = folder / COMPRESSED
    if not path.is_file():
        raise InputError(f"{folder}: no {COMPRESSED} in it; `llmbench weights compress` writes such folders")
    found = settings.build(settings.read(path), Compression, str(path))
    if found.format != FORMAT:
        raise InputError(f"{path}: format: {found.format!r} is not {FORMAT!r}")
    if path.read_bytes() != _text(found) or found.sha256 != _digest(found):
        raise InputError(f"{path}: changed since it was written; compress the model again")
    if wrong := [file.path_before for file in found.files.values() if _outside(file.path_before or "")]:
        raise InputError(f"{path}: files: {wrong[0]} is outside of this folder")
    files.check(folder, {name: file.sha256 for name, file in found.files.items()}, COMPRESSED)
    return found


# -- what is compressed -----------------------------------------------------------------------------------------------


def _chosen(folder: Path, wanted: Wanted) -> dict[Path, dict[str, Entry]]:
    """The matrices of each file that are to be compressed, with the name of their linear. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    if (folder / COMPRESSED).exists():
        raise InputError(f"{folder}: compressed already; `llmbench weights decompress` writes the folder it was")
    found = {}
    for path in (path for home in (folder, *_parts(folder)) for path in sorted(home.glob("*.safetensors"))):
        kinds = _description(path.parent, folder).kinds
        linears = {
            name.removesuffix(".weight"): entry
            for name, entry in files.read_header(path).items()
            if name.endswith(".weight") and kinds.get(name.removesuffix(".weight")) in wanted.kinds
        }
        for name, entry in linears.items():
            if entry.dtype != "I8" or len(entry.shape) != 2 or not entry.num_bytes:
                raise InputError(
                    f"{path}: {name}.weight: {entry.dtype} {list(entry.shape)}, but its description says"
                    f" {kinds[name]}, a matrix of I8"
                )
        if linears:
            found[path] = linears
    if not found and guide.is_there(folder):
        raise InputError(
            f"{folder}: the dictionaries of the ATB guide; `llmbench weights convert {folder} OUT --to hf` writes"
            " safetensors, which can be compressed (with --all: dictionaries do not tell W8A8S from W8A8)"
        )
    if not found:
        raise InputError(
            f"{folder}: nothing to compress: no linear of {' or '.join(wanted.kinds)} in any description of it"
            " (llmbench quantize --sparse makes W8A8S; --all compresses W8A8, too)"
        )
    names = {name for linears in found.values() for name in linears}
    for pattern in wanted.disabled:
        if not fnmatch.filter(names, pattern):
            raise InputError(f"--disable-layers {pattern}: no linear of that name; such as {min(names)}, or a pattern")
    return found


def _parts(folder: Path) -> list[Path]:
    """The folders of ranks in a folder; others, such as anti_weight, are no part of the weights."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and _RANK.fullmatch(path.name)]


def _description(parent: Path, folder: Path) -> Description:
    """What the linears of a folder are, by the description in it, or by that of the whole model. Raises ConfigError."""
    homes = dict.fromkeys((parent, folder))
    found = (quantised.read_description(home) for home in homes)
    return next((one for one in found if one is not None), Description({}, None))


def _renamed(path: Path, folder: Path, wanted: Wanted, num_parts: int) -> PurePosixPath:
    """Where a file goes: the folders of ranks may get another name."""
    there = PurePosixPath(path.relative_to(folder))
    rank = re.fullmatch(r"rank_(\d+)", there.parts[0])
    if wanted.as_parts and rank and len(there.parts) > 1:
        return PurePosixPath(f"part{rank[1]}-of-{num_parts}", *there.parts[1:])
    return there


# -- files ------------------------------------------------------------------------------------------------------------


def _compressed(
    path: Path, chosen: Mapping[str, Entry], target: Path, folder: Path, wanted: Wanted, meter: Meter
) -> File:
    """A file whose chosen matrices are triples."""
    target.parent.mkdir(parents=True, exist_ok=True)
    entries = files.read_header(path)
    before, header = hashlib.sha256(), files.header_text(path)
    if 8 + len(header) + sum(entry.num_bytes for entry in entries.values()) != path.stat().st_size:
        raise InputError(
            f"{path}: it has bytes that are of no tensor; write it anew, as with `llmbench weights convert`"
        )
    before.update(len(header).to_bytes(8, "little") + header)
    linears: dict[str, Linear] = {}
    placed: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, Path(scratch, "streams").open("wb+") as streams:
        for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
            if entry.dtype not in files.DTYPES:
                raise InputError(f"{path}: {name}: stored as {entry.dtype}; known: {', '.join(files.DTYPES)}")
            linear = name.removesuffix(".weight")
            if name == linear or linear not in chosen:
                placed[name] = entry
                for chunk in files.contents(entry):
                    before.update(chunk)
                continue
            meter.begin(linear, entry.num_bytes)
            weight = _matrix(entry, linear, wanted)
            before.update(weight.tobytes())
            disabled = any(fnmatch.fnmatchcase(linear, pattern) for pattern in wanted.disabled)
            triple = _triple(weight, linear, wanted, disabled)
            placed |= _put(streams, triple, linear)
            zeros = 1 - int(np.count_nonzero(weight)) / weight.size  # NumPy 2 counts in its own integers
            linears[linear] = Linear(
                shape=(entry.shape[0], entry.shape[1]), zeros=zeros, num_bytes=triple.num_bytes, disabled=disabled
            )
        streams.flush()
        text = {"llmbench": _NOTES["cann" if wanted.cann else "llmbench"], _HEADER: header.decode()}
        digest = _written(target, placed, text)
    return File(
        sha256=digest,
        path_before=str(path.relative_to(folder)),
        sha256_before=before.hexdigest(),
        linears=linears,
    )


def _matrix(entry: Entry, name: str, wanted: Wanted) -> Int8:
    """int8 [n, k] as it lies in a file; where that is wanted, with zeros drawn by the seed and the name."""
    weight = np.fromfile(entry.path, np.int8, entry.num_bytes, offset=entry.offset).reshape(entry.shape)
    if wanted.pseudo_sparse is None:
        return weight
    rng = np.random.default_rng([wanted.seed, zlib.crc32(name.encode())])
    kept: Int8 = weight * (rng.random(weight.shape, np.float32) < wanted.pseudo_sparse)
    return kept


def _triple(weight: Int8, name: str, wanted: Wanted, disabled: bool) -> Triple:
    if wanted.cann is None:
        return tiles.plain(weight) if disabled else tiles.pack(weight)
    return cann.plain(weight) if disabled else cann.pack(wanted.cann, weight, name)


def _put(streams: BinaryIO, triple: Triple, name: str) -> dict[str, Entry]:
    """Keep a triple, and where its parts lie."""
    found = {}
    for part, values, dtype in (
        ("weight", triple.weight, "I8"),
        ("index", triple.index, "I8"),
        ("info", triple.info.astype("<i8"), "I64"),
    ):
        at = streams.tell()
        streams.write(values.tobytes())
        found[f"{name}.{part}"] = Entry(
            path=Path(streams.name), dtype=dtype, shape=values.shape, offset=at, num_bytes=values.nbytes
        )
    return found


def _decompressed(path: Path, file: File, target: Path, meter: Meter) -> str:
    """Write a file as it was; its sha256. Raises InputError for a stream that is damaged."""
    entries = files.read_header(path)
    header = str(json.loads(files.header_text(path))["__metadata__"][_HEADER]).encode()
    before = json.loads(header)
    before.pop("__metadata__", None)

    def pieces() -> Iterator[bytes]:
        yield len(header).to_bytes(8, "little") + header
        for name in sorted(before, key=lambda name: tuple(before[name]["data_offsets"])):
            linear = name.removesuffix(".weight")
            if name == linear or linear not in file.linears:
                yield from files.contents(entries[name])
                continue
            meter.begin(linear, file.linears[linear].num_bytes_before)
            weight, index, info = (_array(entries[f"{linear}.{part}"]) for part in ("weight", "index", "info"))
            yield tiles.unpack(Triple(weight, index, info.view("<i8")), f"{path}: {linear}").tobytes()

    return convert.write(target, pieces())


def _copied(path: Path, target: Path, before: str) -> File:
    """A file as it is."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    digest = files.sha256(target)
    return File(sha256=digest, path_before=before, sha256_before=digest)


def _described(aside: Path, parent: PurePosixPath, written: Mapping[str, File], wanted: Wanted) -> dict[str, File]:
    """The description of a folder with compressed weights, as vllm-mindspore reads it: kinds, and lengths by rank."""
    kinds, kv_cache = _description(aside / parent, aside)
    found: dict[str, Any] = {}
    lengths: dict[str, list[int]] = {}
    for name, file in written.items():
        if PurePosixPath(name).parent != parent or not file.linears:
            continue
        entries = files.read_header(aside / name)
        found |= quantised.describe(list(entries), kinds, kv_cache)
        for linear in file.linears:
            found |= {f"{linear}.{part}": "W8A8SC" for part in ("weight", "index", "info")}
            lengths |= {
                f"{linear}.{part}.shape": list(entries[f"{linear}.{part}"].shape) for part in ("weight", "index")
            }
    rank = _RANK.fullmatch(parent.name)
    number = "0" if rank is None else rank[1] or rank[2]
    found |= {"model_quant_type": "W8A8SC", "codec": _NOTES["cann" if wanted.cann else "llmbench"]}
    found[f"rank_{number}"] = lengths
    there = parent / DESCRIPTION
    (aside / there).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return {str(there): File(sha256=files.sha256(aside / there), path_before=None, sha256_before=None)}


# -- bytes ------------------------------------------------------------------------------------------------------------


def _written(target: Path, placed: Mapping[str, Entry], metadata: Mapping[str, str]) -> str:
    """A safetensors file of parts that lie in other files; its sha256."""
    head, starts = files.head(
        {name: (files.DTYPES[one.dtype], one.shape) for name, one in placed.items()}, "pt", **metadata
    )
    return convert.write(target, chain([head], *(files.contents(placed[name]) for name in starts)))


def _array(entry: Entry) -> Int8:
    return np.frombuffer(b"".join(files.contents(entry)), np.int8)


def _text(found: Compression) -> bytes:
    """`compression.json`; there is one way to write it."""
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _digest(found: Compression) -> str:
    return hashlib.sha256(_text(msgspec.structs.replace(found, sha256=""))).hexdigest()


def _outside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts
