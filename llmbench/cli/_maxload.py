"""The search for the highest load: probes of single rates, each in rounds that are runs like any other."""

import csv
import inspect
import io
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench import config
from llmbench.cli import _perf, _plan, _results
from llmbench.cli import perf as perf_command
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen import fleet
from llmbench.loadgen.record import Record
from llmbench.loadgen.resume import Rest
from llmbench.loadgen.target import Target
from llmbench.metrics import checks, per_request, per_run, search, slo
from llmbench.metrics.checks import Check
from llmbench.metrics.summary import percentile
from llmbench.report import files, goodput
from llmbench.report.terminal import Terminal
from llmbench.workload import plan as plans

_SEARCH, _PROBES = "search.json", "probes.jsonl"
_OF_THE_SERVER = {"answered", "saturation", "drain"}
"""Checks that fail when there is too much load: an answer to the question, not a fault of the measurement."""
_DISTURBED = 2  # rounds of one rate in which something else failed, and which are sent again
_USERS_REQUESTS = 5
_COLUMNS = ("req/s", "outcome", "requests", "% in all limits", "goodput/s", "TTFT p99", "TPOT p95, ms")
_PERF = ("json", "quiet", "resume", "settings", "task", "header", "api_key")


Ended = Literal["precise", "wide", "budget", "unmeasurable"]


class Search(msgspec.Struct, frozen=True, kw_only=True):
    """What is searched for, and how long."""

    slo: str
    start: float | None
    min_rate: float
    max_rate: float
    precision: float
    confidence: float
    rounds: int
    round_time_s: float
    budget_s: float


class Probe(search.Probe, frozen=True, kw_only=True):
    """One rate and what came of it; a line of the goodput curve."""

    num_requests: int
    num_rounds: int
    seconds: float
    share: float | None
    """Of the requests, those that kept every limit, between `low` and `high` at 95 % each."""
    low: float | None
    high: float | None
    goodput: float | None
    """Requests per second that kept every limit: that share of the rate."""
    ttft_p99_s: float | None
    tpot_p95_s: float | None
    saturated: bool
    runs: list[str]


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The result: the highest rate that holds is at least `low` and below `high`; None where no probe bounds it."""

    slo: str
    low: float | None
    high: float | None
    precision: float
    confidence: float
    seconds: float
    ended: Ended
    reason: str
    """Why it ended before it was precise."""
    probes: list[Probe]

    @property
    def exit_code(self) -> int:
        if self.ended == "precise":
            return 1 if self.low is None else 0
        return 3 if self.ended == "unmeasurable" else 4


class _Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a search, so that it can be gone on with."""

    search: Search
    settings: _perf.Settings


def command(values: dict[str, Any], given: set[str]) -> int:
    """From all flags to the exit status."""
    folder, as_json = values.pop("resume"), values.pop("json")
    if folder is not None:
        begun = _begun(folder)
    else:
        begun = _asked(values, given)
        folder = files.new_folder(begun.settings.results, "maxload")
        files.write_json(folder / _SEARCH, begun)
    found = _searched(folder, begun)
    files.write_json(folder / "maxload.json", found)
    files.write(folder / "maxload.csv", _csv(found.probes).encode())
    rows = [_cells(probe) for probe in found.probes]
    curve = goodput.page(folder.name, headline(found), found.reason, found.probes, _COLUMNS, rows)
    files.write(folder / "maxload.html", curve.encode())
    if as_json:
        print((folder / "maxload.json").read_text(encoding="utf-8"), end="")
    else:
        show(Terminal(), found)
        print(f"files: {folder}")
    return found.exit_code


