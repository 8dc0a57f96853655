"""From two captures that differ, or two models, to the part of which layer it begins in.

The first bad row of the captures gives a request and a step; its prompt and the base's tokens up to there are computed
again in both engines, in this process. Each part of the new engine (the attention of a layer, its MLP, …) is given what
the part before it gave in the base, so that an error counts where it is made, and not where it has grown.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy import lane, profiles
from llmbench.accuracy.compare import Comparison, Options, Rows, compare
from llmbench.accuracy.lane import Lane, Logits
from llmbench.accuracy.measure import FIGURES, Bools, Figures, Float32, Scratch, measure
from llmbench.engines import Intp
from llmbench.errors import InputError, ServingError
from llmbench.logits.store import Pair, Store, is_store
from llmbench.weights.model import Model

Verdict = Literal["nothing", "part", "sum", "elsewhere"]

_EPSILON = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The distance from 1 to the next number."""
_TIMES_NOISE = 8
_TIMES_EPSILON = 8
_PER_ROW = ("not_equal", "not_close", "kld_max", "max_abs_free", "one_minus_cos", "flips_unexplained")


class Given(NamedTuple):
    """One side: a model, and the engine that computes it."""

    model: Model
    engine: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A row of logits: the tokens before it, `num_prompt` of them of the prompt. `bad` says that it breaks the profile
    that the captures were compared by, `kld` and `max_abs` how far they are apart there; None without captures.
    """

    ids: tuple[int, ...]
    num_prompt: int
    request_id: str | None = None
    bad: bool = False
    kld: float | None = None
    max_abs: float | None = None

    @property
    def step(self) -> int:
        """Which token of the answer the row gives; 0 is the first."""
        return len(self.ids) - self.num_prompt


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """What a part of the new engine gives for the base's input. `error` is |new - base| / |base| of the token, at place
    `position` of the sequence, where that is largest; `noise` the same of the base computed in other steps.
    """

    name: str
    error: float
    position: int
    noise: float
    limit: float

    @property
    def differs(self) -> bool:
        """Whether it is more than rounding."""
        return not self.error <= self.limit


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came out. `part` is the first that differs.

    Verdicts: "nothing" is bad; a "part" is; the logits are though no part alone is: the "sum" of all; or only the
    captures were, not what was computed again: what made them differ is "elsewhere", as in the batch.
    """

    verdict: Verdict
    place: Place
    part: str | None
    parts: tuple[Part, ...]
    kld: float
    """Of the row computed again, each side from its own layers' outputs."""
    max_abs: float
    tokens: tuple[int, int]
    """The likeliest next token of both."""
    dtypes: tuple[str, str]

    @property
    def where(self) -> str | None:
        """The part in words: `layer 3, mlp`."""
        if self.part is None or not self.part.startswith("layers."):
            return self.part
        _, layer, kind = self.part.split(".")
        return f"layer {layer}, {kind}"


def bad_rows(profile: profiles.Profile, figures: Figures) -> Bools:
    """bool [n]: rows FIGURES [n] that break a limit of the profile by themselves; where it has none for single rows,
    those beyond its limit for the mean.
    """
    bad: Bools = ~figures["finite"]
    limits = {gate.figure: gate.limit for gate in profile.gates}
    for figure in _PER_ROW:
        if figure in limits:
            bad |= _breaks(figure, limits[figure], figures, profile.margin)
    if "kld_mean" in limits and "kld_max" not in limits:
        bad |= figures["kld"] > limits["kld_mean"]
    return bad


def _breaks(figure: str, limit: float, figures: Figures, margin: float) -> Bools:
    if figure == "not_equal":
        return ~figures["equal"]
    if figure == "not_close":
        return ~figures["close"]
    if figure == "flips_unexplained":
        flipped: Bools = (figures["base_top"] != figures["new_top"]) & ~(figures["margin"] <= margin)
        return flipped
    beyond: Bools = figures["kld" if figure == "kld_max" else figure] > limit
    return beyond


