"""A9: requests of the timed run, chosen by the revealed seed, sent again one by one: the same tokens, or a near tie.

A batch may change the last bits of a logit, so where the two largest lie within the margin of the precision, either
token is right, and what follows answers another text. Whether that is so, a trusted model has to say.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.accuracy.audit.run import Answer, Ids, Vocabulary, spoken
from llmbench.accuracy.determinism import first_difference
from llmbench.accuracy.judge import would_be_seen
from llmbench.loadgen.record import Record

Apart = Callable[[Ids, int, int], float]
"""How far below the largest logit, after these ids, the lower of two tokens lies."""


class Repeat(NamedTuple):
    """A request of the run, and what came when it was sent again."""

    answer: Answer
    record: Record


class _Split(NamedTuple):
    """Where two answers part: after `common` ids of prompt and answer, with these two tokens; None is an end."""

    common: Ids
    was: int | None
    now: int | None


def finding(repeats: Sequence[Repeat], vocabulary: Vocabulary | None, apart: Apart | None, margin: float) -> Finding:
    """All repeats equal, or parted at a near tie. Without a trusted model, other texts cannot be judged."""
    answered = [one for one in repeats if one.record.status == "answered"]
    if not repeats:
        return not_applicable("A9", "no request was answered")
    if not answered:
        return not_applicable("A9", f"no request was answered again: {repeats[0].record.reason}")
    other = [one for one in answered if not _equal(one.answer.record, one.record)]
    gaps = [(_gap(one, vocabulary, apart), one.answer.id) for one in other]
    known = [(gap, name) for gap, name in gaps if gap is not None]
    unexplained = [(gap, name) for gap, name in known if gap > margin]
    lost = len(repeats) - len(answered)
    bound = would_be_seen(len(answered))
    unknown = len(gaps) - len(known)
    why = ""
    if unexplained:
        gap, name = max(unexplained)
        why = f"{name}: the answers part at a token {gap:.3g} below the other"
    elif unknown:
        why = f"{unknown} answers are others now; name a trusted model, which tells whether that was a near tie"
    elif lost:
        why = f"{lost} were not answered again"
    return Finding(
        test="A9",
        what=f"{len(answered)} requests sent again: another answer that no near tie (up to {margin:g}) explains",
        verdict="failed" if unexplained else "inconclusive" if unknown or lost else "passed",
        value=f"{len(unexplained)} of {len(answered)}; {len(other)} are others now",
        limit="0",
        why=why,
        tier="T0",
        figures={
            "requests": len(answered),
            "others": len(other),
            "unexplained": len(unexplained),
            "bad_requests_would_be_seen": bound,
        },
    )


def _equal(was: Record, now: Record) -> bool:
    if was.token_ids and now.token_ids:
        return was.token_ids == now.token_ids
    return was.text == now.text


def _gap(repeat: Repeat, vocabulary: Vocabulary | None, apart: Apart | None) -> float | None:
    """How far the tokens at which the answers part lie apart; None when nobody can say."""
    if vocabulary is None or apart is None:
        return None
    was = spoken(repeat.answer, vocabulary)
    now = spoken(Answer(repeat.answer.planned, repeat.record), vocabulary)
    if isinstance(was, str) or isinstance(now, str):
        return None
    split = _split(was.prompt, was.answer, now.answer)
    if split.was is None or split.now is None:
        return float("inf")  # one is the other's beginning: it was cut off
    return apart(split.common, split.was, split.now)


def _split(prompt: Ids, was: Ids, now: Ids) -> _Split:
    same = first_difference(was, now)
    return _Split(
        (*prompt, *was[:same]),
        was[same] if same < len(was) else None,
        now[same] if same < len(now) else None,
    )
