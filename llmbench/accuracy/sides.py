"""A capture as the comparison sees it, a store or a folder of contest files: its rows, and their values by number."""

from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError
from llmbench.logits import contest, digest, store

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bits16 = npt.NDArray[np.uint16]
Records = npt.NDArray[np.void]

Kind = Literal["missing", "extra", "duplicate", "prompt", "unreadable", "shape", "not finite", "different", "copy"]

ROWS = np.dtype(
    [
        ("request", "<i4"),  # a place in `request_ids`; -1 when nobody knows whose row it is
        ("step", "<i8"),  # -1 when it is not known
        ("position", "<i8"),
        ("token", "<i8"),  # -1 when it is not known
        ("batch", "<i8"),  # 0 when it is not known
        ("prefix", "<u8"),  # 0 when it is not known
    ]
)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, and where. `file` is the row's place on the side that has it."""

    kind: Kind
    file: str
    request_id: str | None
    message: str


class Problem(NamedTuple):
    """Why the values of a row, the `at`-th of those asked for, cannot be had."""

    at: int
    kind: Kind
    message: str


class Known(NamedTuple):
    """What is known of rows of which not all values are: `ids` int64 and `values` float32 [n, m], an id maybe twice.

    `representative` says that a sample of all ids is among them.
    """

    ids: Int64
    values: Float32
    representative: bool


class StoreSide:
    """A store. Rows are known by request and step."""

    def __init__(self, opened: store.Store) -> None:
        self.store = opened
        self.path = opened.folder
        self.vocab_size = opened.vocab_size
        self.request_ids = [request.id for request in opened.requests]
        self.rows = np.zeros(len(opened), ROWS)
        for name in ROWS.names or ():
            self.rows[name] = opened.table[name]
        self.findings: list[Finding] = []

    @property
    def free(self) -> npt.NDArray[np.bool_]:
        """bool [n]: rows of a forced capture whose token was chosen all the same."""
        found: npt.NDArray[np.bool_] = self.store.table["forced"] == 0
        return found & (self.store.manifest.decode == "forced")

    def name(self, number: int) -> str:
        """Where a row is: its file, or request and step."""
        return f"{self.request_id(number)} step {self.rows['step'][number]}"

    def request_id(self, number: int) -> str | None:
        """Whose row it is; None when nobody knows."""
        return self.request_ids[int(self.rows["request"][number])]

    def keys(self) -> list[tuple[str, int]]:
        """What the contest would call each row: sequence and index."""
        heads = [request.head for request in self.store.requests]
        table = self.store.table
        places = zip(table["request"].tolist(), table["position"].tolist(), table["prefill"].tolist(), strict=True)
        return [(contest.sequence_of(heads[i], prefill=bool(prefill)), position) for i, position, prefill in places]

    def order(self) -> list[int]:
        """The rows in the order of their requests."""
        return [int(i) for i in np.argsort(self.rows["request"], kind="stable")]

    def whole(self, numbers: Int64) -> npt.NDArray[np.bool_]:
        """bool [n]: of which rows all values are there."""
        return np.isin(self.store.table["kind"][numbers], store.FULL_KINDS)

    def read(self, numbers: Int64, out: Float32, room: Bits16) -> list[Problem]:
        """Values into `out`, float32 [n, V]; what cannot be read is left as it was and told."""
        self.store.read(numbers, out, room)
        return []

    def statistics(self, numbers: Int64) -> Records:
        """digest.STATISTICS [n] of the rows."""
        found = np.zeros(len(numbers), digest.STATISTICS)
        for name in digest.STATISTICS.names or ():
            found[name] = self.store.table[name][numbers]
        return found

    def known(self, numbers: Int64) -> Known:
        """What there is of rows that are not whole."""
        table = self.store.table[numbers]
        ids = np.stack([table["top_id"], table["second_id"], table["token"]], axis=1).astype(np.int64)
        values = np.stack([table["top"], table["second"], table["token_logit"]], axis=1)
        ids[:, 2] = np.where(ids[:, 2] < 0, ids[:, 0], ids[:, 2])
        values[:, 2] = np.where(table["token"] < 0, values[:, 0], values[:, 2])
        if self.store.manifest.tier != "topk":
            return Known(ids, values, representative=False)
        top = self.store.top(numbers)
        return Known(
            np.concatenate([ids, top.ids, top.tail_ids], axis=1),
            np.concatenate([values, top.values, top.tail], axis=1),
            representative=top.tail_ids.shape[1] >= store.NUM_TAIL // 4,
        )

    def close(self) -> None:
        self.store.close()


