"""The 22 weaknesses of the contest's accuracy check (accuracy-methods, section 4), in their order.

Weaknesses 6, 8 and 19 are shown on real servers, too, in `test_audit`.

Each test makes the captures that fool the contest's script (or on which it fails a run that is right), shows that
its steps, run by `legacy`, are fooled, and that the comparison is not.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmbench.accuracy.describe import EXIT, lines
from llmbench.accuracy.legacy import allclose, legacy
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.logits import contest
from llmbench.logits.policy import Policy
from llmbench.logits.store import INDEX, Manifest, Store, Writer, top_dtype
from tests.accuracy.captures import MANIFEST, Row, answers, compared, files, store
from tests.conftest import ROOT
from tests.link import test_capture

TWO = ("r1", "r2")


def kinds(base: Path, new: Path) -> set[str]:
    return {finding.kind for finding in compared(base, new).findings}


def test_01_accuracy_at_batch_1_does_not_stand_for_a_load_at_batch_57(tmp_path: Path) -> None:
    alone, crowd = answers(TWO, 4, batch=1), answers(TWO, 4, batch=50)
    assert legacy(files(tmp_path / "b", alone), files(tmp_path / "n", alone)).passed
    base = store(tmp_path / "base", alone)
    at_one = compared(base, store(tmp_path / "one", alone), profile="serving", load_batch=57.0)
    assert at_one.verdict == "failed"
    assert at_one.reasons == ("share of rows at half the load's batch or more: 0, at least 0.9 is allowed",)
    assert compared(base, store(tmp_path / "many", crowd), profile="serving", load_batch=57.0).verdict == "passed"


def test_02_rows_are_captured_one_by_one_in_any_batch(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size 1"):
        np.array([100, 100]).item()  # what the contest's hook does with the indices of a batch
    capture = test_capture.recorder(tmp_path / "s")
    new = [test_capture.admitted(slot, f"r{slot}", 4, arrival_s=float(slot)) for slot in range(3)]
    test_capture.step(capture, [0, 1, 2], [4, 4, 4], [7, 8, 9], new)
    capture.close()
    table = Store(tmp_path / "s").table
    assert [table[name].tolist() for name in ("batch", "token")] == [[3, 3, 3], [7, 8, 9]]


def test_03_rows_of_a_server_with_other_settings_do_not_count(tmp_path: Path) -> None:
    rows = answers(TWO, 4)
    assert legacy(files(tmp_path / "b", rows), files(tmp_path / "n", rows)).passed
    base = store(tmp_path / "base", rows, config="timed")
    new = store(tmp_path / "new", rows, config="seq_length 4096")
    with pytest.raises(InvalidMeasurement, match="settings seq_length 4096; the load ran with timed") as caught:
        compared(base, new, server={"config": "timed"})
    assert caught.value.exit_code == 3
    assert (
        compared(base, store(tmp_path / "same", rows, config="timed"), server={"config": "timed"}).verdict == "passed"
    )


def test_04_a_fault_between_the_hundredth_rows_is_found(tmp_path: Path) -> None:
    rows = answers(["r1"], 150)
    wrong = [row.moved(0.5, at=5) if row.step == 120 else row for row in rows]
    theirs, ours = files(tmp_path / "b", rows, every=100), files(tmp_path / "n", wrong, every=100)
    assert legacy(theirs, ours).passed
    found = compared(store(tmp_path / "base", rows), store(tmp_path / "new", wrong), profile="contest")
    assert found.verdict == "failed"
    assert (found.num_compared, found.worst_rows[0].step) == (150, 120)


def test_05_a_share_of_the_timed_rows_finds_what_only_the_timed_requests_suffer(tmp_path: Path) -> None:
    """The accuracy set is right, the timed one is not: rows of the timed one itself are captured, at a share."""
    checked = answers(["acc-1"], 110)
    assert legacy(files(tmp_path / "b", checked, every=100), files(tmp_path / "n", checked, every=100)).passed
    timed = answers([f"timed-{i}" for i in range(20)], 8)
    share = Policy(rate=0.5, seed="revealed later")
    taken = [row for row in timed if share.wants(row.request, row.step, row.index)]
    assert 50 < len(taken) < 110
    wrong = [row.moved(1.0, at=3) if row.request in ("timed-3", "timed-7", "timed-12") else row for row in taken]
    found = compared(store(tmp_path / "base", taken), store(tmp_path / "new", wrong), profile="contest")
    assert found.verdict == "failed"
    assert {row.request_id for row in found.worst_rows if row.max_abs} == {"timed-3", "timed-7", "timed-12"}


def test_06_a_kept_answer_does_not_stand_for_another_prompt(tmp_path: Path) -> None:
    """The first 20 characters of the ids are the contest's key: a nonce behind them changes nothing there."""
    kept = [Row(step=step, prompt=(1, 20355, 915, 278, 5, 6)) for step in range(4)]
    asked = [Row(step=step, prompt=(1, 20355, 915, 278, 5, 99)) for step in range(4)]
    answered_from_memory = [row.but(values=old.logits()) for row, old in zip(asked, kept, strict=True)]
    base, new = files(tmp_path / "b", kept[1:]), files(tmp_path / "n", answered_from_memory[1:])
    assert legacy(base, new).passed
    found = compared(store(tmp_path / "base", kept), store(tmp_path / "new", answered_from_memory))
    assert found.verdict == "not comparable"
    assert {finding.kind for finding in found.findings} == {"prompt"}


