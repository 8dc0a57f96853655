"""Paired comparison: statistics against values by hand and of scipy, verdicts, and what cannot be compared."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from llmbench.errors import InvalidMeasurement
from llmbench.evals import Marked
from llmbench.exam.compare import EXIT, Z_95, Bootstrap, compare, mcnemar, standard_error, tango_bound
from llmbench.exam.journal import Header

Right = Callable[[int], bool]


def header(number: int, **changes: Any) -> Header:
    made = Header(protocol={"eval": "mmlu"}, model="m", fingerprint="f", via="in process", data="d", num_items=number)
    return msgspec.structs.replace(made, **changes)


def run(number: int, right: Right, num_groups: int = 10, **changes: Any) -> tuple[Header, list[Marked]]:
    """A run of so many questions; group by the last digit."""
    rows = [
        Marked(
            number=i, id=f"{i % num_groups}/{i}", group=str(i % num_groups), category="c", truth="A",
            predicted="A" if right(i) else "B", correct=right(i), prompt_sha256=str(i), key="",
        )
        for i in range(number)
    ]  # fmt: skip
    return header(number, **changes), rows


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 12), (700, 600)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, gained: int) -> None:
    wanted = binomtest(lost, lost + gained).pvalue if lost + gained else 1.0
    assert mcnemar(lost, gained) == pytest.approx(wanted, rel=1e-9)


def test_mcnemar_by_hand() -> None:
    """1 against 5: 2 (1 + 6) / 64."""
    assert mcnemar(5, 1) == pytest.approx(14 / 64)


def test_the_standard_error_is_that_of_the_references_table() -> None:
    """14,042 questions, 0.5 % to 10 % discordant and balanced: 0.060, 0.119, 0.189, 0.267 points."""
    for share, points in ((0.005, 0.060), (0.02, 0.119), (0.05, 0.189), (0.1, 0.267)):
        half = round(14042 * share / 2)
        assert 100 * standard_error(half, half, 14042) == pytest.approx(points, abs=6e-4)


def test_tangos_bound_without_flips_is_its_closed_form() -> None:
    for number in (10, 196, 14042):
        assert tango_bound(0, 0, number) == pytest.approx(-(Z_95**2) / (number + Z_95**2), abs=1e-12)


def test_the_upper_bound_is_the_lower_one_of_the_runs_exchanged() -> None:
    bounds = [tango_bound(0, 9, 43), -tango_bound(9, 0, 43)]
    assert [_t(bound, 0, 9, 43) for bound in bounds] == pytest.approx([Z_95, -Z_95], abs=1e-4)


def _t(d: float, lost: int, gained: int, number: int) -> float:
    """Tango's statistic with the restricted maximum of the likelihood found by a search instead of a formula."""
    shares = np.linspace(max(0.0, -d), (1 - d) / 2, 2_000_001)[1:-1]
    same = number - lost - gained
    likelihood = lost * np.log(shares) + gained * np.log(shares + d) + same * np.log(1 - 2 * shares - d)
    best = float(shares[np.argmax(likelihood)])
    return (gained - lost - number * d) / math.sqrt(number * (2 * best + d * (1 - d)))


@pytest.mark.parametrize(("lost", "gained", "number"), [(3, 9, 100), (12, 4, 60), (30, 31, 500), (1, 0, 25)])
def test_tangos_statistic_at_the_bound_is_the_normal_point(lost: int, gained: int, number: int) -> None:
    assert _t(tango_bound(lost, gained, number), lost, gained, number) == pytest.approx(Z_95, abs=1e-4)


def test_the_bootstrap_is_scipys_bca_within_its_noise() -> None:
    rng = np.random.default_rng(5)
    sizes = np.full(40, 50.0)
    changes = rng.integers(-6, 4, 40).astype(np.float64)
    theirs = bootstrap((changes / 50,), np.mean, n_resamples=10_000, method="BCa", rng=np.random.default_rng(1))
    ours = Bootstrap(changes, sizes, seed=0)
    for share, wanted in ((0.025, theirs.confidence_interval.low), (0.975, theirs.confidence_interval.high)):
        assert ours.quantile(share) == pytest.approx(float(wanted), abs=2e-3)


