"""One capture of logits against another: every row that both have, how far they are apart, and a verdict."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy import judge, measure, profiles
from llmbench.accuracy.blocks import Work, num_processes
from llmbench.accuracy.join import AFTER_DIVERGENCE, AT_DIVERGENCE, Asked, Joined, JoinedBy, join
from llmbench.accuracy.measure import ATOL, FIGURES, RTOL, Figures, Int64
from llmbench.accuracy.sides import ContestSide, Finding, Side, StoreSide, dtype_of, open_side, quantisation_of
from llmbench.errors import InvalidMeasurement

__all__ = ["ATOL", "FIGURES", "RTOL", "Comparison", "Finding", "Options", "Rows", "compare", "explain"]

_SHOWN = 10

_INCOMPARABLE = ("missing", "extra", "duplicate", "prompt", "unreadable", "shape", "copy")
SERVER_FIELDS = {
    "config": "settings",
    "fingerprint": "weights",
    "engine": "engine",
    "engine_version": "engine version",
    "dtype": "precision",
}
"""What a manifest says of the server, and in words."""
_BATCHES = ((0, 0), (1, 1), (2, 8), (9, 32), (33, 64), (65, 1 << 40))
_POSITIONS = ((0, 0), (1, 3), (4, 15), (16, 63), (64, 255), (256, 1023), (1024, 1 << 40))


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of a comparison. `profile` None takes that of the base's precision, `w8` or `w4` where only one
    side is quantised, or the contest's for its files.

    Up to `allow_missing` rows may have no counterpart. `allow_copy`: the new rows may be the base itself. `ulp` also
    takes every value's distance in representable numbers. `load_batch` is the mean batch of the load that the rows are
    to stand for, `server` what the manifest of the new rows must say alike: what is known of the server that took it.
    `rows` says which rows there should be, so that a preflight's are left out, and those that no side was to capture.
    """

    profile: str | None = None
    allow_missing: int = 0
    allow_copy: bool = False
    ulp: bool = False
    load_batch: float | None = None
    server: Mapping[str, str] = {}
    rows: Asked = Asked()
    processes: int | None = None


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """A figure over all scored rows that have it."""

    mean: float
    standard_error: float
    median: float
    p01: float
    p90: float
    p99: float
    p999: float
    max: float


class WorstRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row, and the value in it that differs most. `step` is None where it is not known."""

    file: str
    request_id: str | None
    step: int | None
    index: int
    batch_size: int
    kld: float
    max_abs: float
    vocab_id: int
    base: float
    new: float
    allowed: float
    """What the contest's rule allows there."""
    ulp: int | None
    """Representable numbers between both, in the precision of the base."""
    base_token: int
    new_token: int
    margin: float | None

    @property
    def difference(self) -> float:
        return abs(self.new - self.base)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one batch size, position or request."""

    name: str
    num_rows: int
    num_flips: int
    kld_mean: float
    kld_max: float
    max_abs: float


class SideInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was compared."""

    path: str
    num_rows: int
    about: dict[str, Any]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. `rows` of `compare` has the figures of every row."""

    verdict: judge.Verdict
    reasons: tuple[str, ...]
    profile: str
    gates: tuple[judge.GateResult, ...]
    base: SideInfo
    new: SideInfo
    joined_by: JoinedBy
    num_joined: int
    num_compared: int
    num_after_divergence: int
    num_diverged_requests: int
    num_requests: int
    num_equal: int
    num_failed: int
    """Rows outside the contest's tolerance."""
    num_flips: int
    num_flips_explained: int
    num_ties: int
    """Rows whose two largest base logits are equal: which is the top one is a matter of the id."""
    num_not_whole: int
    top1: tuple[float, float, float]
    """The share of rows with the same top token, and its 95 % interval."""
    distributions: dict[str, Distribution]
    perplexity_ratio: float | None
    tolerance: float
    """The atol with which every scored row passes, beside the contest's rtol."""
    kld_most: float
    """The mean KLD at most: of rows that are not whole, only bounds are known."""
    would_be_seen: float
    """The share of faulty requests that would have shown with 95 %."""
    batch_sizes: tuple[int, int, int] | None
    """Smallest, median and largest batch in which the new rows were computed; None where it is not known."""
    margin: float
    by_batch: tuple[Group, ...]
    by_position: tuple[Group, ...]
    worst_requests: tuple[Group, ...]
    worst_rows: tuple[WorstRow, ...]
    worst_ids: tuple[tuple[int, int], ...]
    """Vocabulary ids that differ most in their row, and in how many rows they do."""
    worst: WorstRow | None
    """The row furthest beyond what the contest's rule allows."""
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: float
    num_bytes: int
    computed_with: str
    """`numpy`, or the instruction set that the compiled pass over whole rows is of."""


