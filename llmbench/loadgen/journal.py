"""The journal of a run: JSON lines, appended as requests end, readable after any kind of death."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.record import Record
from llmbench.workload.plan import PlannedRequest


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line: which plan was sent where, and what instant on the monotonic clock its second 0 is."""

    kind: str = "llmbench journal 1"
    plan_sha256: str
    num_requests: int
    url: str
    dialect: str
    start_ns: int
    start_wall_s: float
    """The same instant in seconds since the epoch."""


class Journal:
    """Appends records; each is handed to the system as one write, so that a killed run loses none that ended.

    Raises InvalidMeasurement when the disk takes no more: a run without its records proves nothing.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._file = path.open("xb", buffering=0)
        self._encoder = msgspec.json.Encoder()
        self._write(header)

    def append(self, record: Record) -> None:
        """One line for one final record."""
        self._write(record)

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


def read(path: Path) -> tuple[Header, list[Record]]:
    """What a journal holds, in the order the requests ended; a torn last line is left out. Raises InputError."""
    try:
        first, *lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot read the journal ({error.strerror})") from error
    lines.pop() if lines else None  # what stands behind the last newline is empty, or torn
    decoder = msgspec.json.Decoder(Record)
    number = 1
    try:
        header = msgspec.json.decode(first, type=Header)
        records = []
        for number, line in enumerate(lines, 2):  # noqa: B007 (named in the error)
            records.append(decoder.decode(line))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: line {number} is not one of a journal ({error})") from error
    return header, records


def complete(header: Header, records: Sequence[Record], requests: Sequence[PlannedRequest]) -> list[Record]:
    """The records, and an unfinished one for every planned request that a killed run left without one."""
    seen = {record.index for record in records}
    missing = [
        Record(
            index=planned.index,
            request_id=planned.request.request_id,
            reason="the run ended before it did",
            due_ns=header.start_ns + round(planned.due_s * 1e9),
            num_prompt_tokens=planned.num_prompt_tokens,
            expected_tokens=planned.expected_tokens,
        )
        for planned in requests
        if planned.index not in seen
    ]
    return [*records, *missing]
