"""The files of a run's folder. A file is written aside and renamed, so that it is whole or not there."""

import csv
import io
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import psutil

from llmbench import __version__
from llmbench.clock import seconds, stamp
from llmbench.errors import InputError
from llmbench.metrics import Metric, Trace, per_request, per_run
from llmbench.metrics.summary import Summary
from llmbench.report.view import View

_PACKAGES = ("uvloop", "msgspec", "numpy", "sentencepiece", "mindspore", "mindformers", "torch")


def new_folder(results: Path, name: str) -> Path:
    """Make `results/<when>-<name>`, with a number behind it when there is one already. Raises InputError."""
    make_folder(results, "--results")
    start = stamp()
    for number in range(1, 1000):
        folder = results / (f"{start}-{name}" + (f"-{number}" if number > 1 else ""))
        if not folder.exists():
            make_folder(folder, "--name")
            return folder
    raise InputError(f"--results {results}: a thousand runs named {name} in one second")


def make_folder(folder: Path, flag: str) -> None:
    """Make a folder that a flag names, if it is not there. Raises InputError now rather than after an hour's run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag} {folder}: cannot make this folder ({error.strerror})") from error


@contextmanager
def wanted() -> Iterator[None]:
    """Around the writing of files that somebody asked for. Raises InputError, which names the file, for what fails."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot write ({error.strerror})") from error


def write_json(path: Path, value: Any) -> None:
    """A value as indented JSON; infinite numbers become null, paths strings."""
    write(path, as_json(value))


def as_json(value: Any) -> bytes:
    """The same as bytes."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str), indent=2) + b"\n"


def write(path: Path, data: bytes) -> None:
    """Bytes as a file that is whole or not there."""
    aside = path.with_name(f".{path.name}.part")
    aside.write_bytes(data)
    os.replace(aside, path)


def summary(view: View) -> dict[str, Any]:
    """What `summary.json` holds: the verdict first, then the checks, then the numbers with their definitions."""
    judged = {"verdict": view.verdict} if view.verdict else {"verdict": None, "not_judged": view.not_judged}
    value: dict[str, Any] = judged | {"checks": list(view.checks), "summary": _defined(view.numbers)}
    if view.window is not None:
        value |= {"window": view.window, "traffic": view.traffic}
    if view.steady is not None:
        numbers = None if view.steady_numbers is None else _defined(view.steady_numbers)
        value["steady"] = {
            "window": view.steady.window,
            "reason": view.steady.reason,
            "traffic": view.steady_traffic,
            "summary": numbers,
        }
    if view.captured is not None:
        value["captured"] = view.captured
    return value | {"plan_sha256": view.plan_sha256, "load": view.load, "instrument": view.instrument}


def _defined(numbers: Summary) -> dict[str, Any]:
    """A summary in which every metric says what it is and of how many requests (or gaps) it is."""
    value: dict[str, Any] = msgspec.structs.asdict(numbers)
    value["run"] = {
        metric.name: {"value": numbers.run.get(metric.name), "n": numbers.num_planned, **_definition(metric)}
        for metric in per_run.METRICS
    }
    value["requests"] = {
        metric.name: {
            **msgspec.structs.asdict(numbers.requests[metric.name]),
            "n": numbers.requests[metric.name].num,
            **_definition(metric),
        }
        for metric in (*per_request.METRICS, *per_request.GAPS)
    }
    return value


def _definition(metric: Metric[Any, Any]) -> dict[str, str]:
    return {"unit": metric.unit, "better": metric.better, "definition": metric.formula}


def records(folder: Path, traces: Sequence[Trace]) -> None:
    """`records.csv`: one request per line in the order of the plan; times in seconds, those without a value empty."""
    lines = io.StringIO()
    table = csv.writer(lines)
    names = [metric.name for metric in per_request.METRICS]
    counts = ("num_prompt_tokens", "num_tokens", "expected_tokens")
    table.writerow(["index", "status", "reason", "finish_reason", "due_s", "sent_s", "done_s", *counts, *names])
    start_ns = min((trace.due_ns for trace in traces), default=0)
    for trace in sorted(traces, key=lambda trace: trace.index):
        instants = [_since(start_ns, at_ns) for at_ns in (trace.due_ns, trace.sent_ns, trace.done_ns)]
        numbers = (trace.num_prompt_tokens, trace.num_tokens, trace.expected_tokens)
        values = [_cell(metric.of(trace)) for metric in per_request.METRICS]
        what = (trace.index, trace.status, trace.reason, trace.finish_reason)
        table.writerow([*what, *instants, *numbers, *values])
    write(folder / "records.csv", lines.getvalue().encode())


def environment() -> dict[str, Any]:
    """What the numbers were measured with: versions and the machine, without its name or its users."""
    memory = psutil.virtual_memory()
    return {
        "llmbench": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "num_cpus": os.cpu_count(),
        "load_average": os.getloadavg(),
        "memory_total_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


def _since(start_ns: int, at_ns: int | None) -> str:
    return "" if at_ns is None else f"{seconds(start_ns, at_ns):.9f}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
