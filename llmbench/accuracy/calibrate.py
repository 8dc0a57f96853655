"""How far a stack is from itself: the noise of its rows between runs and between batch sizes, and limits made of it.

The base runs twice, one request at a time, in two processes; then a third time with all requests at once. Every
difference is rounding, unless the stack is broken: a limit is a stated multiple of the largest. After Modular MAX's
`--find-tolerances`, and its frontier of the pairs (atol, rtol) with which everything passes.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import __version__
from llmbench.accuracy import judge
from llmbench.accuracy.compare import Comparison, compare
from llmbench.accuracy.describe import Line
from llmbench.accuracy.join import AFTER_DIVERGENCE, join
from llmbench.accuracy.judge import HALF
from llmbench.accuracy.measure import Figures
from llmbench.accuracy.profiles import Figure, Gate, Profile
from llmbench.accuracy.prompts import Prompts
from llmbench.accuracy.sides import StoreSide
from llmbench.errors import InvalidMeasurement
from llmbench.logits import store
from llmbench.types import Request, Sampling

Float64 = npt.NDArray[np.float64]

_PROMPT_TOKENS = (16, 160)
_FIGURES: tuple[Figure, ...] = ("kld_mean", "kld_max", "one_minus_cos", "max_abs_free")
_NEED_WHOLE = ("one_minus_cos", "max_abs_free")
_RTOLS = (0.0, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
_ROWS = 64  # at once


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent, and by what the noise is multiplied."""

    num_requests: int = 16
    batch_size: int = 16
    num_new_tokens: int = 24
    factor: float = 10.0
    seed: int = 0


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """One run against the base: the figures of its rows by name, as judge.FIGURES has them."""

    name: str
    num_rows: int
    num_equal: int
    median_batch: int
    figures: dict[str, float]


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """With these tolerances |new - base| <= atol + rtol |base| holds for every value."""

    atol: float
    rtol: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; `stock` is the verdict of the profile that these logits would be judged by otherwise."""

    model: str
    engine: str
    dtype: str
    settings: Settings
    noises: tuple[Noise, ...]
    profile: Profile
    frontier: tuple[Pair, ...]
    stock_profile: str
    stock: judge.Verdict

    @property
    def exit_code(self) -> int:
        return 0


def requests(settings: Settings, prompts: Prompts) -> tuple[Request, ...]:
    """What each of the three runs is asked, greedy and to the full length."""
    rng = np.random.default_rng([settings.seed, 4])
    lengths = rng.integers(*_PROMPT_TOKENS, size=settings.num_requests, endpoint=True)
    return tuple(
        Request(
            prompt=prompts.take(int(length)),
            max_new_tokens=settings.num_new_tokens,
            sampling=Sampling(ignore_eos=True),
            stream=False,
            request_id=f"calibrate-{i}",
        )
        for i, length in enumerate(lengths)
    )


def calibrate(settings: Settings, base: Path, again: Path, batch: Path) -> Report:
    """The noise between three captures (full32) of the same requests, and the profile that it gives.

    Raises InvalidMeasurement where they are not captures of the same, or not of that batch.
    """
    names = {again: "run again", batch: f"batch {settings.batch_size}"}
    found = {path: compare(base, path) for path in names}
    noises = tuple(
        Noise(
            name=names[path],
            num_rows=comparison.num_compared,
            num_equal=comparison.num_equal,
            median_batch=_checked(comparison, settings.batch_size if path == batch else 1),
            figures=_figures(rows.figures),
        )
        for path, (comparison, rows) in found.items()
    )
    about = store.read_manifest(base)
    comparisons = [comparison for comparison, _ in found.values()]
    failed = next((each for each in comparisons if each.verdict != "passed"), comparisons[0])
    return Report(
        model=about.model,
        engine=about.engine,
        dtype=about.dtype,
        settings=settings,
        noises=noises,
        profile=_profile(settings, noises, f"{about.model} on {about.engine} in {about.dtype}"),
        frontier=tuple(frontier(base, tuple(names))),
        stock_profile=failed.profile,
        stock=failed.verdict,
    )


def frontier(base: Path, others: Sequence[Path]) -> Iterator[Pair]:
    """The least atol for each rtol with which all comparable rows pass; pairs that another one betters are left out."""
    needed = np.zeros(len(_RTOLS))
    for other in others:
        needed = np.maximum(needed, _needed(base, other))
    least = math.inf
    for rtol, atol in zip(_RTOLS, needed.tolist(), strict=True):
        if atol < least:
            least = atol
            yield Pair(atol=atol, rtol=rtol)


def text(report: Report) -> str:
    """The profile as YAML, with where its numbers come from."""
    settings, profile = report.settings, report.profile
    tokens = f"{settings.num_requests} requests of {settings.num_new_tokens} tokens"
    said = [
        f"# The noise of {profile.for_what}, made by `llmbench acc calibrate` of llmbench {__version__}:",
        f"# {tokens}, alone, alone again in another process, and {settings.batch_size} at once.",
        f"# A limit is {settings.factor:g} times the largest noise. To judge by it:",
        "#   llmbench acc compare BASE NEW --profile THIS_FILE",
        f"for_what: {json.dumps(profile.for_what)}",
        f"margin: {_up(profile.margin):.2e}  # between the two largest logits: twice what one may move by",
        "gates:",
    ]
    for gate in profile.gates:
        noise = ", ".join(f"{each.name} {each.figures.get(gate.figure, 0.0):.2g}" for each in report.noises)
        said.append(f"  - figure: {gate.figure}  # noise: {noise}")
        said.append(f"    limit: {_up(gate.limit):.2e}")
        said.append(f"    source: {json.dumps(gate.source)}")
        if not gate.required:
            said.append("    required: false  # of rows that are known in part it is not decided")
    return "\n".join(said) + "\n"


def lines(report: Report, path: Path) -> Iterator[Line]:
    """The report in words."""
    yield Line(f"calibrated: {report.model} on {report.engine} in {report.dtype}; profile {path}", "good")
    for noise in report.noises:
        figures = "  ".join(f"{judge.FIGURES[name][0]} {value:.2g}" for name, value in noise.figures.items())
        equal = f"{noise.num_equal} of {noise.num_rows} rows equal bit by bit"
        yield Line(f"{noise.name} (median batch {noise.median_batch}): {equal}; {figures}")
    for gate in report.profile.gates:
        yield Line(f"  {judge.FIGURES[gate.figure][0]}: at most {gate.limit:.3g} ({gate.source})")
    yield Line(f"  a flip is explained up to a margin of {report.profile.margin:.3g}")
    pairs = "  ".join(f"({_up(pair.atol):.3g}, {pair.rtol:g})" for pair in report.frontier)
    yield Line(f"pairs (atol, rtol) with which every value passes: {pairs}")
    stock = f"by the stock profile {report.stock_profile} these runs are {report.stock}"
    yield Line(stock, "plain" if report.stock == "passed" else "doubt")


def _checked(found: Comparison, batch_size: int) -> int:
    """The median batch of the new rows. Raises InvalidMeasurement for what says nothing of the noise."""
    if found.verdict == "not comparable" or any(finding.kind == "not finite" for finding in found.findings):
        raise InvalidMeasurement(f"{found.new.path}: {'; '.join(found.reasons)}")
    if found.num_compared < HALF * found.num_joined:
        raise InvalidMeasurement(
            f"only {found.num_compared} of {found.num_joined} rows saw the same tokens twice: answers of this stack "
            "part so early that its noise cannot be told from a fault; see llmbench acc determinism"
        )
    median = found.batch_sizes[1] if found.batch_sizes is not None else 0
    if median < HALF * batch_size:
        raise InvalidMeasurement(
            f"the run with {batch_size} at once was computed {median} at a time; take a --batch that the stack can do"
        )
    return median


def _figures(rows: Figures) -> dict[str, float]:
    seen = judge.Evidence(rows, np.zeros(len(rows), np.int64), 0.0, None)
    return {name: float(judge.FIGURES[name][1](seen).high) for name in _FIGURES}


def _profile(settings: Settings, noises: Sequence[Noise], what: str) -> Profile:
    """Limits of so many times the largest noise; the same bits where there was none."""
    if all(noise.num_equal == noise.num_rows for noise in noises):
        gate = Gate("not_equal", 0.0, f"every run gave the same bits, batch {settings.batch_size} too")
        return Profile(gates=(gate,), margin=0.0, for_what=what)
    gates = []
    for name in _FIGURES:
        loudest = max(noises, key=lambda noise: noise.figures[name])
        source = f"{settings.factor:g} x the noise of {loudest.name}, {loudest.figures[name]:.2g}"
        limit = settings.factor * loudest.figures[name]
        gates.append(Gate(name, limit, source, required=name not in _NEED_WHOLE))
    margin = 2 * settings.factor * max(noise.figures["max_abs_free"] for noise in noises)
    gates.append(Gate("flips_unexplained", 0.0, "beyond the margin, noise changes no top token"))
    return Profile(gates=tuple(gates), margin=margin, for_what=what)


def _needed(base: Path, other: Path) -> Float64:
    """The least atol for each of _RTOLS, float64 [len(_RTOLS)]; 0 where none is needed."""
    sides = StoreSide(store.Store(base)), StoreSide(store.Store(other))
    needed = np.zeros(len(_RTOLS))
    try:
        joined = join(*sides)
        scored = np.flatnonzero(joined.status != AFTER_DIVERGENCE)
        for start in range(0, len(scored), _ROWS):
            chosen = scored[start : start + _ROWS]
            z, y = (np.empty((len(chosen), sides[0].vocab_size), np.float32) for _ in sides)
            sides[0].store.read(joined.base[chosen], z)
            sides[1].store.read(joined.new[chosen], y)
            size, moved = np.abs(z.astype(np.float64)), np.abs(y.astype(np.float64) - z)
            needed = np.maximum(needed, [float((moved - rtol * size).max()) for rtol in _RTOLS])
    finally:
        for side in sides:
            side.close()
    return needed


def _up(value: float) -> float:
    """The next number of three digits that is not below."""
    if not value:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / unit) * unit
