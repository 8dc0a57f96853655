"""Four-choice questions over the facts, in the format of MMLU; held-out ones are never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from llmbench.workload.corpus.facts import Fact, facts

LETTERS = "ABCD"
HEADER = "The following are multiple choice questions (with answers) about {}.\n\n"


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with four choices, of which `choices[answer]` is the right one."""

    subject: str
    text: str
    choices: tuple[str, str, str, str]
    answer: int

    @property
    def letter(self) -> str:
        """The letter of the right choice."""
        return LETTERS[self.answer]

    def row(self) -> tuple[str, str, str, str, str, str]:
        """The row of a Hendrycks file: question, A, B, C, D, answer."""
        return (self.text, *self.choices, self.letter)

    def prompt(self) -> str:
        """The question as it is asked, up to and with `Answer:`."""
        choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, self.choices, strict=True))
        return f"{self.text}\n{choices}\nAnswer:"


def header(subject: str) -> str:
    """The first line of a prompt; the reference writes two spaces before the subject."""
    return HEADER.format("".join(f" {part}" for part in subject.split("_")))


def few_shot_prompt(shots: Sequence[Question], question: Question) -> str:
    """The MMLU prompt: header, answered shots, the question."""
    answered = "".join(f"{shot.prompt()} {shot.letter}\n\n" for shot in shots)
    return header(question.subject) + answered + question.prompt()


def held_out_template(fact: Fact) -> int:
    """The phrasing of this fact's question that is kept out of every training text."""
    return fact.position % len(fact.relation.questions)


def train_templates(fact: Fact) -> tuple[int, ...]:
    """The phrasings of this fact's question that the training text may use."""
    return tuple(n for n in range(len(fact.relation.questions)) if n != held_out_template(fact))


def ask(fact: Fact, template: int, rng: Random) -> Question:
    """The fact as a question, with three wrong answers of the same relation in random order."""
    others = sorted({answer for _, answer in fact.relation.pairs} - {fact.answer})
    choices = rng.sample(others, 3)
    place = rng.randrange(4)
    choices.insert(place, fact.answer)
    a, b, c, d = choices
    subject = fact.relation.subject
    return Question(subject=subject, text=fact.question(template), choices=(a, b, c, d), answer=place)


def train_questions(rng: Random) -> Iterator[Question]:
    """One question for each fact and trained phrasing, with choices drawn from `rng`."""
    for fact in facts():
        for template in train_templates(fact):
            yield ask(fact, template, rng)


def held_out_questions(rng: Random) -> Iterator[Question]:
    """One question for each fact, in the phrasing that is never trained on."""
    for fact in facts():
        yield ask(fact, held_out_template(fact), rng)


def rows(questions: Sequence[Question], subject: str) -> list[tuple[str, str, str, str, str, str]]:
    """The Hendrycks rows of one subject's questions."""
    return [question.row() for question in questions if question.subject == subject]
