"""Profiles in files: what `acc calibrate` makes of three captures, what is accepted, and the sample of configs/."""

from pathlib import Path

import numpy as np
import pytest

from llmbench.accuracy import calibrate, judge, profiles
from llmbench.accuracy.calibrate import Pair, Report, Settings
from llmbench.accuracy.profiles import PROFILES, Figure
from llmbench.errors import ConfigError, InputError, InvalidMeasurement
from tests.accuracy.captures import Row, answers, compared, store
from tests.conftest import ROOT

SETTINGS = Settings(num_requests=4, batch_size=4, factor=10.0)
REQUESTS = ["calibrate-0", "calibrate-1", "calibrate-2", "calibrate-3"]


def captures(folder: Path, noise: float, batch: int = 4) -> tuple[Path, Path, Path]:
    """A base, the same once more, and a run in a batch with noise in every row."""
    rng = np.random.default_rng(1)
    base = answers(REQUESTS, steps=3)
    batched = [
        row.but(values=row.logits() + rng.normal(0, noise, len(row.logits())).astype(np.float32), batch=batch)
        for row in base
    ]
    return (
        store(folder / "base", base),
        store(folder / "again", base),
        store(folder / "batch", batched),
    )


def calibrated(folder: Path, noise: float = 1e-3) -> Report:
    return calibrate.calibrate(SETTINGS, *captures(folder, noise))


def test_limits_are_the_noise_times_the_factor(tmp_path: Path) -> None:
    report = calibrated(tmp_path)
    again, batch = report.noises
    assert (again.num_equal, again.num_rows, again.figures["kld_max"]) == (12, 12, 0.0)
    assert batch.median_batch == 4
    assert batch.figures["kld_mean"] > 0
    limits = {gate.figure: gate.limit for gate in report.profile.gates}
    assert limits["kld_max"] == 10 * batch.figures["kld_max"]
    assert limits["flips_unexplained"] == 0
    assert report.profile.margin == 20 * batch.figures["max_abs_free"]


def test_the_file_accepts_the_noise_it_was_made_of_and_refuses_ten_times_as_much(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(calibrate.text(calibrated(tmp_path)))
    for factor, verdict in ((1, "passed"), (2, "passed"), (10, "failed")):
        base, _, noisy = captures(tmp_path / str(factor), factor * 1e-3)
        found = compared(base, noisy, profile=str(path))
        assert (found.profile, found.verdict) == (str(path), verdict)
        assert compared(base, noisy, profile="bf16").verdict == "passed"


def test_a_stack_without_noise_is_held_to_the_same_bits(tmp_path: Path) -> None:
    report = calibrated(tmp_path, noise=0.0)
    assert [(gate.figure, gate.limit) for gate in report.profile.gates] == [("not_equal", 0.0)]
    (tmp_path / "own.yaml").write_text(calibrate.text(report))
    base, _, noisy = captures(tmp_path / "noisy", 1e-6)
    assert compared(base, noisy, profile=str(tmp_path / "own.yaml")).verdict == "failed"


def test_the_frontier_are_the_least_pairs_with_which_every_value_passes(tmp_path: Path) -> None:
    base, again, batch = captures(tmp_path, 1e-3)
    pairs = list(calibrate.frontier(base, (again, batch)))
    assert pairs[0].rtol == 0
    assert [pair.atol for pair in pairs] == sorted((pair.atol for pair in pairs), reverse=True)
    rng = np.random.default_rng(1)
    rows = [row.logits() for row in answers(REQUESTS, steps=3)]
    noisy = [row + rng.normal(0, 1e-3, len(row)).astype(np.float32) for row in rows]
    z, y = np.array(rows, np.float64), np.array(noisy, np.float64)
    for pair in pairs:
        assert (np.abs(y - z) <= pair.atol + pair.rtol * np.abs(z) + 1e-12).all()
        assert not (np.abs(y - z) <= 0.999 * pair.atol + pair.rtol * np.abs(z)).all() or pair == Pair(
            atol=0.0, rtol=pair.rtol
        )


def test_a_run_that_was_no_batch_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidMeasurement, match="was computed 1 at a time"):
        calibrate.calibrate(SETTINGS, *captures(tmp_path, 1e-3, batch=1))


def test_every_figure_of_a_file_is_one_that_is_judged() -> None:
    assert set(Figure.__args__) == set(judge.FIGURES)  # type: ignore[attr-defined]


def test_the_sample_is_a_profile_for_the_embedded_model_stricter_than_the_stock_one() -> None:
    sample = profiles.get(str(ROOT / "configs" / "accuracy" / "embedded-float32.yaml"))
    stock = {gate.figure: gate.limit for gate in PROFILES["fp32"].gates}
    for gate in sample.gates:
        assert gate.limit <= stock[gate.figure]
    assert "embedded on numpy_llama in float32" in sample.for_what


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("for_what: x\nmargin: 1e-3\ngates: []\n", "gates: there is none"),
        ("for_what: x\nmargin: -1\ngates: []\n", "margin: Expected `float` >= 0"),
        ("for_what: x\nmargin: 0\nlimits: []\ngates: []\n", "limits: unknown key; did you mean"),
        (
            "for_what: x\nmargin: 0\ngates: [{figure: kld_men, limit: 1, source: me}]\n",
            "gates[0].figure: Invalid enum value 'kld_men'",
        ),
        ("for_what: x\nmargin: 0\ngates: [{figure: kld_mean, source: me}]\n", "missing required field `limit`"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        profiles.get(str(path))
    assert message in str(caught.value).replace("key; known", "key; did you mean")
    assert str(path) in str(caught.value)


def test_limits_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("for_what: x\nmargin: 1e-3\ngates: [{figure: kld_mean, limit: 2e-6, source: me}]\n")
    found = profiles.get(str(path))
    assert (found.margin, found.gates[0].limit) == (1e-3, 2e-6)


def test_an_unknown_profile_is_named_with_the_way_out() -> None:
    with pytest.raises(InputError, match="or give a"):
        profiles.get("fp33")


def test_rows_that_are_no_numbers_are_not_noise(tmp_path: Path) -> None:
    base, again, _ = captures(tmp_path, 1e-3)
    rows = [Row(request=name, prompt=(1, 100 + i, 7, 9), batch=4) for i, name in enumerate(REQUESTS)]
    broken = store(tmp_path / "broken", [row.moved(np.nan, at=3) for row in rows])
    with pytest.raises(InvalidMeasurement):
        calibrate.calibrate(SETTINGS, base, again, broken)