def test_07_rows_of_a_slow_run_do_not_stand_for_a_fast_one(tmp_path: Path) -> None:
    """At 0.1 requests per second nearly every row runs alone; 90 % of the rows must have run as the load did."""
    base = store(tmp_path / "base", answers(TWO, 50))
    for name, num_crowded, verdict in (("slow", 80, "failed"), ("fast", 95, "passed")):
        rows = [row.but(batch=64 if i < num_crowded else 1) for i, row in enumerate(answers(TWO, 50))]
        assert legacy(files(tmp_path / f"b-{name}", rows), files(tmp_path / f"n-{name}", rows)).passed
        assert compared(base, store(tmp_path / name, rows), profile="serving", load_batch=60.0).verdict == verdict


def test_08_a_request_that_ended_with_an_error_is_missing(tmp_path: Path) -> None:
    """Its answer never comes to index 100, where the contest looks for it first."""
    rows = answers(TWO, 30)
    lost = [row for row in rows if row.request == "r1" or row.step < 1]
    theirs, ours = files(tmp_path / "b", rows, every=100), files(tmp_path / "n", lost, every=100)
    assert legacy(theirs, ours).passed
    found = compared(store(tmp_path / "base", rows), store(tmp_path / "new", lost))
    assert found.verdict == "not comparable"
    assert {(finding.kind, finding.request_id) for finding in found.findings} == {("missing", "r2")}
    assert found.reasons == ("29 missing",)


def swapped(tmp_path: Path, *, answers_too: bool) -> tuple[Path, Path]:
    """Two requests whose prompts begin alike; in the new run the second came first."""
    one = Row(request="r1", step=2, prompt=(1, 20355, 915, 278, 5), arrival_s=1000.0)
    other = Row(request="r2", step=2, prompt=(1, 20355, 915, 278, 6), arrival_s=1001.0)
    base = files(tmp_path / "base", [one, other], manifest=True)
    values = (other.logits(), one.logits()) if answers_too else (one.logits(), other.logits())
    late, early = one.but(arrival_s=2001.0, values=values[0]), other.but(arrival_s=2000.0, values=values[1])
    return base, files(tmp_path / "new", [late, early], manifest=True)


def test_09_answers_that_were_mixed_up_are_not_paired_by_their_time(tmp_path: Path) -> None:
    base, new = swapped(tmp_path, answers_too=True)
    assert legacy(base, new).passed
    found = compared(base, new)
    assert (found.verdict, found.joined_by, found.num_failed) == ("failed", "request", 2)


def test_10_a_right_run_in_another_order_passes(tmp_path: Path) -> None:
    base, new = swapped(tmp_path, answers_too=False)
    assert legacy(base, new).passed is False
    found = compared(base, new)
    assert (found.verdict, found.num_equal) == ("passed", 2)


def test_11_both_spellings_of_a_name_are_one_key(tmp_path: Path) -> None:
    """The one prefill row of the contest's baseline, which no team could match."""
    row = Row(prompt=(1, 7523, 278, 1494, 14880, 322)).logits().reshape(1, -1)
    for name, file in (
        ("base", "1718421271.1172364_17523278149414880322_100.npy"),
        ("new", "1718421999.5_1.07523.0278.01494.0_100.npy"),
    ):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / file, row)
    assert legacy(tmp_path / "base", tmp_path / "new").passed is False
    found = compared(tmp_path / "base", tmp_path / "new")
    assert (found.verdict, found.num_compared, found.joined_by) == ("passed", 1, "file name")
    (tmp_path / "new" / "1718421999.5_1.07523.0278.01494.0_100.npy").rename(
        tmp_path / "new" / "1718421999.5_1.07524.0278.01494.0_100.npy"
    )
    assert kinds(tmp_path / "base", tmp_path / "new") == {"missing", "extra"}


