"""What the `eval` commands do: find the questions and somebody to answer them, ask, count, print."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from llmbench import evals, plugins, protocols
from llmbench.cli import _eval_screen as screen
from llmbench.cli._eval_offline import Offline
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.evals import Eval, Item, Marked, Options
from llmbench.exam import Answerer
from llmbench.exam.http import HttpAnswerer, served
from llmbench.exam.journal import ITEMS, Header, Journal
from llmbench.exam.sitting import Failure, changed, sit
from llmbench.exam.tally import Results, results
from llmbench.loadgen.client import Target, Timeouts, locate
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.serving import config as serving_config
from llmbench.serving.launch import flags, launched
from llmbench.serving.offline import LLM
from llmbench.serving.stack import open_tokenizer
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.weights.model import Model, open_model
from llmbench.workload import datasets

_VERDICTS = {0: "passed", 1: "failed", 3: "invalid"}
_KEPT_FAILURES = 100
_PROBES = 3  # of the items that a server is asked again before a run with it goes on


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for; written to `config.json`."""

    name: str
    data: Path | None
    mode: str | None
    split: str | None
    shots: int | None
    subjects: list[str]
    limit: int | None
    max_new_tokens: int | None
    url: str | None
    dialect: str
    served_model: str
    concurrency: int
    timeout_s: float
    offline: bool
    model: str | None
    engine: str | None
    config: Path | None
    tokenizer: Path | None
    min_accuracy: float | None
    allow_exec: bool
    resume: Path | None
    results: Path


class Respondent(msgspec.Struct, frozen=True, kw_only=True):
    """Who answers: for people, for the cache's keys, and the one to ask."""

    model: str
    fingerprint: str
    via: str
    answerer: Answerer


class _Asked(NamedTuple):
    """A run behind its last question."""

    evaluation: Eval
    header: Header
    folder: Path
    failures: list[Failure]
    marked: list[Marked]


def main(settings: Settings, *, json: bool) -> int:
    """Ask, count, write, print; the exit status."""
    return _finish(settings, _asked(settings), json)


def share_right(settings: Settings) -> float:
    """Ask, and give the share of right answers, each item alike. Raises InvalidMeasurement for what is not answered."""
    asked = _asked(settings)
    found = results(asked.marked, asked.header.num_items)
    if asked.failures or found.micro is None:
        what = asked.failures[0].reason if asked.failures else "nothing in it can be marked right or wrong"
        raise InvalidMeasurement(f"{settings.name}: {what}")
    return found.micro.accuracy


def _asked(settings: Settings) -> _Asked:
    _check(settings)
    opened = None if settings.url is not None else open_model(_model(settings))
    counter = _tokenizer(settings, opened)
    evaluation = evals.get(settings.name, _options(settings, counter))
    data = _data(settings)
    items = _chosen(evaluation.items(data), settings)
    with _respondent(settings, opened) as respondent:
        header = Header(
            protocol=dict(evaluation.protocol),
            model=respondent.model,
            fingerprint=respondent.fingerprint,
            via=respondent.via,
            data=str(data),
            num_items=len(items),
        )
        folder = settings.resume or files.new_folder(settings.results, settings.name)
        failures, found = _sitting(settings, evaluation, items, respondent.answerer, header, folder)
    return _Asked(evaluation, header, folder, failures, found)


# -- who answers --------------------------------------------------------------------------------------------------


