"""Captures against captures: every tier with every other, bounds that hold, verdicts and what they rest on."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from llmbench.accuracy.blocks import Work
from llmbench.accuracy.compare import Options, compare
from llmbench.accuracy.describe import lines
from llmbench.accuracy.drill import look
from llmbench.accuracy.judge import FIGURES, wilson, would_be_seen
from llmbench.accuracy.profiles import PROFILES
from llmbench.accuracy.sides import open_side
from llmbench.cli._acc_files import Outputs, write
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.logits.store import Store, Tier
from tests.accuracy.captures import VOCAB, Row, answers, compared, files, store

NAMES = ("r1", "r2", "r3")


def noisy(rows: list[Row], by: float, seed: int = 0) -> list[Row]:
    """The same rows with noise in every value; their tokens are kept, as if they were forced."""
    rng = np.random.default_rng(seed)
    return [
        row.but(values=(row.logits() + rng.normal(0, by, VOCAB)).astype(np.float32), token=int(row.logits().argmax()))
        for row in rows
    ]


@pytest.mark.parametrize("theirs", ["fp", "topk", "full16", "full32"])
@pytest.mark.parametrize("ours", ["fp", "topk", "full16", "full32"])
def test_what_parts_of_rows_say_bounds_what_the_whole_rows_say(tmp_path: Path, theirs: Tier, ours: Tier) -> None:
    rows = answers(NAMES, 5)
    changed = noisy(rows, 0.02)
    _, exact = compare(store(tmp_path / "b", rows), store(tmp_path / "n", changed))
    found, seen = compare(
        store(tmp_path / "base", rows, theirs), store(tmp_path / "new", changed, ours), Options(profile="fp16")
    )
    assert found.num_compared == len(rows)
    true, bound = exact.figures, seen.figures
    assert (bound["kld"] <= true["kld"] * (1 + 1e-3) + 1e-12).all()
    assert (bound["kld_most"] >= true["kld"] * (1 - 1e-3)).all()
    assert (bound["max_abs"] <= true["max_abs"] * (1 + 1e-5)).all()
    assert (bound["new_top"] == true["new_top"]).all()
    np.testing.assert_allclose(bound["margin"], true["margin"], rtol=1e-5)
    known = np.isfinite(bound["delta_p"])
    np.testing.assert_allclose(bound["delta_p"][known], true["delta_p"][known], atol=1e-6)
    whole = theirs.startswith("full") and ours.startswith("full")
    assert bound["whole"].all() == whole
    assert found.num_not_whole == (0 if whole else len(rows))
    if "fp" not in (theirs, ours):
        assert known.all()
        assert (bound["kld"] >= 0.8 * true["kld"]).all()  # the largest values decide most of it
        assert found.verdict == compared(tmp_path / "b", tmp_path / "n", profile="fp16").verdict


@pytest.mark.parametrize("tier", ["fp", "topk", "full16", "full32"])
def test_equal_rows_are_equal_at_every_tier_and_one_bit_is_not(tmp_path: Path, tier: Tier) -> None:
    rows = answers(NAMES, 4)
    base = store(tmp_path / "base", rows, tier)
    same = compared(base, store(tmp_path / "same", rows, tier), profile="bitwise")
    assert (same.verdict, same.num_equal) == ("passed", 12)
    for profile in PROFILES:
        assert compared(base, tmp_path / "same", profile=profile).verdict == "passed"
    values = rows[5].logits().copy()
    values.view(np.uint32)[7] ^= 1
    other = store(tmp_path / "other", [*rows[:5], rows[5].but(values=values), *rows[6:]], tier)
    found = compared(base, other, profile="bitwise")
    assert (found.verdict, found.num_equal) == ("failed", 11)
    assert found.reasons == ("rows with another bit: 1, at most 0 is allowed",)


def test_what_the_largest_values_cannot_decide_is_inconclusive(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    base, near = store(tmp_path / "base", rows, "topk"), store(tmp_path / "near", noisy(rows, 1e-4), "topk")
    found = compared(base, near, profile="contest")
    assert found.verdict == "inconclusive"
    assert found.reasons == ("rows outside the contest's tolerance: from 0 to 12, the limit is 0; compare whole rows",)
    far = compared(base, store(tmp_path / "far", noisy(rows, 1.0), "topk"), profile="contest")
    assert far.verdict == "failed"  # what is known is enough for that


def test_a_fingerprint_decides_which_token_was_chosen_and_no_divergence(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    base, near = store(tmp_path / "base", rows, "fp"), store(tmp_path / "near", noisy(rows, 1e-3), "fp")
    found = compared(base, near, profile="fp16")
    gates = {gate.figure: gate.verdict for gate in found.gates}
    assert found.verdict == "inconclusive"
    assert (gates["kld_mean"], gates["flips_unexplained"], gates["top1"]) == ("not decided", "passed", "passed")
    flipped = [row.moved(30.0, at=3) if row.step == 2 else row for row in rows]
    assert compared(base, store(tmp_path / "far", flipped, "fp"), profile="fp16").verdict == "failed"


def test_a_folder_of_the_contest_is_compared_with_a_store(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    base = files(tmp_path / "base", rows)  # without a manifest: joined by what the names would be
    for name, tier in (("full", "full32"), ("top", "topk")):
        found = compared(base, store(tmp_path / name, rows, tier), profile="fp16")  # type: ignore[arg-type]
        assert (found.verdict, found.joined_by, found.num_compared, found.num_equal) == ("passed", "file name", 12, 12)
    known = files(tmp_path / "known", rows, manifest=True)
    assert compared(known, tmp_path / "full").joined_by == "request"
    assert compared(tmp_path / "full", known, profile="bitwise").verdict == "passed"


def test_rows_without_a_counterpart_fail_unless_they_are_allowed(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    base, new = store(tmp_path / "base", rows), store(tmp_path / "new", [*rows[1:], Row(request="r9", prompt=(4, 5))])
    found = compared(base, new)
    assert (found.verdict, found.reasons) == ("not comparable", ("1 extra", "1 missing"))
    assert compared(base, new, allow_missing=1).verdict == "not comparable"
    assert compared(base, new, allow_missing=2).verdict == "passed"


def test_a_row_that_is_there_twice_is_no_row(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    found = compared(store(tmp_path / "base", rows), store(tmp_path / "new", [*rows, rows[3]]))
    assert (found.verdict, found.reasons, found.num_compared) == ("not comparable", ("2 duplicate",), 11)
    assert found.findings[0].file == "r1 step 3"


def test_most_answers_that_went_another_way_leave_nothing_to_say(tmp_path: Path) -> None:
    """One flip that a margin explains, at the first of ten steps; what follows is another text."""
    rows = answers(["r1"], 10)
    values = rows[0].logits().copy()
    first, second = np.argsort(-values)[:2]
    values[second] = values[first] - np.float32(0.01)
    rows[0] = rows[0].but(values=values)
    split = [rows[0].moved(0.015, at=int(second)), *noisy(rows[1:], 3.0)]
    found = compared(store(tmp_path / "base", rows), store(tmp_path / "new", split), profile="w4")
    assert (found.num_compared, found.num_after_divergence) == (1, 9)
    assert found.verdict == "failed"
    assert "only 10.0% of the rows saw the same tokens on both sides; capture with forced tokens" in found.reasons


def test_a_split_is_seen_though_only_every_third_row_was_kept(tmp_path: Path) -> None:
    rows = answers(["r1"], 12)
    other = [*rows[:4], rows[4].moved(40.0, at=9), *noisy(rows[5:], 3.0)]
    base, new = store(tmp_path / "base", rows), store(tmp_path / "new", other)
    whole = compared(base, new)
    assert (whole.num_compared, whole.num_after_divergence) == (5, 7)

    def third(name: str, kept: list[Row], of: Path) -> Path:
        known = Store(of).table["prefix"].tolist()
        return store(tmp_path / name, [row.but(prefix=known[i]) for i, row in enumerate(kept) if i % 3 == 0])

    found = compared(third("b3", rows, base), third("n3", other, new))
    assert (found.num_compared, found.num_after_divergence) == (2, 2)  # steps 0 and 3; not 6 and 9
    assert found.verdict == "passed"


def test_other_tokenizers_or_vocabularies_have_no_verdict(tmp_path: Path) -> None:
    rows = answers(NAMES, 2)
    base = store(tmp_path / "base", rows, tokenizer="a")
    with pytest.raises(InvalidMeasurement, match=r"was captured with tokenizer a, .* with b"):
        compared(base, store(tmp_path / "new", rows, tokenizer="b"))
    assert compared(base, store(tmp_path / "unknown", rows)).verdict == "passed"


def test_a_capture_that_broke_off_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    base, new = store(tmp_path / "base", rows), store(tmp_path / "new", rows)
    path = new / "part-0000.f32"
    path.write_bytes(path.read_bytes()[:-10])
    found = compared(base, new)
    assert (found.verdict, found.num_compared, found.reasons) == ("not comparable", 11, ("1 missing",))
    assert "1 rows at its end are not whole and were left out" in found.notes[0]
    assert compared(base, new, allow_missing=1).verdict == "passed"


@pytest.mark.parametrize("processes", [1, 3])
def test_processes_change_nothing(tmp_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbench.accuracy.blocks.BLOCK_VALUES", 3 * VOCAB)
    rows = answers([f"r{i}" for i in range(9)], 7)
    base, new = store(tmp_path / "base", rows), store(tmp_path / "new", noisy(rows, 0.01))
    _, one = compare(base, new, Options(processes=processes))
    _, two = compare(base, new, Options(processes=2))
    assert one.figures.tobytes() == two.figures.tobytes()


def test_what_another_process_cannot_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmbench.accuracy.blocks.BLOCK_VALUES", VOCAB)  # a block for each row
    rows = answers(["r1"], 2)
    base, new = (open_side(store(tmp_path / name, rows)) for name in ("base", "new"))
    (tmp_path / "new" / "part-0000.f32").write_bytes(b"\0" * 4 * VOCAB)  # the second row has gone since it was opened
    with pytest.raises(InputError, match="got shorter while it was read"):
        Work(base, new, np.arange(2), np.arange(2), ulp=False).run(2)


def test_the_screen_fits_into_25_lines_and_begins_with_the_verdict(tmp_path: Path) -> None:
    rows = answers(NAMES, 40)
    found = compared(store(tmp_path / "base", rows), store(tmp_path / "new", noisy(rows, 0.01)), profile="fp16")
    said = [line.text for line in lines(found)]
    assert said[0] == "accuracy PASSED"
    assert len(said) <= 25
    everything = "\n".join(said)
    for part in ("KLD    mean", "top-1  100.00% the same", "by batch", "by position", "worst requests", "MindIE"):
        assert part in everything


def test_the_worst_row_can_be_looked_at(tmp_path: Path) -> None:
    rows = answers(NAMES, 4)
    moved = [row.moved(2.5, at=44) if (row.request, row.step) == ("r2", 3) else row for row in rows]
    for tier in ("full32", "topk"):
        base = store(tmp_path / f"b-{tier}", rows, tier)
        new = store(tmp_path / f"n-{tier}", moved, tier)
        (seen,) = look(base, new, "r2", 3)
        assert (seen.step, seen.base_token) == (3, int(rows[7].logits().argmax()))
        if tier == "full32":
            assert seen.worst == 44
            (entry,) = (entry for entry in seen.entries if entry.vocab_id == 44)
            assert entry.base is not None
            assert entry.new == pytest.approx(entry.base + 2.5)
            assert len(look(base, None, "r2")) == 4
            with pytest.raises(InputError, match=r"no row of request 'r2', step 9"):
                look(base, new, "r2", 9)


def test_the_files_of_a_comparison_can_be_read_by_others(tmp_path: Path) -> None:
    rows = answers(["<b>&amp;", "r2"], 5)
    found, seen = compare(store(tmp_path / "base", rows), store(tmp_path / "new", noisy(rows, 0.3)))
    outputs = Outputs(**{name: tmp_path / f"out.{name}" for name in ("json", "junit", "markdown", "html", "rows")})
    write(outputs, found, seen)
    told: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
    assert (told["verdict"], told["num_compared"]) == (found.verdict, 10)
    suite = ElementTree.parse(tmp_path / "out.junit").getroot()
    failed = [case for case in suite if case.find("failure") is not None]
    assert int(suite.attrib["failures"]) == len(failed) == sum(gate.verdict == "failed" for gate in found.gates) > 0
    assert (tmp_path / "out.markdown").read_text().startswith(f"## accuracy {found.verdict.upper()}\n\n|")
    page = (tmp_path / "out.html").read_text()
    assert "&lt;b&gt;&amp;amp;" in page
    assert "<b>&amp;" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert page.count("<figure") == 3
    with np.load(tmp_path / "out.rows", allow_pickle=False) as columns:
        np.testing.assert_array_equal(columns["kld"], seen.figures["kld"])
        assert columns["request"].tolist() == [row.request for row in rows]


def test_shares_and_their_bounds_are_those_of_the_books() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(9991, 10_000)
    assert (round(low, 4), round(high, 4)) == (0.9983, 0.9995)
    assert would_be_seen(59) == pytest.approx(0.05, rel=0.02)  # accuracy-methods, section 6
    assert would_be_seen(299) == pytest.approx(0.01, rel=0.02)
    assert would_be_seen(2995) == pytest.approx(0.001, rel=0.02)


def test_every_profile_says_where_its_limits_come_from() -> None:
    assert list(PROFILES) == ["bitwise", "contest", "fp32", "fp16", "bf16", "w8", "w4", "serving"]
    for profile in PROFILES.values():
        assert profile.for_what
        assert all(gate.figure in FIGURES and gate.source for gate in profile.gates)


def test_an_unknown_profile_is_an_error_with_what_was_meant(tmp_path: Path) -> None:
    base = store(tmp_path / "base", answers(NAMES, 1))
    with pytest.raises(InputError, match=r"--profile: unknown profile 'fp61'. Did you mean 'fp16'\?"):
        compared(base, base, profile="fp61")
