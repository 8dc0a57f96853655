"""What `llmbench sweep` does: open what is to be measured, run the cases or the search, write the files."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmbench import config, protocols
from llmbench.cli import _perf
from llmbench.engines import EngineSettings
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.fleet import Speech
from llmbench.loadgen.target import Way, locate
from llmbench.metrics.sweep import Case, Figures, Largest, Measured, figures
from llmbench.processes import allow_many_sockets
from llmbench.report import files, words
from llmbench.report import largest as largest_report
from llmbench.report import sweep as sweep_report
from llmbench.report.terminal import Terminal
from llmbench.sweep import Bench, grid, journal
from llmbench.sweep.engine import EngineBench
from llmbench.sweep.http import HttpBench
from llmbench.sweep.journal import Header, Journal
from llmbench.sweep.largest import largest
from llmbench.sweep.measure import measure, sweep
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.weights.model import open_model

_ENVIRONMENT, _FOUND = "environment.json", "max_batch.json"
_WITH_RESUME = {"resume", "json", "quiet", "api_key", "timeout"}
_HERE = ("model", "engine", "model_cfg_path", "threads", "tokens_per_step", "step_time")
_THERE = ("dialect", "dialect_option", "served_model", "tokenizer", "timeout")
_SEARCH_REPEATS = 3

Say = Callable[[str], None]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asked for; kept in the journal. The names are those of the flags."""

    batch: str
    input: str
    output: str
    exps: str | None
    pairs: bool
    repeats: int | None
    model: str
    engine: str | None
    model_cfg_path: str | None
    tokenizer: str | None
    threads: int | None
    tokens_per_step: int
    step_time: float
    seed: int
    url: str | None
    dialect: str
    dialect_option: list[str]
    served_model: str | None
    timeout: float
    max_batch: bool
    limit_ms: float | None
    within: str
    model_name: str | None
    device: int


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A case in `sweep.json`: the figures, and the raw steps that they are of."""

    figures: Figures | None
    measured: Measured


class _Opened(NamedTuple):
    """What is measured; `what` says so for people, `name` is the model's."""

    bench: Bench
    what: str
    name: str


def command(values: dict[str, Any], given: set[str]) -> int:
    """From all flags, and which of them were given, to the exit status."""
    folder, results, api_key = values.pop("resume"), values.pop("results"), values.pop("api_key")
    as_json, say = values.pop("json"), _perf.sayer(values.pop("quiet"))
    values["dialect_option"] = values["dialect_option"] or []
    if folder is None:
        settings = Settings(**values)
        _refuse(settings, given)
    else:
        settings = _begun(folder, given, values["timeout"])
    cases = _cases(settings)
    with _opened(settings, cases, api_key, say) as opened:
        folder = folder or files.new_folder(results, "sweep")
        _measured(folder, settings, cases, opened, say)
    return report(folder, json=as_json)


def report(folder: Path, *, json: bool) -> int:
    """Write all files of a sweep from its journal, print it; the exit status. Raises InputError."""
    head, found = journal.read(folder)
    settings = config.build(head.settings, Settings, str(folder / journal.FILE))
    title, what = folder.resolve().name, head.what
    facts = [(name, str(value)) for name, value in head.settings.items() if name not in _idle(settings) and value]
    told = [Told(figures=figures(each), measured=each) for each in found]
    written = {"what": what, "settings": head.settings, "cases": told}
    files.write(folder / sweep_report.csv_name(head.name, settings.device), sweep_report.csv_text(found).encode())
    files.write_json(folder / "sweep.json", written)
    files.write(folder / "sweep.md", sweep_report.markdown_text(title, what, found).encode())
    files.write(folder / "sweep.html", sweep_report.page(title, what, facts, found).encode())
    best = _found(folder, settings, found) if settings.max_batch else None
    if json:
        print((folder / ("sweep.json" if best is None else _FOUND)).read_text(encoding="utf-8"), end="")
    else:
        _show(title, what, found, best, len(_cases(settings)))
        print(f"files: {folder}")
    if best is not None:
        return 1 if any(one.batch is None for one in best) else 0
    return 0 if all(each.outcome != "failed" for each in found) and any(each.rounds for each in found) else 3


