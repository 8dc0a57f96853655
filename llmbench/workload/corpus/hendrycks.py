"""Our questions as a folder of the form that MMLU has: {dev,val,test}/SUBJECT_SPLIT.csv, without headers.

dev has five trained questions of each subject; val and test share the held-out ones, which the embedded model has never
seen, a third and two thirds. The same bytes every time.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from random import Random

from llmbench.workload.corpus.questions import Question, held_out_questions, train_questions

SHOTS = 5
SEED = "mmlu.synthetic"
_VAL_EVERY = 3

CATEGORIES = {
    "plain_animals": "STEM",
    "plain_arithmetic": "STEM",
    "plain_calendar": "Other",
    "plain_geography": "Social Sciences",
    "plain_language": "Humanities",
    "plain_science": "STEM",
    "plain_work": "Other",
}


def make(folder: Path) -> list[Path]:
    """Write the folder; its files. `categories.json` says the category of each subject."""
    rng = Random(SEED)
    trained, held_out = list(train_questions(rng)), list(held_out_questions(rng))
    paths = []
    for subject in sorted({question.subject for question in held_out}):
        own = [question for question in held_out if question.subject == subject]
        rng.shuffle(own)
        shots = rng.sample([question for question in trained if question.subject == subject], SHOTS)
        val = own[::_VAL_EVERY]
        test = [question for place, question in enumerate(own) if place % _VAL_EVERY]
        for split, questions in (("dev", shots), ("val", val), ("test", test)):
            paths.append(_write(folder / split / f"{subject}_{split}.csv", questions))
    categories = folder / "categories.json"
    categories.write_bytes(json.dumps(CATEGORIES, indent=2).encode() + b"\n")
    return [*paths, categories]


def _write(path: Path, questions: Sequence[Question]) -> Path:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(question.row() for question in questions)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.getvalue().encode())
    return path
