"""From the rows' figures to those of a comparison, and from them to a verdict."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.measure import Figures
from llmbench.accuracy.profiles import Gate, Profile
from llmbench.metrics.captured import HALF as HALF
from llmbench.metrics.captured import at_load

Verdict = Literal["passed", "failed", "not comparable", "inconclusive"]
GateVerdict = Literal["passed", "failed", "not decided", "not asked"]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_KLD_SHARE = 1e-4


class Interval(NamedTuple):
    """A figure: what it is at least and at most. Both are the same where every value was known."""

    low: float
    high: float


class Evidence(NamedTuple):
    """The scored rows: `rows` measure.FIGURES [n], all of them finite; `batches` int64 [n], 0 where it is not known."""

    rows: Figures
    batches: Int64
    margin: float
    load_batch: float | None

    @property
    def flips(self) -> Bools:
        """Rows whose largest logit is another one."""
        flipped: Bools = self.rows["base_top"] != self.rows["new_top"]
        return flipped

    @property
    def unexplained(self) -> Bools:
        """Flips that rounding does not explain: the base's two largest logits lay too far apart."""
        return self.flips & ~(self.rows["margin"] <= self.margin)


class GateResult(msgspec.Struct, frozen=True, kw_only=True):
    """A gate and what came out; `low` and `high` are None where the figure was not asked for."""

    figure: str
    what: str
    low: float | None
    high: float | None
    limit: float
    bound: str
    verdict: GateVerdict
    source: str
    required: bool


def _exact(value: float) -> Interval:
    return Interval(value, value)


def _kld(of: Callable[[Float64], float]) -> Callable[[Evidence], Interval]:
    return lambda seen: Interval(of(seen.rows["kld"]), of(seen.rows["kld_most"]))


def _largest(name: str) -> Callable[[Evidence], Interval]:
    """The largest of a figure that only whole rows have."""

    def figure(seen: Evidence) -> Interval:
        known = seen.rows[name][np.isfinite(seen.rows[name])]
        low = float(known.max()) if len(known) else 0.0
        return Interval(low, low if seen.rows["whole"].all() else math.inf)

    return figure


def _not_close(seen: Evidence) -> Interval:
    outside = int((~seen.rows["close"]).sum())
    return Interval(outside, outside + int((seen.rows["close"] & ~seen.rows["whole"]).sum()))


def _delta_p_rms(seen: Evidence) -> Interval:
    changes = seen.rows["delta_p"]
    known = np.isfinite(changes)
    squares = float((changes[known] ** 2).sum())
    return Interval(math.sqrt(squares / len(changes)), math.sqrt((squares + int((~known).sum())) / len(changes)))


def _delta_p_p01(seen: Evidence) -> Interval:
    changes = seen.rows["delta_p"]
    low, high = np.where(np.isfinite(changes), changes, -1.0), np.where(np.isfinite(changes), changes, 1.0)
    return Interval(float(np.quantile(low, 0.01)), float(np.quantile(high, 0.01)))


def _flips_batched(seen: Evidence) -> Interval:
    batched = seen.batches > 1
    return _exact(float(seen.flips[batched].mean()) if batched.any() else 0.0)


def _at_load(seen: Evidence) -> Interval:
    assert seen.load_batch is not None, "asked for only when the load is known"
    return _exact(at_load(seen.batches, seen.load_batch))


FIGURES: dict[str, tuple[str, Callable[[Evidence], Interval]]] = {
    "not_equal": ("rows with another bit", lambda seen: _exact(int((~seen.rows["equal"]).sum()))),
    "not_close": ("rows outside the contest's tolerance", _not_close),
    "kld_mean": ("mean KLD, nats", _kld(lambda kld: float(kld.mean()))),
    "kld_max": ("largest KLD, nats", _kld(lambda kld: float(kld.max()))),
    "kld_p999": ("99.9 % of KLD, nats", _kld(lambda kld: float(np.quantile(kld, 0.999)))),
    "kld_share": ("share of rows with KLD above 1e-4", _kld(lambda kld: float((kld > _KLD_SHARE).mean()))),
    "one_minus_cos": ("largest 1 - cos", _largest("one_minus_cos")),
    "max_abs_free": ("largest |d| without its shift", _largest("max_abs_free")),
    "flips_unexplained": ("changed top tokens beyond rounding", lambda seen: _exact(int(seen.unexplained.sum()))),
    "top1": ("share of rows with the same top token", lambda seen: _exact(1 - float(seen.flips.mean()))),
    "delta_p_rms": ("root mean square of dp", _delta_p_rms),
    "delta_p_p01": ("1 % of dp", _delta_p_p01),
    "flips_batched": ("share of changed top tokens in batches above 1", _flips_batched),
    "at_load": ("share of rows at half the load's batch or more", _at_load),
}  # fmt: skip
"""What each figure of a comparison is, and how it is taken from the rows."""


def judge(profile: Profile, seen: Evidence) -> list[GateResult]:
    """Every gate of a profile."""
    return [_judge(gate, seen) for gate in profile.gates]


def _judge(gate: Gate, seen: Evidence) -> GateResult:
    what, figure = FIGURES[gate.figure]
    asked = gate.figure != "at_load" or seen.load_batch is not None
    interval = figure(seen) if asked and len(seen.rows) else None
    return GateResult(
        figure=gate.figure,
        what=what,
        low=interval.low if interval else None,
        high=interval.high if interval else None,
        limit=gate.limit,
        bound=gate.bound,
        verdict=decide(interval, gate) if interval else "not asked",
        source=gate.source,
        required=gate.required,
    )


def decide(interval: Interval, gate: Gate) -> GateVerdict:
    """Whether a figure keeps its limit wherever in the interval it lies."""
    if gate.bound == "at most":
        surely, perhaps = interval.high <= gate.limit, interval.low <= gate.limit
    else:
        surely, perhaps = interval.low >= gate.limit, interval.high >= gate.limit
    if surely:
        return "passed"
    return "not decided" if perhaps else "failed"


def verdict(
    gates: Sequence[GateResult], num_scored: int, *, broken: bool, incomparable: bool, comparable: float, least: float
) -> Verdict:
    """The verdict on a comparison.

    `broken`: values that are no numbers; `incomparable`: rows without their counterpart. A failure outweighs what is
    missing: more rows would not mend it. `comparable` is the share of rows that saw the same tokens on both sides.
    """
    if broken or any(gate.verdict == "failed" for gate in gates):
        return "failed"
    if incomparable or not num_scored:
        return "not comparable"
    if comparable < least or any(gate.verdict == "not decided" and gate.required for gate in gates):
        return "inconclusive"
    return "passed"


def wilson(num_hits: int, num: int) -> Interval:
    """The 95 % interval of a share (Wilson 1927)."""
    if not num:
        return Interval(0.0, 1.0)
    z = 1.959964
    share = num_hits / num
    middle = share + z**2 / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z**2 / (4 * num**2))
    return Interval((middle - half) / (1 + z**2 / num), (middle + half) / (1 + z**2 / num))


def would_be_seen(num: int) -> float:
    """The share of faulty requests from which on one of `num` checked ones is among them with 95 %: 1 - 0.05^(1/n)."""
    return 1 - 0.05 ** (1 / num) if num else 1.0
