"""Base rows against new rows by the contest's rule: |new - base| <= 0.005 + 1e-5 |base| for every value of every row.

Source of the rule: the contest's acc_allclose.py, `np.allclose(new, base, atol=5e-3, equal_nan=False)`; base is the
reference. Unlike that script, rows are joined by (request, index) where both sides have a manifest, shapes are not
broadcast, every file must have its counterpart, and what differs is named.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError
from llmbench.logits import contest
from llmbench.logits.contest import Dump, Float32

ATOL = 5e-3
RTOL = 1e-5

Kind = Literal["missing", "extra", "unreadable", "shape", "not finite", "different"]
Verdict = Literal["passed", "failed", "not comparable"]
_FAILURES: tuple[Kind, ...] = ("different", "not finite")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong, and where. `file` is of the side that has it."""

    kind: Kind
    file: str
    request_id: str | None
    message: str


class Worst(msgspec.Struct, frozen=True, kw_only=True):
    """The value that is furthest from its base, relative to what the rule allows there."""

    file: str
    request_id: str | None
    index: int
    vocab_id: int
    base: float
    new: float
    allowed: float

    @property
    def difference(self) -> float:
        return abs(self.new - self.base)


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. `num_tokens_differ` counts rows whose greedy token (argmax) is another one."""

    num_base: int
    num_new: int
    num_compared: int
    num_failed: int
    num_tokens_differ: int
    max_difference: float
    mean_difference: float
    joined_by: Literal["request", "file name"]
    batch_sizes: tuple[int, int, int] | None
    """Smallest, median and largest batch in which the new rows were computed; None without a manifest."""
    worst: Worst | None
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        if any(finding.kind in _FAILURES for finding in self.findings):
            return "failed"
        return "not comparable" if self.findings or not self.num_compared else "passed"


class Pair(NamedTuple):
    """Two files that hold the same row; `request_id` where it is known."""

    base: str
    new: str
    request_id: str | None


class _Side(NamedTuple):
    """A dump's files by what they are joined on."""

    files: dict[tuple[str, int, int], str]
    unreadable: list[Finding]


def compare(base: Dump, new: Dump) -> Comparison:
    """Compare two dumps. Raises InputError when they were captured in ways that cannot be compared."""
    _check_headers(base, new)
    pairs, findings = join(base, new)
    rows = _Rows()
    for pair in pairs:
        findings += rows.add(base, new, pair)
    return Comparison(
        num_base=len(base.files),
        num_new=len(new.files),
        num_compared=rows.num_compared,
        num_failed=rows.num_failed,
        num_tokens_differ=rows.num_tokens_differ,
        max_difference=rows.max_difference,
        mean_difference=rows.sum_difference / max(1, rows.num_values),
        joined_by="request" if _both_know(base, new) else "file name",
        batch_sizes=_batch_sizes(new),
        worst=rows.worst,
        findings=tuple(findings),
    )


def join(base: Dump, new: Dump) -> tuple[list[Pair], list[Finding]]:
    """The files that belong together, and what has no counterpart."""
    by_request = _both_know(base, new)
    sides = [_by_request(side) if by_request else _by_name(side) for side in (base, new)]
    names = {row.file: row.request_id for side in (base, new) for row in side.rows or ()}
    findings = [finding for side in sides for finding in side.unreadable]
    base_files, new_files = (side.files for side in sides)
    pairs = []
    for key, file in base_files.items():
        if key in new_files:
            pairs.append(Pair(file, new_files[key], names.get(file) or names.get(new_files[key])))
        else:
            findings.append(_finding("missing", file, names.get(file), f"is in {base.folder} but not in {new.folder}"))
    for key in new_files.keys() - base_files.keys():
        file = new_files[key]
        findings.append(_finding("extra", file, names.get(file), f"is in {new.folder} but not in {base.folder}"))
    return pairs, findings