def _found(folder: Path, settings: Settings, found: Sequence[Measured]) -> list[Largest]:
    """The search again, from what it measured, and its files. Raises InputError when it is not at its end."""
    known = {each.case: each for each in found}

    def look_up(case: Case) -> Measured:
        if case not in known:
            raise InputError(f"{folder}: the search has not come to its end; go on with --resume {folder}")
        return known[case]

    best = _searched(settings, look_up)
    limit_s = best[0].limit_s
    files.write_json(folder / _FOUND, best)
    files.write(folder / largest_report.ROUNDS, largest_report.rounds_csv(found, limit_s).encode())
    files.write(folder / largest_report.FINAL, largest_report.final_csv(best).encode())
    return best


def _show(title: str, what: str, found: Sequence[Measured], best: Sequence[Largest] | None, num_cases: int) -> None:
    console = Terminal()
    sweep_report.show(console, title, what, found)
    if best is not None:
        largest_report.show(console, best)
    elif len(found) < num_cases:
        console.print(f"{num_cases - len(found)} of {num_cases} cases are still to be measured: --resume")


# -- what is asked for ------------------------------------------------------------------------------------------------


def _idle(settings: Settings) -> dict[str, str]:
    """Settings that have no effect beside the others, and why."""
    found: dict[str, str] = {}
    if settings.url is None:
        found |= dict.fromkeys(_THERE, "without --url an engine here is measured")
    else:
        found |= dict.fromkeys(_HERE, "--url measures a server")
    if settings.max_batch:
        found["batch"] = "--max-batch tries the batches of --range"
    else:
        found |= dict.fromkeys(("limit_ms", "within"), "without --max-batch nothing is searched for")
    if settings.exps is not None:
        found |= dict.fromkeys(("input", "output"), "--exps gives both lengths")
    return found


def _refuse(settings: Settings, given: set[str]) -> None:
    """Raise InputError for flags that contradict each other."""
    for name, why in _idle(settings).items():
        if name in given:
            raise InputError(f"{why}: leave {_flag(name)} out")
    if settings.max_batch and settings.limit_ms is None:
        raise InputError("--max-batch: give the longest decode step with --limit-ms")


def _begun(folder: Path, given: set[str], timeout_s: float) -> Settings:
    """The settings that a sweep was begun with. Raises InputError."""
    if wrong := sorted(given - _WITH_RESUME):
        flags = ", ".join(map(_flag, wrong))
        raise InputError(f"--resume takes all settings from {folder}; leave {flags} out")
    head, _ = journal.read(folder)
    settings = config.build(head.settings, Settings, str(folder / journal.FILE))
    return msgspec.structs.replace(settings, timeout=timeout_s) if "timeout" in given else settings


def _flag(name: str) -> str:
    return "--range" if name == "within" else f"--{name.replace('_', '-')}"


def _cases(settings: Settings) -> list[Case]:
    """All cases of the sweep; of a search those of the lowest batch. Raises InputError."""
    if settings.exps is not None:
        inputs = outputs = grid.exponents(settings.exps, "--exps")
    else:
        inputs, outputs = grid.numbers(settings.input, "--input"), grid.numbers(settings.output, "--output")
    batches = [_range(settings)[0]] if settings.max_batch else grid.numbers(settings.batch, "--batch")
    if settings.max_batch and min(outputs) < 2:
        raise InputError("--output: with --max-batch at least 2, or there is no decode step")
    return grid.cases(batches, inputs, outputs, pairs=settings.pairs)


def _range(settings: Settings) -> tuple[int, int]:
    """The lowest and the highest batch that a search may try. Raises InputError."""
    low, sign, high = settings.within.partition(":")
    if not (sign and low.isdecimal() and high.isdecimal() and 1 <= int(low) <= int(high)):
        raise InputError(f"--range {settings.within}: write the lowest and the highest batch, as 1:2000")
    return int(low), int(high)


# -- what is measured -------------------------------------------------------------------------------------------------


@contextmanager
def _opened(settings: Settings, cases: Sequence[Case], api_key: str | None, say: Say) -> Iterator[_Opened]:
    """The engine or the server, ready to run cases."""
    opened = _engine(settings, cases) if settings.url is None else _server(settings, settings.url, api_key, say)
    try:
        yield opened
    finally:
        opened.bench.close()


def _engine(settings: Settings, cases: Sequence[Case]) -> _Opened:
    model = open_model(settings.model)
    wanted = EngineSettings(
        max_batch=_range(settings)[1] if settings.max_batch else max(case.batch for case in cases),
        threads=settings.threads,
        step_time_s=settings.step_time,
        model_cfg_path=settings.model_cfg_path,
    )
    bench = EngineBench(model, settings.engine, wanted, tokens_per_step=settings.tokens_per_step, seed=settings.seed)
    return _Opened(bench, f"{model.name}, {bench.what}; prompts of random ids", model.name)


