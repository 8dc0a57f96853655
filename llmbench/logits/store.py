"""The store of captured logit rows: a folder that an agent appends to, whole up to its last whole row at every moment.

    manifest.json               what the rows are of; written once
    policy.json                 which rows are taken, see `policy`
    part-0000.requests.jsonl    a line for each request: its number in this part, its id, its prompt
    part-0000.index             INDEX records, one for each row: request, step, batch, statistics, where its values are
    part-0000.{f32,f16,bf16,top}  the values, rows of one size behind each other, nothing between them

A part belongs to one agent process; one that is started again opens the next part. Nothing that was written is ever
written again. Values are written first and their index record after them, with a CRC of its own, so that a record that
is whole stands for values that are whole. docs/files.md has the format.
"""

import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import clock
from llmbench.errors import InputError
from llmbench.logits import digest, halves

FORMAT = "llmbench-logits-1"
MANIFEST = "manifest.json"
ROWS = "rows"  # the store in the folder of a run
K, NUM_TAIL = 64, 32

Tier = Literal["fp", "topk", "full16", "full32"]
TIERS: list[str] = list(get_args(Tier))
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

NO_VALUES, TOP, F16, BF16, F32 = range(5)  # kinds of values
_SUFFIX = {TOP: "top", F16: "f16", BF16: "bf16", F32: "f32"}
FULL_KINDS = (F16, BF16, F32)

_META = np.dtype(
    [
        ("request", "<u4"),  # its number in the part
        ("step", "<u4"),  # 0 gives the request's first token
        ("position", "<u4"),  # of the last input token in the sequence, from 0
        ("token", "<i4"),  # what was chosen from the row; -1 when that is not known
        ("batch", "<u4"),  # how many sequences the step had
        ("prefill", "u1"),
        ("forced", "u1"),  # the token was given, not chosen
        ("prefix", "<u8"),  # hash of all tokens before the row; 0 when it is not known
    ]
)
_WHERE = np.dtype([("kind", "u1"), ("spare", "u1"), ("row", "<u4"), ("token_logit", "<f4")])


def _joined(*parts: np.dtype[np.void]) -> np.dtype[np.void]:
    fields = [(name, part[name]) for part in parts for name in part.names or ()]
    return np.dtype([*fields, ("crc", "<u4")])


INDEX = _joined(_META, digest.STATISTICS, _WHERE)
"""92 bytes: what the row is, STATISTICS, which kind of values and the how-manieth row of their file, the chosen token's
logit, and the CRC-32 of what stands before it."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a store's rows are of. `fingerprint` is of the weights, `tokenizer` and `config` are hashes, "" if unknown.

    `dtype` is what the engine computes logits in, `quantisation` what of the model is of 8 bits, as weights.config has
    it. `decode` is "forced" when it was fed tokens that it had not chosen.
    `k` and `num_tail` are of tier `topk`; `tail_seed` decides which ids its sample of the rest takes.
    """

    format: str = FORMAT
    capture_id: str = ""
    created: str = ""
    model: str
    fingerprint: str
    tokenizer: str = ""
    config: str = ""
    engine: str
    engine_version: str = ""
    dtype: str
    quantisation: str = ""
    vocab_size: int
    decode: Literal["free", "forced"] = "free"
    tier: Tier = "topk"
    k: int = K
    num_tail: int = NUM_TAIL
    tail_seed: str = ""