class Rows(NamedTuple):
    """The scored rows: whose they are, and their figures, all of one length."""

    request: npt.NDArray[np.str_]
    step: Int64
    position: Int64
    batch: Int64
    status: npt.NDArray[np.int8]
    figures: Figures


def compare(base: Path, new: Path, options: Options = Options()) -> tuple[Comparison, Rows]:  # noqa: B008
    """Compare two captures.

    Raises InputError when one is not there, InvalidMeasurement when they are not of the same kind of rows.
    """
    start = time.perf_counter()
    sides = open_side(base), open_side(new)
    try:
        _check_kinds(*sides)
        _check_server(sides[1], options.server)
        name = options.profile or _default_profile(*sides)
        profile = profiles.get(name)
        if options.load_batch is not None:
            profile = profiles.under_load(profile)
        joined = join(*sides, options.rows)
        scored = np.flatnonzero(joined.status != AFTER_DIVERGENCE)
        work = Work(*sides, joined.base[scored], joined.new[scored], ulp=options.ulp)
        work.run(options.processes or num_processes())
        seen = _Seen(*sides, joined, scored, work, name, profile, options)
        return seen.comparison(time.perf_counter() - start), seen.rows
    finally:
        for side in sides:
            side.close()


def explain(worst: WorstRow) -> str:
    """Where, what it is, what it should be."""
    return (
        f"request {worst.request_id or 'unknown'}, index {worst.index}, vocabulary id {worst.vocab_id}: base "
        f"{worst.base:.6g}, new {worst.new:.6g}, difference {worst.difference:.3g} where {worst.allowed:.3g} is allowed"
    )


def _default_profile(base: Side, new: Side) -> str:
    if isinstance(base, ContestSide) or isinstance(new, ContestSide):
        return "contest"
    return profiles.for_sides(dtype_of(base), quantisation_of(base), quantisation_of(new))


def _check_kinds(base: Side, new: Side) -> None:
    """Captures of different kinds of rows have no verdict."""
    theirs, ours = _declared(base), _declared(new)
    for field in theirs.keys() & ours.keys():
        if theirs[field] != ours[field]:
            raise InvalidMeasurement(
                f"{base.path} was captured with {field} {theirs[field]}, {new.path} with {ours[field]}"
            )


def _declared(side: Side) -> dict[str, int | str]:
    """What a capture says of its rows that both sides must have alike."""
    if isinstance(side, StoreSide):
        manifest = side.store.manifest
        tokenizer = {"tokenizer": manifest.tokenizer} if manifest.tokenizer else {}
        return {"vocab_size": manifest.vocab_size, **tokenizer}
    header = side.dump.header
    return {} if header is None else {"vocab_size": header.vocab_size, "every": header.every}


def _check_server(new: Side, wanted: Mapping[str, str]) -> None:
    """Rows of a server with other settings, weights or engine than the timed one's say nothing about it."""
    about = _info(new).about
    for field, due in wanted.items():
        found = about.get(field)
        if found != due:
            raise InvalidMeasurement(
                f"{new.path} was captured from a server with {SERVER_FIELDS[field]} {found or 'unknown'}; the load ran "
                f"with {due}"
            )


