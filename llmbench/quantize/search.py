"""Which quantised form of a model to look at next, by what is known of those before.

First every kind with every method; then, of each kind, the method nearest to the float model with some inputs float, by
score (levels) and by name (every down_proj), and of W8A8S with more outliers and with an uneven grid; then, from the
best of each kind, the input with the largest error is float as well, one after another, until half of them are.
What comes next follows from what is known alone, so that a search that broke off goes on as it would have.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import product

import msgspec

from llmbench.errors import InputError
from llmbench.metrics.front import Scored
from llmbench.quantize.choose import Choice
from llmbench.quantize.forward import POINTS
from llmbench.quantize.samples import Samples
from llmbench.quantize.smooth import Method
from llmbench.quantize.sparse import Knobs
from llmbench.weights.quantised import Kind

KINDS: dict[str, Kind] = {"w8a8": "W8A8", "w8a16": "W8A16", "w8a8s": "W8A8S"}
_KNOBS = (Knobs(fraction=0.03), Knobs(fraction=0.1), Knobs(sigma_factor=3.0), Knobs(fraction=0.03, nonuniform=True))


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One form of the model; `knobs` are of W8A8S."""

    kind: Kind
    method: Method
    choice: Choice = Choice()
    knobs: Knobs | None = None

    @property
    def name(self) -> str:
        """`W8A8 m1 L2`, for people; f and s are fraction and sigma factor of a W8A8S."""
        parts: list[str] = [self.kind, self.method]
        parts += [f"L{self.choice.level}"] * (self.choice.level > 0) + ["down float"] * self.choice.down
        if self.knobs is not None:
            parts += _short(self.knobs)
        if self.choice.linears:
            parts.append(f"+{len(self.choice.linears)} float")
        return " ".join(parts)

    def flags(self) -> list[str]:
        """Those of `llmbench quantize` that make it."""
        flags = ["--sparse"] if self.kind == "W8A8S" else ["--kind", self.kind.lower()]
        flags += ["--anti", self.method]
        if self.choice.level:
            flags += ["--disable-level", f"L{self.choice.level}"]
        flags.append("--rollback-down" if self.choice.down else "--no-rollback-down")
        for pattern in self.choice.linears:
            flags += ["--float-linears", pattern]
        return flags + ([] if self.knobs is None else _flags(self.knobs))


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a trial, or (None) of the float model; `worst` is the linear of 8 bits with the largest error."""

    trial: Trial | None
    scored: Scored
    worst: str | None = None


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched: kinds and methods, of a model with so many layers."""

    kinds: tuple[Kind, ...]
    methods: tuple[Method, ...]
    num_layers: int

    @property
    def levels(self) -> tuple[int, ...]:
        """1, 2, 4 … inputs that are float, up to a quarter of them."""
        most = max(1, len(POINTS) * self.num_layers // 4)
        return tuple(1 << i for i in range(most.bit_length()))


def upcoming(space: Space, found: Mapping[Trial, Outcome]) -> Trial | None:
    """The next trial; None when there is none left."""
    return next((trial for trial in _candidates(space, found) if trial not in found), None)


def _candidates(space: Space, found: Mapping[Trial, Outcome]) -> Iterator[Trial]:
    """All trials in their order, as far as they follow from what was found."""
    broad = [
        Trial(kind=kind, method=method, knobs=_knobs(kind)) for method, kind in product(space.methods, space.kinds)
    ]
    yield from broad
    refined = {kind: [*_refined(space, _best(broad, kind, found))] for kind in space.kinds}
    for number in range(max(map(len, refined.values()))):
        yield from (trials[number] for trials in refined.values() if number < len(trials))
    heads = {kind: _best([*broad, *refined[kind]], kind, found) for kind in space.kinds}
    for _ in range(len(POINTS) * space.num_layers // 2):
        for kind, head in heads.items():
            outcome = None if head is None else found.get(head)
            if head is None or outcome is None or outcome.worst is None:
                continue
            linears = (*head.choice.linears, outcome.worst.replace(".", r"\.") + "$")
            chosen = msgspec.structs.replace(head, choice=msgspec.structs.replace(head.choice, linears=linears))
            heads[kind] = chosen
            yield chosen


def _knobs(kind: Kind) -> Knobs | None:
    return Knobs() if kind == "W8A8S" else None


def _best(trials: list[Trial], kind: Kind, found: Mapping[Trial, Outcome]) -> Trial | None:
    """The trial of a kind that is nearest to the float model; None when none of them could be made."""
    kld = {trial: found[trial].scored.kld for trial in trials if trial.kind == kind and _is_known(trial, found)}
    return min(kld, key=lambda trial: kld[trial], default=None)


def _is_known(trial: Trial, found: Mapping[Trial, Outcome]) -> bool:
    return trial in found and not found[trial].scored.failed


def _refined(space: Space, best: Trial | None) -> Iterator[Trial]:
    if best is None:
        return
    for level in space.levels:
        yield msgspec.structs.replace(best, choice=Choice(level=level))
    yield msgspec.structs.replace(best, choice=Choice(down=True))
    if best.kind == "W8A8S":
        for knobs in _KNOBS:
            yield msgspec.structs.replace(best, knobs=knobs)


def _short(knobs: Knobs) -> list[str]:
    """What differs from the default, for people."""
    names = {"--fraction": "f", "--sigma-factor": "s", "--nonuniform": "uneven"}
    return re.sub(r" (?=[0-9])", "", " ".join(names.get(flag, flag) for flag in _flags(knobs))).split()


def _flags(knobs: Knobs) -> list[str]:
    """What differs from the default."""
    flags = [] if knobs.fraction is None else ["--fraction", f"{knobs.fraction:g}"]
    if knobs.sigma_factor is not None:
        flags += ["--sigma-factor", f"{knobs.sigma_factor:g}"]
    return flags + ["--nonuniform"] * knobs.nonuniform + ["--no-compensate"] * (not knobs.compensate)


def held_out(calibration: Samples, drawn: Samples, num: int) -> list[tuple[int, ...]]:
    """The first texts that were drawn, as token ids, without those to calibrate with: no text is in both.

    Raises InputError when there are none.
    """
    known = set(calibration.ids)
    found = [ids for ids in dict.fromkeys(drawn.ids) if ids not in known and len(ids) > 1][:num]
    if not found:
        raise InputError(
            f"{drawn.name}: no text is left to judge by, beside the {len(known)} of {calibration.name} to calibrate"
            " with; take fewer with -n, or others with --held-out"
        )
    return found
