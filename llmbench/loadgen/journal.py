"""The journals of a run: JSON lines, appended as requests end, readable after any kind of death.

Every measuring process writes one of its own; a run that is resumed goes on in new ones.
"""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import msgspec

from llmbench import jsonlines
from llmbench.clock import seconds
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.record import Line, Record, Sample, Scrape
from llmbench.workload.plan import Plan, PlannedRequest


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line: which plan was sent where, and what instant on the monotonic clock its second 0 is.

    `attempt` counts how often the run was begun: 1, and one more for each time it was resumed.
    """

    kind: Literal["llmbench journal 2"] = "llmbench journal 2"
    plan_sha256: str
    num_requests: int
    url: str
    dialect: str
    transport: str = "http"
    """What carried the requests: `http`, `https`, or another client through a proxy, whose stamps are less sharp."""
    start_ns: int
    start_wall_s: float
    """The same instant in seconds since the epoch."""
    attempt: int = 1
    worker: int = 0
    num_workers: int = 1


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """What one journal holds, in the order in which it was written."""

    header: Header
    records: list[Record]
    samples: list[Sample]
    scrapes: list[Scrape]


class Trail(msgspec.Struct, frozen=True, kw_only=True):
    """What all journals of a run hold together: one record for every planned request, all on one time axis.

    An attempt after the first is moved so that its second 0 is that of the first: the pause between them is not there.
    `seams_s` are the seconds of the plan at which a run was taken up again.
    """

    header: Header
    """Of the first attempt."""
    records: list[Record]
    """In the order in which the requests ended; those that a killed run left without a record are unfinished."""
    samples: list[list[Sample]]
    """Of each measuring process."""
    scrapes: list[Scrape]
    seams_s: list[float]


class Journal:
    """Appends lines; each is handed to the system as one write, so that a killed run loses no request that ended.

    Lines that come before the header are held until it is there.
    Raises InvalidMeasurement when the disk takes no more: a run without its records proves nothing.
    """

    def __init__(self, path: Path, header: Header | None = None) -> None:
        self._path = path
        self._file = path.open("xb", buffering=0)
        fcntl.flock(self._file, fcntl.LOCK_EX)  # given back by any kind of death: see `going_on`
        self._encoder = msgspec.json.Encoder()
        self._held: list[Line] | None = []
        if header is not None:
            self.begin(header)

    def begin(self, header: Header) -> None:
        """Write the first line, and those that were held."""
        held, self._held = self._held or [], None
        self._write(header)
        for line in held:
            self._write(line)

    def append(self, line: Line) -> None:
        """One line for one final record, or for one observation."""
        if self._held is None:
            self._write(line)
        else:
            self._held.append(line)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, value: msgspec.Struct) -> None:
        try:
            self._file.write(self._encoder.encode(value) + b"\n")
        except OSError as error:
            raise InvalidMeasurement(f"{self._path}: cannot keep the records ({error.strerror})") from error


def name(attempt: int, worker: int) -> str:
    """The file of one measuring process in the folder of a run."""
    return "journal.jsonl" if (attempt, worker) == (1, 0) else f"journal-{attempt}-{worker}.jsonl"


def read(path: Path) -> Segment:
    """What a journal holds; a torn last line is left out. Raises InputError."""
    header, found = jsonlines.read(path, Header, Line, "a journal")
    return Segment(
        header=header,
        records=[line for line in found if isinstance(line, Record)],
        samples=[line for line in found if isinstance(line, Sample)],
        scrapes=[line for line in found if isinstance(line, Scrape)],
    )


def paths(folder: Path) -> list[Path]:
    """All journals in the folder of a run, also those that hold nothing yet."""
    return sorted(folder.glob("journal*.jsonl"))


def begun(path: Path) -> bool:
    """Whether a journal holds its first line."""
    return b"\n" in path.read_bytes()


def going_on(folder: Path) -> bool:
    """Whether a process that lives is writing a journal here."""
    for path in paths(folder):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def segments(folder: Path, plan: Plan) -> list[Segment]:
    """What each journal in the folder of a run of this plan holds, in the order of attempts and workers.

    Raises InputError when one is of another plan.
    """
    found = [read(path) for path in paths(folder) if begun(path)]
    for segment in found:
        if segment.header.plan_sha256 != plan.sha256:
            wrong = segment.header.plan_sha256
            raise InputError(f"{folder}: a journal is of plan {wrong[:12]}, not of {plan.sha256[:12]}")
    return sorted(found, key=lambda segment: (segment.header.attempt, segment.header.worker))


def read_run(folder: Path, plan: Plan) -> Trail:
    """All journals in the folder of a run of this plan. Raises InputError when there is none, or of another plan."""
    found = segments(folder, plan)
    if not found:
        raise InputError(f"{folder}: no journal with a whole line is here; name the folder of a run that was begun")
    first = found[0].header
    moved = [_moved(segment, first.start_ns - segment.header.start_ns) for segment in found]
    records = {record.index: record for segment in moved for record in segment.records}
    ended = sorted(records.values(), key=lambda record: record.done_ns or record.due_ns)
    return Trail(
        header=first,
        records=complete(first, ended, plan.requests),
        samples=[segment.samples for segment in moved if segment.samples],
        scrapes=[scrape for segment in moved for scrape in segment.scrapes],
        seams_s=_seams_s(moved),
    )


def complete(header: Header, records: Sequence[Record], requests: Sequence[PlannedRequest]) -> list[Record]:
    """The records, and an unfinished one for every planned request that a killed run left without one."""
    seen = {record.index for record in records}
    missing = [
        unfinished(planned, header.start_ns, "the run ended before it did")
        for planned in requests
        if planned.index not in seen
    ]
    return [*records, *missing]


def unfinished(planned: PlannedRequest, start_ns: int, reason: str) -> Record:
    """The record of a request that a process left without one."""
    return Record(
        index=planned.index,
        request_id=planned.request.request_id,
        reason=reason,
        due_ns=start_ns + round(planned.due_s * 1e9),
        num_prompt_tokens=planned.num_prompt_tokens,
        expected_tokens=planned.expected_tokens,
    )


def _moved(segment: Segment, by_ns: int) -> Segment:
    """The segment with all its instants later by so much."""
    if not by_ns:
        return segment
    return msgspec.structs.replace(
        segment,
        header=msgspec.structs.replace(segment.header, start_ns=segment.header.start_ns + by_ns),
        records=[_record_moved(record, by_ns) for record in segment.records],
        samples=[msgspec.structs.replace(sample, at_ns=sample.at_ns + by_ns) for sample in segment.samples],
        scrapes=[msgspec.structs.replace(scrape, at_ns=scrape.at_ns + by_ns) for scrape in segment.scrapes],
    )


def _record_moved(record: Record, by_ns: int) -> Record:
    instants = ("due_ns", "released_ns", "sent_ns", "connected_ns", "first_byte_ns", "first_answer_ns", "done_ns")
    moved = {name: None if (at := getattr(record, name)) is None else at + by_ns for name in instants}
    return msgspec.structs.replace(record, stamps_ns=[stamp + by_ns for stamp in record.stamps_ns], **moved)


def _seams_s(segments: Sequence[Segment]) -> list[float]:
    """Where each attempt after the first begins: its earliest due instant, in seconds of the plan."""
    earliest: dict[int, int] = {}
    for segment in segments:
        due = [record.due_ns for record in segment.records]
        if segment.header.attempt > 1 and due:
            earliest[segment.header.attempt] = min(earliest.get(segment.header.attempt, min(due)), min(due))
    return [seconds(segments[0].header.start_ns, at_ns) for at_ns in sorted(earliest.values())]
