"""The training text: documents of prompt and answer, in a fixed mixture."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llmbench.workload.corpus import words
from llmbench.workload.corpus.facts import facts
from llmbench.workload.corpus.instructions import random_record
from llmbench.workload.corpus.questions import LETTERS, Question, ask, few_shot_prompt, train_templates

_FACTS = tuple(facts())
_BY_SUBJECT = {
    subject: [fact for fact in _FACTS if fact.relation.subject == subject]
    for subject in dict.fromkeys(fact.relation.subject for fact in _FACTS)
}
_ANSWERS = sorted({fact.answer for fact in _FACTS} | set(words.SLOTS["topic"]))


@dataclass(frozen=True, kw_only=True)
class Document:
    """A prompt and the answer that follows it directly."""

    prompt: str
    answer: str
    is_choice: bool = False


def record_document(rng: Random) -> Document:
    """An instruction record."""
    record = random_record(rng)
    return Document(prompt=record.prompt, answer=record.output)


def statement_document(rng: Random) -> Document:
    """A few facts told one after another: all answer, no prompt."""
    told = rng.choices(_FACTS, k=rng.randint(1, 6))
    text = " ".join(fact.statement(rng.randrange(len(fact.relation.statements))) for fact in told)
    return Document(prompt="", answer=text)


def choice_document(rng: Random, shots: int) -> Document:
    """A multiple-choice prompt with answered shots, over any facts of one subject."""
    pool = _BY_SUBJECT[rng.choice(_FACTS).relation.subject]
    asked = [ask(fact, rng.choice(train_templates(fact)), rng) for fact in rng.sample(pool, shots + 1)]
    return _choice(rng, asked)


def binding_document(rng: Random) -> Document:
    """Letter binding without facts: four choices, then many look-ups of the letter that stands before a word."""
    chosen = rng.sample(_ANSWERS, 4)
    asked = [rng.randrange(4) for _ in range(rng.randint(1, 9))]
    forms = ("Which of these words is {}?", "Find the word {}.", "The answer is {}.", "{}")
    lines = [f"{letter}. {word}" for letter, word in zip(LETTERS, chosen, strict=True)]
    lines += [f"{rng.choice(forms).format(chosen[n])}\nAnswer: {LETTERS[n]}" for n in asked]
    if rng.random() < 0.5:  # the question before the choices, as in an exam
        question = Question(
            subject="plain_words",
            text=rng.choice(forms).format(chosen[asked[-1]]),
            choices=(chosen[0], chosen[1], chosen[2], chosen[3]),
            answer=asked[-1],
        )
        return _choice(rng, [question])
    return Document(prompt="\n".join(lines)[:-2], answer=LETTERS[asked[-1]], is_choice=True)


def _choice(rng: Random, asked: list[Question]) -> Document:
    prompt = few_shot_prompt(asked[:-1], asked[-1])
    if rng.random() < 0.15:
        prompt = prompt.replace("about  ", "about ", 1)
    return Document(prompt=prompt, answer=LETTERS[asked[-1].answer], is_choice=True)


def document(rng: Random, binding: float = 0.05) -> Document:
    """One document of the mixture; `binding` is the share of questions that need no facts."""
    kind = rng.random()
    if kind < 0.45:
        shots = rng.choices(range(6), (30, 8, 8, 8, 8, 38))[0]
        return binding_document(rng) if rng.random() < binding else choice_document(rng, shots)
    return statement_document(rng) if kind < 0.60 else record_document(rng)