class _Seen:
    """The compared rows, put together to what is reported."""

    def __init__(
        self,
        base: Side,
        new: Side,
        joined: Joined,
        scored: Int64,
        work: Work,
        name: str,
        profile: profiles.Profile,
        options: Options,
    ) -> None:
        self._base, self._new, self._joined, self._work = base, new, joined, work
        self._name, self._profile, self._options = name, profile, options
        readable = np.ones(len(scored), bool)
        readable[list(work.findings)] = False
        self._theirs, self._ours = joined.base[scored][readable], joined.new[scored][readable]
        figures = work.figures[readable]
        rows = base.rows[self._theirs]
        ids = np.array([self._id(i) or "" for i in range(len(figures))], dtype=str)
        self.rows = Rows(
            request=ids,
            step=rows["step"],
            position=rows["position"],
            batch=new.rows["batch"][self._ours],
            status=joined.status[scored][readable],
            figures=figures,
        )
        self._finite = figures["finite"]

    def comparison(self, seconds: float) -> Comparison:
        """Everything that is reported."""
        figures, finite = self.rows.figures, self._finite
        seen = judge.Evidence(figures[finite], self.rows.batch[finite], self._profile.margin, self._options.load_batch)
        gates = judge.judge(self._profile, seen)
        findings = self._findings()
        incomparable, notes = self._incomparable(findings)
        num_joined = len(self._joined.base)
        num_after = int((self._joined.status == AFTER_DIVERGENCE).sum())
        comparable = 1 - num_after / num_joined if num_joined else 0.0
        verdict = judge.verdict(
            gates,
            len(figures),
            broken=not finite.all(),
            incomparable=bool(incomparable),
            comparable=comparable,
            least=self._profile.comparable,
        )
        flips, unexplained = seen.flips, seen.unexplained
        num = len(seen.rows)
        share = judge.wilson(num - int(flips.sum()), num)
        order = np.lexsort((-seen.rows["max_abs"], -seen.rows["kld"]))
        requests = Counter(self.rows.request[finite].tolist())
        return Comparison(
            verdict=verdict,
            reasons=reasons(gates, incomparable, comparable, self._profile, int((~finite).sum()), num),
            profile=self._name,
            gates=tuple(gates),
            base=_info(self._base),
            new=_info(self._new),
            joined_by=self._joined.by,
            num_joined=num_joined,
            num_compared=len(figures),
            num_after_divergence=num_after,
            num_diverged_requests=self._num_diverged(),
            num_requests=len(requests),
            num_equal=int(seen.rows["equal"].sum()),
            num_failed=int((~figures["close"]).sum()),
            num_flips=int(flips.sum()),
            num_flips_explained=int((flips & ~unexplained).sum()),
            num_ties=int((seen.rows["margin"] == 0).sum()),
            num_not_whole=int((~seen.rows["whole"]).sum()),
            top1=(1 - float(flips.mean()) if num else 0.0, share.low, share.high),
            distributions={
                name: _distribution(seen.rows[name])
                for name in ("kld", "delta_p", "max_abs", "max_abs_free", "one_minus_cos", "rel_rms", "rms", "ulp")
                if np.isfinite(seen.rows[name]).any() and (name != "ulp" or self._options.ulp)
            },
            perplexity_ratio=_perplexity_ratio(seen.rows["delta_nll"]),
            tolerance=_tolerance(seen.rows),
            kld_most=float(seen.rows["kld_most"].mean()) if num else 0.0,
            would_be_seen=judge.would_be_seen(len(requests)),
            batch_sizes=_batch_sizes(self._new),
            margin=self._profile.margin,
            by_batch=self._groups(self.rows.batch, _BATCHES),
            by_position=self._groups(self._steps(), _POSITIONS),
            worst_requests=self._worst_requests(),
            worst_rows=tuple(self._row(int(np.flatnonzero(finite)[i])) for i in order[:_SHOWN]),
            worst_ids=tuple(Counter(seen.rows["at"][~seen.rows["equal"]].tolist()).most_common(_SHOWN)),
            worst=self._worst(),
            findings=tuple(findings),
            notes=notes,
            seconds=seconds,
            num_bytes=self._work.num_bytes,
            computed_with=self._work.computed_with,
        )

    def _id(self, i: int) -> str | None:
        return self._base.request_id(int(self._theirs[i])) or self._new.request_id(int(self._ours[i]))

    def _steps(self) -> Int64:
        """Steps where they are known, else indices in the sequence."""
        steps: Int64 = np.where(self.rows.step >= 0, self.rows.step, self.rows.position)
        return steps

    def _findings(self) -> list[Finding]:
        """What is wrong, and in the contest's profile each row that breaks its rule."""
        findings = list(self._joined.findings)
        findings += [finding for place in sorted(self._work.findings) for finding in self._work.findings[place]]
        figures = self.rows.figures
        for i in np.flatnonzero(~figures["finite"]).tolist():
            findings.append(self._not_finite(i))
        if self._name == "contest":
            for i in np.flatnonzero(~figures["close"] & figures["finite"]).tolist():
                row = self._row(i)
                findings.append(
                    Finding(kind="different", file=row.file, request_id=row.request_id, message=explain(row))
                )
        return findings

    def _not_finite(self, i: int) -> Finding:
        figures = self.rows.figures[i]
        base = not np.isfinite(figures["base_value"])
        side, number = (self._base, self._theirs[i]) if base else (self._new, self._ours[i])
        value = figures["base_value" if base else "new_value"]
        where = f"value {value} at vocabulary id {figures['at']}" if figures["whole"] else "a value that is no number"
        return Finding(
            kind="not finite",
            file=side.name(int(number)),
            request_id=self._id(i),
            message=f"{'base' if base else 'new'} {where}",
        )

    def _incomparable(self, findings: Sequence[Finding]) -> tuple[list[str], tuple[str, ...]]:
        """Why there can be no pass, and what should be known besides."""
        counts = Counter(finding.kind for finding in findings if finding.kind in _INCOMPARABLE)
        if counts["missing"] + counts["extra"] <= self._options.allow_missing:
            del counts["missing"], counts["extra"]
        why = [f"{number} {kind}" for kind, number in counts.items() if number]
        notes = list(self._notes())
        if self._is_copy():
            text = f"{self._new.path} is the same capture as {self._base.path}: it was not made by another run"
            (notes if self._options.allow_copy else why).append(text)
        return why, tuple(notes)

    def _is_copy(self) -> bool:
        sides = self._base, self._new
        ids = [side.store.manifest.capture_id for side in sides if isinstance(side, StoreSide)]
        return len(ids) == 2 and ids[0] == ids[1]

    def _notes(self) -> Iterator[str]:
        base, new = self._base, self._new
        for side in (base, new):
            if isinstance(side, StoreSide) and side.store.num_torn:
                yield f"{side.path}: {side.store.num_torn} rows at its end are not whole and were left out"
            looked_at = _looked_at(side, self._options.rows.only)
            if isinstance(side, StoreSide) and (num_free := int((side.free & looked_at).sum())):
                yield (
                    f"{side.path}: {num_free} of its {looked_at.sum()} rows ran free: the base that was forced lacks "
                    "their request, has another prompt there, or had ended before"
                )
            if not looked_at.all():
                yield f"{side.path}: {(~looked_at).sum()} rows of requests that the load does not have were left out"
        if isinstance(base, ContestSide) and isinstance(new, ContestSide) and base.files == new.files and base.files:
            yield f"every file of {new.path} has the name of one in {base.path}, time included: it may be a copy"
        if self._fingerprints_differ() and len(self.rows.figures) and self.rows.figures["equal"].all():
            yield "every row equals the base bit by bit, although the weights are others: they may be kept answers"
        if self._joined.by == "file name":
            yield (
                "joined by the order of names within each contest key, which assumes that both runs sent their "
                "requests in one order; whether rows saw the same tokens is not known"
            )

    def _fingerprints_differ(self) -> bool:
        about = (_info(side).about.get("fingerprint") for side in (self._base, self._new))
        theirs, ours = about
        return bool(theirs and ours and theirs != ours)

    def _num_diverged(self) -> int:
        at = self._joined.base[self._joined.status == AT_DIVERGENCE]
        after = self._joined.base[self._joined.status == AFTER_DIVERGENCE]
        requests = self._base.rows["request"]
        return len(set(requests[at].tolist()) | set(requests[after].tolist()))

    def _groups(self, values: Int64, ranges: Sequence[tuple[int, int]]) -> tuple[Group, ...]:
        groups = []
        for low, high in ranges:
            chosen = (values >= low) & (values <= high) & self._finite
            if chosen.any():
                name = "unknown" if ranges is _BATCHES and high == 0 else _range_name(low, high)
                groups.append(_group(name, self.rows.figures[chosen]))
        return tuple(groups)

    def _worst_requests(self) -> tuple[Group, ...]:
        """The requests with the largest KLD in any of their rows."""
        ids, places = np.unique(self.rows.request, return_inverse=True)
        kld = np.where(self._finite, self.rows.figures["kld"], -1.0)
        largest = np.full(len(ids), -1.0)
        np.maximum.at(largest, places.reshape(-1), kld)
        worst = [i for i in np.argsort(-largest, kind="stable")[:_SHOWN].tolist() if largest[i] > 0 and ids[i]]
        return tuple(_group(str(ids[i]), self.rows.figures[(places.reshape(-1) == i) & self._finite]) for i in worst)

    def _row(self, i: int) -> WorstRow:
        figures, theirs, ours = self.rows.figures[i], int(self._theirs[i]), int(self._ours[i])
        base, new = float(figures["base_value"]), float(figures["new_value"])
        values = np.array([base], np.float32), np.array([new], np.float32)
        step, margin = int(self.rows.step[i]), float(figures["margin"])
        return WorstRow(
            file=self._new.name(ours),
            request_id=self._id(i),
            step=step if step >= 0 else None,
            index=int(self._base.rows["position"][theirs]),
            batch_size=int(self.rows.batch[i]),
            kld=float(figures["kld"]),
            max_abs=float(figures["max_abs"]),
            vocab_id=int(figures["at"]),
            base=base,
            new=new,
            allowed=ATOL + RTOL * abs(base),
            ulp=int(measure.units(*values, dtype_of(self._base))[0]) if figures["finite"] else None,
            base_token=int(figures["base_top"]),
            new_token=int(figures["new_top"]),
            margin=margin if np.isfinite(margin) else None,
        )

    def _worst(self) -> WorstRow | None:
        places = np.flatnonzero(self._finite)
        if not len(places):
            return None
        difference, allowed = measure.tolerated(self.rows.figures[places])
        return self._row(int(places[(difference / allowed).argmax()]))