@contextmanager
def _respondent(settings: Settings, opened: Model | None) -> Iterator[Respondent]:
    """The engine here, the server named, or the bundled stack, launched for this run."""
    if settings.offline:
        assert opened is not None
        with LLM(_model(settings), settings.engine, tokenizer=_path(settings.tokenizer)) as llm:
            answerer = Offline(llm)
            via = f"in process{_choices(settings)}"
            yield Respondent(model=opened.name, fingerprint=opened.identity(), via=via, answerer=answerer)
        return
    if settings.url is not None:
        target = locate(settings.url)
        models = served(target)
        name = settings.served_model or (str(models[0]["id"]) if models else settings.url)
        told = msgspec.json.encode((settings.served_model, models), order="deterministic")
        yield _over_http(settings, target, name, f"served {hashlib.sha256(told).hexdigest()}")
        return
    assert opened is not None
    _say("launching the bundled stack for this run")
    with launched(_serve_arguments(settings)) as server:
        yield _over_http(settings, locate(server.url), opened.name, opened.identity())


def _over_http(settings: Settings, target: Target, model: str, fingerprint: str) -> Respondent:
    dialect = _dialect(settings)
    timeouts = Timeouts(head_s=settings.timeout_s, total_s=settings.timeout_s)
    answerer = HttpAnswerer(target, dialect, settings.concurrency, timeouts)
    return Respondent(
        model=model, fingerprint=fingerprint, via=f"http {dialect.name}{_choices(settings)}", answerer=answerer
    )


def _choices(settings: Settings) -> str:
    """What else decides how a model computes, where the user chose it: a run is only gone on with in the same way."""
    chosen = f", engine {settings.engine}" if settings.engine else ""
    return chosen + (f", settings {datasets.sha256(settings.config)[:12]}" if settings.config else "")


def _dialect(settings: Settings) -> protocols.Dialect:
    if not settings.served_model:
        return protocols.get(settings.dialect)
    try:
        return protocols.get(settings.dialect, model=settings.served_model)
    except TypeError as error:
        raise InputError(f"--served-model: requests of the {settings.dialect} dialect name no model") from error


def _model(settings: Settings) -> str:
    """The model of the engine here, or of the stack that is launched."""
    if settings.config is None:
        return settings.model or "embedded"
    return serving_config.load(settings.config, model=settings.model).config.model


def _serve_arguments(settings: Settings) -> list[str]:
    given = {"--model": settings.model, "--engine": settings.engine, "--tokenizer": _path(settings.tokenizer)}
    if settings.config is None:
        given["--threads"] = str(max(1, (os.cpu_count() or 1) - 1))  # a core is left to the client
    return [*flags(given), *([str(settings.config)] if settings.config else [])]


def _tokenizer(settings: Settings, opened: Model | None) -> Tokenizer:
    """What counts the tokens of a prompt: the model's own, the one that is named, or, with a note, the embedded."""
    if opened is not None:
        return open_tokenizer(opened, _path(settings.tokenizer))
    if settings.tokenizer is None:
        _say("prompts are counted with the embedded tokenizer: name the model's with --tokenizer")
    return Tokenizer.from_file(settings.tokenizer or embedded_path())


# -- what is asked ------------------------------------------------------------------------------------------------


def _check(settings: Settings) -> None:
    """Raise InputError for flags that contradict each other."""
    if settings.url is not None:
        if settings.offline:
            raise InputError("--offline asks the engine here and --url a server: leave one out")
        if settings.model or settings.engine or settings.config:
            raise InputError("--model, --engine and --config are for a stack that is launched; leave them or --url out")
    if settings.offline and settings.config:
        raise InputError("--config is for a stack that is launched; --offline takes --model and --engine")
    if settings.min_accuracy is not None and not 0 <= settings.min_accuracy <= 1:
        raise InputError(f"--min-accuracy {settings.min_accuracy}: must be a share, from 0 to 1")
    if settings.resume is not None and not (settings.resume / ITEMS).is_file():
        raise InputError(f"--resume {settings.resume}: there is no {ITEMS} in it")


def _options(settings: Settings, tokenizer: Tokenizer) -> Options:
    return Options(
        mode=settings.mode,
        split=settings.split,
        shots=settings.shots,
        max_new_tokens=settings.max_new_tokens,
        allow_exec=settings.allow_exec,
        count_tokens=lambda text: len(tokenizer.encode(text)),
    )