@pytest.mark.parametrize("shape", [(0, 256), (0, 1), (1, 1)])
def test_12_an_empty_or_broadcast_array_is_no_row(tmp_path: Path, shape: tuple[int, int]) -> None:
    row = Row(values=np.full(256, 0.5, np.float32))
    base, new = files(tmp_path / "base", [row]), files(tmp_path / "new", [row])
    (path,) = new.iterdir()
    np.save(path, np.full(shape, 0.5, np.float32))
    assert legacy(base, new).passed
    found = compared(base, new)
    assert found.verdict == "not comparable"
    assert {finding.kind for finding in found.findings} <= {"unreadable", "shape"}


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_13_a_value_that_is_no_number_fails_and_is_located(tmp_path: Path, value: float) -> None:
    values = Row().logits().copy()
    values[77] = value
    rows = [Row(values=values)]
    base, new = files(tmp_path / "base", rows), files(tmp_path / "new", rows)
    fooled = legacy(base, new)
    assert fooled.passed is not np.isnan(value)  # infinities are equal to it, of a NaN it says no place
    for pair in ((base, new), (store(tmp_path / "s", rows), store(tmp_path / "t", rows))):
        found = compared(*pair)
        assert found.verdict == "failed"
        assert any(f"value {value} at vocabulary id 77" in finding.message for finding in found.findings)


def test_14_the_tolerance_is_spelled_out_and_the_one_that_would_pass_is_given(tmp_path: Path) -> None:
    base_row = Row().but(values=np.where(np.arange(256) == 3, 2000.0, Row().logits()).astype(np.float32))
    new_row = base_row.moved(0.025, at=3)  # 0.025 is allowed beside 2000.025, and not beside 2000
    one, other = base_row.logits(), new_row.logits()
    assert allclose(one, other) != allclose(other, one) or np.float32(other[3]) - one[3] > 0.025
    found = compared(files(tmp_path / "b", [base_row]), files(tmp_path / "n", [new_row.moved(0.02, at=4)]))
    assert found.verdict == "failed"
    said = "\n".join(line.text for line in lines(found))
    assert "|new - base| <= 0.005 + 1e-05 |base|" in said
    assert "would pass" in said
    assert np.allclose(new_row.moved(0.02, at=4).logits(), one, atol=found.tolerance)
    assert found.tolerance == pytest.approx(0.025, rel=0.05)


def test_15_one_unit_of_float16_is_no_fault_in_float16(tmp_path: Path) -> None:
    """From 8 on, neighbours in float16 are further apart than the contest allows."""
    values = Row().logits().copy()
    values[9] = 8.0
    row = Row(values=values)
    near = row.moved(float(np.spacing(np.float16(8.0))), at=9)
    base, new = files(tmp_path / "base", [row]), files(tmp_path / "new", [near])
    assert legacy(base, new).passed is False
    assert compared(base, new).verdict == "failed"  # its own rule, when it is asked for that
    found = compared(base, new, profile="fp16", ulp=True)
    assert (found.verdict, found.num_failed) == ("passed", 1)
    assert (found.distributions["ulp"].max, found.worst_rows[0].ulp) == (1, 1)


def test_16_a_shift_is_no_difference_and_what_follows_a_split_is_not_scored(tmp_path: Path) -> None:
    row = Row()
    shifted = row.moved(0.5)
    assert legacy(files(tmp_path / "b", [row]), files(tmp_path / "n", [shifted])).passed is False
    found = compared(store(tmp_path / "base", [row]), store(tmp_path / "shifted", [shifted]), profile="fp16")
    assert found.verdict == "passed"
    assert found.distributions["max_abs"].max == pytest.approx(0.5)
    assert found.distributions["max_abs_free"].max < 1e-5

    values = row.logits().copy()
    first, second = np.argsort(-values)[:2]
    values[second] = values[first] - np.float32(0.01)
    other = [Row(step=step, prompt=(1, 2, 3, 4)).logits() for step in range(4)]
    rows = [row.but(values=values), *(Row(step=step) for step in (1, 2, 3))]
    split = [rows[0].moved(0.015, at=int(second)), *(rows[step].but(values=other[step]) for step in (1, 2, 3))]
    assert legacy(files(tmp_path / "rows", rows), files(tmp_path / "split", split)).num_close == 0
    found = compared(store(tmp_path / "s", rows), store(tmp_path / "t", split), profile="fp32")
    assert (found.num_compared, found.num_after_divergence, found.num_diverged_requests) == (1, 3, 1)
    assert found.distributions["max_abs"].max == pytest.approx(0.015, rel=0.1)
    assert (found.verdict, found.num_flips) == ("failed", 1)  # in float32, a margin of 0.01 explains no other token
    explained = compared(tmp_path / "s", tmp_path / "t", profile="contest")
    assert (explained.num_flips, explained.num_flips_explained) == (1, 1)  # in float16, it does


