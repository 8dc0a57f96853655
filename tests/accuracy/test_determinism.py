"""The judgement on repeats: what counts as alike at each level, and where answers part."""

from pathlib import Path

import pytest

from llmbench.accuracy import determinism
from llmbench.accuracy.determinism import Level, Report, Said, Settings, design, first_difference, judge
from llmbench.accuracy.sides import StoreSide
from llmbench.logits.store import Store
from tests.accuracy.captures import Row, store

SETTINGS = Settings(num_prompts=2, num_idle=3, num_load=4)


def texts(**others: Said) -> dict[str, Said]:
    """Every repeat says the same but the ones that are named."""
    names = [f"{phase}-{i}-{n}" for phase, num in (("idle", 3), ("load", 4)) for i in range(2) for n in range(num)]
    return {name: others.get(name.replace("-", "_"), f"answer {name[5]}") for name in names}


def test_equal_texts_pass() -> None:
    report = judge(SETTINGS, texts(), "text")
    assert (report.verdict, report.exit_code, report.by) == ("passed", 0, "character")
    assert [phase.num_unique for phase in report.phases] == [(1, 1), (1, 1)]


def test_a_text_that_parts_is_counted_where_it_does() -> None:
    report = judge(SETTINGS, texts(load_1_2="answer one", load_1_3="another"), "text")
    assert (report.verdict, report.exit_code) == ("failed", 1)
    idle, load = report.phases
    assert (idle.num_other, load.num_other, load.num_unique) == (0, 2, (1, 3))
    assert load.first_divergence == {2: 1, 7: 1}
    said = "\n".join(line.text for line in determinism.lines(report))
    assert "2 answers part from the reference at character 2 (1), 7 (1)" in said


def test_the_reference_is_what_most_idle_repeats_say() -> None:
    report = judge(SETTINGS, texts(idle_0_0="otherwise"), "text")
    assert [phase.num_other for phase in report.phases] == [1, 0]


@pytest.mark.parametrize(
    ("one", "other", "place"), [((1, 2), (1, 3), 1), ("ab", "abc", 2), ((), (5,), 0), ("same", "same", 4)]
)
def test_the_first_difference(one: Said, other: Said, place: int) -> None:
    assert first_difference(one, other) == place


def captured(folder: Path, level: Level, moved: float = 0.0, batch: int = 8) -> Report:
    """Rows of every repeat; one of them under load is moved at one value."""
    made = [
        Row(request=f"{phase}-{i}-{n}", step=step, prompt=(1, 50 + i, 7, 9), batch=batch if phase == "load" else 1)
        for phase, num in (("idle", 3), ("load", 4))
        for i in range(2)
        for n in range(num)
        for step in range(3)
    ]
    made = [row.moved(moved, at=9) if (row.request, row.step) == ("load-1-2", 1) else row for row in made]
    return judge(SETTINGS, {}, level, StoreSide(Store(store(folder / "rows", made))), None)


@pytest.mark.parametrize(
    ("level", "moved", "verdict"),
    [
        ("bitwise", 0.0, "passed"),
        ("bitwise", 1e-4, "failed"),
        ("text", 1e-4, "passed"),
        ("profile", 1e-4, "passed"),
        ("profile", 30.0, "failed"),
        ("text", 30.0, "failed"),
    ],
)
def test_rows_count_by_the_declared_level(tmp_path: Path, level: Level, moved: float, verdict: str) -> None:
    report = captured(tmp_path, level, moved)
    assert report.verdict == verdict
    assert report.profile == ("fp16" if level == "profile" else None)
    assert report.phases[1].num_rows_other == (moved > 0)


def test_a_load_that_was_none_is_inconclusive(tmp_path: Path) -> None:
    report = captured(tmp_path, "bitwise", batch=1)
    assert (report.verdict, report.exit_code) == ("inconclusive", 4)


def test_repeats_under_load_are_mixed_with_as_many_others() -> None:
    sent = design(SETTINGS, ["first", "second", "third", "fourth"])
    assert (len(sent.idle), len(sent.load)) == (6, 16)
    others = [request for request in sent.load if request.request_id.startswith("beside-")]
    assert len(others) == 8
    assert {request.prompt for request in others}.isdisjoint(request.prompt for request in sent.idle)
