"""Whether a server agrees with itself: the tokens of its answers, decoded one by one, scored again in one prefill.

No base is needed. Decoding reads keys and values that were written step by step, in batches, into blocks; a prefill of
prompt and answer computes all of them anew. Where both are right, each token's log-probability is the same but for
rounding. After SGLang's kl_test_utils. With r = log p(prefill) - log p(decode) of the sampled tokens, the mean of
exp(r) - 1 - r estimates KL(decode || prefill) without bias ("k3", Schulman 2020, "Approximating KL divergence"), which
is why answers are sampled at temperature 1.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy import describe, judge, profiles
from llmbench.accuracy.asking import Answer, Asker
from llmbench.accuracy.describe import EXIT, Line
from llmbench.accuracy.judge import HALF, GateResult, Interval, Verdict
from llmbench.accuracy.profiles import Gate
from llmbench.accuracy.prompts import Ids
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.types import Request, Sampling

Cache = Literal["cold", "hot"]
Float64 = npt.NDArray[np.float64]
Prompt = str | Ids

_PAD_ID = 0
PROMPT_TOKENS = (33, 160)  # two whole blocks of 16 at least, so that a prefix cache has something to give back


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Each prompt is answered twice: first, and when it is in the server's prefix cache, if that has one."""

    num_prompts: int = 16
    num_new_tokens: int = 32
    concurrency: int = 8
    seed: int = 0


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """The log-probabilities of one round of answers, [n] each, nats; `places` are (answer, token in it)."""

    cache: Cache
    decode: list[float]
    prefill: list[float]
    places: list[tuple[int, int]]
    num_tokens: int
    """Of all answers; of texts, what the server cut into other tokens the second time has no score."""
    cached: list[int | None]
    """Tokens of each prompt that the server says it took from its prefix cache."""


class Worst(msgspec.Struct, frozen=True, kw_only=True):
    """The token whose log-probability moved most."""

    answer: int
    token: int
    decode: float
    prefill: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What a round of answers shows."""

    cache: Cache
    num_tokens: int
    num_scored: int
    k3: float
    """Estimated KL(decode || prefill), nats per token."""
    k3_standard_error: float
    mean_abs: float
    """Of |log p(prefill) - log p(decode)|."""
    p99_abs: float
    max_abs: float
    hits: float | None
    """The share of prompts that came in part from the prefix cache; None where the server does not say."""
    worst: Worst | None
    gates: tuple[GateResult, ...]
    verdict: Verdict
    reasons: tuple[str, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What came out."""

    verdict: Verdict
    reasons: tuple[str, ...]
    profile: str
    by: Literal["ids", "text"]
    settings: Settings
    rounds: tuple[Round, ...]

    @property
    def exit_code(self) -> int:
        return EXIT[self.verdict]