def first_bad(
    base: Path, new: Path, options: Options, request_id: str | None = None, step: int | None = None
) -> tuple[Comparison, Place | None]:
    """The comparison of two captures, and the first bad row: of the request whose bad row was captured first, the
    earliest. Where no row is bad, the one that is furthest away; None where all are equal bit by bit.

    With `request_id`, and perhaps a step, only their rows count. Raises InputError when a capture is no store, when
    there is no such row, or when the tokens before it are not all known; what `compare` raises.
    """
    for folder in (base, new):
        if not is_store(folder):
            raise InputError(f"{folder}: not a store of logits; only those know the tokens (llmbench serve --capture)")
    comparison, rows = compare(base, new, options)
    bad = bad_rows(profiles.get(comparison.profile), rows.figures)
    if request_id is None:
        found = _first(rows, np.arange(len(bad)), bad)
        return comparison, None if found is None else _place(base, rows, found, bool(bad[found]))
    own = rows.request == request_id
    numbers = np.flatnonzero(own if step is None else own & (rows.step == step))
    if not len(numbers):
        wanted = f"--request {request_id}{'' if step is None else f' --step {step}'}"
        raise InputError(f"{wanted}: {base} and {new} do not both have such a row")
    found = _first(rows, numbers, bad)
    found = int(numbers[0]) if found is None else found
    return comparison, _place(base, rows, found, bool(bad[found]))


def _first(rows: Rows, numbers: Intp, bad: Bools) -> int | None:
    """Of these rows, the number of the one to look at; None where all are equal to the base's."""
    worse = numbers[bad[numbers]]
    if len(worse):
        own = worse[rows.request[worse] == rows.request[worse[0]]]
        return int(own[rows.step[own].argmin()])
    differ = numbers[~rows.figures["equal"][numbers]]
    if not len(differ):
        return None
    return int(differ[np.lexsort((-rows.figures["max_abs"][differ], -rows.figures["kld"][differ]))[0]])


def _place(base: Path, rows: Rows, number: int, bad: bool) -> Place:
    store = Store(base)
    request_id, step = str(rows.request[number]), int(rows.step[number])
    at, request = next((i, known) for i, known in enumerate(store.requests) if known.id == request_id)
    if not request.ids:
        raise InputError(f"{base}: it does not know the prompts of its requests; capture again with this llmbench")
    tokens = lane.answer(store, at)
    if len(tokens) < step:
        raise InputError(
            f"{base}: {request_id}: the token of step {len(tokens)}, which comes before step {step}, is not known; "
            "capture every row (--capture-rate 1, no --capture-every)"
        )
    return Place(
        ids=(*request.ids, *tokens[:step]),
        num_prompt=request.prompt_len,
        request_id=request_id,
        bad=bad,
        kld=float(rows.figures["kld"][number]),
        max_abs=float(rows.figures["max_abs"][number]),
    )


def prompted(base: Given, prompt_ids: Sequence[int], num_new: int, threads: int | None = None) -> Place:
    """The row behind a prompt and the first `num_new` tokens of the base's own answer to it."""
    with Lane(base.model, base.engine, len(prompt_ids) + num_new, threads=threads) as own:
        answer = lane.greedy(own, prompt_ids, num_new) if num_new else []
    return Place(ids=(*prompt_ids, *answer), num_prompt=len(prompt_ids))


