"""Whether a request's logits depend on who runs beside it: needle requests alone, then in random batches of others.

After vLLM's batch-invariance tests (a needle in a haystack of random requests, and an inverse test that must fail). The
rows of a needle in a batch are held against its own rows alone, by the gates of a profile. The control is what a batch
bug looks like: needles with one token in their middle taken from another prompt, as a step reads that takes one place
of a neighbour's cache for its own. A check that lets it pass sees nothing, and has no verdict.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np

from llmbench.accuracy import pairs, profiles
from llmbench.accuracy.asking import Answer, Asker
from llmbench.accuracy.describe import TONES, Line, headline
from llmbench.accuracy.judge import HALF, Verdict
from llmbench.accuracy.pairs import Judged
from llmbench.accuracy.prompts import Prompts, changed
from llmbench.accuracy.sides import Int64, StoreSide
from llmbench.types import Request, Sampling

Cache = Literal["cold", "hot"]
Outcome = Literal["passed", "failed", "invalid", "inconclusive"]
EXIT: dict[Outcome, int] = {"passed": 0, "failed": 1, "invalid": 3, "inconclusive": 4}

_NEEDLE_TOKENS = (33, 160)  # two whole blocks of 16 at least, so that a prefix cache has something to give back
_SHORT_TOKENS, _LONG_TOKENS = (4, 96), (256, 512)  # of fillers; the long ones are computed in pieces
_LONG_EVERY = 8


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How much is asked: each needle alone, and in `num_repeats` batches of each size."""

    num_needles: int = 4
    batch_sizes: tuple[int, ...] = (2, 8, 32)
    num_repeats: int = 3
    num_new_tokens: int = 16
    seed: int = 0


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """Requests that are sent at once, a needle at a random place among them."""

    size: int
    needle: int
    name: str
    requests: tuple[Request, ...]


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is sent, in this order. `filling` are the needles once before, where the cache is to be hot."""

    filling: tuple[Request, ...]
    alone: tuple[Request, ...]
    batches: tuple[Batch, ...]
    control: tuple[Request, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The requests whose rows are looked at."""
        return (*_names(self.alone), *(batch.name for batch in self.batches), *_names(self.control))

    def num_requests(self, cache: Cache) -> int:
        """How many requests there are with a cold or a hot cache."""
        extra = self.control if cache == "cold" else self.filling
        return len(self.alone) + len(extra) + sum(len(batch.requests) for batch in self.batches)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """All needles in batches of one size."""

    cache: Cache
    batch_size: int
    num_batches: int
    median_batch: int
    """Of the steps that gave the needles' rows."""
    at_batch: float
    """The share of rows of steps with at least half of `batch_size` sequences."""
    hits: float | None
    """The share of needles whose prompt came in part from the prefix cache; None with a cold one."""
    judged: Judged
    verdict: Verdict
    reasons: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; `control` must have failed."""

    verdict: Outcome
    reasons: tuple[str, ...]
    profile: str
    dtype: str
    settings: Settings
    groups: tuple[Group, ...]
    control: Judged

    @property
    def exit_code(self) -> int:
        return EXIT[self.verdict]


def design(settings: Settings, prompts: Prompts) -> Design:
    """The requests of a check; the same settings and prompts give the same ones."""
    rng = np.random.default_rng([settings.seed, 1])
    needles = [prompts.take(int(rng.integers(*_NEEDLE_TOKENS, endpoint=True))) for _ in range(settings.num_needles)]
    others = [prompts.take(len(needle)) for needle in needles]
    new = settings.num_new_tokens
    return Design(
        filling=tuple(_request(f"filling-{i}", needle, new) for i, needle in enumerate(needles)),
        alone=tuple(_request(f"alone-{i}", needle, new) for i, needle in enumerate(needles)),
        batches=tuple(
            _batch(rng, prompts, needles, i, size, repeat, new)
            for size in settings.batch_sizes
            for repeat in range(settings.num_repeats)
            for i in range(len(needles))
        ),
        control=tuple(
            _request(f"control-{i}", changed(needle, other), new)
            for i, (needle, other) in enumerate(zip(needles, others, strict=True))
        ),
    )


def send(design: Design, asker: Asker, cache: Cache) -> dict[str, int]:
    """Send it all; how many tokens of each needle's prompt came from the prefix cache, by request."""
    answers: list[Answer] = []
    if cache == "hot":
        asker.ask(design.filling, 1)
    answers += asker.ask(design.alone, 1)
    for batch in design.batches:
        answers += asker.ask(batch.requests)
    if cache == "cold":
        asker.ask(design.control)
    return {answer.record.request_id: answer.record.cached_tokens or 0 for answer in answers}


def judge(
    design: Design,
    settings: Settings,
    cold: StoreSide,
    hot: StoreSide | None,
    cached: Mapping[str, int],
    profile: str | None = None,
) -> Report:
    """Hold every needle's rows against its rows alone with a cold cache. `cached` is what `send` gave with a hot one.

    `profile` None takes that of the precision of the logits. Raises InputError for an unknown one.
    """
    about = cold.store.manifest
    name = profile or profiles.for_dtype(about.dtype, about.quantisation)
    gates = profiles.get(name)
    base = pairs.rows_of(cold)
    alone = [base[request] for request in _names(design.alone)]
    groups = list(_groups(design, settings, cold, cold, alone, gates, None))
    if hot is not None:
        groups += _groups(design, settings, cold, hot, alone, gates, cached)
    controls = [
        pairs.pair(cold, cold, rows, base[request], same_text=False)
        for rows, request in zip(alone, _names(design.control), strict=True)
    ]
    control = pairs.judged(cold, cold, pairs.joined(controls), gates)
    verdict, reasons = _verdict(groups, control)
    return Report(
        verdict=verdict,
        reasons=tuple(reasons),
        profile=name,
        dtype=about.dtype,
        settings=settings,
        groups=tuple(groups),
        control=control,
    )