def test_17_a_failure_has_an_exit_status_and_a_stray_file_a_name(tmp_path: Path) -> None:
    rows = answers(TWO, 3)
    base = files(tmp_path / "base", rows)
    wrong = files(tmp_path / "wrong", [rows[0].moved(1.0, at=2), *rows[1:]])
    assert legacy(base, wrong).passed is False  # and its exit status is 0
    command = [sys.executable, "-m", "llmbench", "acc", "compare", str(base), str(wrong), "--legacy", "--junit"]
    done = subprocess.run(
        [*command, str(tmp_path / "junit.xml")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "contest's script: 1 keys or files do not match; 5 of 6 files" in done.stdout
    assert 'failures="1"' in (tmp_path / "junit.xml").read_text()
    (wrong / ".DS_Store").touch()
    assert legacy(files(tmp_path / "longer", [*rows, rows[0].but(step=9)]), wrong).passed is None  # it crashes
    assert any(finding.file == ".DS_Store" for finding in compared(base, wrong).findings)
    assert EXIT == {"passed": 0, "failed": 1, "not comparable": 3, "inconclusive": 4}


class Touch:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("touch EXPLODED",)


def test_18_a_submitted_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = files(tmp_path / "base", [Row()])
    new = files(tmp_path / "new", [Row()])
    (path,) = new.iterdir()
    np.save(path, np.array([[Touch()]], dtype=object), allow_pickle=True)
    found = compared(base, new)
    assert (found.verdict, {finding.kind for finding in found.findings}) == ("not comparable", {"unreadable"})
    assert not (tmp_path / "EXPLODED").exists()
    np.load(path, allow_pickle=True)  # as the contest's script has it
    assert (tmp_path / "EXPLODED").exists()


def test_19_a_copy_of_the_base_is_no_run(tmp_path: Path) -> None:
    rows = answers(TWO, 3)
    base = files(tmp_path / "base", rows)
    copy = files(tmp_path / "copy", rows)
    assert legacy(base, copy).passed
    assert any("it may be a copy" in note for note in compared(base, copy).notes)
    capture = store(tmp_path / "s", rows)
    (tmp_path / "t").mkdir()
    for path in capture.iterdir():
        (tmp_path / "t" / path.name).write_bytes(path.read_bytes())
    found = compared(capture, tmp_path / "t")
    assert found.verdict == "not comparable"
    assert "is the same capture as" in found.reasons[0]
    assert compared(capture, tmp_path / "t", allow_copy=True).verdict == "passed"


def test_20_a_captured_row_is_small_enough_for_the_timed_run(tmp_path: Path) -> None:
    """128,128 bytes a row is what made the contest allow a timed run without; benchmarks/capture.py has the time."""
    llama = Manifest(model="m", fingerprint="f", engine="e", dtype="float16", vocab_size=32_000)
    assert top_dtype(llama).itemsize + INDEX.itemsize < 700
    store(tmp_path / "fp", answers(TWO, 5), "fp")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "fp").glob("part-0000.[!r]*")}
    assert sizes == {"part-0000.index": 10 * INDEX.itemsize}


def test_21_a_fault_of_the_cached_path_is_found_where_it_is_served(tmp_path: Path) -> None:
    """MMLU without a KV cache only sees prefill; rows of served decode steps are compared step by step."""
    rows = answers(TWO, 6)
    wrong = [row.moved(2.0, at=11) if row.step else row for row in rows]
    first = [row for row in rows if not row.step]
    assert legacy(files(tmp_path / "b", first), files(tmp_path / "n", [r for r in wrong if not r.step])).passed
    found = compared(store(tmp_path / "base", rows), store(tmp_path / "new", wrong), profile="contest")
    assert found.verdict == "failed"
    assert [(group.name, group.max_abs > 0.1) for group in found.by_position] == [
        ("0", False), ("1-3", True), ("4-15", True),
    ]  # fmt: skip


def test_22_answers_kept_for_another_model_are_not_taken_for_its_own(tmp_path: Path) -> None:
    rows = answers(TWO, 3)
    assert legacy(files(tmp_path / "b", rows), files(tmp_path / "n", rows)).passed
    base = store(tmp_path / "base", rows)
    found = compared(base, store(tmp_path / "new", rows, fingerprint="other weights"))
    assert any("although the weights are others" in note for note in found.notes)
    with pytest.raises(InputError, match="it holds a capture with fingerprint"):
        Writer(base, Manifest(**{name: getattr(MANIFEST, name) for name in MANIFEST.__struct_fields__
                                 if name != "fingerprint"}, fingerprint="other weights"))  # fmt: skip


def test_the_contests_steps_say_what_they_say() -> None:
    """What `legacy` does is NumPy's own rule, base the reference."""
    assert allclose(np.array([0.0049]), np.zeros(1))
    assert not allclose(np.array([0.0051]), np.zeros(1))
    assert contest.EVERY == 100