def _server(settings: Settings, url: str, api_key: str | None, say: Say) -> _Opened:
    allow_many_sockets()
    way = Way(headers=_perf.headers_of((), api_key))
    timeouts = Timeouts(head_s=settings.timeout, total_s=settings.timeout)
    options = dict(protocols.option_value(settings.dialect, text) for text in settings.dialect_option)
    if settings.served_model is not None:
        options["model"] = settings.served_model
    speech = Speech(name=settings.dialect, options=options)
    speech.dialect()  # a wrong name is wrong now
    if settings.tokenizer is None:
        say("prompts are made with the embedded tokenizer: name the server's with --tokenizer")
    tokenizer = Tokenizer.from_file(Path(settings.tokenizer) if settings.tokenizer else embedded_path())
    target = locate(url, way=way)
    speech = _perf.naming(target, speech, timeouts, say)
    bench = HttpBench(target, speech.dialect(), tokenizer, timeouts, seed=settings.seed)
    say(bench.probe())
    return _Opened(bench, bench.what, str(speech.options.get("model") or settings.dialect))


def _measured(folder: Path, settings: Settings, cases: Sequence[Case], opened: _Opened, say: Say) -> None:
    """Measure what the folder does not have yet."""
    settled = msgspec.to_builtins(settings)
    head = Header(what=opened.what, name=settings.model_name or opened.name, settings=settled)
    with Journal(folder, head) as kept:
        if kept.what != opened.what:
            raise InvalidMeasurement(f"{folder}: begun with {kept.what}, not with {opened.what}; leave --resume out")
        if not (folder / _ENVIRONMENT).exists():
            files.write_json(folder / _ENVIRONMENT, files.environment())
        try:
            say(f"{opened.what}: {folder}")
            if settings.max_batch:
                _searched(settings, _Searching(opened.bench, kept, settings.repeats or _SEARCH_REPEATS, say).measured)
            else:
                progress = _Progress([case for case in cases if kept.settled(case) is None], say)
                sweep(cases, opened.bench, kept, settings.repeats or 1, progress.told)
        except KeyboardInterrupt:
            say(f"interrupted; go on with: llmbench sweep --resume {folder}")
            raise


def _searched(settings: Settings, measured: Callable[[Case], Measured]) -> list[Largest]:
    """The largest batch within the limit for each pair of lengths."""
    assert settings.limit_ms is not None
    low, high = _range(settings)
    lengths = [(case.input_len, case.output_len) for case in _cases(settings)]
    return [largest(pair, settings.limit_ms / 1e3, low, high, measured) for pair in lengths]


class _Searching:
    """Measures the batches that a search asks for, those apart that the journal has."""

    def __init__(self, bench: Bench, kept: Journal, repeats: int, say: Say) -> None:
        self._bench = bench
        self._kept = kept
        self._repeats = repeats
        self._say = say

    def measured(self, case: Case) -> Measured:
        """One batch."""
        known = self._kept.settled(case)
        if known is not None:
            return known
        found = measure(case, self._bench, self._repeats)
        self._kept.append(found)
        self._say(_line(found))
        return found


class _Progress:
    """A line on stderr for each case, with the time that the rest may take."""

    def __init__(self, cases: Sequence[Case], say: Say) -> None:
        self._num = len(cases)
        self._left = sum(map(_work, cases))
        self._done, self._took_s, self._number = 0, 0.0, 0
        self._say = say

    def told(self, found: Measured) -> None:
        """One more case."""
        work = _work(found.case)
        self._left -= work
        self._number += 1
        if found.outcome == "measured":
            self._done += work
            self._took_s += found.seconds
        rest = ""
        if self._done and self._left:
            rest = f"; about {_duration(self._took_s / self._done * self._left)} left"
        self._say(f"{self._number}/{self._num} {_line(found)}{rest}")


def _work(case: Case) -> int:
    """What a case takes, roughly: three prefills, and decode steps that batching makes cheaper."""
    return 3 * case.batch * case.input_len // 4 + case.output_len * (case.batch + 3)


def _line(found: Measured) -> str:
    known = figures(found)
    if known is None:
        return f"{found.case}: {found.outcome}: {found.reason}"
    decode = "" if known.step_s is None else f", step {words.time(known.step_s)}"
    return f"{found.case}: first token {words.time(known.ttft_s)}{decode}"


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
