"""The experiment of the gate: fresh servers in turn, the same plan, looks until there is a verdict."""

import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from llmbench import config
from llmbench.cli import _baseline, _compare, _gate_accuracy, _plan, _results
from llmbench.cli._compare import Outputs
from llmbench.errors import ConfigError, InputError, InvalidMeasurement
from llmbench.metrics import compare as comparing
from llmbench.metrics.compare import Comparison, Primary, effects, select
from llmbench.metrics.compare.looks import Look, looks
from llmbench.report import files
from llmbench.serving.launch import launched

_OWN = {"url", "plan", "config", "model", "engine", "results", "name", "out_dir"}
"""Settings of `perf` that the gate gives."""

_MOST_INVALID = 3
"""Runs of one side that may be INVALID and are repeated; after that the side cannot be measured here."""


class Goal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of a metric."""

    delta: float = 0.02
    better: comparing.Better | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A gate, as its YAML says it."""

    load: dict[str, Any]
    """Settings of `llmbench perf`."""
    metrics: dict[str, Goal] = {}
    accuracy: _gate_accuracy.Settings | None = None
    alpha: float = 0.05
    max_repeats: int = 16

    def primaries(self) -> list[Primary]:
        """The metrics that decide. Raises InputError."""
        goals = self.metrics or dict.fromkeys(select.DEFAULTS, Goal())
        try:
            return [select.primary(name, goal.delta, goal.better) for name, goal in goals.items()]
        except ValueError as error:
            raise ConfigError(f"metrics: {error}") from error


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One build: the settings file of its server, and the command that launches it, ours without one."""

    name: str
    config: Path | None
    command: str | None

    def __str__(self) -> str:
        return " ".join([self.command or "llmbench serve", *([str(self.config)] if self.config else [])])


def read(path: Path) -> Settings:
    """A gate's settings. Raises ConfigError."""
    settings = config.build(config.read(path), Settings, str(path))
    if wrong := sorted(_OWN & settings.load.keys()):
        raise ConfigError(f"{path}: load.{wrong[0]}: the gate sets this itself; leave it out")
    settings.primaries()
    return settings


