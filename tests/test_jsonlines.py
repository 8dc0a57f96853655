"""Journals: lines that are kept one by one, and gone on with after any kind of death."""

from pathlib import Path

import msgspec
import pytest

from llmbench import jsonlines
from llmbench.errors import InputError, InvalidMeasurement


class Header(msgspec.Struct, frozen=True):
    """What it is of."""

    what: str


class Line(msgspec.Struct, frozen=True):
    """One of its lines."""

    number: int


def lines(path: Path) -> list[int]:
    header, found = jsonlines.read(path, Header, Line, "a journal of numbers")
    assert header == Header("numbers")
    return [line.number for line in found]


def test_a_journal_goes_on_behind_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert not jsonlines.begun(path)
    with jsonlines.Appended(path, Header("numbers"), "the numbers") as journal:
        journal.append(Line(1))
    with path.open("ab") as file:
        file.write(b'{"number":')  # killed here
    assert jsonlines.begun(path)
    with jsonlines.Appended(path, Header("another"), "the numbers") as journal:
        journal.append(Line(2))
    assert lines(path) == [1, 2]


def test_a_journal_whose_header_was_torn_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"what":"num')
    assert not jsonlines.begun(path)
    with jsonlines.Appended(path, Header("numbers"), "the numbers") as journal:
        journal.append(Line(1))
    assert lines(path) == [1]


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere/journal.jsonl: cannot write the journal \(No such file"):
        jsonlines.Appended(tmp_path / "nowhere" / "journal.jsonl", Header("numbers"), "the numbers")
    with pytest.raises(InvalidMeasurement, match=r"full: cannot keep the numbers \(No space left on device\)"):
        jsonlines.Appended(Path("/dev/full"), Header("numbers"), "the numbers")