def lines(report: Report) -> Iterator[Line]:
    """The report in words, verdict first."""
    yield from headline("batch variance", report.verdict, report.reasons)
    yield Line(f"profile {report.profile}: {profiles.get(report.profile).for_what}; logits are {report.dtype}")
    for group in report.groups:
        hits = "" if group.hits is None else f", {group.hits:.0%} of the prompts from the cache"
        yield Line(
            f"{_place(group)}: {pairs.figures_in_words(group.judged)}; median batch {group.median_batch}{hits}",
            TONES[group.verdict],
        )
    failed = report.control.verdict == "failed"
    says = "fails as it must" if failed else "does NOT fail: this check sees nothing"
    yield Line(
        f"control, one token of the prompt changed: {says}; {pairs.figures_in_words(report.control)}",
        "plain" if failed else "bad",
    )


def _batch(
    rng: np.random.Generator,
    prompts: Prompts,
    needles: Sequence[tuple[int, ...]],
    i: int,
    size: int,
    repeat: int,
    new: int,
) -> Batch:
    """A needle among others, which go on for as long as it does at least."""
    name = f"needle-{i}-of-{size}-{repeat}"
    requests = [_filler(rng, prompts, f"{name}-beside-{place}", new) for place in range(size - 1)]
    requests.insert(int(rng.integers(size)), _request(name, needles[i], new))
    return Batch(size=size, needle=i, name=name, requests=tuple(requests))


def _filler(rng: np.random.Generator, prompts: Prompts, name: str, new: int) -> Request:
    span = _LONG_TOKENS if rng.integers(_LONG_EVERY) == 0 else _SHORT_TOKENS
    prompt = prompts.take(int(rng.integers(*span, endpoint=True)))
    return _request(name, prompt, new + int(rng.integers(new, endpoint=True)))


def _request(name: str, prompt: tuple[int, ...], num_new_tokens: int) -> Request:
    """Greedy, never ended by the model; the seed is the same for an engine that looks at it all the same."""
    sampling = Sampling(ignore_eos=True, seed=0)
    return Request(prompt=prompt, max_new_tokens=num_new_tokens, sampling=sampling, stream=False, request_id=name)


def _names(requests: Sequence[Request]) -> list[str]:
    return [request.request_id for request in requests]


def _groups(
    design: Design,
    settings: Settings,
    cold: StoreSide,
    new: StoreSide,
    alone: Sequence[Int64],
    gates: profiles.Profile,
    cached: Mapping[str, int] | None,
) -> Iterator[Group]:
    """By batch size; with a hot cache the needles alone as well."""
    rows = pairs.rows_of(new)
    sent = [(batch.size, batch.needle, batch.name) for batch in design.batches]
    if cached is not None:
        sent = [(1, i, name) for i, name in enumerate(_names(design.alone))] + sent
    for size in ((1,) if cached is not None else ()) + settings.batch_sizes:
        these = [(needle, name) for of, needle, name in sent if of == size]
        paired = pairs.joined([pairs.pair(cold, new, alone[needle], rows[name]) for needle, name in these])
        hits = None if cached is None else float(np.mean([cached[name] > 0 for _, name in these]))
        found = pairs.judged(cold, new, paired, gates)
        batches = new.rows["batch"][paired.new]
        at_batch = float((batches >= HALF * size).mean()) if len(batches) else 0.0
        doubts = list(_doubts(size, at_batch, hits))
        verdict = found.verdict
        if doubts and verdict == "passed":
            verdict = "inconclusive"
        yield Group(
            cache="cold" if cached is None else "hot",
            batch_size=size,
            num_batches=len(these),
            median_batch=int(np.median(batches)) if len(batches) else 0,
            at_batch=at_batch,
            hits=hits,
            judged=found,
            verdict=verdict,
            reasons=(*found.reasons, *doubts),
        )


def _doubts(size: int, at_batch: float, hits: float | None) -> Iterator[str]:
    """Why the rows may not be of what was asked for."""
    if at_batch < HALF:
        yield f"only {at_batch:.0%} of the rows were computed with half so many sequences or more"
    if hits is not None and hits < HALF:
        yield f"only {hits:.0%} of the prompts came in part from the prefix cache"


def _verdict(groups: Sequence[Group], control: Judged) -> tuple[Outcome, list[str]]:
    """A check whose control does not fail has no other verdict; else a failure outweighs a doubt."""
    reasons = [f"{_place(group)}: {reason}" for group in groups for reason in group.reasons]
    if control.verdict != "failed":
        return "invalid", ["the control passed: a token of another prompt did not show", *reasons]
    verdicts = {group.verdict for group in groups}
    if "failed" in verdicts:
        return "failed", reasons
    return ("passed" if verdicts == {"passed"} else "inconclusive"), reasons


def _place(group: Group) -> str:
    return f"cache {group.cache}, batch {group.batch_size}"
