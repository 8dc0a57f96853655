from pathlib import Path

import pytest

from llmbench.errors import InputError
from llmbench.loadgen.journal import Header, Journal, complete, read
from llmbench.loadgen.record import Record
from llmbench.types import Request
from llmbench.workload.plan import PlannedRequest

HEADER = Header(
    plan_sha256="abc", num_requests=3, url="http://x:1", dialect="contest", start_ns=1_000, start_wall_s=1.5
)
RECORDS = [
    Record(index=1, status="answered", due_ns=2_000, sent_ns=2_001, stamps_ns=[5, 6], tokens=[1, 2], text="é\n\u2028"),
    Record(index=0, status="failed", reason="connect: Connection refused", due_ns=1_000),
]


def written(path: Path) -> bytes:
    with Journal(path, HEADER) as journal:
        for record in RECORDS:
            journal.append(record)
    return path.read_bytes()


def test_what_was_written_is_read_in_the_same_order(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    assert read(tmp_path / "journal.jsonl") == (HEADER, RECORDS)


def test_every_record_can_be_read_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        for number, record in enumerate(RECORDS, 1):
            journal.append(record)
            assert read(tmp_path / "journal.jsonl")[1] == RECORDS[:number]


def test_a_last_line_torn_at_any_byte_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = written(path)
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert read(path) == (HEADER, RECORDS[:1])


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path).replace(b'{"index":1', b'{"index";1'))
    with pytest.raises(InputError, match="line 2"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"x", b"[]\n", b"\xff\n"])
def test_what_is_not_a_journal_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="line 1"):
        read(path)


def test_a_journal_is_never_written_over(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    with pytest.raises(FileExistsError):
        Journal(tmp_path / "journal.jsonl", HEADER)


def test_requests_without_a_record_are_unfinished() -> None:
    plan = [PlannedRequest(index=i, due_s=i / 10, request=Request(prompt="p")) for i in range(3)]
    whole = complete(HEADER, RECORDS, plan)
    assert [record.index for record in whole] == [1, 0, 2]
    assert (whole[2].status, whole[2].due_ns) == ("unfinished", 1_000 + 200_000_000)
