"""What every set of questions promises; a new file in the room is tested the moment it exists.

Each set has a small sample of our own making in tests/golden/evals/NAME, in the format of its public files.
"""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench import evals, plugins
from llmbench.errors import InputError
from llmbench.evals import NO_ANSWER, Eval, Item, Marked, Options, Reply
from tests.conftest import ROOT

SAMPLES = ROOT / "tests" / "golden" / "evals"
NAMES = plugins.names("evals")
EVERY_MODE = [(name, mode) for name in NAMES for mode in evals.module(name).MODES]
TOLD = ("eval", "version", "mode", "split", "shots", "max_new_tokens")


def chosen(name: str, mode: str | None = None, split: str | None = None) -> Eval:
    return evals.get(name, Options(mode=mode, split=split, count_tokens=lambda text: len(text.split())))


def sample(name: str, mode: str | None = None) -> tuple[Eval, list[Item]]:
    assert (SAMPLES / name).is_dir(), f"make a small sample of {name} by hand in {SAMPLES / name}"
    evaluation = chosen(name, mode)
    return evaluation, evaluation.items(SAMPLES / name)


def marked(evaluation: Eval, item: Item, replies: list[Reply]) -> Marked:
    mark = evaluation.mark(item, replies)
    return Marked(
        number=0,
        id=item.id,
        group=item.group,
        category=item.category,
        truth=item.truth,
        predicted=mark.predicted,
        correct=mark.correct,
        replies=[reply.text for reply in replies],
        prompt_sha256="",
        key="",
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_set_says_what_it_is_and_what_can_be_chosen(name: str) -> None:
    found = evals.module(name)
    assert "folder" in found.ABOUT
    assert found.MODES
    assert found.SPLITS
    assert all(shots >= 0 for shots in found.SHOTS)
    assert chosen(name).name == name


@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_the_protocol_says_all_that_was_chosen_and_goes_through_json(name: str, mode: str) -> None:
    protocol = chosen(name, mode).protocol
    assert set(TOLD) <= protocol.keys()
    assert (protocol["eval"], protocol["mode"]) == (name, mode)
    assert msgspec.json.decode(msgspec.json.encode(protocol)) == protocol


@pytest.mark.parametrize("name", NAMES)
def test_other_modes_and_splits_are_other_protocols(name: str) -> None:
    found = evals.module(name)
    protocols = [chosen(name, mode, split).protocol for mode in found.MODES for split in found.SPLITS]
    assert all(protocols.count(one) == 1 for one in protocols)


@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_the_sample_gives_the_same_questions_every_time_each_with_an_id_of_its_own(name: str, mode: str) -> None:
    _, items = sample(name, mode)
    assert len(items) >= 2
    assert len({item.id for item in items}) == len(items)
    assert items == sample(name, mode)[1]
    assert all(item.asks and item.group and item.category and item.truth for item in items)
    assert all(ask.prompt and ask.max_new_tokens >= 1 for item in items for ask in item.asks)
    msgspec.json.encode(items)


@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
def test_a_reply_with_nothing_in_it_is_not_right(name: str, mode: str) -> None:
    evaluation, items = sample(name, mode)
    for item in items:
        mark = evaluation.mark(item, [Reply() for _ in item.asks])
        assert mark.correct is not True
        assert mark.predicted


@pytest.mark.parametrize(("name", "mode"), EVERY_MODE)
@given(text=st.text(), logprob=st.floats(-1e4, 0))
def test_any_reply_can_be_marked(name: str, mode: str, text: str, logprob: float) -> None:
    evaluation, items = sample(name, mode)
    reply = Reply(text=text, top={text: logprob}, tokens=((text, None), (text, logprob)))
    mark = evaluation.mark(items[0], [reply for _ in items[0].asks])
    assert mark.correct in (True, False, None)
    assert evaluation.mark(items[0], [reply for _ in items[0].asks]) == mark
    msgspec.json.encode(mark)


@pytest.mark.parametrize("name", NAMES)
def test_its_files_are_bytes_and_nothing_marked_is_no_error(name: str) -> None:
    evaluation, items = sample(name)
    rows = [marked(evaluation, item, [Reply(text="B") for _ in item.asks]) for item in items]
    for files in (evaluation.files(rows), evaluation.files([])):
        assert all(type(data) is bytes for data in files.values())
        assert not any("/" in file for file in files)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_without_its_files_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        chosen(name).items(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_other_bytes_is_refused_with_its_name(name: str, tmp_path: Path) -> None:
    for path in sorted(SAMPLES.joinpath(name).rglob("*")):
        if path.is_file():
            target = tmp_path / path.relative_to(SAMPLES / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"\xff\xfe\x00 nonsense")
    with pytest.raises(InputError, match=str(tmp_path)):
        chosen(name).items(tmp_path)


def test_no_answer_is_the_references_sign() -> None:
    assert NO_ANSWER == "-1"