def _data(settings: Settings) -> Path:
    """The folder of the questions: the one that is named, the user's own copy, or the stand-in."""
    if settings.data is not None:
        if not settings.data.is_dir():
            raise InputError(f"--data {settings.data}: there is no such folder")
        return settings.data
    if settings.name == datasets.MMLU:
        found = datasets.mmlu()
        _say(f"data: {found.description}")
        return found.path
    own = datasets.folder() / settings.name
    if not own.is_dir():
        raise InputError(f"{settings.name}: name the set's folder with --data, or put it at {own}")
    return own


def _chosen(items: Sequence[Item], settings: Settings) -> list[Item]:
    """The items of the subjects that are wanted, the first so many of each."""
    groups = {item.group for item in items}
    wrong = next((name for name in settings.subjects if name not in groups), None)
    if wrong is not None:
        raise InputError(plugins.unknown("subject", wrong, sorted(groups)))
    seen: Counter[str] = Counter()
    chosen = []
    for item in items:
        seen[item.group] += 1
        if settings.subjects and item.group not in settings.subjects:
            continue
        if settings.limit is None or seen[item.group] <= settings.limit:
            chosen.append(item)
    return chosen


# -- the run ------------------------------------------------------------------------------------------------------


def _sitting(
    settings: Settings, evaluation: Eval, items: Sequence[Item], answerer: Answerer, header: Header, folder: Path
) -> tuple[list[Failure], list[Marked]]:
    """Ask what the folder does not have yet; what was not answered, and all that is marked."""
    with Journal(folder, header, items, resume=settings.resume is not None) as journal:
        if settings.resume is None:
            files.write_json(folder / "config.json", settings)
            files.write_json(folder / "environment.json", files.environment())
        elif settings.url is not None:
            _same_server(evaluation, items, answerer, journal, settings.resume)
        _say(f"{len(items)} questions, {len(journal.done)} of them answered before; {header.via}: {folder}")
        try:
            failures = sit(evaluation, items, answerer, header, journal, screen.progress())
        except KeyboardInterrupt:
            _say(f"\ninterrupted; go on with --resume {folder}")
            raise
        return failures, [journal.done[number] for number in sorted(journal.done)]


def _same_server(evaluation: Eval, items: Sequence[Item], answerer: Answerer, journal: Journal, folder: Path) -> None:
    """Raise InvalidMeasurement when a server answers otherwise than the one that the run was begun with.

    A server tells no more than a name, and that can stay the same when the model behind it does not.
    """
    wrong = changed(evaluation, items, answerer, journal.done, _PROBES)
    if wrong:
        raise InvalidMeasurement(
            f"--resume {folder}: asked again, the server answers {', '.join(wrong)} otherwise than before; it is "
            "another model, or one that does not answer alike twice. Leave --resume out"
        )


def _finish(settings: Settings, asked: _Asked, json: bool) -> int:
    """Write the files, print, judge."""
    evaluation, header, folder, failures, marked = asked
    found = results(marked, header.num_items)
    exit_code = _exit_code(settings, found, failures)
    report = screen.Report(
        verdict=_VERDICTS[exit_code],
        header=header,
        results=found,
        failures=list(failures[:_KEPT_FAILURES]),
        min_accuracy=settings.min_accuracy,
    )
    files.write_json(folder / "summary.json", report)
    for name, data in evaluation.files(marked).items():
        files.write(folder / name, data)
    if json:
        print((folder / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        screen.show(Terminal(), report)
        print(f"files: {folder}")
    return exit_code


def _exit_code(settings: Settings, found: Results, failures: Sequence[Failure]) -> int:
    """3 when questions were not answered, or nothing was marked that should be, 1 when too few are right."""
    if failures:
        return 3
    wanted = settings.min_accuracy
    if wanted is None:
        return 0
    if found.micro is None:
        return 3
    return 1 if found.micro.accuracy < wanted else 0


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
