"""Whether a server answers the same request alike: greedy repeats one after the other, then among other requests.

What "alike" means is declared: `bitwise` the same bits in every row of logits, `text` the same answers, `profile` rows
within the limits of a profile up to where answers part. Of a server of which only texts are seen, `text` is all that
can be checked.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from llmbench.accuracy import pairs, profiles
from llmbench.accuracy.asking import Answer, Asker
from llmbench.accuracy.describe import EXIT, Line, headline
from llmbench.accuracy.join import AFTER_DIVERGENCE
from llmbench.accuracy.judge import Verdict
from llmbench.accuracy.pairs import Judged
from llmbench.accuracy.prompts import Prompts
from llmbench.accuracy.sides import Int64, StoreSide
from llmbench.types import Request, Sampling

Level = Literal["bitwise", "text", "profile"]
Said: TypeAlias = "tuple[int, ...] | str"
"""An answer: its token ids where they are known, else its text."""

LEVELS: dict[Level, str] = {
    "bitwise": "the same bits in every row of logits",
    "text": "the same answers",
    "profile": "rows within the limits of a profile, up to where answers part",
}
_PROMPT_TOKENS = (16, 96)
_BESIDE_TOKENS = (4, 160)
_SHOWN = 5


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """`num_idle` repeats of each prompt one after the other, then `num_load` among as many other requests,
    `concurrency` at once.
    """

    num_prompts: int = 4
    num_idle: int = 20
    num_load: int = 200
    concurrency: int = 16
    num_new_tokens: int = 16
    seed: int = 0


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """What is sent: first `idle`, one at a time, then `load`, repeats and others mixed at random."""

    idle: tuple[Request, ...]
    load: tuple[Request, ...]

    @property
    def num_requests(self) -> int:
        return len(self.idle) + len(self.load)


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """The repeats of all prompts, idle or under load."""

    name: Literal["idle", "load"]
    num_repeats: int
    num_unique: tuple[int, ...]
    """How many different answers each prompt has got; 1 is as it should be."""
    num_other: int
    """Answers that are not their prompt's reference: what it is answered most often, idle if it was asked so."""
    first_divergence: dict[int, int]
    """Where those part from it, by token (of texts, by character), and how many do there."""
    median_batch: int | None
    """Of the steps that gave the rows; None where no rows are seen."""
    num_rows: int
    num_rows_other: int
    """Rows after the same tokens with another checksum than the reference's."""
    judged: Judged | None
    """By the profile, where that is the level."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    verdict: Verdict
    reasons: tuple[str, ...]
    level: Level
    profile: str | None
    by: Literal["token", "character"]
    settings: Settings
    phases: tuple[Phase, ...]

    @property
    def exit_code(self) -> int:
        return EXIT[self.verdict]


def design(settings: Settings, prompts: Prompts | Sequence[str]) -> Design:
    """The requests of a check, as ids, or of texts for a server whose tokenizer nobody knows."""
    rng = np.random.default_rng([settings.seed, 2])
    if isinstance(prompts, Prompts):
        own: list[str | tuple[int, ...]] = [
            prompts.take(int(n)) for n in rng.integers(*_PROMPT_TOKENS, size=settings.num_prompts, endpoint=True)
        ]
        lengths = rng.integers(*_BESIDE_TOKENS, size=settings.num_load * settings.num_prompts, endpoint=True)
        others: list[str | tuple[int, ...]] = [prompts.take(int(n)) for n in lengths]
    else:
        texts = [prompts[int(i)] for i in rng.permutation(len(prompts))]
        own = list(texts[: settings.num_prompts])
        beside = texts[settings.num_prompts :] or texts
        others = [beside[i % len(beside)] for i in range(settings.num_load * len(own))]
    new = settings.num_new_tokens
    load = [
        _request(_name("load", i, repeat), prompt, new)
        for i, prompt in enumerate(own)
        for repeat in range(settings.num_load)
    ]
    load += [
        _request(f"beside-{i}", prompt, int(rng.integers(1, 2 * new, endpoint=True))) for i, prompt in enumerate(others)
    ]
    return Design(
        idle=tuple(
            _request(_name("idle", i, repeat), prompt, new)
            for repeat in range(settings.num_idle)
            for i, prompt in enumerate(own)
        ),
        load=tuple(load[int(i)] for i in rng.permutation(len(load))),
    )


def send(design: Design, asker: Asker, concurrency: int) -> dict[str, Said]:
    """Send it all; the answers by request, as texts, or as ids where the server tells them of every answer."""
    answers = asker.ask(design.idle, 1) if design.idle else []
    if design.load:
        answers += asker.ask(design.load, concurrency)
    told = all(answer.record.token_ids for answer in answers)
    return {answer.record.request_id: _said(answer, told=told) for answer in answers}


def judge(
    settings: Settings,
    said: Mapping[str, Said],
    level: Level,
    side: StoreSide | None = None,
    profile: str | None = None,
) -> Report:
    """What the answers say, and the rows where there are any.

    `profile` None takes that of the precision of the logits. Raises InputError for an unknown one.
    """
    name = None
    rows: dict[str, Int64] = {}
    if side is not None:
        rows = pairs.rows_of(side)
        said = {request: tuple(side.rows["token"][numbers].tolist()) for request, numbers in rows.items()}
        about = side.store.manifest
        name = profile or profiles.for_dtype(about.dtype, about.quantisation) if level == "profile" else None
    references = [_reference(settings, i, said) for i in range(settings.num_prompts)]
    phases = [_phase(phase, num, references, said, side, rows, name) for phase, num in _phases(settings) if num]
    verdict, reasons = _verdict(phases, level)
    return Report(
        verdict=verdict,
        reasons=tuple(reasons),
        level=level,
        profile=name,
        by="character" if isinstance(said[references[0]], str) else "token",
        settings=settings,
        phases=tuple(phases),
    )


def lines(report: Report) -> Iterator[Line]:
    """The report in words, verdict first."""
    yield from headline("determinism", report.verdict, report.reasons)
    limits = f"; profile {report.profile}: {profiles.get(report.profile).for_what}" if report.profile else ""
    yield Line(f"level {report.level}: {LEVELS[report.level]}{limits}")
    for phase in report.phases:
        yield Line(f"{phase.name}: {_answers(phase, report.by)}")
        if phase.num_rows:
            batch = f"median batch {phase.median_batch}"
            yield Line(f"  {phase.num_rows} rows, {phase.num_rows_other} with other bits than the reference; {batch}")
        if phase.judged is not None:
            yield Line(f"  {pairs.figures_in_words(phase.judged)}")


def first_difference(one: Said, other: Said) -> int:
    """The first place where two answers differ; the length of the shorter one where that is all of it."""
    together = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(together) if a != b), min(len(one), len(other)))


def _answers(phase: Phase, by: str) -> str:
    unique = Counter(phase.num_unique)
    counts = ", ".join(f"{times} prompts {num}" if num > 1 else f"{times} one" for num, times in sorted(unique.items()))
    said = f"{phase.num_repeats} repeats of each prompt; different answers: {counts}"
    if not phase.num_other:
        return said
    places = sorted(phase.first_divergence.items())
    shown = ", ".join(f"{place} ({times})" for place, times in places[:_SHOWN])
    more = f" and {len(places) - _SHOWN} more places" if len(places) > _SHOWN else ""
    return f"{said}; {phase.num_other} answers part from the reference at {by} {shown}{more}"


def _name(phase: str, i: int, repeat: int) -> str:
    return f"{phase}-{i}-{repeat}"


def _request(name: str, prompt: str | tuple[int, ...], num_new_tokens: int) -> Request:
    return Request(prompt=prompt, max_new_tokens=num_new_tokens, sampling=Sampling(), stream=False, request_id=name)


def _said(answer: Answer, *, told: bool) -> Said:
    return tuple(answer.record.token_ids) if told else answer.record.text


def _phases(settings: Settings) -> tuple[tuple[Literal["idle", "load"], int], ...]:
    return ("idle", settings.num_idle), ("load", settings.num_load)


def _repeats(phase: str, num: int, i: int) -> list[str]:
    return [_name(phase, i, repeat) for repeat in range(num)]


def _reference(settings: Settings, i: int, said: Mapping[str, Said]) -> str:
    """The request that has the answer which most repeats of this prompt have, the first of them."""
    names = _repeats("idle", settings.num_idle, i) or _repeats("load", settings.num_load, i)
    most = Counter(said[name] for name in names).most_common(1)[0][0]
    return next(name for name in names if said[name] == most)


def _phase(
    phase: Literal["idle", "load"],
    num: int,
    references: Sequence[str],
    said: Mapping[str, Said],
    side: StoreSide | None,
    rows: Mapping[str, Int64],
    profile: str | None,
) -> Phase:
    others: defaultdict[int, int] = defaultdict(int)
    unique, paired = [], []
    for i, reference in enumerate(references):
        names = _repeats(phase, num, i)
        unique.append(len({said[name] for name in names}))
        for name in names:
            if said[name] != said[reference]:
                others[first_difference(said[reference], said[name])] += 1
            if side is not None and name != reference:
                paired.append(pairs.pair(side, side, rows[reference], rows[name]))
    alike = _Rows(side, pairs.joined(paired), profile)
    return Phase(
        name=phase,
        num_repeats=num,
        num_unique=tuple(unique),
        num_other=sum(others.values()),
        first_divergence=dict(sorted(others.items())),
        median_batch=alike.median_batch,
        num_rows=alike.num,
        num_rows_other=alike.num_other,
        judged=alike.judged,
    )


class _Rows:
    """The rows of a phase against those of the references."""

    def __init__(self, side: StoreSide | None, paired: pairs.Pairs, profile: str | None) -> None:
        self.num = self.num_other = 0
        self.median_batch: int | None = None
        self.judged: Judged | None = None
        if side is None or not len(paired.base):
            return
        scored = paired.status != AFTER_DIVERGENCE
        sums = side.store.table["checksum"]
        self.num = int(scored.sum())
        self.num_other = int((sums[paired.base] != sums[paired.new])[scored].sum())
        self.median_batch = int(np.median(side.rows["batch"][paired.new]))
        if profile is not None:
            self.judged = pairs.judged(side, side, paired, profiles.get(profile))


def _verdict(phases: Sequence[Phase], level: Level) -> tuple[Verdict, list[str]]:
    """By what was declared. Repeats under load that ran alone have shown nothing."""
    reasons, failed, doubtful = [], False, False
    for phase in phases:
        if level != "profile" and phase.num_other:
            failed = True
            reasons.append(f"{phase.name}: {phase.num_other} answers are not their prompt's reference")
        if level == "bitwise" and phase.num_rows_other:
            failed = True
            reasons.append(f"{phase.name}: {phase.num_rows_other} of {phase.num_rows} rows have other bits")
        if phase.judged is not None and phase.judged.verdict != "passed":
            failed |= phase.judged.verdict == "failed"
            doubtful |= phase.judged.verdict != "failed"
            reasons += [f"{phase.name}: {reason}" for reason in phase.judged.reasons]
        if phase.name == "load" and phase.median_batch is not None and phase.median_batch < 2:
            doubtful = True
            reasons.append("load: most rows were computed alone; take a larger --concurrency")
    if failed:
        return "failed", reasons
    return ("inconclusive" if doubtful else "passed"), reasons