def bisect(
    base: Given,
    new: Given,
    place: Place,
    profile: profiles.Profile,
    threads: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Compute a row again in both engines, part by part; one engine at a time is held in memory.

    `say` is told what is being done. Raises InputError when the models are not of one shape, or an engine does not show
    its layers.
    """
    _check_shapes(base.model, new.model)
    ids, num = place.ids, len(place.ids)
    steps = lane.served(place.num_prompt, num)
    truth = _Truth(num)
    noise, error = _Against(truth), _Against(truth)
    with Lane(base.model, base.engine, num, threads=threads) as own:
        say(f"base: {base.model.name} in {base.engine}, {num} tokens")
        z = own.run(ids, steps, num - 1, truth.keep)
        say("base, the same in other steps: its noise")
        own.run(ids, lane.otherwise(place.num_prompt, num), num - 1, noise.compare)
        dtypes = [own.dtype]
    with Lane(new.model, new.engine, num, threads=threads) as own:
        say(f"new: {new.model.name} in {new.engine}, each part on the base's input")
        own.run(ids, steps, num - 1, error.compare)
        say("new, as it is")
        y = _whole(own, ids, steps)
        dtypes.append(own.dtype)
    epsilon = max(_EPSILON.get(dtype, _EPSILON["bfloat16"]) for dtype in dtypes)
    parts = tuple(_part(name, error, noise, epsilon) for name in truth.outputs)
    figures = _figures(z, y)
    again = bool(bad_rows(profile, figures)[0])
    first = next((part.name for part in parts if part.differs), None)
    if first is not None:
        verdict: Verdict = "part"
    elif again:
        verdict = "sum"
    else:
        verdict = "elsewhere" if place.bad else "nothing"
    return Found(
        verdict=verdict,
        place=place,
        part=first,
        parts=parts,
        kld=float(figures["kld"][0]),
        max_abs=float(figures["max_abs"][0]),
        tokens=(int(figures["base_top"][0]), int(figures["new_top"][0])),
        dtypes=(dtypes[0], dtypes[1]),
    )


def _check_shapes(base: Model, new: Model) -> None:
    theirs, ours = msgspec.structs.asdict(base.config), msgspec.structs.asdict(new.config)
    for field in ("num_layers", "hidden_size", "vocab_size"):
        if theirs[field] != ours[field]:
            raise InputError(
                f"model {new.name} has {field} {ours[field]}, {base.name} {theirs[field]}: no layer of one is to be "
                "compared with one of the other"
            )


def _whole(own: Lane, ids: Sequence[int], steps: Sequence[int]) -> Logits:
    """The last row, [1, vocab], nothing replaced; NaN where the engine found that it gives no token."""
    try:
        return own.run(ids, steps, len(ids) - 1)
    except ServingError:
        return np.full((1, own.vocab_size), np.nan, np.float32)


def _figures(z: Logits, y: Logits) -> Figures:
    """FIGURES [1] of two rows."""
    rows = [np.ascontiguousarray(row, np.float32) for row in (z, y)]
    out = np.zeros(1, FIGURES)
    with np.errstate(all="ignore"):
        measure(Pair(rows[0], rows[1]), np.array([-1]), Scratch(1, z.shape[1]), out)
    return out


class _Truth:
    """What the base's parts gave: `outputs` [len, width] by name, in the order of the parts, where `known` [len]."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.outputs: dict[str, Float32] = {}
        self.known: dict[str, Bools] = {}

    def keep(self, part: str, positions: Intp, x: Float32) -> None:
        """To be shown the base."""
        if part not in self.outputs:
            self.outputs[part] = np.empty((self._length, x.shape[1]), np.float32)  # pages come with the rows
            self.known[part] = np.zeros(self._length, np.bool_)
        self.outputs[part][positions] = x
        self.known[part][positions] = True


class _Against:
    """How far parts are from the truth, each given the truth's input."""

    def __init__(self, truth: _Truth) -> None:
        self._truth = truth
        self.errors: dict[str, tuple[float, int]] = {}

    def compare(self, part: str, positions: Intp, x: Float32) -> None:
        """To be shown an engine; it goes on with what the base had."""
        known = self._truth.known[part][positions]
        places = positions[known]
        if not len(places):
            return
        theirs = self._truth.outputs[part][places]
        errors = relative(x[known], theirs)
        at = int(errors.argmax())
        if errors[at] >= self.errors.get(part, (0.0, 0))[0]:
            self.errors[part] = float(errors[at]), int(places[at])
        x[known] = theirs


def relative(new: Float32, base: Float32) -> npt.NDArray[np.float64]:
    """|new - base| / |base| of each row of [n, width], float64 [n]; infinite for what is no number."""
    theirs = base.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = np.linalg.norm(new.astype(np.float64) - theirs, axis=1)
        found = np.where(difference == 0, 0.0, difference / np.linalg.norm(theirs, axis=1))
    return np.where(np.isnan(found), np.inf, found)


def _part(name: str, error: _Against, noise: _Against, epsilon: float) -> Part:
    largest, position = error.errors.get(name, (math.inf, 0))
    floor = noise.errors.get(name, (0.0, 0))[0]
    limit = max(_TIMES_NOISE * floor, _TIMES_EPSILON * epsilon)
    return Part(name=name, error=largest, position=position, noise=floor, limit=limit)
