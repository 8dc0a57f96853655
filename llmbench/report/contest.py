"""The files of the contest's own load client: its result file and its log."""

import json
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import msgspec

from llmbench.clock import seconds
from llmbench.metrics import Trace, per_request, per_run
from llmbench.report.files import write

_LOGGER = "test_llama.log"


class Answer(Trace, Protocol):
    """What the contest's files need of one request."""

    text: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What the contest's files tell besides the answers."""

    qps: float
    interval_s: float
    """The mean gap that the log names."""
    num_samples: int
    prompts: Sequence[str]
    """By the index of the request."""
    start_ns: int
    start_wall_s: float
    """The same instant in seconds since the epoch."""


def exec_time_line(answers: Sequence[Answer]) -> str:
    """The last line that the contest's client logs."""
    return f"All Tasks Done; Exec Time is {per_run.exec_time.of(answers) or 0.0}"


def result(folder: Path, run: Run, answers: Sequence[Answer]) -> Path:
    """`result_{X}_x.json`: the answered requests in the order in which they ended, compact ASCII; the file's path.

    `res_time` and `first_token_time` are from the instant of sending, as in the original, in seconds.
    """
    path = folder / f"result_{float(run.qps)}_x.json"
    rows = [_row(run, answer) for answer in _answered(answers)]
    write(path, json.dumps(rows).encode("ascii"))
    return path


def log(folder: Path, run: Run, answers: Sequence[Answer]) -> Path:
    """`testLog/test_performance_*.log`, line by line what the original logs while it runs; the file's path."""
    started = datetime.fromtimestamp(run.start_wall_s)
    path = folder / "testLog" / f"test_performance_{started:%Y-%m-%d-%H_%M}.log"
    path.parent.mkdir(exist_ok=True)
    entries = [*_sending(run, answers), *_ending(run, answers)]
    entries.sort(key=lambda entry: entry[0])
    last_ns = entries[-1][0] if entries else run.start_ns
    head = [f"testcases length is {run.num_samples}", f"thread_tasks length is {len(answers)}"]
    head.append(f"Start send request, avg interval is {run.interval_s}")
    entries = [*((run.start_ns, line) for line in head), *entries, (last_ns, exec_time_line(answers))]
    lines = [f"{_asctime(run, at_ns)} - {_LOGGER} - INFO - {text}\n" for at_ns, text in entries]
    write(path, "".join(lines).encode("utf-8", "surrogatepass"))
    return path


def _sending(run: Run, answers: Sequence[Answer]) -> list[tuple[int, str]]:
    """The gap that follows each request that was sent; none is known after the last one."""
    due_ns = sorted(answer.due_ns for answer in answers if answer.sent_ns is not None)
    return [(now, f"poisson random interval time is {seconds(now, then)}s") for now, then in pairwise(due_ns)]


def _ending(run: Run, answers: Sequence[Answer]) -> list[tuple[int, str]]:
    entries: list[tuple[int, str]] = []
    for number, answer in enumerate(_answered(answers), 1):
        row = _row(run, answer)
        if answer.stamps_ns:
            entries.append((answer.stamps_ns[0], f"first_token_time is {row['first_token_time']}"))
        entries.append((answer.done_ns or run.start_ns, f"{row}\nTest Progress --> {number}/{len(answers)}"))
    return entries


def _answered(answers: Sequence[Answer]) -> list[Answer]:
    return sorted((a for a in answers if a.status == "answered"), key=lambda answer: answer.done_ns or 0)


def _row(run: Run, answer: Answer) -> dict[str, Any]:
    """The four keys of the contest, in its order; an answer that brought no token by itself has no first one."""
    row: dict[str, Any] = {
        "input": run.prompts[answer.index],
        "resp_text": answer.text,
        "res_time": per_request.service_time.of(answer),
    }
    first_s = per_request.ttft_from_sent.of(answer)
    return row if first_s is None else row | {"first_token_time": first_s}


def _asctime(run: Run, at_ns: int) -> str:
    """The wall time of an instant as Python's logging writes it."""
    at = datetime.fromtimestamp(run.start_wall_s + (at_ns - run.start_ns) / 1e9)
    return f"{at:%Y-%m-%d %H:%M:%S},{at.microsecond // 1000:03d}"
