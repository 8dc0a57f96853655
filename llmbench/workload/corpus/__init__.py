"""Our own text: facts, four-choice questions, instruction records and training documents, all from seeded patterns."""

from llmbench.workload.corpus.compose import compose
from llmbench.workload.corpus.documents import Document, document
from llmbench.workload.corpus.facts import Fact, facts, subjects
from llmbench.workload.corpus.instructions import Record, random_record
from llmbench.workload.corpus.questions import (
    LETTERS,
    Question,
    few_shot_prompt,
    held_out_questions,
    rows,
    train_questions,
)

__all__ = [
    "LETTERS",
    "Document",
    "Fact",
    "Question",
    "Record",
    "compose",
    "document",
    "facts",
    "few_shot_prompt",
    "held_out_questions",
    "random_record",
    "rows",
    "subjects",
    "train_questions",
]
