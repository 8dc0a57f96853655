"""The journal of a search, `trials.jsonl`: a line for each form as soon as it is judged, readable after any death."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from llmbench import jsonlines
from llmbench.errors import InvalidMeasurement
from llmbench.quantize.search import Outcome

FILE = "trials.jsonl"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line: what is searched, the sha256 of the weights, and of the texts of either part."""

    kind: Literal["llmbench quantisation search 1"] = "llmbench quantisation search 1"
    settings: dict[str, Any]
    """What was asked for."""
    model_sha256: str
    calibration_sha256: str
    held_out: list[tuple[int, ...]]
    """The texts to judge by, as token ids."""


class Journal:
    """Appends outcomes; a folder that was begun before goes on."""

    def __init__(self, folder: Path, header: Header) -> None:
        """Raises InvalidMeasurement when the folder is of another model or other texts."""
        path = folder / FILE
        begun_with, self.outcomes = read(folder) if jsonlines.begun(path) else (header, [])
        if begun_with != header:
            raise InvalidMeasurement(
                f"{path}: begun with other weights or texts than {header.settings['model']} and its data have now;"
                " leave --resume out"
            )
        self._file = jsonlines.Appended(path, header, "what was found")

    def append(self, outcome: Outcome) -> None:
        """Keep one."""
        self._file.append(outcome)
        self.outcomes.append(outcome)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(folder: Path) -> tuple[Header, list[Outcome]]:
    """What was searched, and what came of each form, the float model first. Raises InputError."""
    return jsonlines.read(folder / FILE, Header, Outcome, "a search's journal", what="search")