def send(settings: Settings, prompts: Sequence[Prompt], asker: Asker, cache: Cache) -> Scores:
    """Have the prompts answered, and prompts and answers scored.

    Prompts of ids need a server that tells the ids of its answers. Raises InvalidMeasurement for one that does not, or
    that gives no log-probabilities.
    """
    first = settings.seed * 2 * len(prompts) + (len(prompts) if cache == "hot" else 0)
    answers = asker.ask(
        [_answer(prompt, settings, f"answer-{cache}-{i}", first + i) for i, prompt in enumerate(prompts)],
        settings.concurrency,
    )
    whole = [_whole(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    again = asker.ask([_again(text, f"again-{cache}-{i}") for i, text in enumerate(whole)], settings.concurrency)
    decode, prefill, places = [], [], []
    for i, (prompt, answer, scored) in enumerate(zip(prompts, answers, again, strict=True)):
        for place, (ours, theirs) in enumerate(_both(prompt, answer, scored)):
            decode.append(ours)
            prefill.append(theirs)
            places.append((i, place))
    return Scores(
        cache=cache,
        decode=decode,
        prefill=prefill,
        places=places,
        num_tokens=sum(len(answer.new) for answer in answers),
        cached=[answer.record.cached_tokens for answer in answers],
    )


def judge_rounds(
    settings: Settings, rounds: Sequence[Scores], profile: str, *, by_ids: bool, cache_is_ours: bool
) -> Report:
    """Judge by a profile. `cache_is_ours`: a hot round that found nothing in the cache has not shown what it should.

    Raises InputError for a profile that has no limit for the mean KLD.
    """
    gates = limits(profile)
    found = [_round(scores, gates, must_hit=cache_is_ours) for scores in rounds]
    reasons = tuple(f"cache {each.cache}: {reason}" for each in found for reason in each.reasons)
    verdicts = {each.verdict for each in found}
    order: tuple[Verdict, ...] = ("failed", "not comparable", "inconclusive", "passed")
    return Report(
        verdict=next(verdict for verdict in order if verdict in verdicts),
        reasons=reasons,
        profile=profile,
        by="ids" if by_ids else "text",
        settings=settings,
        rounds=tuple(found),
    )


def limits(profile: str) -> list[tuple[str, Gate]]:
    """What a profile says of k3 and of a single token, each with what the figure is.

    Raises InputError where it has no limit for the mean KLD.
    """
    gates = {gate.figure: gate for gate in profiles.get(profile).gates}
    if "kld_mean" not in gates:
        raise InputError(f"--profile {profile}: it has no limit for the mean KLD; take fp32, fp16, bf16, w8 or w4")
    found = [("estimated KLD (k3), nats per token", gates["kld_mean"])]
    if (free := gates.get("max_abs_free")) is not None:
        source = f"twice what a logit may move by ({free.source})"  # lse moves by no more than the largest |d|
        found.append(
            ("largest change of a log-probability", msgspec.structs.replace(free, limit=2 * free.limit, source=source))
        )
    return found


def lines(report: Report) -> Iterator[Line]:
    """The report in words, verdict first."""
    yield from describe.headline("self-check", report.verdict, report.reasons)
    yield Line(f"profile {report.profile}: {profiles.get(report.profile).for_what}; answers go back as {report.by}")
    for each in report.rounds:
        hits = "the server does not say" if each.hits is None else f"{each.hits:.0%} of the prompts"
        yield Line(
            f"cache {each.cache} (hits: {hits}): {each.num_scored} of {each.num_tokens} tokens scored; "
            f"k3 {each.k3:.2g} ±{each.k3_standard_error:.1g} nats; "
            f"|change of log p| mean {each.mean_abs:.2g} p99 {each.p99_abs:.2g} max {each.max_abs:.2g}"
        )
        for gate in each.gates:
            yield describe.gate_line(gate)
        if each.worst is not None and each.verdict == "failed":
            worst = each.worst
            yield Line(
                f"  worst: answer {worst.answer}, token {worst.token}: log p {worst.decode:.6g} decoded, "
                f"{worst.prefill:.6g} in prefill",
                "bad",
            )


def _answer(prompt: Prompt, settings: Settings, name: str, seed: int) -> Request:
    sampling = Sampling(temperature=1.0, seed=seed, num_logprobs=1)
    return Request(
        prompt=prompt,
        max_new_tokens=settings.num_new_tokens,
        sampling=sampling,
        stream=False,
        joined=True,
        request_id=name,
    )


def _again(prompt: Prompt, name: str) -> Request:
    """One new token, which nobody looks at: not every server scores a prompt without."""
    sampling = Sampling(prompt_logprobs=1)
    return Request(prompt=prompt, max_new_tokens=1, sampling=sampling, stream=False, joined=True, request_id=name)


def _whole(prompt: Prompt, answer: Answer) -> Prompt:
    """Prompt and answer as one; the answer only up to an id that many servers refuse in a prompt."""
    if not answer.new:
        raise InvalidMeasurement(
            "the server gives no log-probabilities of its answers (`logprobs`): nothing to compare"
        )
    if isinstance(prompt, str):
        return prompt + answer.record.text
    if len(answer.record.token_ids) != len(answer.new):
        raise InvalidMeasurement(
            "the server does not tell the ids of its answers (`return_token_ids`): leave --tokenizer out, so that "
            "answers go back as text"
        )
    ids = answer.record.token_ids
    return (*prompt, *ids[: ids.index(_PAD_ID)]) if _PAD_ID in ids else (*prompt, *ids)


def _both(prompt: Prompt, answer: Answer, scored: Answer) -> Iterator[tuple[float, float]]:
    """The log-probability of each token of an answer, decoded and in prefill.

    A text may come back cut into other tokens: what is behind the first other one has no counterpart.
    """
    by_ids = not isinstance(prompt, str)
    num_prompt = len(prompt) if by_ids else answer.record.server_prompt_tokens
    if num_prompt is None or not scored.prompt:
        raise InvalidMeasurement("the server does not score prompts (`echo` with `logprobs`): nothing to compare")
    for ours, theirs in zip(answer.new, scored.prompt[num_prompt:], strict=False):
        if ours.logprob is None or theirs.logprob is None or not (by_ids or ours.text == theirs.text):
            return
        yield ours.logprob, theirs.logprob


def _round(scores: Scores, gates: Sequence[tuple[str, Gate]], *, must_hit: bool) -> Round:
    ours, theirs = np.array(scores.decode), np.array(scores.prefill)
    ratios = theirs - ours
    estimates: Float64 = np.expm1(ratios) - ratios
    moved = np.abs(ratios)
    num = len(moved)
    known = [count > 0 for count in scores.cached if count is not None]
    hits = float(np.mean(known)) if known else None
    values = (float(estimates.mean()), float(moved.max())) if num else (0.0, 0.0)
    results = tuple(_judged(what, gate, value) for (what, gate), value in zip(gates, values, strict=False))
    doubts = list(_doubts(scores, num, hits, must_hit=must_hit))
    worst = int(moved.argmax()) if num else 0
    failed = [gate for gate in results if gate.verdict == "failed"]
    verdict: Verdict = "failed" if failed else "not comparable" if not num else "inconclusive" if doubts else "passed"
    return Round(
        cache=scores.cache,
        num_tokens=scores.num_tokens,
        num_scored=num,
        k3=values[0],
        k3_standard_error=float(estimates.std(ddof=1)) / math.sqrt(num) if num > 1 else 0.0,
        mean_abs=float(moved.mean()) if num else 0.0,
        p99_abs=float(np.quantile(moved, 0.99)) if num else 0.0,
        max_abs=values[1],
        hits=hits,
        worst=Worst(
            answer=scores.places[worst][0], token=scores.places[worst][1], decode=ours[worst], prefill=theirs[worst]
        )
        if num
        else None,
        gates=results,
        verdict=verdict,
        reasons=(*(f"{gate.what}: {gate.low:.3g}, at most {gate.limit:g} is allowed" for gate in failed), *doubts),
    )


def _judged(what: str, gate: Gate, value: float) -> GateResult:
    return GateResult(
        figure=gate.figure,
        what=what,
        low=value,
        high=value,
        limit=gate.limit,
        bound=gate.bound,
        verdict=judge.decide(Interval(value, value), gate),
        source=gate.source,
        required=True,
    )


def _doubts(scores: Scores, num_scored: int, hits: float | None, *, must_hit: bool) -> Iterator[str]:
    if num_scored < HALF * scores.num_tokens:
        yield f"only {num_scored} of {scores.num_tokens} tokens could be scored again"
    if must_hit and scores.cache == "hot" and (hits or 0.0) < HALF:
        yield f"only {hits or 0.0:.0%} of the prompts came in part from the prefix cache"