def _info(side: Side) -> SideInfo:
    about: dict[str, Any] = {}
    if isinstance(side, StoreSide):
        about = msgspec.to_builtins(side.store.manifest)
    elif side.dump.header is not None:
        about = msgspec.to_builtins(side.dump.header)
    return SideInfo(path=str(side.path), num_rows=len(side.rows), about=about)


def reasons(
    gates: Sequence[judge.GateResult],
    incomparable: Sequence[str],
    comparable: float,
    profile: profiles.Profile,
    num_not_finite: int,
    num: int,
) -> tuple[str, ...]:
    """What the verdict rests on, if it is no pass."""
    found = [f"{num_not_finite} rows with values that are no numbers"] if num_not_finite else []
    found += [_reason(gate) for gate in gates if gate.verdict == "failed"]
    found += list(incomparable)
    if not num and not found:
        found.append("no row could be compared")
    if num and comparable < profile.comparable:
        found.append(f"only {comparable:.1%} of the rows saw the same tokens on both sides; capture with forced tokens")
    found += [_reason(gate) for gate in gates if gate.verdict == "not decided" and gate.required]
    return tuple(found)


def _reason(gate: judge.GateResult) -> str:
    if gate.verdict == "failed":
        value = gate.low if gate.bound == "at most" else gate.high
        return f"{gate.what}: {value:.3g}, {gate.bound} {gate.limit:g} is allowed"
    return f"{gate.what}: from {gate.low:.3g} to {gate.high:.3g}, the limit is {gate.limit:g}; compare whole rows"


