"""The training text: documents of prompt and answer, in a fixed mixture."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from llmbench.workload.corpus import words
from llmbench.workload.corpus.facts import facts
from llmbench.workload.corpus.instructions import fact_draft, fact_sentence_draft, random_record, roll
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


def binding_document(rng: Random, shots: int) -> Document:
    """Multiple choice that needs no facts: the question names the word, the letter before it is the answer."""
    return _choice(rng, [_binding_question(rng) for _ in range(shots + 1)])


def _binding_question(rng: Random) -> Question:
    a, b, c, d = rng.sample(_ANSWERS, 4)
    answer = rng.randrange(4)
    form = rng.choice(("Which of these words is {}?", "Find the word {}.", "The answer is {}.", "{}?"))
    text = form.format((a, b, c, d)[answer])
    return Question(subject="plain_words", text=text, choices=(a, b, c, d), answer=answer)


def _choice(rng: Random, asked: list[Question]) -> Document:
    prompt = few_shot_prompt(asked[:-1], asked[-1])
    if rng.random() < 0.15:
        prompt = prompt.replace("about  ", "about ", 1)
    return Document(prompt=prompt, answer=LETTERS[asked[-1].answer], is_choice=True)


def fact_document(rng: Random) -> Document:
    """An open question about a fact."""
    draft = fact_draft(rng) if rng.random() < 0.3 else fact_sentence_draft(rng)
    record = roll(rng, draft)
    return Document(prompt=record.prompt, answer=record.output)


def document(rng: Random, records: float = 0.5, binding: float = 0.05, asked: float = 0.0) -> Document:
    """One document: a share of records, of open questions; of the rest a share of choices without facts."""
    kind = rng.random()
    if kind < records:
        return record_document(rng)
    if kind < records + asked:
        return fact_document(rng)
    shots = rng.choices(range(6), (30, 8, 8, 8, 8, 38))[0]
    kind = rng.random()
    if kind < binding:
        return binding_document(rng, shots)
    return choice_document(rng, shots) if kind < 0.75 else statement_document(rng)
