"""GSM8K: the question alone, the last number."""

from pathlib import Path

import pytest

from llmbench import evals
from llmbench.errors import InputError
from llmbench.evals import Options, Reply
from llmbench.evals.gsm8k import last_number
from tests.contracts.test_evals import SAMPLES

EVALUATION = evals.get("gsm8k", Options(count_tokens=len))


def test_the_prompt_is_the_question_and_the_truth_the_number_behind_the_signs() -> None:
    first, second = EVALUATION.items(SAMPLES / "gsm8k")
    (ask,) = first.asks
    assert ask.prompt.startswith("Ada has 3 baskets")
    assert (ask.max_new_tokens, ask.want) == (512, "text")
    assert (first.truth, second.truth) == ("7", "2500")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It is 12 - 5 = 7 apples.", "7"),
        ("$1,250.50 in all", "1250.50"),
        ("-3", "-3"),
        ("about .5", ".5"),
        ("7.", "7"),
        ("none", "-1"),
        ("", "-1"),
    ],
)
def test_the_last_number_is_read_without_commas(text: str, number: str) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(("text", "right"), [("2500", True), ("2,500.00005", True), ("2500.001", False), ("no", False)])
def test_numbers_are_equal_within_a_ten_thousandth(text: str, right: bool) -> None:
    item = EVALUATION.items(SAMPLES / "gsm8k")[1]
    assert EVALUATION.mark(item, [Reply(text=text)]).correct is right


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "no number"}', "line 2: answer: expected a number behind ####"),
        ('{"question": 3, "answer": "#### 1"}', "line 2: question: expected a text, found 3"),
        ("[]", "line 2 is not an object"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text('{"question": "q", "answer": "#### 1"}\n' + line + "\n")
    with pytest.raises(InputError, match=message):
        EVALUATION.items(tmp_path)
