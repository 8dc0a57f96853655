"""The judgement on batch variance, on rows made up: what fails, what has no verdict, what is not known."""

from pathlib import Path

import numpy as np

from llmbench.accuracy import pairs, profiles
from llmbench.accuracy.batchvar import Design, Report, Settings, design, judge, lines
from llmbench.accuracy.prompts import Prompts, changed
from llmbench.accuracy.sides import StoreSide
from llmbench.logits.store import Store
from llmbench.tokenizer import Tokenizer, embedded_path
from tests.accuracy.captures import Row, store

SETTINGS = Settings(num_needles=2, batch_sizes=(4,), num_repeats=2, num_new_tokens=3)
TOKENIZER = Tokenizer.from_file(embedded_path())


def prompts(seed: int = 0) -> Prompts:
    texts = [f"Name {i} things that are {colour}." for i in range(40) for colour in ("red", "blue")]
    return Prompts(texts, TOKENIZER, np.random.default_rng(seed), 600)


def rows(sent: Design, batch: int = 4, moved: float = 0.0, control: bool = True) -> list[Row]:
    """What a stack would capture: the rows of a needle in a batch are those alone, moved by so much."""
    found = []
    for i, alone in enumerate(sent.alone):
        told = tuple(alone.prompt)
        answer = [Row(request=alone.request_id, step=step, prompt=told) for step in range(3)]  # type: ignore[arg-type]
        found += answer
        other = sent.control[i]
        for row in answer:
            if control:
                found.append(row.but(request=other.request_id, prompt=tuple(other.prompt)))
            else:  # the same values, whatever the prompt
                found.append(row.but(request=other.request_id, prompt=tuple(other.prompt), values=row.logits()))
        for each in sent.batches:
            if each.needle == i:
                found += [row.moved(moved, at=5).but(request=each.name, batch=batch) for row in answer]
    return found


def judged(folder: Path, made: list[Row], sent: Design, profile: str | None = None) -> Report:
    side = StoreSide(Store(store(folder / "rows", made)))
    return judge(sent, SETTINGS, side, None, {}, profile)


def test_a_design_puts_each_needle_into_every_batch_once_and_is_the_same_for_a_seed() -> None:
    sent = design(SETTINGS, prompts())
    assert sent == design(SETTINGS, prompts())
    assert len(sent.batches) == 2 * 2
    for batch in sent.batches:
        assert len(batch.requests) == batch.size == 4
        (needle,) = (request for request in batch.requests if request.request_id == batch.name)
        assert needle.prompt == sent.alone[batch.needle].prompt
    assert len({len(request.prompt) for batch in sent.batches for request in batch.requests}) > 4, "varied lengths"
    assert sent.num_requests("cold") == 2 + 4 * 4 + 2


def test_the_control_differs_in_one_token_of_its_middle() -> None:
    sent = design(SETTINGS, prompts())
    for alone, control in zip(sent.alone, sent.control, strict=True):
        differ = [i for i, (a, b) in enumerate(zip(alone.prompt, control.prompt, strict=True)) if a != b]
        assert differ == [len(alone.prompt) // 2]
    assert changed((1, 5, 6, 7), (1, 6, 6, 6)) == (1, 5, 1, 7), "a prompt without any other token"


def test_equal_rows_pass_and_the_verdict_is_said_first(tmp_path: Path) -> None:
    sent = design(SETTINGS, prompts())
    report = judged(tmp_path, rows(sent), sent, "bitwise")
    assert (report.verdict, report.exit_code) == ("passed", 0)
    (group,) = report.groups
    assert (group.judged.num_scored, group.judged.num_equal, group.at_batch) == (12, 12, 1.0)
    assert next(lines(report)).text == "batch variance PASSED"


def test_a_row_that_moves_in_a_batch_fails(tmp_path: Path) -> None:
    sent = design(SETTINGS, prompts())
    report = judged(tmp_path, rows(sent, moved=0.5), sent, "bitwise")
    assert (report.verdict, report.exit_code) == ("failed", 1)
    assert report.reasons == ("cache cold, batch 4: rows with another bit: 12, at most 0 is allowed",)


def test_a_control_that_passes_makes_the_check_invalid_whatever_else_it_says(tmp_path: Path) -> None:
    sent = design(SETTINGS, prompts())
    for i, moved in enumerate((0.0, 0.5)):
        report = judged(tmp_path / str(i), rows(sent, moved=moved, control=False), sent, "bitwise")
        assert (report.verdict, report.exit_code) == ("invalid", 3)


def test_needles_that_ran_alone_after_all_are_inconclusive(tmp_path: Path) -> None:
    sent = design(SETTINGS, prompts())
    report = judged(tmp_path, rows(sent, batch=1), sent, "bitwise")
    assert (report.verdict, report.exit_code) == ("inconclusive", 4)
    assert "only 0% of the rows were computed with half so many sequences" in report.reasons[0]


def test_a_hot_cache_that_nothing_came_from_is_inconclusive(tmp_path: Path) -> None:
    sent = design(SETTINGS, prompts())
    sides = [StoreSide(Store(store(tmp_path / name, rows(sent)))) for name in ("cold", "hot")]
    names = [batch.name for batch in sent.batches] + [request.request_id for request in sent.alone]
    for hits, verdict in ((0, "inconclusive"), (16, "passed")):
        report = judge(sent, SETTINGS, sides[0], sides[1], dict.fromkeys(names, hits), "bitwise")
        assert report.verdict == verdict
        assert [(group.cache, group.batch_size) for group in report.groups] == [("cold", 4), ("hot", 1), ("hot", 4)]


def test_rows_are_found_by_request_in_the_order_of_steps(tmp_path: Path) -> None:
    made = [Row(request=name, step=step) for step in (2, 0, 1) for name in ("b", "a")]
    side = StoreSide(Store(store(tmp_path / "rows", made)))
    found = pairs.rows_of(side)
    assert {name: side.rows["step"][numbers].tolist() for name, numbers in found.items()} == {
        "a": [0, 1, 2],
        "b": [0, 1, 2],
    }


def test_nothing_to_compare_is_not_a_pass(tmp_path: Path) -> None:
    side = StoreSide(Store(store(tmp_path / "rows", [Row()])))
    found = pairs.judged(side, side, pairs.joined([]), profiles.get("fp32"))
    assert found.verdict == "not comparable"
