"""A1: the tokens of the timed greedy run, each scored by a trusted model that is given all tokens before it.

It costs the timed run nothing, and no server can tell an audited request from another one: all of them are. The gap of
a token is how far its logit lies below the largest one; rounding explains a gap up to the margin of the precision.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.accuracy.audit.run import Answer, Ids, Spoken, Vocabulary, spoken
from llmbench.accuracy.judge import would_be_seen

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

SHARE = 0.995
BEYOND = 10.0
_MOST_SKIPPED = 0.1


class Scorer(Protocol):
    """A trusted model."""

    tier: str
    """What it rests on, for people."""

    def gaps(self, prompt: Ids, answer: Ids) -> Float64:
        """float64 [len(answer)]: the largest logit less the token's own, at each token of the answer."""
        ...


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """The gaps of one answer; `why` says why it could not be scored."""

    request_id: str
    gaps: list[float] = []
    from_text: bool = False
    why: str = ""


class _Place(NamedTuple):
    """A token that no rounding explains."""

    gap: float
    request_id: str
    step: int


def gaps(logits: Float32, num_prompt: int, answer: Ids) -> Float64:
    """From logits [prompt and answer, V] the gap of each token of the answer; row i - 1 gives token i."""
    rows = logits[num_prompt - 1 : num_prompt - 1 + len(answer)].astype(np.float64)
    found: Float64 = rows.max(axis=1) - rows[np.arange(len(answer)), list(answer)]
    return found


def score(
    answers: Sequence[Answer], vocabulary: Vocabulary, scorer: Scorer, done: Callable[[int], None] = lambda _: None
) -> list[Scored]:
    """Score every answer; `done` hears how many are."""
    found = []
    for number, answer in enumerate(answers, 1):
        ids = spoken(answer, vocabulary)
        found.append(_score(answer.id, ids, scorer))
        done(number)
    return found


def _score(request_id: str, ids: Spoken | str, scorer: Scorer) -> Scored:
    if isinstance(ids, str):
        return Scored(request_id=request_id, why=ids)
    if not ids.answer:
        return Scored(request_id=request_id, why="")
    return Scored(request_id=request_id, gaps=scorer.gaps(ids.prompt, ids.answer).tolist(), from_text=ids.from_text)


def finding(scored: Sequence[Scored], margin: float, most_bad: float, about: str) -> Finding:
    """At least 99.5 % of the tokens within `margin` of the largest logit, none beyond ten times that.

    With fewer requests than would show a share `most_bad` of bad ones, nothing is passed.
    """
    audited = [one for one in scored if not one.why]
    skipped = [one for one in scored if one.why]
    if not audited:
        return not_applicable("A1", skipped[0].why if skipped else "no request was answered")
    empty = [one.request_id for one in audited if not one.gaps]
    near, num, places = _sums(audited, margin)
    share, worst = (near / num if num else 0.0), max(places, default=_Place(0.0, "", 0))
    bound = would_be_seen(len(audited))
    bad = bool(empty) or share < SHARE or worst.gap > BEYOND * margin
    unsure = bound > most_bad or len(skipped) > _MOST_SKIPPED * len(scored)
    why = ""
    if bad:
        why = f"{worst.request_id}: token {worst.step} lies {worst.gap:.3g} below the model's own"
        why = f"{empty[0]}: an answer without a token" if empty else why
    elif unsure:
        why = (
            f"too few: a share of {bound:.1%} bad requests could go unseen, {most_bad:.1%} is allowed (--bad-requests)"
        )
        if len(skipped) > _MOST_SKIPPED * len(scored):
            why = f"{len(skipped)} answers could not be scored: {skipped[0].why}"
    texts = sum(one.from_text for one in audited)
    return Finding(
        test="A1",
        what=f"tokens within {margin:g} of the largest logit of {about}",
        verdict="failed" if bad else "inconclusive" if unsure else "passed",
        value=f"{share:.2%} of {num} tokens of {len(audited)} requests, the furthest {worst.gap:.2g}"
        + (f"; {texts} by their text" if texts else ""),
        limit=f">= {SHARE:.1%}, none beyond {BEYOND * margin:g}",
        why=why,
        tier="T0, ids from text" if texts else "T0, ids",
        figures={
            "share": share,
            "tokens": num,
            "requests": len(audited),
            "not_scored": len(skipped),
            "largest_gap": worst.gap,
            "bad_requests_would_be_seen": bound,
        },
    )


def _sums(audited: Iterable[Scored], margin: float) -> tuple[int, int, list[_Place]]:
    """Tokens within the margin, all tokens, and of each answer the furthest one."""
    near = num = 0
    places = []
    for one in audited:
        found = np.array(one.gaps)
        near, num = near + int((found <= margin).sum()), num + len(found)
        if len(found):
            step = int(found.argmax())
            places.append(_Place(float(found[step]), one.request_id, step))
    return near, num, places


def not_greedy(answers: Sequence[Answer]) -> str:
    """Why a run's tokens cannot be re-scored at all; "" when they can."""
    for answer in answers:
        asked = answer.request.sampling
        if not asked.greedy:
            return "the run is sampled (temperature above 0): no token is the only right one"
        if asked.penalised:
            return "the run asks for penalties, which change the choice"
    return ""
