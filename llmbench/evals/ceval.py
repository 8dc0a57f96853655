"""C-Eval (Huang et al. 2023, https://arxiv.org/abs/2305.08322): four-choice questions in Chinese, 52 subjects.

Asked as the set's own answer-only prompt has it, five shots from dev; 2,000 tokens, 32 new ones and the first ASCII
letter as for MMLU (ascend-formats sections 5.1 and 5.2). The test split has no public answers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmbench.errors import InputError
from llmbench.evals import Item, Mark, Marked, Options, Reply, _choices
from llmbench.evals._ceval_subjects import SUBJECTS

ABOUT = "C-Eval, 52 subjects of four-choice questions in Chinese; folder {dev,val}/SUBJECT_SPLIT.csv"
MODES = _choices.MODES
SPLITS = ("val", "dev")
SHOTS = (5,)

HEADER = "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n"  # noqa: RUF001
ANSWER = "答案："  # noqa: RUF001
MAPPING_FILE = "subject_mapping.json"
"""The set's own {subject: [English, Chinese, category]}; where it is there, it wins over what is known here."""

_COLUMNS = ("id", "question", "A", "B", "C", "D", "answer")


def evaluation(options: Options) -> "Ceval":
    """C-Eval with everything chosen."""
    return Ceval(options)


class Ceval:
    """One prompt, three ways to read an answer."""

    name = "ceval"

    def __init__(self, options: Options) -> None:
        self._count_tokens = options.count_tokens
        self.mode = options.mode or MODES[0]
        self.split = options.split or SPLITS[0]
        self.shots = SHOTS[0] if options.shots is None else options.shots
        self.max_new_tokens = options.max_new_tokens or _choices.MAX_NEW_TOKENS
        self.protocol: Mapping[str, Any] = {
            "eval": self.name,
            "version": 1,
            "mode": self.mode,
            "split": self.split,
            "shots": self.shots,
            "max_new_tokens": 1 if self.mode == "logprob" else self.max_new_tokens,
        }

    def items(self, folder: Path) -> list[Item]:
        """Every question of the split, subjects by name, rows as they stand."""
        ending = f"_{self.split}.csv"
        subjects = sorted(path.name.removesuffix(ending) for path in (folder / self.split).glob(f"*{ending}"))
        if not subjects:
            raise InputError(f"{folder / self.split}: no file SUBJECT{ending} is there")
        mapping = SUBJECTS | _own_mapping(folder)
        return [item for subject in subjects for item in self._subject(folder, subject, mapping)]

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        """The letter by the mode."""
        return _choices.mark(replies[0], item.truth, self.mode)

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        """`summary_subject_acc.json` and `summary_classes_acc.json`."""
        return _choices.summaries(marked)

    def _subject(self, folder: Path, subject: str, mapping: Mapping[str, tuple[str, str]]) -> list[Item]:
        chinese, category = mapping.get(subject, (subject, "Other"))
        path = folder / self.split / f"{subject}_{self.split}.csv"
        rows = _rows(path)
        examples = _rows(folder / "dev" / f"{subject}_dev.csv")[: self.shots] if self.shots else []
        if len(examples) < self.shots:
            raise InputError(
                f"{folder / 'dev' / subject}_dev.csv: {len(examples)} rows are too few for {self.shots} shots"
            )
        items = []
        for number, row in enumerate(rows):
            prompt, shots = _choices.fitted(
                lambda count, row=row: prompt_of(chinese, examples[:count], row),  # type: ignore[misc]
                len(examples),
                self._count_tokens,
            )
            items.append(
                Item(
                    id=f"{subject}/{row[0]}",
                    group=subject,
                    category=category,
                    truth=_choices.letter(row[6], path, number + 2),
                    asks=(_choices.ask(prompt, self.mode, self.max_new_tokens),),
                    shots=shots,
                )
            )
        return items


def prompt_of(chinese: str, examples: Sequence[Sequence[str]], row: Sequence[str]) -> str:
    """The header, answered examples, the question."""
    shown = "".join(f"{_choices.block(one[1], one[2:6], ANSWER)}{one[6]}\n\n" for one in examples)
    return HEADER.format(chinese) + shown + _choices.block(row[1], row[2:6], ANSWER)


def _rows(path: Path) -> list[list[str]]:
    """The rows below the header; dev has a further column with explanations."""
    head, *rows = _choices.read_rows(path, 6) or [[]]
    if tuple(head[:7]) != _COLUMNS:
        raise InputError(f"{path}: the first row must name {', '.join(_COLUMNS)}; the test split has no answers")
    return rows


def _own_mapping(folder: Path) -> dict[str, tuple[str, str]]:
    path = folder / MAPPING_FILE
    if not path.is_file():
        return {}
    try:
        return {str(name): (str(row[1]), str(row[2])) for name, row in json.loads(path.read_bytes()).items()}
    except (ValueError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not an object of [English, Chinese, category] ({error})") from error
