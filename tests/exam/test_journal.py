"""The files that grow during a run: whole lines, the order of cache.csv, and what may be gone on with."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.errors import InputError, InvalidMeasurement
from llmbench.evals import Ask, Item, Marked
from llmbench.exam.journal import CACHE, ITEMS, Header, Journal, key_of, prompt_sha256, read

HEADER = Header(
    protocol={"eval": "toy", "mode": "m"}, model="m", fingerprint="f", via="in process", data="d", num_items=4
)
QUESTIONS = [Item(id=f"toy/{n}", group="toy", category="toy", truth="A", asks=(Ask(prompt=f"{n}?"),)) for n in range(4)]


def marked(number: int, predicted: str = "A", header: Header = HEADER) -> Marked:
    item = QUESTIONS[number]
    return Marked(
        number=number, id=item.id, group=item.group, category=item.category, truth=item.truth, predicted=predicted,
        correct=predicted == "A", prompt_sha256=prompt_sha256(item.asks), key=key_of(header, item),
    )  # fmt: skip


def begun(folder: Path, *numbers: int) -> None:
    with Journal(folder, HEADER, QUESTIONS) as journal:
        for number in numbers:
            journal.append(marked(number))


def test_lines_are_there_at_once_and_cache_csv_is_in_the_order_of_the_items(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER, QUESTIONS) as journal:
        for number, cached in ((2, ""), (0, "0,toy,A,A\n"), (1, "0,toy,A,A\n1,toy,A,A\n2,toy,A,A\n")):
            journal.append(marked(number))
            assert (tmp_path / CACHE).read_text() == cached
    assert [one.number for one in read(tmp_path / ITEMS)[1]] == [2, 0, 1]


def test_what_stands_behind_a_gap_is_in_cache_csv_in_the_end(tmp_path: Path) -> None:
    begun(tmp_path, 3, 0)
    assert (tmp_path / CACHE).read_text() == "0,toy,A,A\n3,toy,A,A\n"


@pytest.mark.parametrize("torn", [b"", b'{"number":9', b"\xff"])
def test_a_run_goes_on_behind_its_last_whole_line(tmp_path: Path, torn: bytes) -> None:
    begun(tmp_path, 1, 0)
    with (tmp_path / ITEMS).open("ab") as file:
        file.write(torn)
    with Journal(tmp_path, HEADER, QUESTIONS, resume=True) as journal:
        assert journal.done == {0: marked(0), 1: marked(1)}
        journal.append(marked(3))
        journal.append(marked(2))
    assert [one.number for one in read(tmp_path / ITEMS)[1]] == [1, 0, 3, 2]
    assert (tmp_path / CACHE).read_text() == "".join(f"{n},toy,A,A\n" for n in range(4))


def test_a_run_that_was_cut_off_at_any_byte_ends_with_the_same_file(tmp_path: Path) -> None:
    begun(tmp_path, 0, 1)
    data = (tmp_path / ITEMS).read_bytes()
    ends = [place for place, byte in enumerate(data) if byte == 10]
    for length in range(len(data)):
        (tmp_path / ITEMS).write_bytes(data[:length])
        whole = max(0, sum(end < length for end in ends) - 1)
        with Journal(tmp_path, HEADER, QUESTIONS, resume=True) as journal:
            assert sorted(journal.done) == list(range(whole))
            for number in range(whole, 2):
                journal.append(marked(number))
        assert (tmp_path / ITEMS).read_bytes() == data


@pytest.mark.parametrize(
    "change", [{"fingerprint": "g"}, {"protocol": {"eval": "toy", "mode": "n"}}, {"via": "http tgi"}, {"num_items": 3}]
)
def test_a_run_of_another_model_or_protocol_is_not_gone_on_with(tmp_path: Path, change: dict[str, Any]) -> None:
    begun(tmp_path, 0)
    before = (tmp_path / ITEMS).read_bytes()
    with pytest.raises(InvalidMeasurement, match="leave --resume out"):
        Journal(tmp_path, msgspec.structs.replace(HEADER, **change), QUESTIONS, resume=True)
    assert (tmp_path / ITEMS).read_bytes() == before


@pytest.mark.parametrize(
    "change", [{"asks": (Ask(prompt="another?"),)}, {"truth": "B"}, {"notes": {"test": "x"}}, {"id": "toy/9"}]
)
def test_the_answer_to_a_question_that_was_changed_is_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    begun(tmp_path, 0, 1)
    questions = [msgspec.structs.replace(QUESTIONS[0], **change), *QUESTIONS[1:]]
    with Journal(tmp_path, HEADER, questions, resume=True) as journal:
        assert list(journal.done) == [1]


def test_an_answer_of_another_model_is_not_taken_even_when_the_header_is_ours(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    foreign = marked(1, header=msgspec.structs.replace(HEADER, fingerprint="g"))
    with (tmp_path / ITEMS).open("ab") as file:
        file.write(msgspec.json.encode(foreign) + b"\n")
    with Journal(tmp_path, HEADER, QUESTIONS, resume=True) as journal:
        assert list(journal.done) == [0]


def test_of_an_item_that_was_asked_twice_the_last_line_counts(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER, QUESTIONS) as journal:
        journal.append(marked(0, "B"))
        journal.append(marked(0, "A"))
    assert [one.predicted for one in read(tmp_path / ITEMS)[1]] == ["A"]


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    begun(tmp_path, 0)
    with (tmp_path / ITEMS).open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=r"items\.jsonl: line 3 is not one of an eval's journal"):
        read(tmp_path / ITEMS)
