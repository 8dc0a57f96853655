"""The journal of a sweep, `cases.jsonl`: a line for each case as soon as it is measured, readable after any death."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from llmbench import jsonlines
from llmbench.metrics.sweep import Case, Measured

FILE = "cases.jsonl"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line: what is swept, and how."""

    kind: Literal["llmbench sweep 1"] = "llmbench sweep 1"
    what: str
    """The model and what computes it, or the server and its dialect, for people."""
    name: str
    """The model in the CSV file's name."""
    settings: dict[str, Any]
    """What was asked for."""


class Journal:
    """Appends cases; the last line of a case counts. Raises InputError, InvalidMeasurement.

    A folder that was begun before goes on; `what` is what it was begun with.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        begun, found = read(folder) if jsonlines.begun(folder / FILE) else (header, [])
        self.what = begun.what
        self._found = {each.case: each for each in found}
        self._file = jsonlines.Appended(folder / FILE, header, "the cases")

    def settled(self, case: Case) -> Measured | None:
        """What is known of a case and need not be measured again; one that failed must."""
        found = self._found.get(case)
        return None if found is None or found.outcome == "failed" else found

    def append(self, measured: Measured) -> None:
        """Keep a case."""
        self._file.append(measured)
        self._found[measured.case] = measured

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(folder: Path) -> tuple[Header, list[Measured]]:
    """What was swept and what came of it, of each case its last line, in the order of their first ones.

    A torn last line is left out. Raises InputError.
    """
    header, lines = jsonlines.read(folder / FILE, Header, Measured, "a sweep's journal", what="sweep")
    return header, list({measured.case: measured for measured in lines}.values())
