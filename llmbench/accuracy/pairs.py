"""Rows that should be alike though they are of different requests: paired by step, measured and judged by a profile."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy import compare, judge
from llmbench.accuracy.blocks import Work, num_processes
from llmbench.accuracy.join import AFTER_DIVERGENCE, status_of
from llmbench.accuracy.profiles import Profile
from llmbench.accuracy.sides import Int64, StoreSide


class Pairs(NamedTuple):
    """Row numbers in two captures, int64 [n] each, and what join.status says of each pair, int8 [n]."""

    base: Int64
    new: Int64
    status: npt.NDArray[np.int8]


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """What came of pairs: the gates of a profile, and the figures that everybody asks for."""

    verdict: judge.Verdict
    reasons: tuple[str, ...]
    gates: tuple[judge.GateResult, ...]
    num_pairs: int
    num_after_divergence: int
    """Pairs behind a point where both had chosen different tokens; they are not scored."""
    num_equal: int
    num_flips: int
    num_unexplained: int
    """Flips that the margin of the profile does not explain."""
    kld_mean: float
    kld_max: float
    max_abs: float

    @property
    def num_scored(self) -> int:
        return self.num_pairs - self.num_after_divergence


def rows_of(side: StoreSide) -> dict[str, Int64]:
    """The rows of each request in the order of their steps."""
    order = np.lexsort((side.rows["step"], side.rows["request"]))
    requests = side.rows["request"][order]
    starts = np.flatnonzero(np.diff(requests, prepend=-1))
    found = np.split(order.astype(np.int64), starts[1:]) if len(order) else []
    return {side.request_ids[int(side.rows["request"][rows[0]])]: rows for rows in found}


def pair(base: StoreSide, new: StoreSide, base_rows: Int64, new_rows: Int64, *, same_text: bool = True) -> Pairs:
    """The rows of one request with those of another by step.

    Both should have the same prompt. With `same_text` false it is known that they do not, and rows count as comparable
    up to where the chosen tokens differ, as though the prompts were the same.
    """
    _, at, other = np.intersect1d(base.rows["step"][base_rows], new.rows["step"][new_rows], return_indices=True)
    theirs, ours = base_rows[at], new_rows[other]
    return Pairs(theirs, ours, status_of(base.rows[theirs], new.rows[ours], by_prefix=same_text))


def joined(pairs: Sequence[Pairs]) -> Pairs:
    """All of them as one."""
    if not pairs:
        nothing = np.zeros(0, np.int64)
        return Pairs(nothing, nothing, np.zeros(0, np.int8))
    return Pairs(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))


def judged(base: StoreSide, new: StoreSide, pairs: Pairs, profile: Profile) -> Judged:
    """Measure the pairs that may be compared, and judge them. Reads their values."""
    scored = np.flatnonzero(pairs.status != AFTER_DIVERGENCE)
    work = Work(base, new, pairs.base[scored], pairs.new[scored], ulp=False)
    work.run(num_processes())
    finite = work.figures["finite"]
    figures = work.figures[finite]
    seen = judge.Evidence(figures, new.rows["batch"][pairs.new[scored]][finite], profile.margin, None)
    gates = judge.judge(profile, seen)
    num = len(pairs.status)
    comparable = len(scored) / num if num else 0.0
    num_broken = len(scored) - len(figures)
    return Judged(
        verdict=judge.verdict(
            gates,
            len(scored),
            broken=bool(num_broken),
            incomparable=False,
            comparable=comparable,
            least=profile.comparable,
        ),
        reasons=compare.reasons(gates, (), comparable, profile, num_broken, len(scored)),
        gates=tuple(gates),
        num_pairs=num,
        num_after_divergence=num - len(scored),
        num_equal=int(figures["equal"].sum()),
        num_flips=int(seen.flips.sum()),
        num_unexplained=int(seen.unexplained.sum()),
        kld_mean=float(figures["kld"].mean()) if len(figures) else 0.0,
        kld_max=float(figures["kld"].max(initial=0.0)),
        max_abs=float(figures["max_abs"].max(initial=np.float32(0))),
    )


def figures_in_words(found: Judged) -> str:
    """One line's end: how many pairs, and how far apart they are."""
    if not found.num_scored:
        return f"{found.num_pairs} rows, none of them comparable"
    split = f", {found.num_after_divergence} behind a split not scored" if found.num_after_divergence else ""
    flips = f"{found.num_flips} flips" + (f" ({found.num_unexplained} unexplained)" if found.num_flips else "")
    return (
        f"{found.num_scored} rows{split}, {found.num_equal / found.num_scored:.1%} equal bit by bit; "
        f"KLD mean {found.kld_mean:.2g} max {found.kld_max:.2g}; {flips}; max|d| {found.max_abs:.2g}"
    )