def _distribution(values: npt.NDArray[np.generic]) -> Distribution:
    known = values.astype(np.float64)
    known = known[np.isfinite(known)]
    p01, median, p90, p99, p999 = np.quantile(known, (0.01, 0.5, 0.9, 0.99, 0.999)).tolist()
    spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
    return Distribution(
        mean=float(known.mean()),
        standard_error=spread / len(known) ** 0.5,
        median=median,
        p01=p01,
        p90=p90,
        p99=p99,
        p999=p999,
        max=float(known.max()),
    )


def _perplexity_ratio(delta_nll: npt.NDArray[np.float64]) -> float | None:
    """exp of the mean change of -log p of the base's tokens; None where none is known."""
    known = delta_nll[np.isfinite(delta_nll)]
    return float(np.exp(np.clip(known.mean(), -700, 700))) if len(known) else None


def _tolerance(rows: Figures) -> float:
    """A little more than the largest |d|: with it as atol, every row passes whatever the rtol."""
    largest = rows["max_abs"].max(initial=np.float32(0))
    return float(np.nextafter(largest, np.float32(np.inf))) if largest else 0.0


def _looked_at(side: Side, only: frozenset[str] | None) -> npt.NDArray[np.bool_]:
    """bool [n]: which rows are of `only` these requests."""
    wanted = [only is None or name in only for name in side.request_ids]
    # the last one is for rows whose request nobody knows
    found: npt.NDArray[np.bool_] = np.array([*wanted, only is None], bool)[side.rows["request"]]
    return found


def _batch_sizes(side: Side) -> tuple[int, int, int] | None:
    sizes = np.sort(side.rows["batch"])
    if not len(sizes) or sizes[-1] == 0:
        return None
    return int(sizes[0]), int(sizes[len(sizes) // 2]), int(sizes[-1])


def _group(name: str, figures: Figures) -> Group:
    return Group(
        name=name,
        num_rows=len(figures),
        num_flips=int((figures["base_top"] != figures["new_top"]).sum()),
        kld_mean=float(figures["kld"].mean()),
        kld_max=float(figures["kld"].max()),
        max_abs=float(figures["max_abs"].max()),
    )


def _range_name(low: int, high: int) -> str:
    if high >= 1 << 40:
        return f"{low}+"
    return str(low) if low == high else f"{low}-{high}"