_OWN = ("capture_id", "created")  # what is not the same when a capture goes on


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A request whose rows are in a part. `ids` are its whole prompt, `head` the first 20 of them, `prompt` their hash.

    Stores of earlier versions have no `ids`; () and 0 are for what is not known.
    """

    number: int
    id: str
    prompt_len: int
    head: tuple[int, ...] = ()
    prompt: int = 0
    ids: tuple[int, ...] = ()


def top_dtype(manifest: Manifest) -> np.dtype[np.void]:
    """A row of tier `topk`: ids and values of the k largest, in no order, and the values of the sampled rest."""
    ids = "<u2" if manifest.vocab_size <= 1 << 16 else "<u4"
    k = min(manifest.k, manifest.vocab_size)
    return np.dtype([("values", "<f4", (k,)), ("tail", "<f4", (manifest.num_tail,)), ("ids", ids, (k,))])


class Boiled(NamedTuple):
    """Rows of logits, float32 [n, V], and their gist; None where it is found quicker for more rows at once."""

    rows: Float32
    gist: digest.Gist | None


class Writer:
    """Appends rows to a store. Raises InputError when the folder holds a capture of something else.

    A `boiler` for its vocabulary may be given, see logits.quick; NumPy's is what there is else.
    """

    def __init__(self, folder: Path, manifest: Manifest, boiler: digest.Boiler | None = None) -> None:
        self.folder = folder
        self.manifest = _take_up(folder, manifest)
        self._tail_keys: dict[int, int] = {}
        self._boiler = boiler or digest.Room(manifest.vocab_size)
        self._top = top_dtype(manifest)
        self._k = self._top["ids"].shape[0] if manifest.tier == "topk" else 0
        number = len(_parts(folder))
        while True:
            try:
                self._index = _open(folder, number, "index")
                break
            except FileExistsError:  # another agent took this number a moment ago
                number += 1
        self._number = number
        self._requests = _open(folder, number, "requests.jsonl")
        self._num_requests = 0
        self._values: dict[int, IO[bytes]] = {}
        self._num_rows: dict[int, int] = {}

    def request(
        self, request_id: str, prompt_len: int, head: Sequence[int] = (), prompt: int = 0, ids: Sequence[int] = ()
    ) -> int:
        """Make a request known; gives the number that its rows carry."""
        number = self._num_requests
        self._num_requests += 1
        known = Request(
            number=number, id=request_id, prompt_len=prompt_len, head=tuple(head), prompt=prompt, ids=tuple(ids)
        )
        self._requests.write(msgspec.json.encode(known) + b"\n")
        self._tail_keys[number] = digest.request_key(self.manifest.tail_seed, request_id)
        return number

    def write(self, rows: Float32, records: Records) -> None:
        """Append rows float32 [n, V]; see `append`."""
        self.append([Boiled(rows, None)], records)

    def boil(self, rows: Float32) -> Boiled:
        """What `append` is to be given of rows float32 [n, V]; to be called when there is time."""
        return Boiled(rows, self._boiler.boil(rows, self._k) if self._boiler.at_once else None)

    def append(self, boiled: Sequence[Boiled], records: Records) -> None:
        """Append rows, n in all the pieces together, in one write of values and one of records.

        `records` INDEX [n] say what the rows are, from `request` to `prefix`; the other fields are set here.
        """
        pieces = [rows for rows, _ in boiled]
        if any(gist is None for _, gist in boiled):
            pieces = [_together(pieces)]
            gist = self._boiler.boil(pieces[0], self._k)
        else:
            gists = [gist for _, gist in boiled if gist is not None]
            gist = digest.Gist._make(_together(parts) for parts in zip(*gists, strict=True))
        for name in digest.STATISTICS.names or ():
            records[name] = gist.statistics[name]
        tokens = records["token"].astype(np.int64)
        values = _values_at(pieces, np.column_stack([np.maximum(tokens, 0), self._tail_ids(records)]))
        records["token_logit"] = np.where(tokens >= 0, values[:, 0], np.float32(np.nan))
        for kind, chosen, packed in self._packed(pieces, gist, values[:, 1:]):
            first = self._num_rows.get(kind, 0)
            count = len(packed)
            records["kind"][chosen] = kind
            records["row"][chosen] = np.arange(first, first + count)
            self._file(kind).write(np.ascontiguousarray(packed).data)
            self._num_rows[kind] = first + count
        _seal(records)
        self._index.write(records.tobytes())

    def close(self) -> None:
        """Close the files; calling it twice is fine."""
        for file in (self._index, self._requests, *self._values.values()):
            file.close()

    def _tail_ids(self, records: Records) -> Int64:
        """int64 [n, num_tail]: the ids that tier `topk` samples from these rows; none of other tiers."""
        if self.manifest.tier != "topk" or not self.manifest.num_tail:
            return np.zeros((len(records), 0), np.int64)
        keys = np.array([self._tail_keys[number] for number in records["request"].tolist()], np.uint64)
        return digest.tail_ids(keys, records["step"], self.manifest.vocab_size, self.manifest.num_tail)

    def _packed(
        self, pieces: Sequence[Float32], gist: digest.Gist, tail: Float32
    ) -> Iterator[tuple[int, npt.NDArray[np.bool_], npt.NDArray[Any]]]:
        """Kinds of values, which rows are of each, and what is written of them."""
        tier = self.manifest.tier
        everything = np.ones(len(tail), bool)
        if tier == "topk":
            packed = np.zeros(len(tail), self._top)
            packed["ids"], packed["values"], packed["tail"] = gist.ids, gist.values, tail
            yield TOP, everything, packed
        elif tier == "full32":
            yield F32, everything, _together(pieces)
        elif tier == "full16":
            rows = _together(pieces)
            bfloat = self.manifest.dtype == "bfloat16"
            bits, exact = halves.to_bfloat(rows) if bfloat else halves.to_half(rows)
            if exact.any():
                yield BF16 if bfloat else F16, exact, bits[exact]
            if not exact.all():
                yield F32, ~exact, rows[~exact]

    def _file(self, kind: int) -> IO[bytes]:
        if kind not in self._values:
            self._values[kind] = _open(self.folder, self._number, _SUFFIX[kind])
        return self._values[kind]


def _together(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts behind each other; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _values_at(pieces: Sequence[Float32], ids: Int64) -> Float32:
    """float32 [n, m]: the values at ids int64 [n, m] of n rows in pieces."""
    found, start = [], 0
    for rows in pieces:
        n, vocab_size = rows.shape
        places = ids[start : start + n] + np.arange(0, n * vocab_size, vocab_size)[:, None]
        found.append(rows.reshape(-1).take(places))
        start += n
    return _together(found)


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """What tier `topk` keeps of n rows: `ids` and `values` [n, k], `tail_ids` and `tail` [n, t]."""

    ids: Int64
    values: Float32
    tail_ids: Int64
    tail: Float32


class Pair:
    """As many rows of two captures: `base` and `new` float32 [n, V].

    Of rows of 16 bits, of a `kind`, there are only the `bits` at first, uint16 [n, V] each, all finite where the
    kind is F16. They become values when those are asked for, which is faster just before they are needed; until then
    `base` and `new` are only room for them.
    """

    def __init__(
        self,
        base: Float32,
        new: Float32,
        kind: int = F32,
        bits: tuple[halves.Bits16, halves.Bits16] | None = None,
    ) -> None:
        self.base, self.new, self.kind, self.bits = base, new, kind, bits

    def rows(self, which: slice) -> tuple[Float32, Float32]:
        """Some rows of both, whole."""
        found = self.base[which], self.new[which]
        if self.bits is not None:
            for bits, out in zip(self.bits, found, strict=True):
                _unpacker(self.kind, finite=True)(bits[which], out)
        return found

    def at(self, ids: Int64) -> tuple[Float32, Float32]:
        """The values of one id of each row, `ids` [n]: float32 [n] of both."""
        each = np.arange(len(ids))
        if self.bits is None:
            return self.base[each, ids], self.new[each, ids]
        found = np.empty(len(ids), np.float32), np.empty(len(ids), np.float32)
        for bits, out in zip(self.bits, found, strict=True):
            _unpacker(self.kind, finite=True)(bits[each, ids], out)
        return found


class Store:
    """A store as found, also while it is being written, or cut off by a crash.

    `table` INDEX [n]: the rows in the order of writing, `request` being a place in `requests`. `num_torn` counts
    records that are not whole or whose values are not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.requests: list[Request] = []
        self.num_torn = 0
        tables, parts = [], []
        self._files: dict[tuple[int, int], int] = {}
        for number in _parts(folder):
            table = self._read_part(number)
            tables.append(table)
            parts.append(np.full(len(table), number, np.int32))
        self.table: Records = np.concatenate(tables) if tables else np.zeros(0, INDEX)
        self._part = np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    def close(self) -> None:
        """Close the files; calling it twice is fine."""
        while self._files:
            os.close(self._files.popitem()[1])

    def find(self, request_id: str, step: int) -> Int64:
        """The numbers of the rows of a request's step: one, unless it was captured several times or not at all."""
        which = [i for i, request in enumerate(self.requests) if request.id == request_id]
        return np.flatnonzero(np.isin(self.table["request"], which) & (self.table["step"] == step))

    def read(self, numbers: Int64, out: Float32, room: halves.Bits16 | None = None) -> None:
        """The values of full rows into `out`, float32 [m, V]. `room` uint16 [m, V] spares an allocation.

        Raises InputError when a row is not of a full tier, or cannot be read.
        """
        at = 0
        for run in self._runs(numbers):
            kind = int(self.table["kind"][run[0]])
            into = out[at : at + len(run)]
            at += len(run)
            if kind == F32:
                self._fill(run, into)
            elif kind in (F16, BF16):
                bits = room[: len(run)] if room is not None else np.empty(into.shape, np.uint16)
                self._fill(run, bits)
                _unpacker(kind, finite=False)(bits, into)
            else:
                raise InputError(f"{self.folder}: tier {self.manifest.tier} does not hold whole rows")

    def read_pair(
        self,
        other: "Store",
        numbers: Int64,
        other_numbers: Int64,
        out: Float32,
        other_out: Float32,
        rooms: tuple[halves.Bits16, halves.Bits16],
    ) -> tuple[npt.NDArray[np.bool_], Pair]:
        """`read` of as many rows of two stores; which are equal bit by bit, bool [m], and the rows.

        Rows of which checksums differ are not equal; only the others are looked at. Until the pair is done with, `out`,
        `other_out` and `rooms` are to be left alone.
        """
        equal: npt.NDArray[np.bool_] = self.table["checksum"][numbers] == other.table["checksum"][other_numbers]
        kinds = self._kind_of_all(numbers), other._kind_of_all(other_numbers)
        if kinds[0] not in (F16, BF16) or kinds[0] != kinds[1]:
            self.read(numbers, out, rooms[0])
            other.read(other_numbers, other_out, rooms[1])
            if equal.any():
                equal &= (out.view(np.uint32) == other_out.view(np.uint32)).all(axis=1)
            return equal, Pair(out, other_out)
        bits = rooms[0][: len(numbers)], rooms[1][: len(numbers)]
        for store, which, room in ((self, numbers, bits[0]), (other, other_numbers, bits[1])):
            at = 0
            for run in store._runs(which):
                store._fill(run, room[at : at + len(run)])
                at += len(run)
        for i in np.flatnonzero(equal).tolist():
            equal[i] = np.array_equal(bits[0][i], bits[1][i])
        means = self.table["mean"][numbers], other.table["mean"][other_numbers]  # not finite where a value is not
        if kinds[0] == F16 and not np.isfinite(means).all():
            for each, wide in zip(bits, (out, other_out), strict=True):
                halves.from_half(each, wide)
            return equal, Pair(out, other_out)
        return equal, Pair(out, other_out, kinds[0], bits)

    def _kind_of_all(self, numbers: Int64) -> int | None:
        """The kind of values that all these rows have; None when there are several."""
        kinds = np.unique(self.table["kind"][numbers])
        return int(kinds[0]) if len(kinds) == 1 else None

    def top(self, numbers: Int64) -> Top:
        """The k largest values of rows and the sample of the rest; of full rows, they are taken now.

        Raises InputError for rows of tier `fp`.
        """
        layout = top_dtype(self.manifest)
        kinds = self.table["kind"][numbers]
        packed = np.zeros(len(numbers), layout)
        at = 0
        for run in self._runs(numbers):
            if kinds[at] != TOP:
                raise InputError(f"{self.folder}: tier {self.manifest.tier} keeps no largest values")
            self._fill(run, packed[at : at + len(run)])
            at += len(run)
        return Top(
            ids=packed["ids"].astype(np.int64),
            values=packed["values"],
            tail_ids=self.tail_ids(numbers, self.manifest.num_tail, self.manifest.tail_seed),
            tail=packed["tail"],
        )

    def tail_ids(self, numbers: Int64, num: int, seed: str) -> Int64:
        """int64 [m, num]: the ids that tier `topk` samples from these rows under a seed."""
        keys = {i: digest.request_key(seed, self.requests[i].id) for i in set(self.table["request"][numbers].tolist())}
        requests = np.array([keys[i] for i in self.table["request"][numbers].tolist()], np.uint64)
        return digest.tail_ids(requests, self.table["step"][numbers], self.vocab_size, num)

    def damaged(self) -> Int64:
        """The numbers of full rows whose values do not have the checksum of their record. Reads everything."""
        full = np.flatnonzero(np.isin(self.table["kind"], FULL_KINDS))
        row = np.empty((1, self.vocab_size), np.float32)
        bad = []
        for number in full.tolist():
            self.read(np.array([number]), row)
            if digest.checksum(row)[0] != self.table["checksum"][number]:
                bad.append(number)
        return np.array(bad, np.int64)

    def _runs(self, numbers: Int64) -> Iterator[Int64]:
        """The numbers in pieces whose values lie behind each other in one file."""
        if len(numbers) == 0:
            return
        table = self.table[numbers]
        same = (table["kind"][1:] == table["kind"][:-1]) & (self._part[numbers][1:] == self._part[numbers][:-1])
        follows = same & (table["row"][1:].astype(np.int64) == table["row"][:-1].astype(np.int64) + 1)
        yield from np.split(np.asarray(numbers, np.int64), np.flatnonzero(~follows) + 1)

    def _fill(self, run: Int64, into: npt.NDArray[np.generic]) -> None:
        """Read what lies behind each other in one file into contiguous memory."""
        first = int(run[0])
        kind, part = int(self.table["kind"][first]), int(self._part[first])
        room = into.reshape(-1).view(np.uint8).data
        offset = int(self.table["row"][first]) * (len(room) // len(run))
        while len(room):
            count = os.preadv(self._file(part, kind), [room], offset)
            if count == 0:
                raise InputError(f"{_path(self.folder, part, _SUFFIX[kind])}: it got shorter while it was read")
            room, offset = room[count:], offset + count

    def _file(self, part: int, kind: int) -> int:
        if (part, kind) not in self._files:
            path = _path(self.folder, part, _SUFFIX[kind])
            try:
                self._files[part, kind] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        return self._files[part, kind]

    def _read_part(self, number: int) -> Records:
        """The whole records of a part, their requests numbered over all parts."""
        requests = _read_requests(_path(self.folder, number, "requests.jsonl"))
        data = _path(self.folder, number, "index").read_bytes()
        num_whole = len(data) // INDEX.itemsize
        table = np.frombuffer(data, INDEX, num_whole).copy()
        good = _sealed(table) & (table["request"] < len(requests))
        for kind, suffix in _SUFFIX.items():
            path = _path(self.folder, number, suffix)
            size = path.stat().st_size if path.exists() else 0
            good &= (table["kind"] != kind) | (table["row"] < size // self.row_bytes(kind))
        self.num_torn += num_whole - int(good.sum()) + (len(data) % INDEX.itemsize > 0)
        kept: Records = table[good]
        kept["request"] += len(self.requests)
        self.requests += requests
        return kept

    def row_bytes(self, kind: int) -> int:
        """How much the values of a row of this kind take."""
        if kind == NO_VALUES:
            return 0
        if kind == TOP:
            return top_dtype(self.manifest).itemsize
        return self.vocab_size * (4 if kind == F32 else 2)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store. Raises InputError when there is none, or it is of another format."""
    path = folder / MANIFEST
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except OSError as error:
        raise InputError(f"{folder}: no capture of logits is there ({error.strerror}: {MANIFEST})") from error
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: not the manifest of a capture ({error})") from error
    if manifest.format != FORMAT:
        raise InputError(f"{path}: format {manifest.format!r}; this llmbench reads {FORMAT}")
    return manifest


def is_store(folder: Path) -> bool:
    """Whether there is a store in a folder."""
    return (folder / MANIFEST).is_file()


def located(path: Path) -> Path:
    """The store that a path means: that folder, or the rows of the run in it. Raises InputError when there is none."""
    found = next((folder for folder in (path, path / ROWS) if is_store(folder)), None)
    if found is None:
        raise InputError(
            f"{path}: no capture of logits is there, nor a run that has one ({MANIFEST}, {ROWS}/{MANIFEST})"
        )
    return found


def _take_up(folder: Path, manifest: Manifest) -> Manifest:
    """The manifest in a folder, written when there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_store(folder):
            if any(folder.iterdir()):
                raise InputError(f"{folder}: it holds something that is no capture; choose a new folder")
            manifest = msgspec.structs.replace(manifest, capture_id=secrets.token_hex(8), created=clock.stamp())
            aside = folder / f".{MANIFEST}.part"
            aside.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            aside.replace(folder / MANIFEST)
            return manifest
    except OSError as error:
        raise InputError(f"{folder}: cannot write logits there ({error.strerror})") from error
    there = read_manifest(folder)
    for name in manifest.__struct_fields__:
        if name not in _OWN and getattr(there, name) != getattr(manifest, name):
            raise InputError(
                f"{folder}: it holds a capture with {name} {getattr(there, name)!r}, this one has "
                f"{getattr(manifest, name)!r}; choose a new folder"
            )
    return there


def _parts(folder: Path) -> list[int]:
    return sorted(int(path.name[5:9]) for path in folder.glob("part-[0-9][0-9][0-9][0-9].index"))


def _path(folder: Path, part: int, suffix: str) -> Path:
    return folder / f"part-{part:04}.{suffix}"


def _open(folder: Path, part: int, suffix: str) -> IO[bytes]:
    """A new file, unbuffered: what was written is there though the process dies."""
    return _path(folder, part, suffix).open("xb", buffering=0)


def _read_requests(path: Path) -> list[Request]:
    """The whole lines of a file of requests."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    try:
        requests = [msgspec.json.decode(line, type=Request) for line in lines]
    except msgspec.DecodeError as error:
        raise InputError(f"{path}: not a list of requests ({error})") from error
    if [request.number for request in requests] != list(range(len(requests))):
        raise InputError(f"{path}: its requests are not numbered one after the other")
    return requests


def _unpacker(kind: int, *, finite: bool) -> Callable[[halves.Bits16, Float32], None]:
    """What makes values of the bits of a kind, of which all are finite or not."""
    if kind == BF16:
        return halves.from_bfloat
    return halves.from_finite_half if finite else halves.from_half


def _seal(records: Records) -> None:
    """Set each record's CRC."""
    data, size = memoryview(records.tobytes()), INDEX.itemsize
    records["crc"] = [zlib.crc32(data[at : at + size - 4]) for at in range(0, len(data), size)]


def _sealed(records: Records) -> npt.NDArray[np.bool_]:
    """Which records have the CRC that they say."""
    data, size = memoryview(records.tobytes()), INDEX.itemsize
    found = np.array([zlib.crc32(data[at : at + size - 4]) for at in range(0, len(data), size)], np.uint32)
    whole: npt.NDArray[np.bool_] = records["crc"] == found
    return whole
