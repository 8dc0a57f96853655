from pathlib import Path

import msgspec
import pytest

from llmbench.errors import InputError
from llmbench.loadgen.journal import Header, Journal, Segment, complete, name, read, read_run
from llmbench.loadgen.record import Record, Scrape
from llmbench.types import Request
from llmbench.workload.arrivals.burst import Arrival
from llmbench.workload.plan import PlannedRequest, PlanSettings, Turn, make_plan

HEADER = Header(
    plan_sha256="abc", num_requests=3, url="http://x:1", dialect="contest", start_ns=1_000, start_wall_s=1.5
)
RECORDS = [
    Record(index=1, status="answered", due_ns=2_000, sent_ns=2_001, stamps_ns=[5, 6], tokens=[1, 2], text="é\n\u2028"),
    Record(index=0, status="failed", reason="connect: Connection refused", due_ns=1_000),
]


def segment(records: list[Record]) -> Segment:
    return Segment(header=HEADER, records=records, samples=[], scrapes=[])


def written(path: Path) -> bytes:
    with Journal(path, HEADER) as journal:
        for record in RECORDS:
            journal.append(record)
    return path.read_bytes()


def test_what_was_written_is_read_in_the_same_order(tmp_path: Path) -> None:
    written(tmp_path / "journal.jsonl")
    assert read(tmp_path / "journal.jsonl") == segment(RECORDS)


def test_every_record_can_be_read_before_the_journal_is_closed(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl", HEADER) as journal:
        for number, record in enumerate(RECORDS, 1):
            journal.append(record)
            assert read(tmp_path / "journal.jsonl").records == RECORDS[:number]


def test_a_last_line_torn_at_any_byte_is_forgiven(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = written(path)
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert read(path) == segment(RECORDS[:1])


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(written(path).replace(b'"index":1', b'"index";1'))
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


PLAN = make_plan(
    [Turn(prompt="p", output_tokens=2)],
    Arrival(),
    3,
    PlanSettings(dataset="d", num_samples=1, arrivals="burst", qps=1.0, rate=None, seed=0),
    tokenizer=None,
)


def journal_of(folder: Path, start_ns: int, attempt: int, worker: int, records: list[Record]) -> None:
    header = msgspec.structs.replace(
        HEADER, plan_sha256=PLAN.sha256, start_ns=start_ns, attempt=attempt, worker=worker, num_workers=2
    )
    with Journal(folder / name(attempt, worker), header) as journal:
        for record in records:
            journal.append(record)


def test_the_journals_of_all_workers_and_attempts_are_one_trail_on_the_first_ones_clock(tmp_path: Path) -> None:
    journal_of(tmp_path, 1_000, 1, 0, [Record(index=0, status="answered", due_ns=1_000, done_ns=1_500)])
    journal_of(tmp_path, 1_000, 1, 1, [Record(index=1, due_ns=1_100, reason="not sent: interrupted")])
    again = Record(index=1, status="answered", due_ns=50_100, sent_ns=50_100, done_ns=50_300, stamps_ns=[50_200])
    journal_of(tmp_path, 50_000, 2, 0, [again])
    trail = read_run(tmp_path, PLAN)
    assert [(record.index, record.status) for record in trail.records] == [
        (1, "answered"),
        (0, "answered"),
        (2, "unfinished"),
    ]
    moved = trail.records[0]
    assert (moved.due_ns, moved.sent_ns, moved.done_ns, moved.stamps_ns) == (1_100, 1_100, 1_300, [1_200])
    assert trail.seams_s == [pytest.approx(100e-9)]


def test_a_journal_that_was_just_begun_holds_nothing(tmp_path: Path) -> None:
    journal_of(tmp_path, 1_000, 1, 0, [])
    (tmp_path / name(2, 0)).write_bytes(b'{"kind": "llmbench jour')
    assert [record.status for record in read_run(tmp_path, PLAN).records] == ["unfinished"] * 3


def test_a_folder_without_a_journal_and_one_of_another_plan_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no journal"):
        read_run(tmp_path, PLAN)
    written(tmp_path / "journal.jsonl")
    with pytest.raises(InputError, match="of plan abc"):
        read_run(tmp_path, PLAN)


def test_what_is_observed_before_the_run_begins_stands_behind_the_header(tmp_path: Path) -> None:
    scrape = Scrape(at_ns=7, values={"vllm:num_requests_running": 0.0})
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.append(scrape)
        journal.begin(HEADER)
        journal.append(RECORDS[0])
    assert read(tmp_path / "journal.jsonl") == Segment(header=HEADER, records=RECORDS[:1], samples=[], scrapes=[scrape])