def _asked(values: dict[str, Any], given: set[str]) -> _Begun:
    """What is to be searched for, and perf's settings with it. Raises InputError."""
    wanted = Search(**{name: values.pop(name) for name in Search.__struct_fields__})
    slo.parse(wanted.slo)
    checks.refuse_unknown(values["allow"] or ())
    if wanted.min_rate > wanted.max_rate:
        raise InputError(f"--min-rate {wanted.min_rate:g}: is above --max-rate {wanted.max_rate:g}")
    if wanted.start is not None and not wanted.min_rate <= wanted.start <= wanted.max_rate:
        raise InputError(
            f"--start {wanted.start:g}: is not between --min-rate {wanted.min_rate:g} and --max-rate"
            f" {wanted.max_rate:g}"
        )
    file = values.pop("settings")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(perf_command.perf).parameters.items()
        if name not in _PERF and name != "context"
    }
    own = {"slo": wanted.slo, "workers": 1, "dialect_option": []}
    values["allow"] = values["allow"] or []
    settings = defaults | own | values | {"plan": None, "name": "round", "num_requests": None, "concurrency": None}
    if file is None:
        return _Begun(search=wanted, settings=_perf.Settings(**settings))
    return _Begun(search=wanted, settings=_perf.from_file(file, settings, given & values.keys()))


def _begun(folder: Path) -> _Begun:
    """The search that was begun in this folder. Raises ConfigError."""
    return config.build(config.read(folder / _SEARCH), _Begun, str(folder / _SEARCH))


def _searched(folder: Path, begun: _Begun) -> Found:
    """Probe until the bounds are narrow, nothing can narrow them, or the time is over."""
    wanted, say = begun.search, _perf.sayer(quiet=False)
    probes = _probed(folder)
    begun_s = time.monotonic()
    with _perf.target_of(begun.settings, _perf.How(), say) as target:
        speech = _perf.ready(begun.settings, target, _perf.speech_of(begun.settings, None), say)
        load = Load(folder, begun, target, speech)
        try:
            over = _probe_until(begun_s + wanted.budget_s, load, probes, begun, folder, say)
            ended, reason = _ended(search.interval(probes), wanted, over, folder)
        except InvalidMeasurement as error:
            ended, reason = "unmeasurable", str(error)
    bounds = search.interval(probes)
    return Found(
        slo=wanted.slo,
        low=bounds.low,
        high=bounds.high,
        precision=wanted.precision,
        confidence=wanted.confidence,
        seconds=time.monotonic() - begun_s,
        ended=ended,
        reason=reason,
        probes=sorted(probes, key=lambda probe: probe.rate),
    )


def _probe_until(
    end_s: float, load: "Load", probes: list[Probe], begun: _Begun, folder: Path, say: Callable[[str], None]
) -> bool:
    """Add probes until none is needed, or the time is over; whether it is."""
    wanted = begun.search
    objectives = slo.parse(wanted.slo)
    start = wanted.start or (1.0 if probes else load.rate_of_one_user())
    while True:
        rate = search.next_rate(probes, start, wanted.precision, lowest=wanted.min_rate, highest=wanted.max_rate)
        if rate is None or time.monotonic() > end_s:
            return rate is not None
        probe = load.probe(rate, objectives, first_seed=begun.settings.seed + 2 * wanted.rounds * len(probes))
        probes.append(probe)
        with (folder / _PROBES).open("ab") as file:
            file.write(msgspec.json.encode(probe) + b"\n")
        say(f"  {_line(probe)}")


def _ended(bounds: search.Interval, wanted: Search, over: bool, folder: Path) -> tuple[Ended, str]:
    """How the search ended, and why it is not precise."""
    if over:
        return "budget", f"the {wanted.budget_s:g} s of --budget are over: go on with --resume {folder}"
    if bounds.low is None:
        if bounds.high is None:
            return "wide", "no rate could be told: more --rounds or a longer --round-time"
        return "precise", f"it does not even hold at --min-rate {wanted.min_rate:g}"
    if bounds.high is None:
        return "wide", f"it holds up to --max-rate {wanted.max_rate:g}: raise that"
    if bounds.ratio > 1 + wanted.precision:
        return "wide", "the rates in between cannot be told apart: more --rounds or a longer --round-time"
    return "precise", ""


