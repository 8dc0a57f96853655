"""MMLU (Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300), asked as Ascend's atb_speed SDK does.

Five shots, greedy, 32 new tokens, the first ASCII letter is the answer. The reference is ascend-formats section 5.1.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmbench.errors import InputError
from llmbench.evals import Item, Options, _choices

ABOUT = (
    "MMLU, 57 subjects of four-choice questions; Hendrycks' data folder {dev,val,test}/SUBJECT_SPLIT.csv "
    "(https://people.eecs.berkeley.edu/~hendrycks/data.tar)"
)
MODES = _choices.MODES
SPLITS = ("val", "test")
SHOTS = (5,)

HEADER = "The following are multiple choice questions (with answers) about {}.\n\n"
CATEGORIES_FILE = "categories.json"
"""Beside dev, val and test: {subject: category} for subjects that are not MMLU's own."""

_STEM = (
    "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics "
    "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
    "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
    "high_school_physics high_school_statistics machine_learning"
)
_HUMANITIES = (
    "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
    "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
    "world_religions"
)
_SOCIAL_SCIENCES = (
    "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
    "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
    "security_studies sociology us_foreign_policy"
)
_OTHER = (
    "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
    "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
)
CATEGORIES = {  # Hendrycks' categories.py
    subject: category
    for category, subjects in (
        ("STEM", _STEM),
        ("Humanities", _HUMANITIES),
        ("Social Sciences", _SOCIAL_SCIENCES),
        ("Other", _OTHER),
    )
    for subject in subjects.split()
}


def evaluation(options: Options) -> "Mmlu":
    """MMLU with everything chosen."""
    return Mmlu(options)


class Mmlu(_choices.Choices):
    """The seed protocol, or one of the other two ways to read an answer."""

    name = "mmlu"

    def __init__(self, options: Options) -> None:
        super().__init__(options, MODES, SPLITS, SHOTS)

    def items(self, folder: Path) -> list[Item]:
        """Every question of the split, subjects by name, rows as they stand."""
        root = folder if (folder / self.split).is_dir() else folder / "data"
        ending = f"_{self.split}.csv"
        if not (root / self.split).is_dir():
            raise InputError(f"{folder}: there is no folder {self.split!r} in it, as Hendrycks' data has")
        subjects = sorted(path.name.removesuffix(ending) for path in (root / self.split).glob(f"*{ending}"))
        if not subjects:
            raise InputError(f"{root / self.split}: no file SUBJECT{ending} is there")
        categories = CATEGORIES | _own_categories(root)
        return [item for subject in subjects for item in self._subject(root, subject, categories)]

    def _subject(self, root: Path, subject: str, categories: Mapping[str, str]) -> list[Item]:
        path = root / self.split / f"{subject}_{self.split}.csv"
        rows = _choices.read_rows(path, 6)
        examples = _choices.read_rows(root / "dev" / f"{subject}_dev.csv", 6)[: self.shots] if self.shots else []
        if len(examples) < self.shots:
            raise InputError(
                f"{root / 'dev' / subject}_dev.csv: {len(examples)} rows are too few for {self.shots} shots"
            )
        return [
            self._item(subject, categories.get(subject, "Other"), number, row, examples, path)
            for number, row in enumerate(rows)
        ]

    def _item(
        self,
        subject: str,
        category: str,
        number: int,
        row: Sequence[str],
        examples: Sequence[Sequence[str]],
        path: Path,
    ) -> Item:
        prompt, shots = _choices.fitted(
            lambda count: prompt_of(subject, examples[:count], row), len(examples), self._count_tokens
        )
        return Item(
            id=f"{subject}/{number}",
            group=subject,
            category=category,
            truth=_choices.letter(row[5], path, number + 1),
            asks=(_choices.ask(prompt, self.mode, self.max_new_tokens),),
            shots=shots,
        )


def prompt_of(subject: str, examples: Sequence[Sequence[str]], row: Sequence[str]) -> str:
    """The header, answered examples, the question; each part of the subject has a space before it, the first too."""
    about = "".join(f" {part}" for part in subject.split("_"))
    shown = "".join(f"{_choices.block(one[0], one[1:5], 'Answer:')} {one[5]}\n\n" for one in examples)
    return HEADER.format(about) + shown + _choices.block(row[0], row[1:5], "Answer:")


def _own_categories(root: Path) -> dict[str, str]:
    path = root / CATEGORIES_FILE
    if not path.is_file():
        return {}
    try:
        return {str(subject): str(category) for subject, category in json.loads(path.read_bytes()).items()}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not an object of subjects and their categories ({error})") from error
