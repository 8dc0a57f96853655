"""C-Eval (Huang et al. 2023, https://arxiv.org/abs/2305.08322): four-choice questions in Chinese, 52 subjects.

Asked as the set's own answer-only prompt has it, five shots from dev; 2,000 tokens, 32 new ones and the first ASCII
letter as for MMLU (ascend-formats sections 5.1 and 5.2). The test split has no public answers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmbench.errors import InputError
from llmbench.evals import Item, Options, _choices
from llmbench.evals._ceval_subjects import SUBJECTS

ABOUT = "C-Eval, 52 subjects of four-choice questions in Chinese; folder {dev,val}/SUBJECT_SPLIT.csv"
MODES = _choices.MODES
SPLITS = ("val", "dev")
SHOTS = (5,)

HEADER = "以下是中国关于{}考试的单项选择题，请选出其中的正确答案。\n\n"  # noqa: RUF001
ANSWER = "答案："  # noqa: RUF001
MAPPING_FILE = "subject_mapping.json"
"""The set's own {subject: [English, Chinese, category]}; where it is there, it wins over what is known here."""

_COLUMNS = ("id", "question", "A", "B", "C", "D", "answer")  # dev has explanations, too; test has no answers

Row = Mapping[str, str]


def evaluation(options: Options) -> "Ceval":
    """C-Eval with everything chosen."""
    return Ceval(options)


class Ceval(_choices.Choices):
    """One prompt, three ways to read an answer."""

    name = "ceval"

    def __init__(self, options: Options) -> None:
        super().__init__(options, MODES, SPLITS, SHOTS)

    def items(self, folder: Path) -> list[Item]:
        """Every question of the split, subjects by name, rows as they stand."""
        ending = f"_{self.split}.csv"
        subjects = sorted(path.name.removesuffix(ending) for path in (folder / self.split).glob(f"*{ending}"))
        if not subjects:
            raise InputError(f"{folder / self.split}: no file SUBJECT{ending} is there")
        mapping = SUBJECTS | _own_mapping(folder)
        return [item for subject in subjects for item in self._subject(folder, subject, mapping)]

    def _subject(self, folder: Path, subject: str, mapping: Mapping[str, tuple[str, str]]) -> list[Item]:
        path = folder / self.split / f"{subject}_{self.split}.csv"
        rows = _choices.read_table(path, _COLUMNS)
        shown = folder / "dev" / f"{subject}_dev.csv"
        examples = _choices.read_table(shown, _COLUMNS)[: self.shots] if self.shots else []
        if len(examples) < self.shots:
            raise InputError(f"{shown}: {len(examples)} rows are too few for {self.shots} shots")
        names = mapping.get(subject, (subject, "Other"))
        return [self._item(subject, names, number, row, examples, path) for number, row in enumerate(rows)]

    def _item(
        self, subject: str, names: tuple[str, str], number: int, row: Row, examples: Sequence[Row], path: Path
    ) -> Item:
        chinese, category = names
        prompt, shots = _choices.fitted(
            lambda count: prompt_of(chinese, examples[:count], row), len(examples), self._count_tokens
        )
        return Item(
            id=f"{subject}/{row['id']}",
            group=subject,
            category=category,
            truth=_choices.letter(row["answer"], path, number + 2),
            asks=(_choices.ask(prompt, self.mode, self.max_new_tokens),),
            shots=shots,
        )


def prompt_of(chinese: str, examples: Sequence[Row], row: Row) -> str:
    """The header, answered examples, the question."""
    shown = "".join(f"{_block(one)}{one['answer']}\n\n" for one in examples)
    return HEADER.format(chinese) + shown + _block(row)


def _block(row: Row) -> str:
    return _choices.block(row["question"], [row[name] for name in _choices.LETTERS], ANSWER)


def _own_mapping(folder: Path) -> dict[str, tuple[str, str]]:
    path = folder / MAPPING_FILE
    if not path.is_file():
        return {}
    try:
        return {str(name): (str(row[1]), str(row[2])) for name, row in json.loads(path.read_bytes()).items()}
    except (ValueError, AttributeError, IndexError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not an object of [English, Chinese, category] ({error})") from error
