"""A5: questions with known answers among the timed requests, right as often as on a trusted model.

They take the place of requests that the secret seed chooses and keep all of theirs but the prompt, so that neither the
arrivals nor the parameters tell them. The questions are the fact base's, asked as the datasets ask; a server could know
them all, so whoever has others names a file of them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.accuracy.audit.run import Answer
from llmbench.accuracy.audit.secret import Canary
from llmbench.errors import InputError
from llmbench.exam.compare import mcnemar, tango_bound
from llmbench.tokenizer import Tokenizer
from llmbench.workload import sources
from llmbench.workload.corpus import facts
from llmbench.workload.corpus.questions import train_templates
from llmbench.workload.plan import Plan, PlannedRequest, hash_of

MARGIN = 0.10
_SIGNIFICANT = 0.05
_ROOM = 16  # tokens that an answer may have, where there are enough such requests


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and the word or words that a right answer has in it."""

    prompt: str
    answer: str


def known() -> list[Question]:
    """Every fact in every phrasing that the embedded model has seen, to be answered in a word or in a sentence."""
    asked = [(fact, fact.question(template)) for fact in facts() for template in train_templates(fact)]
    return [
        Question(prompt=prompt, answer=fact.answer)
        for fact, text in asked
        for prompt in (text, f"Answer in one word. {text}")
    ]


def read(path: Path) -> list[Question]:
    """Questions of a JSON list, or of JSON lines: {"prompt": ..., "answer": ...}. Raises InputError."""
    found = []
    for place, record in sources.records(path):
        prompt, answer = record.get("prompt"), record.get("answer")
        if not (isinstance(prompt, str) and isinstance(answer, str) and prompt.strip() and answer.strip()):
            raise InputError(f"{path}: {place}: needs the texts prompt and answer")
        found.append(Question(prompt=prompt, answer=answer))
    return found


def mixed(
    plan: Plan, questions: Sequence[Question], share: float, seed: int, tokenizer: Tokenizer
) -> tuple[Plan, tuple[Canary, ...]]:
    """The plan with that share of its requests asking questions instead, at least one, and which ones those are.

    Turns of a conversation and prompts of token ids are left alone; a plan of nothing else has no question.
    """
    rng = np.random.default_rng(seed)
    waited_for = {each.after for each in plan.requests if isinstance(each.after, int)}
    free = [
        each
        for each in plan.requests
        if not isinstance(each.after, int) and each.index not in waited_for and isinstance(each.request.prompt, str)
    ]
    if not free:
        return plan, ()
    number = max(1, round(share * len(plan.requests)))
    roomy = [each for each in free if each.request.max_new_tokens is None or each.request.max_new_tokens >= _ROOM]
    slots = roomy if len(roomy) >= number else free
    taken = sorted(rng.permutation(len(slots))[:number].tolist())
    asked = rng.permutation(np.resize(rng.permutation(len(questions)), len(taken))).tolist()
    replaced = {slots[place].index: questions[pick] for place, pick in zip(taken, asked, strict=True)}
    requests = tuple(
        _asking(each, replaced[each.index].prompt, tokenizer) if each.index in replaced else each
        for each in plan.requests
    )
    canaries = tuple(Canary(index=index, answer=question.answer) for index, question in sorted(replaced.items()))
    return Plan(settings=plan.settings, requests=requests, sha256=hash_of(requests)), canaries


def _asking(planned: PlannedRequest, prompt: str, tokenizer: Tokenizer) -> PlannedRequest:
    return msgspec.structs.replace(
        planned,
        request=msgspec.structs.replace(planned.request, prompt=prompt),
        num_prompt_tokens=planned.num_prompt_tokens and len(tokenizer.encode(prompt)),
    )


def right(text: str, answer: str) -> bool:
    """Whether a text has the answer in it, as words of their own."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def finding(
    canaries: Sequence[Canary],
    answers: Sequence[Answer],
    texts: Mapping[int, str],
    base: Mapping[int, str] | None,
    margin: float = MARGIN,
) -> Finding:
    """`texts` are the run's answers and `base` a trusted model's to the same questions, by index of the request.

    Passed when no question is answered right in one and wrong in the other, or when the lower 95 % bound (Tango) of
    the difference is above `-margin`; failed when significantly fewer are right (exact McNemar).
    """
    if not canaries:
        return not_applicable("A5", "there were no questions with known answers: measure with perf --audit")
    asked = [canary for canary in canaries if canary.index in texts]
    lost = len(canaries) - len(asked)
    if not asked:
        return not_applicable("A5", f"none of the {lost} questions was answered")
    correct = {canary.index: right(texts[canary.index], canary.answer) for canary in asked}
    num_right = sum(correct.values())
    what = "questions with known answers that were answered right, against a trusted model"
    value = f"{num_right} of {len(asked)}"
    if base is None:
        return Finding(
            test="A5", what=what, verdict="not applicable", value=value, why="there is no trusted model to ask the same"
        )
    theirs = {canary.index: right(base[canary.index], canary.answer) for canary in asked}
    worse = [canary.index for canary in asked if theirs[canary.index] and not correct[canary.index]]
    better = sum(correct[index] and not theirs[index] for index in theirs)
    bound = tango_bound(len(worse), better, len(asked))
    chance = mcnemar(len(worse), better)
    ids = {answer.planned.index: answer.id for answer in answers}
    passed = not (worse or better) or bound > -margin
    failed = not passed and len(worse) > better and chance < _SIGNIFICANT
    why = ""
    if not passed:
        why = f"{ids[worse[0]]}: {texts[worse[0]][:40]!r}" if worse else "too few questions to tell"
        why += "" if failed else f"; the lower bound of the difference is {bound:+.0%}, {-margin:+.0%} is allowed"
    return Finding(
        test="A5",
        what=what,
        verdict="passed" if passed else "failed" if failed else "inconclusive",
        value=f"{value}, the trusted model {sum(theirs.values())}; {len(worse)} lost, {better} gained (p {chance:.2g})"
        + (f"; {lost} not answered" if lost else ""),
        limit=f"none lost, or not worse by {margin:.0%}",
        why=why,
        tier="T0",
        figures={"questions": len(asked), "right": num_right, "lost": len(worse), "gained": better, "p": chance},
    )