def test_a_bootstrap_of_a_seed_is_always_the_same_and_of_another_nearly() -> None:
    changes, sizes = np.array([1.0, -2.0, 0.0, -1.0, 3.0]), np.array([10.0, 20.0, 5.0, 8.0, 30.0])
    bounds = [Bootstrap(changes, sizes, seed).quantile(0.05) for seed in (3, 3, 4)]
    assert bounds[0] == bounds[1]
    assert bounds[0] != bounds[2] or bounds[0] == pytest.approx(bounds[2])


def test_groups_that_change_alike_have_a_bound_at_the_difference() -> None:
    assert Bootstrap(np.array([-1.0, -1.0]), np.array([10.0, 10.0]), 0).quantile(0.05) == -0.1


def test_the_same_answers_are_the_same_run() -> None:
    found = compare(run(20, lambda i: i > 3), run(20, lambda i: i > 3))
    assert (found.verdict, EXIT[found.verdict], found.flips, found.num_changed) == ("the same answers", 0, [], 0)


def test_few_flips_among_many_questions_are_not_worse() -> None:
    found = compare(run(5000, lambda i: i % 3 > 0), run(5000, lambda i: i % 3 > 0 or i == 30))
    assert (found.verdict, EXIT[found.verdict]) == ("not worse", 0)
    assert (found.num_lost, found.num_gained) == (0, 1)


def test_a_clear_loss_is_worse_and_its_flips_are_listed_in_order() -> None:
    found = compare(run(1000, lambda _: True), run(1000, lambda i: i % 20 > 0))
    assert (found.verdict, EXIT[found.verdict]) == ("worse", 1)
    assert found.difference == pytest.approx(-0.05)
    assert [flip.id for flip in found.flips][:2] == ["0/0", "0/20"]
    assert all(flip.lost and (flip.base, flip.new) == ("A", "B") for flip in found.flips)
    assert found.lower_bound < found.difference


def test_a_small_loss_among_few_questions_cannot_be_told() -> None:
    found = compare(run(50, lambda _: True), run(50, lambda i: i != 7))
    assert (found.verdict, EXIT[found.verdict]) == ("inconclusive", 4)


def test_a_loss_in_one_subject_alone_is_seen_through_the_subjects() -> None:
    """Items as if independent would pass at this margin; whole subjects drawn again do not."""
    base, new = run(4000, lambda _: True, 8), run(4000, lambda i: i % 8 > 0 or i > 200, 8)
    found = compare(base, new, margin=0.011)
    assert found.clustered_lower_bound is not None
    assert found.lower_bound > -0.011 > found.clustered_lower_bound
    assert found.verdict == "worse"


def test_one_subject_has_no_bootstrap() -> None:
    found = compare(run(100, lambda i: i > 3, 1), run(100, lambda i: i > 4, 1))
    assert (found.clustered_lower_bound, found.clustered_interval) == (None, None)


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (run(20, lambda _: True, protocol={"eval": "mmlu", "shots": 0}), "other protocols"),
        ((header(21), run(20, lambda _: True)[1]), "20 of 21 questions were answered: finish with --resume"),
        ((header(19), run(19, lambda _: True)[1]), "9/19: not the same question in both runs"),
        (run(21, lambda _: True), "20 questions before, 21 now"),
    ],
)
def test_runs_of_other_questions_are_not_comparable(new: tuple[Header, list[Marked]], message: str) -> None:
    with pytest.raises(InvalidMeasurement, match=message):
        compare(run(20, lambda _: True), new)


@pytest.mark.parametrize("change", [{"prompt_sha256": "x"}, {"truth": "C"}, {"correct": None}])
def test_a_question_that_is_another_one_is_named(change: dict[str, Any]) -> None:
    made, rows = run(20, lambda _: True)
    rows[13] = msgspec.structs.replace(rows[13], **change)
    with pytest.raises(InvalidMeasurement, match="3/13"):
        compare(run(20, lambda _: True), (made, rows))