class _Rows:
    """Running figures over all pairs; only two rows are in memory at a time."""

    def __init__(self) -> None:
        self.num_compared = self.num_failed = self.num_tokens_differ = self.num_values = 0
        self.sum_difference = self.max_difference = 0.0
        self.worst: Worst | None = None
        self._worst_ratio = -1.0

    def add(self, base: Dump, new: Dump, pair: Pair) -> list[Finding]:
        """Compare one pair; gives what is wrong with it."""
        rows: list[Float32] = []
        for dump, file in ((base, pair.base), (new, pair.new)):
            try:
                rows.append(contest.read_row(dump.folder / file))
            except InputError as error:
                return [_finding("unreadable", file, pair.request_id, f"in {dump.folder}: {error}")]
        return self._compare(rows[0], rows[1], pair)

    def _compare(self, base: Float32, new: Float32, pair: Pair) -> list[Finding]:
        if base.shape != new.shape:
            message = f"the base has {base.size} values, the new row {new.size}"
            return [_finding("shape", pair.new, pair.request_id, message)]
        for side, row, file in (("base", base, pair.base), ("new", new, pair.new)):
            if not np.isfinite(row).all():
                at = int(np.flatnonzero(~np.isfinite(row))[0])
                return [_finding("not finite", file, pair.request_id, f"{side} value {row[at]} at vocabulary id {at}")]
        difference = np.abs(new.astype(np.float64) - base)
        allowed = ATOL + RTOL * np.abs(base.astype(np.float64))
        self.num_compared += 1
        self.num_values += base.size
        self.sum_difference += float(difference.sum())
        self.max_difference = max(self.max_difference, float(difference.max()))
        self.num_tokens_differ += int(np.argmax(base) != np.argmax(new))
        worst = self._keep_worst(base, new, difference / allowed, pair)
        if worst.difference <= worst.allowed:
            return []
        self.num_failed += 1
        return [_finding("different", pair.new, pair.request_id, explain(worst))]

    def _keep_worst(self, base: Float32, new: Float32, ratio: npt.NDArray[np.float64], pair: Pair) -> Worst:
        """The worst value of this row, remembered when it is the worst of all."""
        at = int(np.argmax(ratio))
        worst = Worst(
            file=pair.new,
            request_id=pair.request_id,
            index=contest.parse_name(pair.new).index,
            vocab_id=at,
            base=float(base[at]),
            new=float(new[at]),
            allowed=ATOL + RTOL * abs(float(base[at])),
        )
        if ratio[at] > self._worst_ratio:
            self.worst, self._worst_ratio = worst, float(ratio[at])
        return worst


def explain(worst: Worst) -> str:
    """One value in words: where it is, what it is, what it should be."""
    return (
        f"request {worst.request_id or 'unknown'}, index {worst.index}, vocabulary id {worst.vocab_id}: base "
        f"{worst.base:.6g}, new {worst.new:.6g}, difference {worst.difference:.3g} where {worst.allowed:.3g} is allowed"
    )


def _check_headers(base: Dump, new: Dump) -> None:
    """Captures of different rows have no verdict."""
    if base.header is None or new.header is None:
        return
    for field in ("every", "vocab_size"):
        ours, theirs = getattr(new.header, field), getattr(base.header, field)
        if ours != theirs:
            raise InputError(f"{base.folder} was captured with {field} {theirs}, {new.folder} with {ours}")


def _both_know(base: Dump, new: Dump) -> bool:
    return base.rows is not None and new.rows is not None


def _by_request(dump: Dump) -> _Side:
    """Files by (request id, index), as the manifest says; files that it does not know are reported.

    Requests of one id are told apart by the order in which they came, which is that of the file names.
    """
    assert dump.rows is not None, "the dump has a manifest"
    files: dict[tuple[str, int, int], str] = {}
    findings = []
    seen: Counter[tuple[str, int]] = Counter()
    for row in sorted(dump.rows, key=lambda row: row.file):
        files[row.request_id, row.index, seen[row.request_id, row.index]] = row.file
        seen[row.request_id, row.index] += 1
        if row.file not in dump.files:
            findings.append(
                _finding("missing", row.file, row.request_id, f"its manifest lists it, {dump.folder} lacks it")
            )
    for file in sorted(set(dump.files) - {row.file for row in dump.rows}):
        findings.append(_finding("extra", file, None, f"is in {dump.folder}, but its manifest does not list it"))
    gone = {finding.file for finding in findings if finding.kind == "missing"}
    return _Side({key: file for key, file in files.items() if file not in gone}, findings)


def _by_name(dump: Dump) -> _Side:
    """Files by the contest's key and their order within it, which is the order of the requests."""
    by_key: dict[tuple[str, int], list[tuple[float, str]]] = defaultdict(list)
    findings = []
    for file in dump.files:
        try:
            name = contest.parse_name(file)
        except InputError as error:
            findings.append(_finding("unreadable", file, None, f"in {dump.folder}: {error}"))
            continue
        by_key[name.key].append((name.time, file))
    return _Side({(*key, i): file for key, named in by_key.items() for i, file in _in_order(named)}, findings)


def _in_order(named: Iterable[tuple[float, str]]) -> Iterator[tuple[int, str]]:
    for i, (_, file) in enumerate(sorted(named)):
        yield i, file


def _batch_sizes(dump: Dump) -> tuple[int, int, int] | None:
    if not dump.rows:
        return None
    sizes = sorted(row.batch_size for row in dump.rows)
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]


def _finding(kind: Kind, file: str, request_id: str | None, message: str) -> Finding:
    return Finding(kind=kind, file=file, request_id=request_id, message=message)
