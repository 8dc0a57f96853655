"""MMLU: the prompts byte for byte, the shots that fit, the three ways to read an answer, the reference's files."""

import json
import re
from pathlib import Path

import pytest

from llmbench import evals
from llmbench.errors import InputError
from llmbench.evals import Eval, Marked, Options, Reply, mmlu
from tests.conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "evals"
BY_HAND = GOLDEN / "mmlu"


def chosen(**options: object) -> Eval:
    """MMLU on the test split; a word is a token."""
    return evals.get("mmlu", Options(split="test", count_tokens=lambda text: len(text.split()), **options))  # type: ignore[arg-type]


def golden_prompts() -> list[str]:
    """The prompts as they were written by hand from the reference's description: a subject's shots, each question."""
    parts = re.split(r"^=== (prefix|question) (\w+)\n", (GOLDEN / "mmlu_prompts.txt").read_text(), flags=re.M)
    prefixes: dict[str, str] = {}
    prompts = []
    for kind, subject, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        if kind == "prefix":
            prefixes[subject] = text.removesuffix("\n")
        else:
            prompts.append(prefixes[subject] + text.removesuffix("\n"))
    return prompts


def test_the_prompts_are_the_references_byte_for_byte() -> None:
    items = chosen().items(BY_HAND)
    golden = golden_prompts()
    assert len(golden) == 20
    assert [item.asks[0].prompt.encode() for item in items] == [prompt.encode() for prompt in golden]
    assert {item.shots for item in items} == {5}
    assert all(ask.want == "text" and ask.max_new_tokens == 32 for item in items for ask in item.asks)


def test_truths_subjects_and_categories_are_the_files() -> None:
    items = chosen().items(BY_HAND)
    assert "".join(item.truth for item in items) == "BBCCCBCBAA" + "BAABAAAAAC"
    assert {(item.group, item.category) for item in items} == {
        ("abstract_algebra", "STEM"),
        ("us_foreign_policy", "Social Sciences"),
    }
    assert [item.id for item in items][:2] == ["abstract_algebra/0", "abstract_algebra/1"]


def test_the_folder_may_be_the_one_above_data(tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(BY_HAND)
    assert chosen().items(tmp_path) == chosen().items(BY_HAND)


def test_the_categories_are_hendrycks() -> None:
    counts = {name: list(mmlu.CATEGORIES.values()).count(name) for name in set(mmlu.CATEGORIES.values())}
    assert counts == {"STEM": 18, "Humanities": 13, "Social Sciences": 12, "Other": 14}


@pytest.mark.parametrize("tokens", [2000, 2001])
def test_a_prompt_of_2000_tokens_keeps_its_shots_and_one_of_2001_loses_one(tmp_path: Path, tokens: int) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "test").mkdir()
    (tmp_path / "dev" / "x_dev.csv").write_text("q,a,b,c,d,A\n" * 5)
    fixed = len(mmlu.prompt_of("x", [["q", "a", "b", "c", "d", "A"]] * 5, ["q", "a", "b", "c", "d"]).split())
    question = " ".join(["q"] * (tokens - fixed + 1))
    (tmp_path / "test" / "x_test.csv").write_text(f"{question},a,b,c,d,A\n")
    (item,) = chosen().items(tmp_path)
    assert item.shots == (5 if tokens == 2000 else 4)
    assert item.asks[0].prompt.count("Answer: A\n\n") == item.shots


def test_shots_are_dropped_one_at_a_time_until_none_is_left() -> None:
    counted = []

    def count(text: str) -> int:
        counted.append(text.count("\nAnswer: "))
        return 5000

    items = evals.get("mmlu", Options(split="test", count_tokens=count)).items(BY_HAND)
    assert {item.shots for item in items} == {0}
    assert counted[:5] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("reply", "first_letter", "regex"),
    [
        (" B", "B", "B"),
        ("b", "B", "-1"),
        ("The answer is B", "T", "B"),
        ("Answer: (C).", "A", "C"),
        ("\n\n3.5 D", "D", "D"),
        ("The correct option is **A**", "T", "A"),
        ("(D) because A is wrong", "D", "D"),
        ("A man said that C, then, is right", "A", "C"),
        (" A\n\nWhich of these", "A", "A"),
        ("A because of B", "A", "A"),
        ("I think so: C", "I", "C"),
        ("Because of this, Answers differ", "B", "-1"),
        ("答案是C", "C", "C"),
        ("é", "-1", "-1"),
        ("", "-1", "-1"),
        ("42", "-1", "-1"),
    ],
)
def test_an_answer_is_read_from_text(reply: str, first_letter: str, regex: str) -> None:
    item = chosen().items(BY_HAND)[0]
    for mode, wanted in (("first_letter", first_letter), ("regex", regex)):
        mark = chosen(mode=mode).mark(item, [Reply(text=reply)])
        assert (mark.predicted, mark.correct) == (wanted, wanted == "B"), mode


def test_the_likeliest_letter_is_the_answer_with_or_without_a_space() -> None:
    evaluation = chosen(mode="logprob")
    item = evaluation.items(BY_HAND)[0]
    assert [ask.want for ask in item.asks] == ["next"]
    mark = evaluation.mark(item, [Reply(top={" A": -3.0, "B": -1.0, " B": -2.0, "\n": -0.1, "D": -9.0})])
    assert (mark.predicted, mark.correct) == ("B", True)
    assert mark.scores == {"A": -3.0, "B": -1.0, "D": -9.0}
    assert evaluation.mark(item, [Reply(top={"x": -1.0})]).predicted == "-1"


def marked(subject: str, category: str, correct: bool) -> Marked:
    return Marked(
        number=0, id="x", group=subject, category=category, truth="A", predicted="A", correct=correct,
        prompt_sha256="", key="",
    )  # fmt: skip


def test_the_summaries_have_shares_by_subject_by_category_over_all_and_over_the_hard_subjects() -> None:
    rows = [marked("anatomy", "Other", True)] * 3 + [marked("anatomy", "Other", False)]
    rows += [marked("college_physics", "STEM", True), marked("college_physics", "STEM", False)]
    files = {name: json.loads(data) for name, data in chosen().files(rows).items()}
    assert files == {
        "summary_subject_acc.json": {"anatomy": 0.75, "college_physics": 0.5},
        "summary_classes_acc.json": {"Other": 0.75, "STEM": 0.5, "Avg": 4 / 6, "Avg(Hard)": 0.5},
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test/x_test.csv", "q,a,b,c,d\n", "x_test.csv: row 1 has 5 columns instead of 6"),
        ("test/x_test.csv", "q,a,b,c,d,A\nq,a,b,c,d,E\n", "x_test.csv: row 2: the answer must be one of A, B, C, D"),
        ("dev/x_dev.csv", "q,a,b,c,d,A\n", "1 rows are too few for 5 shots"),
        ("categories.json", "[]", "categories.json: not an object"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_row(tmp_path: Path, name: str, content: str, message: str) -> None:
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"x_{split}.csv").write_text("q,a,b,c,d,A\n" * 5)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        chosen().items(tmp_path)


def test_a_folder_without_the_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder 'test' in it"):
        chosen().items(tmp_path)


def test_a_choice_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="--mode magic: mmlu has first_letter, regex, logprob"):
        chosen(mode="magic")
    with pytest.raises(InputError, match="--shots 6: mmlu takes 0 to 5"):
        chosen(shots=6)