class Load:
    """Sends rounds of a rate to one server."""

    def __init__(self, folder: Path, begun: _Begun, target: Target, speech: fleet.Speech) -> None:
        self._folder = folder
        self._search = begun.search
        self._settings = begun.settings
        self._target = target
        self._speech = speech

    def rate_of_one_user(self) -> float:
        """Requests per second of one user who sends the next request when the last is answered: nobody waits."""
        settings = msgspec.structs.replace(
            self._settings, arrivals="closed:users=1", num_requests=_USERS_REQUESTS, qps=1.0
        )
        records = self._sent(settings, "one-user").trail.records
        rate = per_run.requests_per_s.of(records)
        if not rate:
            reason = next((record.reason for record in records if record.reason), "no answer")
            raise InvalidMeasurement(f"{self._target.url}: not one request of one user is answered: {reason}")
        return min(max(rate, self._search.min_rate), self._search.max_rate)

    def probe(self, rate: float, objectives: Sequence[slo.Objective], first_seed: int) -> Probe:
        """Rounds at one rate until there is an answer. Raises InvalidMeasurement when it cannot be measured."""
        wanted = self._search
        begun_s = time.monotonic()
        rounds: list[list[Record]] = []
        runs: list[str] = []
        outcome: search.Outcome = "unknown"
        saturated, disturbed = False, 0
        for seed in count(first_seed):
            results = self._sent(self._at(rate, objectives, seed), f"{rate:.4g}-{len(runs) + 1}")
            runs.append(results.folder.name)
            if faults := _faults(results.checks):
                disturbed += 1
                if disturbed > _DISTURBED:
                    raise InvalidMeasurement(_cannot(rate, faults, self._folder))
                continue
            rounds.append(search.settled(results.trail.records))
            saturated = saturated or any(
                each.id == "saturation" and each.verdict == "failed" for each in results.checks
            )
            outcome = "fail" if saturated else search.answer(objectives, rounds, wanted.rounds, wanted.confidence)
            if outcome != "unknown" or len(rounds) == wanted.rounds:
                break
        return _summed(rate, outcome, rounds, objectives, saturated, runs, time.monotonic() - begun_s)

    def _at(self, rate: float, objectives: Sequence[slo.Objective], seed: int) -> _perf.Settings:
        """The settings of one round: as long as --round-time, and long enough that all rounds can give an answer."""
        wanted = self._search
        fewest = search.fewest(objectives, wanted.rounds, wanted.confidence) / wanted.rounds / (1 - search.WARM_SHARE)
        number = max(round(rate * wanted.round_time_s), round(fewest) + 1, 2)
        return msgspec.structs.replace(self._settings, qps=rate, num_requests=number, arrivals="poisson", seed=seed)

    def _sent(self, settings: _perf.Settings, name: str) -> _results.Results:
        """One run, in a folder of its own; Ctrl-C ends the search."""
        folder = self._folder / "rounds" / name
        number = 2
        while folder.exists():  # a search that is gone on with
            folder, number = folder.with_name(f"{name}.{number}"), number + 1
        files.make_folder(folder, "--results")
        plan = _plan.make(settings, lambda text: None)
        plans.save(plan, folder / _plan.FILE)
        rest = Rest(plan=plan, attempt=1, from_s=0.0, url="")
        if _perf.send(settings, rest, self._target, self._speech, folder, _perf.How(quiet=True)):
            raise KeyboardInterrupt
        return _results.read(folder, settings.allow)


def _faults(checks: Sequence[Check]) -> list[Check]:
    return [each for each in checks if each.verdict == "failed" and not each.allowed and each.id not in _OF_THE_SERVER]


def _cannot(rate: float, faults: Sequence[Check], folder: Path) -> str:
    ids = ", ".join(each.id for each in faults)
    return f"{rate:.4g} requests per second cannot be measured from here ({ids}): {faults[0].remedy}; rounds: {folder}"


