"""Recorded timestamps: lines of a JSONL or CSV file, played again at their own pace or at another."""

import csv
import json
import math
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from llmbench.errors import InputError
from llmbench.plugins import unknown
from llmbench.workload.arrivals import FLAG, Arrivals


class Arrival(Arrivals, frozen=True, dict=True):
    """`path` has one request per line, in any order, with its time in `field`: seconds, or a date and time.

    Times are counted from the earliest and multiplied by `scale`: 0.001 where they are milliseconds, 0.5 for twice the
    pace. When more requests are asked for than there are lines, the trace begins anew one mean gap after its end.
    """

    path: Path
    field: str = "timestamp"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"scale: must be finite and above 0, got {self.scale}")

    @cached_property
    def times(self) -> list[float]:
        """Seconds from the earliest, ascending. Raises InputError naming file, line and field."""
        found = sorted(_times(self.path, self.field))
        if not found:
            raise InputError(f"{FLAG} trace: {self.path}: there is no request in it")
        return [(time - found[0]) * self.scale for time in found]

    @property
    def rate(self) -> float:
        """(n - 1) / (last - first)."""
        return (len(self.times) - 1) / self.times[-1] if self.times[-1] > 0 else math.inf

    @property
    def duration_s(self) -> float:
        return self.times[-1]

    def expected(self, time_s: float) -> float:
        """How many lines are due in that time, those of further rounds too."""
        rounds, rest_s = divmod(time_s, self.times[-1] + self._gap_s) if self.times[-1] > 0 else (0.0, time_s)
        return rounds * len(self.times) + float(np.searchsorted(self.times, rest_s, side="right"))

    def offsets(self, rng: np.random.Generator) -> Iterator[float]:
        """The times, again and again."""
        period_s = self.times[-1] + self._gap_s
        return (again * period_s + time_s for again in count() for time_s in self.times)

    @property
    def _gap_s(self) -> float:
        """Between one round and the next: the mean gap."""
        return 0.0 if math.isinf(self.rate) else 1 / self.rate


def _times(path: Path, field: str) -> list[float]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{FLAG} trace: {path}: cannot read the trace ({error})") from error
    if path.suffix == ".csv":
        return _csv_times(path, field, lines)
    return [
        _seconds(path, number, field, _member(path, number, field, line))
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _csv_times(path: Path, field: str, lines: list[str]) -> list[float]:
    rows = csv.DictReader(lines)
    columns = {name.strip().lower(): name for name in rows.fieldnames or []}
    if field.lower() not in columns:
        raise InputError(f"{FLAG} trace: {path}: {unknown('field', field, list(rows.fieldnames or []))}")
    return [_seconds(path, rows.line_num, field, row[columns[field.lower()]]) for row in rows]


def _member(path: Path, number: int, field: str, line: str) -> Any:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{FLAG} trace: {path}: line {number}: not JSON ({error})") from error
    if not isinstance(value, dict):
        return value  # a number alone
    if field not in value:
        raise InputError(f"{FLAG} trace: {path}: line {number}: {unknown('field', field, list(value))}")
    return value[field]


def _seconds(path: Path, number: int, field: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = _date(value)
    if not math.isfinite(seconds):
        raise InputError(
            f"{FLAG} trace: {path}: line {number}: {field}: neither a number of seconds nor a date, got {value!r}"
        )
    return seconds


def _date(value: Any) -> float:
    """Seconds since the epoch of `2023-11-16 18:17:03.9799600` and the like; a zone left out is UTC; nan for others."""
    whole, point, fraction = str(value).strip().removesuffix("Z").partition(".")
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    try:
        parsed = datetime.fromisoformat(whole + fraction[len(digits) :])
    except ValueError:
        return math.nan
    zoned = parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)
    return zoned.timestamp() + (float(f"0.{digits}") if point and digits else 0.0)
