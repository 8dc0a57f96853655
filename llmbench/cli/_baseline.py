"""Stored baselines: versions of what a build's runs came to, and what is needed to repeat them.

gate.yaml        the settings that they were measured with
plan.jsonl.gz    the load
v0001.json …     versions, the newest counts
rows/            captured logits of the newest, when the settings ask for accuracy
"""

import contextlib
import math
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev

import msgspec
import psutil

from llmbench import __version__
from llmbench.cli import _plan, _results
from llmbench.clock import stamp
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.metrics.compare import Pair, Primary, select
from llmbench.metrics.compare.effects import Measured
from llmbench.report import files

SETTINGS = "gate.yaml"
ROWS = "rows"
FORMAT = "llmbench-baseline-1"
ASSUMED_BAND = 0.01
"""Of log(B / A) between two days of one build, until a baseline has two versions of one build."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """What one build came to: for each metric the values of its runs."""

    format: str = FORMAT
    number: int
    created: str
    label: str
    llmbench: str
    machine: str
    plan_sha256: str
    metrics: dict[str, list[float]]

    @property
    def about(self) -> str:
        """`build 1a2b3c4 of 2026-11-20, 5 runs`."""
        runs = max(map(len, self.metrics.values()), default=0)
        return f"build {self.label} of {self.created}, {runs} runs"


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """A baseline: its versions, oldest first."""

    folder: Path
    versions: list[Version]

    @property
    def newest(self) -> Version:
        return self.versions[-1]

    @property
    def about(self) -> str:
        return f"{self.folder}, version {self.newest.number}: {self.newest.about}"

    @property
    def band(self) -> float:
        """The standard deviation of log(B / A) between sessions of one build: from versions with one label, measured
        on different occasions, else what is assumed."""
        return _band(self.versions) or ASSUMED_BAND

    def refuse_other_machine(self) -> None:
        """Raise InvalidMeasurement when it was measured on a machine of another kind."""
        if self.newest.machine != machine():
            raise InvalidMeasurement(
                f"{self.folder} was measured on {self.newest.machine}, this is {machine()}: update the baseline here, "
                "or compare side by side with --a and --b"
            )


def read(folder: Path) -> Stored:
    """A baseline. Raises InputError when it is none, or a version of it cannot be read."""
    found = []
    for path in sorted(folder.glob("v[0-9]*.json")):
        try:
            version = msgspec.json.decode(path.read_bytes(), type=Version)
        except (msgspec.DecodeError, OSError) as error:
            raise InputError(f"{path}: no version of a baseline ({error})") from error
        if version.format != FORMAT:
            raise InputError(f"{path}: format {version.format}, this llmbench reads {FORMAT}")
        found.append(version)
    if not found:
        raise InputError(f"{folder}: no baseline; make one with `llmbench gate update --baseline {folder}`")
    return Stored(folder=folder, versions=found)


def store(
    folder: Path,
    settings: Path,
    plan: Path,
    primaries: Sequence[Primary],
    runs: Sequence[_results.Results],
    rows: Sequence[Path],
    label: str | None,
) -> Version:
    """Add a version, and put settings, plan and rows beside it. Raises InputError for a metric that a run has not."""
    files.make_folder(folder, "--baseline")
    metrics = {}
    for primary in primaries:
        measured = select.measured(primary.metric, [run.trail.records for run in runs])
        if measured is None:
            raise InputError(f"metric {primary.metric}: a run has no such figure")
        metrics[primary.metric] = list(measured.values)
    numbers = [version.number for version in read(folder).versions] if list(folder.glob("v[0-9]*.json")) else []
    version = Version(
        number=max(numbers, default=0) + 1,
        created=stamp(),
        label=label or _commit() or "unnamed",
        llmbench=__version__,
        machine=machine(),
        plan_sha256=runs[0].plan.sha256,
        metrics=metrics,
    )
    for source, name in ((settings, SETTINGS), (plan, _plan.FILE)):
        if source.resolve() != (folder / name).resolve():
            files.write(folder / name, source.read_bytes())
    if rows:
        shutil.rmtree(folder / ROWS, ignore_errors=True)
        shutil.copytree(rows[-1], folder / ROWS)
    files.write_json(folder / f"v{version.number:04d}.json", version)
    return version


def pairs(stored: Stored, primaries: Sequence[Primary], runs: Sequence[_results.Results]) -> list[Pair]:
    """The metrics of a baseline beside those of new runs. Raises InputError for a metric that one side has not."""
    found = []
    for primary in primaries:
        new = select.measured(primary.metric, [run.trail.records for run in runs])
        old = stored.newest.metrics.get(primary.metric)
        if new is None or old is None:
            where = f"{stored.about} has not" if old is None else "a run has no"
            raise InputError(f"metric {primary.metric}: {where} such figure; update the baseline, or leave it out")
        found.append(Pair(primary=primary, a=Measured(values=tuple(old)), b=new))
    return found


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for runs that need not stay."""
    with tempfile.TemporaryDirectory(prefix="llmbench-baseline-") as folder:
        yield Path(folder)


def machine() -> str:
    """What kind of machine this is, as far as times depend on it."""
    memory = round(psutil.virtual_memory().total / 2**30)
    return f"{platform.system()} {platform.machine()}, {psutil.cpu_count()} cores, {memory} GiB"


def _band(versions: Sequence[Version]) -> float | None:
    """From the means of the same build's versions: sqrt(2) times their standard deviation, pooled over metrics and
    builds; the largest metric's. None when no build was measured twice."""
    newest = versions[-1]
    deviations = []
    for metric in newest.metrics:
        means: dict[str, list[float]] = {}
        for version in versions:
            if values := version.metrics.get(metric):
                means.setdefault(version.label, []).append(fmean(map(math.log, values)))
        spreads = [stdev(each) for each in means.values() if len(each) > 1]
        if spreads:
            deviations.append(math.sqrt(2 * fmean(spread**2 for spread in spreads)))
    return max(deviations, default=None)


def _commit() -> str | None:
    """The commit of the folder that this is run in."""
    try:
        done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