class ContestSide:
    """A folder of contest files. Its rows are in the order of their names; what is no row is a finding."""

    def __init__(self, dump: contest.Dump) -> None:
        self.dump = dump
        self.path = dump.folder
        self.findings: list[Finding] = []
        self.files: list[str] = []
        self.names: list[contest.FileName] = []
        listed = {row.file: row for row in dump.rows or ()}
        for file in dump.files:
            self._take(file, listed)
        ids = sorted({row.request_id for row in listed.values()})
        place = {request_id: i for i, request_id in enumerate(ids)}
        self.request_ids = ids
        self.rows = np.zeros(len(self.files), ROWS)
        self.rows["request"], self.rows["step"], self.rows["token"] = -1, -1, -1
        self.rows["position"] = [name.index for name in self.names]
        for i, file in enumerate(self.files):
            if (row := listed.get(file)) is not None:
                self.rows[i] = (place[row.request_id], -1, row.index, row.token_id, row.batch_size, 0)
        for file in sorted(listed.keys() - set(dump.files)):
            message = f"its manifest lists it, {dump.folder} lacks it"
            self.findings.append(
                Finding(kind="missing", file=file, request_id=listed[file].request_id, message=message)
            )
        self.vocab_size = dump.header.vocab_size if dump.header else self._first_size()

    def _take(self, file: str, listed: dict[str, contest.Row]) -> None:
        if self.dump.rows is not None and file not in listed:
            message = f"is in {self.path}, but its manifest does not list it"
            self.findings.append(Finding(kind="extra", file=file, request_id=None, message=message))
            return
        try:
            name = contest.parse_name(file)
        except InputError as error:
            self.findings.append(
                Finding(kind="unreadable", file=file, request_id=None, message=f"in {self.path}: {error}")
            )
            return
        self.files.append(file)
        self.names.append(name)

    def _first_size(self) -> int:
        """The vocabulary of the first file that can be read; 0 without one."""
        for file in self.files:
            try:
                return contest.read_row(self.path / file).size
            except InputError:
                continue
        return 0

    def name(self, number: int) -> str:
        """Where a row is: its file, or request and step."""
        return self.files[number]

    def request_id(self, number: int) -> str | None:
        """Whose row it is; None when nobody knows."""
        place = int(self.rows["request"][number])
        return self.request_ids[place] if place >= 0 else None

    def keys(self) -> list[tuple[str, int]]:
        """What the contest calls each row: sequence and index."""
        return [name.key for name in self.names]

    def order(self) -> list[int]:
        """The rows in the order of their names' times, which stand for the order of the requests."""
        return sorted(range(len(self.files)), key=lambda i: (self.names[i].time, self.files[i]))

    def whole(self, numbers: Int64) -> npt.NDArray[np.bool_]:
        """bool [n]: of which rows all values are there."""
        return np.ones(len(numbers), bool)

    def read(self, numbers: Int64, out: Float32, room: Bits16) -> list[Problem]:
        """Values into `out`, float32 [n, V]; what cannot be read is left as it was and told."""
        problems = []
        for at, number in enumerate(numbers.tolist()):
            try:
                row = contest.read_row(self.path / self.files[number])
            except InputError as error:
                problems.append(Problem(at, "unreadable", f"in {self.path}: {error}"))
                continue
            if row.size == out.shape[1]:
                out[at] = row
            else:
                problems.append(Problem(at, "shape", f"it has {row.size} values where {out.shape[1]} are due"))
        return problems

    def close(self) -> None:
        """There is nothing to close."""


Side: TypeAlias = StoreSide | ContestSide
"""One side of a comparison. `rows` ROWS [n], `findings` are what is wrong with it before anything is compared."""


def open_side(path: Path) -> Side:
    """The capture in a folder. Raises InputError when there is none."""
    return StoreSide(store.Store(path)) if store.is_store(path) else ContestSide(contest.read_dump(path))


def dtype_of(side: Side) -> str:
    """What the rows of a side were computed in; contest files do not say, they hold float16 values."""
    if isinstance(side, StoreSide):
        return side.store.manifest.dtype
    return side.dump.header.dtype if side.dump.header else "float16"


def quantisation_of(side: Side) -> str:
    """What of a side's model is of 8 bits; "" for nothing, and where it is not known."""
    if isinstance(side, StoreSide):
        return side.store.manifest.quantisation
    return side.dump.header.quantisation if side.dump.header else ""
