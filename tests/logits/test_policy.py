"""Which rows are captured."""

import os
from pathlib import Path

import numpy as np
import pytest

from llmbench.errors import InputError
from llmbench.logits import policy
from llmbench.logits.policy import NOTHING, Policy, Watched


def test_the_contests_rows_are_those_whose_index_divides_by_100() -> None:
    contest = Policy(every=100)
    assert [index for index in range(401) if contest.wants("r", 0, index)] == [0, 100, 200, 300, 400]


def test_a_share_takes_about_that_many_rows_and_always_the_same_ones() -> None:
    tenth = Policy(rate=0.1, seed="secret")
    taken = {step for step in range(5000) if tenth.wants("r1", step, step)}
    assert 400 < len(taken) < 600
    assert taken == {step for step in range(5000) if tenth.wants("r1", step, step + 7)}
    others = [{step for step in range(5000) if p.wants(name, step, 0)} for p, name in (
        (tenth, "r2"), (Policy(rate=0.1, seed="other"), "r1"))]  # fmt: skip
    assert all(len(taken & other) < 100 for other in others)


def test_a_larger_share_holds_every_row_of_a_smaller_one() -> None:
    small, large = Policy(rate=0.1, seed="s"), Policy(rate=0.3, seed="s")
    assert all(large.wants("r", step, 0) for step in range(1000) if small.wants("r", step, 0))


def test_only_given_requests_are_taken() -> None:
    given = Policy(requests=("r1", "r3"), every=2)
    assert [(name, i) for name in ("r1", "r2", "r3") for i in range(3) if given.wants(name, i, i)] == [
        ("r1", 0), ("r1", 2), ("r3", 0), ("r3", 2)
    ]  # fmt: skip
    assert not any(NOTHING.wants("r", step, 0) for step in range(1000))


def test_many_rows_are_decided_as_single_ones() -> None:
    chosen = Policy(every=3, rate=0.5, seed="s", requests=("a", "b"))
    names = ["a", "b", "c"] * 20
    steps = np.arange(60, dtype=np.int64)
    expected = [chosen.wants(name, step, step + 5) for name, step in zip(names, range(60), strict=True)]
    assert chosen.select(names, steps, steps + 5).tolist() == expected
    assert 0 < sum(expected) < 14


@pytest.mark.parametrize("wrong", [{"every": 0}, {"rate": -0.1}, {"rate": 1.5}, {"rate": float("nan")}])
def test_a_policy_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Policy(**wrong)  # type: ignore[arg-type]


def test_a_policy_is_switched_while_the_capture_runs(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Policy(every=100))
    assert watched.now() == Policy(every=100) == policy.read(tmp_path)
    policy.write(tmp_path, Policy(rate=0.5, seed="s"))
    os.utime(tmp_path / policy.FILE, ns=(1, 1))
    watched.look()
    assert watched.now() == Policy(rate=0.5, seed="s")


def test_a_broken_policy_changes_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path, Policy(every=100))
    (tmp_path / policy.FILE).write_text('{"every": 0}')
    os.utime(tmp_path / policy.FILE, ns=(1, 1))
    watched.look()
    assert watched.now() == Policy(every=100)
    with pytest.raises(InputError, match="not a capture policy"):
        policy.read(tmp_path)
    (tmp_path / policy.FILE).unlink()
    watched.look()
    assert watched.now() == Policy(every=100)
    assert policy.read(tmp_path) is None
