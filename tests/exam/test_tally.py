"""Shares and their intervals, by item, by category and by group."""

import pytest
from scipy.stats import binomtest

from llmbench.evals import Marked
from llmbench.exam.tally import results, wilson


def marked(number: int, group: str, correct: bool | None, predicted: str = "A", **more: object) -> Marked:
    return Marked(
        number=number, id=f"{group}/{number}", group=group, category=group[0], truth="A", predicted=predicted,
        correct=correct, prompt_sha256="", key="", **more,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(("right", "number"), [(0, 1), (0, 20), (1, 3), (97, 100), (50, 100), (100, 100)])
def test_the_interval_is_wilsons_as_scipy_has_it(right: int, number: int) -> None:
    ours = binomtest(right, number).proportion_ci(0.95, method="wilson")
    assert wilson(right, number) == pytest.approx((ours.low, ours.high), abs=1e-12)


def test_wilson_by_hand() -> None:
    """8 of 10: (0.8 + 0.19207 -+ 1.96 sqrt(0.016 + 0.0096)) / 1.38415."""
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_micro_counts_items_and_macro_groups() -> None:
    rows = [marked(i, "xa", i < 6) for i in range(8)] + [marked(i, "yb", i < 1) for i in range(8, 10)]
    rows[9] = marked(9, "yb", True)
    found = results(rows, 11)
    assert found.micro is not None
    assert (found.micro.num_right, found.micro.num_items, found.micro.accuracy) == (7, 10, 0.7)
    assert found.macro == (6 / 8 + 1 / 2) / 2
    assert (found.num_items, found.num_marked, found.num_unanswered) == (11, 10, 1)
    assert [(one.name, one.num_right, one.num_items) for one in found.categories] == [("x", 6, 8), ("y", 1, 2)]


def test_what_was_not_judged_has_no_accuracy() -> None:
    found = results([marked(0, "x", None, predicted="-1")], 1)
    assert (found.micro, found.macro, found.num_without_answer) == (None, None, 0)


def test_a_reply_without_an_answer_is_wrong_and_counted() -> None:
    found = results([marked(0, "x", False, predicted="-1"), marked(1, "x", True)], 2)
    assert found.num_without_answer == 1
    assert found.micro is not None
    assert found.micro.accuracy == 0.5


def test_further_numbers_are_averaged_and_shots_counted() -> None:
    rows = [marked(i, "x", True, metrics={"mc2": i / 2}, shots=5 - i) for i in range(2)]
    found = results(rows, 2)
    assert found.metrics == {"mc2": 0.25}
    assert found.shots == {5: 1, 4: 1}