class Experiment:
    """Runs of some sides into a folder: `a` and `b` have a folder of runs each, which `llmbench compare` takes, too."""

    def __init__(self, settings: Settings, folder: Path, plan: Path | None = None) -> None:
        self.settings, self.folder, self.plan = settings, folder, plan
        self.runs: dict[str, list[_results.Results]] = {}
        self.rows: dict[str, list[Path]] = {}
        self._load = folder / "load.yaml"
        files.write(self._load, yaml.safe_dump(settings.load).encode())

    def run(self, side: Side) -> None:
        """One more run of a side, on a server of its own. Raises InvalidMeasurement when it will not become valid."""
        for _ in range(_MOST_INVALID):
            found = self._once(side)
            if found.verdict != "INVALID":
                self.runs.setdefault(side.name, []).append(found)
                return
        checks = ", ".join(check.id for check in found.checks if check.verdict == "failed" and not check.allowed)
        raise InvalidMeasurement(
            f"{_MOST_INVALID} runs of {side.name.upper()} ({side}) are INVALID, the last by {checks}: "
            f"see `llmbench report {found.folder}`"
        )

    def _once(self, side: Side) -> _results.Results:
        results = self.folder / side.name
        number = len(list(results.glob("*"))) + 1
        rows = self.folder / "rows" / f"{side.name}-{number:02d}" if self.settings.accuracy else None
        argv = [*([str(side.config)] if side.config else []), *_gate_accuracy.flags(self.settings.accuracy, rows)]
        with launched(argv, shlex.split(side.command) if side.command else None) as server:
            command = [sys.executable, "-m", "llmbench", "perf", "--settings", str(self._load), "--url", server.url]
            command += ["--results", str(results), "--name", f"{number:02d}", "--quiet"]
            command += [] if self.plan is None else ["--plan", str(self.plan)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        folders = sorted(results.glob(f"*-{number:02d}"))
        if done.returncode not in (0, 1, 3, 4) or not folders:
            kind = InputError if done.returncode == InputError.exit_code else InvalidMeasurement
            raise kind(f"run {number} of {side.name.upper()} ended with exit status {done.returncode}; see above")
        found = _results.read(folders[-1], self.settings.load.get("allow", ()))
        self.plan = self.plan or found.folder / _plan.FILE
        if rows is not None:
            self.rows.setdefault(side.name, []).append(rows)
        print(f"run {number} of {side.name.upper()}: {found.verdict}", file=sys.stderr)
        return found

    def pair(self, sides: tuple[Side, Side]) -> None:
        """One more run of both sides; who comes first changes from pair to pair (ABBA), so that drift hits both."""
        for side in sides if len(self.runs.get("b", ())) % 2 == 0 else sides[::-1]:
            self.run(side)


def side_by_side(path: Path, sides: tuple[Side, Side], max_repeats: int | None, results: Path, outputs: Outputs) -> int:
    """A against B until there is a verdict; the exit status."""
    settings = read(path)
    primaries = settings.primaries()
    experiment = Experiment(settings, files.new_folder(results, "gate"))

    def judge(look: Look) -> Comparison:
        while len(experiment.runs.get("b", ())) < look.num_runs:
            experiment.pair(sides)
        return comparing.compare(
            _compare.pairs(primaries, experiment.runs["a"], experiment.runs["b"]),
            effects.Settings(alpha=settings.alpha),
            level=look.level,
            paired=True,
        )

    found = _until_sure(judge, max_repeats or settings.max_repeats, settings.alpha)
    accuracy = _gate_accuracy.judge(settings.accuracy, experiment.rows)
    return _gate_accuracy.tell(found, accuracy, tuple(map(str, sides)), outputs, experiment.folder)


def _until_sure(judge: Callable[[Look], Comparison], most: int, alpha: float) -> Comparison:
    """Look, with more runs each time, until there is a definite verdict or the runs are used up."""
    for look in looks(most, alpha):
        found = judge(look)
        print(f"after {look.num_runs} runs: {found.verdict}", file=sys.stderr)
        if found.verdict != "inconclusive":
            break
    return found


def against_baseline(
    baseline: Path, path: Path | None, side: Side, max_repeats: int | None, results: Path, outputs: Outputs
) -> int:
    """Runs of B against the newest version of a baseline, until there is a verdict; the exit status."""
    stored = _baseline.read(baseline)
    settings = read(path or baseline / _baseline.SETTINGS)
    stored.refuse_other_machine()
    primaries = settings.primaries()
    experiment = Experiment(settings, files.new_folder(results, "gate"), baseline / _plan.FILE)

    def judge_runs(look: Look) -> Comparison:
        while len(experiment.runs.get("b", ())) < look.num_runs:
            experiment.run(side)
        return comparing.compare(
            _baseline.pairs(stored, primaries, experiment.runs["b"]),
            effects.Settings(alpha=settings.alpha),
            level=look.level,
            band=stored.band,
        )

    found = _until_sure(judge_runs, max_repeats or settings.max_repeats, settings.alpha)
    rows = experiment.rows | ({"a": [baseline / _baseline.ROWS]} if (baseline / _baseline.ROWS).is_dir() else {})
    accuracy = _gate_accuracy.judge(settings.accuracy, rows)
    return _gate_accuracy.tell(found, accuracy, (stored.about, str(side)), outputs, experiment.folder)


def update(baseline: Path, path: Path | None, side: Side, runs: int, label: str | None) -> None:
    """Measure a build and store it. Raises InputError without settings for a new baseline."""
    known = baseline / _baseline.SETTINGS
    if path is None and not known.is_file():
        raise InputError(f"{baseline}: a new baseline needs --settings FILE, as configs/gate/embedded.yaml")
    settings = read(path or known)
    with _baseline.scratch() as folder:
        plan = baseline / _plan.FILE
        experiment = Experiment(settings, folder, plan if plan.is_file() and path is None else None)
        for _ in range(runs):
            experiment.run(side)
        assert experiment.plan is not None
        version = _baseline.store(
            baseline,
            path or known,
            experiment.plan,
            settings.primaries(),
            experiment.runs[side.name],
            experiment.rows.get(side.name, []),
            label,
        )
    print(f"{baseline}: version {version.number}, {version.about}")