def _summed(
    rate: float,
    outcome: search.Outcome,
    rounds: Sequence[Sequence[Record]],
    objectives: Sequence[slo.Objective],
    saturated: bool,
    runs: list[str],
    seconds: float,
) -> Probe:
    """One line of the goodput curve, from all rounds of a rate."""
    records = [record for each in rounds for record in each]
    share = slo.goodput(objectives, records)
    low, high = slo.share_bounds(len(records), round((share or 0.0) * len(records)))
    return Probe(
        rate=rate,
        outcome=outcome,
        num_requests=len(records),
        num_rounds=len(rounds),
        seconds=seconds,
        share=share,
        low=low,
        high=high,
        goodput=None if share is None else share * rate,
        ttft_p99_s=percentile(sorted(v for r in records if (v := per_request.ttft.of(r)) is not None), 99),
        tpot_p95_s=percentile(sorted(v for r in records if (v := per_request.tpot.of(r)) is not None), 95),
        saturated=saturated,
        runs=runs,
    )


def _probed(folder: Path) -> list[Probe]:
    """The probes that a search has made; a torn last line is left out."""
    try:
        lines = (folder / _PROBES).read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    return [msgspec.json.decode(line, type=Probe) for line in lines]


def show(console: Console, found: Found) -> None:
    """The answer first, then the goodput curve."""
    console.print(Text(headline(found), style="bold"), soft_wrap=True)
    if found.reason:
        console.print(Text(f"  {found.reason}"), soft_wrap=True)
    table = Table(
        "req/s", "outcome", "requests", "keep all limits", "goodput/s", "TTFT p99 ms", "TPOT p95 ms", box=None
    )
    for probe in found.probes:
        table.add_row(*_cells(probe))
    console.print(table)


def headline(found: Found) -> str:
    """`Sustains 11.8 requests/s with ttft:p99<500ms; 13.1 is too much (95 % each, 8 rates, 412 s).`"""
    how = f"({found.confidence:.0%} each, {len(found.probes)} rates, {found.seconds:.0f} s)"
    if found.low is None and found.high is None:
        return f"Nothing can be said of {found.slo} {how}."
    if found.low is None:
        return f"Does not keep {found.slo} at any rate probed, from {found.high:.3g} requests/s up {how}."
    if found.high is None:
        return f"Sustains {found.low:.3g} requests/s with {found.slo}, and perhaps more {how}."
    return f"Sustains {found.low:.3g} requests/s with {found.slo}; {found.high:.3g} is too much {how}."


def _line(probe: Probe) -> str:
    rate, outcome, requests, share, goodput, *_ = _cells(probe)
    return f"{rate} requests/s: {outcome}; {share} % of {requests} requests keep all limits, goodput {goodput}/s"


def _cells(probe: Probe) -> tuple[str, ...]:
    bounds = (probe.low, probe.high)
    share = "-" if probe.share is None else "-".join(f"{100 * bound:.1f}" for bound in bounds if bound is not None)
    times = (probe.ttft_p99_s, probe.tpot_p95_s)
    outcome = f"{probe.outcome}, saturated" if probe.saturated else probe.outcome
    goodput = "-" if probe.goodput is None else f"{probe.goodput:.3g}"
    milliseconds = ("-" if value is None else f"{value * 1e3:.1f}" for value in times)
    return (f"{probe.rate:.4g}", outcome, str(probe.num_requests), share, goodput, *milliseconds)


def _csv(probes: Sequence[Probe]) -> str:
    """The goodput curve: one rate per line, times in seconds."""
    lines = io.StringIO()
    table = csv.writer(lines)
    names = [name for name in Probe.__struct_fields__ if name != "runs"]
    table.writerow(names)
    for probe in probes:
        values = (getattr(probe, name) for name in names)
        table.writerow("" if value is None else value for value in values)
    return lines.getvalue()
