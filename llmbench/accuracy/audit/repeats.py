"""A3: does the server answer a prompt that it has seen faster than one that it has not?

In every round one prompt of the run is sent, then, in an order drawn anew, three times: as it was, with a nonce before
it, and with its words in another order. Only the first can be in a cache of prefixes or of answers. It is held against
the faster of the other two, so that neither a longer prompt nor a slow moment makes it look quick: where nothing is
cached, it is the fastest of the three in one round of three.
"""

from collections.abc import Sequence
from statistics import median
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.accuracy.audit.run import Answer
from llmbench.loadgen.record import Record
from llmbench.metrics.order import tail
from llmbench.types import Request

Arm = Literal["before", "same", "nonce", "shuffled"]
FASTER = 0.9
ROUNDS = 12
_SURE = 1e-3
_PERHAPS = 0.05
_CHANCE = 1 / 3
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NEW_TOKENS = 16
_TELLING = 4  # tokens of an answer that has gaps to time
_LEAST_GAP_S = 1e-4  # where tokens come together, there is nothing to be faster than


class Probe(NamedTuple):
    """One request of a round."""

    round: int
    arm: Arm
    request: Request


def probes(answers: Sequence[Answer], seed: int, rounds: int = ROUNDS) -> list[Probe]:
    """The requests of the test in the order of sending, of the longer half of the prompts; they are the run's own but
    for the length of their answers. Empty when no prompt is text of several words.
    """
    rng = np.random.default_rng(seed)
    fitting = [
        one for one in answers if isinstance(one.request.prompt, str) and len(set(one.request.prompt.split())) > 3
    ]
    fitting = [one for one in fitting if one.record.num_tokens >= _TELLING] or fitting
    if not fitting:
        return []
    fitting = sorted(fitting, key=lambda one: -len(str(one.request.prompt)))[: max(1, len(fitting) // 2)]
    picked = rng.permutation(np.resize(np.arange(len(fitting)), rounds)).tolist()
    found = []
    for number, pick in enumerate(picked):
        answer = fitting[pick]
        prompt = str(answer.request.prompt)
        texts: dict[Arm, str] = {
            "same": prompt,
            "nonce": "".join(_LETTERS[n] for n in rng.integers(26, size=10)) + f" {prompt}",
            "shuffled": _shuffled(prompt, rng),
        }
        arms: list[Arm] = ["same", "nonce", "shuffled"]
        order = [arms[i] for i in rng.permutation(3).tolist()]
        found.append(Probe(number, "before", _asking(answer, prompt)))
        found += [Probe(number, arm, _asking(answer, texts[arm])) for arm in order]
    return found


def _asking(answer: Answer, prompt: str) -> Request:
    asked = answer.request.max_new_tokens
    limit = _NEW_TOKENS if asked is None else min(asked, _NEW_TOKENS)
    return msgspec.structs.replace(answer.request, prompt=prompt, max_new_tokens=limit)


def _shuffled(prompt: str, rng: np.random.Generator) -> str:
    """The words in another order, another one first."""
    words = prompt.split()
    others = [place for place, word in enumerate(words) if word != words[0]]
    first = others[int(rng.integers(len(others)))]
    rest = [place for place in rng.permutation(len(words)).tolist() if place != first]
    return " ".join(words[place] for place in (first, *rest))


class _Ratios(NamedTuple):
    """Of each round: the repeated prompt's time over the faster of the other two's."""

    first: list[float]
    gaps: list[float]


def findings(sent: Sequence[tuple[Probe, Record]], cache: str) -> list[Finding]:
    """What is seen of a cache of prefixes, against what the plan declared of it, and of one of whole answers."""
    if not sent:
        return [not_applicable("A3", "the prompts are not texts of several words")]
    lost = [record for _, record in sent if record.status != "answered" or not record.stamps_ns]
    if len(lost) > len(sent) // 4:
        return [not_applicable("A3", f"{len(lost)} of {len(sent)} probes were not answered: {lost[0].reason}")]
    ratios = _ratios(sent)
    declared_off = cache == "cold"
    words = {"cold": "declared off", "warm": "declared on", "any": "nothing declared"}[cache]
    return [
        _finding(
            f"first token of a repeated prompt over that of a new one ({words})", ratios.first, judged=declared_off
        ),
        _finding("time per token of a repeated prompt's answer over that of a new one", ratios.gaps, judged=True),
    ]


def _finding(what: str, ratios: Sequence[float], judged: bool) -> Finding:
    if len(ratios) < ROUNDS // 2:
        return Finding(test="A3", what=what, verdict="not applicable", why=f"only {len(ratios)} rounds could be timed")
    value = median(ratios)
    faster = sum(ratio < 1 for ratio in ratios)
    chance = tail(len(ratios), faster, _CHANCE)
    cached = judged and value < FASTER and chance <= _PERHAPS
    sure = chance <= _SURE
    return Finding(
        test="A3",
        what=what,
        verdict="passed" if not cached else "failed" if sure else "inconclusive",
        value=f"{value:.2f}; faster in {faster} of {len(ratios)} rounds (by chance: {chance:.2g})",
        limit=f">= {FASTER:g}" if judged else "",
        why=""
        if not cached
        else "prompts that were sent before are answered from a cache"
        if sure
        else "too few rounds to tell (--rounds)",
        tier="T0",
        figures={"ratio": value, "faster": faster, "rounds": len(ratios), "chance": chance},
    )


def _ratios(sent: Sequence[tuple[Probe, Record]]) -> _Ratios:
    rounds: dict[int, dict[Arm, Record]] = {}
    for probe, record in sent:
        rounds.setdefault(probe.round, {})[probe.arm] = record
    found = _Ratios([], [])
    for arms in rounds.values():
        for times, of, least in ((found.first, _first_s, 0.0), (found.gaps, _gap_s, _LEAST_GAP_S)):
            same, *others = (of(arms[arm]) if arm in arms else None for arm in ("same", "nonce", "shuffled"))
            known = [value for value in others if value is not None and value > least]
            if same is not None and known:
                times.append(same / min(known))
    return found


def _first_s(record: Record) -> float | None:
    """Seconds from sending to the first token."""
    if record.status != "answered" or not record.stamps_ns or record.sent_ns is None:
        return None
    return (record.stamps_ns[0] - record.sent_ns) / 1e9


def _gap_s(record: Record) -> float | None:
    """Seconds per token after the first; those that came together with it count."""
    if record.status != "answered" or sum(record.tokens) < 2:
        return None
    return (record.stamps_ns[-1] - record.stamps_ns[0]) / 1e9 / (sum(record.tokens) - 1)
