"""One perf run from settings to exit status: plan, target, load, numbers, files."""

import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from llmbench import __version__, config, plugins, protocols
from llmbench.cli import _plan
from llmbench.cli._evidence import CALIBRATION, SERVER
from llmbench.cli._progress import overwrite
from llmbench.errors import InputError, ServingError
from llmbench.loadgen import calibrate, fleet, journal, preflight
from llmbench.loadgen import resume as resuming
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.monitor import monitor
from llmbench.loadgen.resume import Rest
from llmbench.loadgen.run import Observer, Part, run
from llmbench.loadgen.scrape import scraper
from llmbench.loadgen.target import Target, Way, header, locate
from llmbench.loadgen.warm import fill
from llmbench.logits.store import ROWS, TIERS
from llmbench.metrics import checks, slo
from llmbench.report import files
from llmbench.serving.launch import capturing, flags, launched
from llmbench.workload import plan as plans

if TYPE_CHECKING:
    from llmbench.cli._vow import Vow

_INTERRUPTED = 130
_WORTH_CALIBRATING_S = 30.0
_CONFIG = "config.json"
_ENVIRONMENT = "environment.json"
_TASKS = {"1": "alpaca_5010", "2": "alpaca_521"}
_CHANGEABLE = {"url", "allow", "out_dir", "proxy"}
"""Flags that may be given again, differently, when a run is resumed."""
_WITH_RESUME = _CHANGEABLE | {"resume", "json", "quiet", "header", "api_key"}


_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Settings(_plan.Wanted, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the user asked for; written to `config.json`. The names are those of the flags, and of settings files."""

    url: str | None
    port: int
    out_dir: Path | None
    dialect_option: list[str]
    served_model: str | None
    data_shape: str | None
    concurrency: Annotated[int, msgspec.Meta(ge=1)] | None
    workers: Annotated[int, msgspec.Meta(ge=1)] | Literal["auto"]
    timeout_s: _Seconds
    connect_timeout_s: _Seconds
    first_token_timeout_s: _Seconds | None
    idle_timeout_s: _Seconds | None
    cacert: Path | None
    insecure: bool
    proxy: str | None
    warm_connections: Annotated[int, msgspec.Meta(ge=0)]
    preflight: bool
    metrics_url: str | None
    slo: str | None
    calibrate: bool | None
    allow: list[str]
    audit: bool = False
    canaries: Annotated[float, msgspec.Meta(ge=0, le=0.5)] | None = None
    canary_file: Path | None = None
    plan: Path | None
    model: str | None
    engine: str | None
    config: Path | None
    name: str
    results: Path
    capture: bool = False
    capture_tier: str = "topk"
    capture_rate: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    capture_seed: str = ""
    force: Path | None = None


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What is of this call only, and is not kept with the run."""

    json: bool = False
    quiet: bool = False
    headers: tuple[tuple[str, str], ...] = ()


Say = Callable[[str], None]
Own = Callable[[], Path]


def command(values: dict[str, Any], given: set[str]) -> int:
    """From all flags, and which of them were given, to the exit status."""
    how, run = how_of(values), values.pop("resume")
    if run is not None:
        return resume(run, values, given, how)
    settings = asked(values, given)
    folder, interrupted = measure(settings, how)
    return _finish(folder, settings, how, interrupted)


def how_of(values: dict[str, Any]) -> How:
    """What is of this call only, taken out of the flags. Raises InputError."""
    headers = headers_of(values.pop("header") or (), values.pop("api_key"))
    for several in ("allow", "dialect_option"):
        values[several] = values[several] or []
    return How(json=values.pop("json"), quiet=values.pop("quiet"), headers=headers)


def asked(values: dict[str, Any], given: set[str]) -> Settings:
    """The settings from the flags that are left, and which of them were given. Raises InputError."""
    file, task = values.pop("settings"), values.pop("task")
    if task is not None and "dataset" in given:
        raise InputError("--task already names a dataset; leave one of --task and --dataset out")
    if task is not None:
        values["dataset"] = _TASKS[task.value]
        given = given | {"dataset"}
    return Settings(**values) if file is None else from_file(file, values, given)


def from_file(path: Path, values: dict[str, Any], given: set[str]) -> Settings:
    """The settings of a YAML file, under the flags that were given, over the defaults. Raises ConfigError."""
    flags = {name: value for name, value in values.items() if name in given}
    return config.build(values | config.read(path) | flags, Settings, str(path))


def measure(settings: Settings, how: How, fits: Callable[[plans.Plan], None] = lambda plan: None) -> tuple[Path, bool]:
    """Do it all; the folder, and whether it was interrupted. Raises LlmbenchError before anything is sent.

    `fits` looks at the plan before that and may raise, too.
    """
    say = sayer(how.quiet)
    _refuse_wrong(settings)
    vow = _vow(settings)
    if vow is not None and settings.capture and not settings.capture_seed:
        settings = msgspec.structs.replace(settings, capture_seed=vow.rows_seed)
    plan = _sealed(settings, say, vow)
    fits(plan)
    speech = speech_of(settings, plan)
    speech.dialect()  # a wrong name is wrong now
    if settings.out_dir is not None:
        files.make_folder(settings.out_dir, "--out-dir")
    if vow is not None:
        vow.commit(plan, say)  # before a server is launched
    own = functools.cache(lambda: files.new_folder(settings.results, settings.name))
    with target_of(settings, how, say, own) as target:
        speech = ready(settings, target, speech, say)
        folder = own()
        plans.save(plan, folder / _plan.FILE)
        files.write_json(folder / _CONFIG, _without_password(settings))
        files.write_json(folder / _ENVIRONMENT, files.environment() | ({"stack": target.about} if target.about else {}))
        if settings.capture:
            files.write_json(folder / SERVER, preflight.identity(target, _timeouts(settings)))
        if _calibrates(settings, plan):
            say("calibrating: what this client adds to times at the planned load")
            found = calibrate.preflight(plan, speech.name, concurrency=settings.concurrency)
            calibrate.save(found, folder / CALIBRATION)
        rest = Rest(plan=plan, attempt=1, from_s=0.0, url="")
        with nullcontext() if vow is None else vow.kept(folder, target):
            interrupted = send(settings, rest, target, speech, folder, how)
    return folder, interrupted


def _vow(settings: Settings, attempt: int = 1) -> "Vow | None":
    """The secret of an audited run; None for others, which need not load what it takes. Raises InputError."""
    if not settings.audit:
        if settings.canaries is not None or settings.canary_file is not None:
            raise InputError("--canaries and --canary-file are part of an audited run: add --audit")
        return None
    if settings.plan is not None and (settings.canaries or settings.canary_file is not None):
        raise InputError("--canaries: the plan of --plan is sent as it is; leave one of them out")
    from llmbench.cli._vow import Vow

    return Vow(attempt)


def _refuse_wrong(settings: Settings) -> None:
    """Raise InputError for what the verdict would stumble over: now, and not after an hour's run."""
    if "/" in settings.name:
        raise InputError(
            f"--name {settings.name}: it ends the name of a folder, which has no /; --results says where that is"
        )
    if settings.capture and settings.url is not None:
        raise InputError(
            "--capture is for the stack that this run launches. Start that server with `llmbench serve --capture DIR` "
            "and compare DIR, or leave --url out"
        )
    if settings.capture and settings.metrics_url is not None:
        raise InputError(
            "--capture: the launched stack's own counters say how large its batches are; leave --metrics-url out"
        )
    if settings.capture_tier not in TIERS:
        raise InputError(f"--capture-tier: {plugins.unknown('tier', settings.capture_tier, TIERS)}")
    if settings.force is not None and not settings.capture:
        raise InputError("--force: the tokens of a base are fed to rows that are captured; give --capture, too")
    checks.refuse_unknown(settings.allow)
    if settings.slo is not None:
        slo.parse(settings.slo)


def _calibrates(settings: Settings, plan: plans.Plan) -> bool:
    """Whether the client is measured first: as asked, else before a load that lasts, next to which 3 s are little."""
    if settings.calibrate is not None:
        return settings.calibrate
    return max(planned.due_s for planned in plan.requests) >= _WORTH_CALIBRATING_S


def resume(folder: Path, values: dict[str, Any], given: set[str], how: How) -> int:
    """Send what is left of a run. Raises InputError when there is nothing, or the run is of another version."""
    if wrong := sorted(given - _WITH_RESUME):
        flags = ", ".join(f"--{name.removesuffix('_s').replace('_', '-')}" for name in wrong)
        raise InputError(f"--resume takes all settings from {folder}; leave {flags} out")
    say = sayer(how.quiet)
    plan = plans.load(folder / _plan.FILE)
    _check_version(folder)
    changed = {name: values[name] for name in given & _CHANGEABLE}
    settings = config.build(config.read(folder / _CONFIG) | changed, Settings, str(folder / _CONFIG))
    if settings.capture:
        raise InputError(
            f"{folder}: it captured rows, and those of what is sent again would be there twice; repeat the run"
        )
    _refuse_wrong(settings)
    if settings.audit:
        from llmbench.cli import _vow as vows

        vows.refuse_changed(folder)
    rest = resuming.rest(folder, plan)
    say(f"resumes {folder}: {len(rest.plan.requests)} of {len(plan.requests)} requests are left")
    vow = _vow(settings, rest.attempt)
    if vow is not None:
        vow.commit(plan, say)
    with same_target(settings, rest.url, how, say) as target:
        speech = ready(settings, target, speech_of(settings, plan), say)
        with nullcontext() if vow is None else vow.kept(folder, target):
            interrupted = send(settings, rest, target, speech, folder, how)
    return _finish(folder, settings, how, interrupted)


def _finish(folder: Path, settings: Settings, how: How, interrupted: bool) -> int:
    """The numbers, on the screen and in files; the exit status."""
    if settings.audit:
        from llmbench.cli import _vow as vows

        vows.seal(folder, sayer(how.quiet))
    from llmbench.cli import _results  # what shows numbers is loaded when there are some, not before the first request

    results = _results.read(folder, settings.allow)
    _results.show(results, _results.write(results, settings.out_dir), how.json, how.quiet)
    return _INTERRUPTED if interrupted else results.exit_code


def _check_version(folder: Path) -> None:
    """Raise InputError when a run was begun by another version: its halves would be measured differently."""
    version = config.read(folder / _ENVIRONMENT).get("llmbench")
    if version != __version__:
        raise InputError(f"{folder}: the run was begun by llmbench {version}, this is {__version__}; repeat it")


def _sealed(settings: Settings, say: Say, vow: "Vow | None") -> plans.Plan:
    """The plan that is asked for, or the one to repeat."""
    plan = plans.load(settings.plan) if settings.plan is not None else _plan.make(settings, say, _mix(settings, vow))
    if settings.cache not in ("any", plan.settings.cache):
        raise InputError(f"--cache {settings.cache}: the plan declares {plan.settings.cache}; make another one")
    say(f"plan: {_plan.line(plan)}")
    return plan


def _mix(settings: Settings, vow: "Vow | None") -> _plan.Mix | None:
    """What puts questions with known answers among the requests of an audited run."""
    if vow is None or settings.canaries == 0:
        return None
    return lambda plan, tokenizer: vow.mix(plan, settings.canaries, settings.canary_file, tokenizer)


def speech_of(settings: Settings, plan: plans.Plan | None) -> fleet.Speech:
    """The dialect that is asked for, or the one of the plan."""
    name = settings.dialect or (plan and plan.settings.dialect) or "contest"
    options = dict(protocols.option_value(name, text) for text in settings.dialect_option)
    if settings.data_shape is not None:
        options["data_shape"] = settings.data_shape
    if settings.served_model is not None:
        options["model"] = settings.served_model
    return fleet.Speech(name=name, options=options)


def ready(settings: Settings, target: Target, speech: fleet.Speech, say: Say) -> fleet.Speech:
    """The dialect with the model's name in it, when the server has answered once. Raises InputError, ServingError."""
    if not settings.preflight:
        return speech
    timeouts = _timeouts(settings)
    speech = naming(target, speech, timeouts, say)
    preflight.check(target, speech.dialect(), timeouts)
    return speech


def naming(target: Target, speech: fleet.Speech, timeouts: Timeouts, say: Say) -> fleet.Speech:
    """The dialect with the name of the server's first model, where it has a name to give and none was given."""
    if "model" not in protocols.options(speech.name) or "model" in speech.options:
        return speech
    found = preflight.models(target, timeouts)
    if not found:
        return speech
    others = f", the first of {len(found)}; see --served-model" if len(found) > 1 else ""
    say(f"model: {found[0]}{others}")
    return msgspec.structs.replace(speech, options=speech.options | {"model": found[0]})


def _timeouts(settings: Settings) -> Timeouts:
    return Timeouts(
        connect_s=settings.connect_timeout_s,
        head_s=settings.timeout_s,
        total_s=settings.timeout_s,
        first_token_s=settings.first_token_timeout_s,
        idle_s=settings.idle_timeout_s,
    )


def _way(settings: Settings, how: How) -> Way:
    return Way(
        headers=how.headers,
        cacert=None if settings.cacert is None else str(settings.cacert),
        insecure=settings.insecure,
        proxy=settings.proxy,
        warm_connections=settings.warm_connections,
    )


def headers_of(given: Iterable[str], api_key: str | None) -> tuple[tuple[str, str], ...]:
    """The headers of the user. Raises InputError."""
    key = [] if api_key is None else [f"Authorization: Bearer {api_key}"]
    return tuple(header(text) for text in (*given, *key))


def _without_password(settings: Settings) -> Settings:
    """What may be kept with a run; a proxy's user and password may not."""
    scheme, sign, rest = (settings.proxy or "").rpartition("://")
    return msgspec.structs.replace(settings, proxy=scheme + sign + rest.rpartition("@")[2] or None)


def send(settings: Settings, rest: Rest, target: Target, speech: fleet.Speech, folder: Path, how: How) -> bool:
    """Send what is to be sent, with one process or several; whether it was interrupted."""
    timeouts = _timeouts(settings)
    progress = None if how.quiet or not sys.stderr.isatty() else overwrite
    plan, slots = rest.plan, settings.concurrency
    if plan.settings.cache == "warm":
        fill(plan, target, speech.dialect(), timeouts)
    workers = fleet.num_workers(plan, slots) if settings.workers == "auto" else settings.workers
    part = Part(attempt=rest.attempt, from_s=rest.from_s)
    watching = _watching(settings, target)
    if workers > 1:
        return fleet.send(plan, target, speech, timeouts, folder, workers, slots, progress, watching, part)
    path, watching = folder / journal.name(part.attempt, 0), [monitor, *watching]
    return run(plan, target, speech.dialect(), timeouts, path, slots, progress, watching, part).interrupted


def _watching(settings: Settings, target: Target) -> list[Observer]:
    """Who reads the server's counters: at /metrics of the target if it has them, or where --metrics-url says."""
    if settings.metrics_url == "off":
        return []
    if settings.metrics_url is None:
        return [scraper(msgspec.structs.replace(target, prefix=""))]
    page = locate(settings.metrics_url, flag="--metrics-url")
    return [scraper(page, path="" if page.prefix else "/metrics", required=True)]


@contextmanager
def target_of(settings: Settings, how: How, say: Say, own: Own | None = None) -> Iterator[Target]:
    """The server to measure: the one named, the one on the port, or the bundled stack, launched for this run.

    `own` gives the folder of the run, into which that stack captures rows when they are asked for.
    """
    try:
        target = locate(settings.url or _on_port(settings), way=_way(settings, how))
    except ServingError:
        if settings.url is not None:
            raise
        say(f"nobody listens on port {settings.port}: launching the bundled stack for this run")
        with _launched(settings, how, say, own) as target:
            yield target
        return
    if settings.capture:
        raise InputError(
            f"--capture is for the stack that this run launches, but {target.url} is there already: start that one "
            "with `llmbench serve --capture DIR` and compare DIR, or choose another --port"
        )
    if settings.model or settings.engine or settings.config:
        raise InputError(
            f"--model, --engine and --config are for a stack that is launched, but {target.url} is there already; "
            "leave them out, or choose another --port"
        )
    _say_target(target, say)
    yield target


@contextmanager
def same_target(settings: Settings, url: str, how: How, say: Say) -> Iterator[Target]:
    """The server that a run was sent to: where --url says that it is now, where it was, or the bundled stack again."""
    if not url and settings.url is None:  # nothing was sent yet
        with target_of(settings, how, say) as target:
            yield target
    elif settings.url is None and url != _on_port(settings):
        say("launching the bundled stack again")
        with _launched(settings, how, say) as target:
            yield target
    else:
        target = locate(settings.url or url, way=_way(settings, how))
        _say_target(target, say)
        yield target


@contextmanager
def _launched(settings: Settings, how: How, say: Say, own: Own | None = None) -> Iterator[Target]:
    rows = _capture_arguments(settings, own()) if settings.capture and own is not None else []
    with launched([*rows, *_serve_arguments(settings, say)]) as server:
        say(f"target: {server.url} (pid {server.pid})")
        yield msgspec.structs.replace(locate(server.url, way=_way(settings, how)), about=server.about)


def _say_target(target: Target, say: Say) -> None:
    through = ", measured with aiohttp through it" if target.way.proxy is not None else ""
    say(f"target: {target.url} ({target.host} port {target.port}{through})")


def _on_port(settings: Settings) -> str:
    return f"http://localhost:{settings.port}"


def _serve_arguments(settings: Settings, say: Say) -> list[str]:
    """The flags of the launched server. Its tokenizer is its model's; ours goes along only for a model without one."""
    given: dict[str, str | None] = {
        "--model": settings.model,
        "--engine": settings.engine,
        "--data-shape": settings.data_shape,
    }
    if settings.tokenizer is not None and (settings.model or "").startswith("random:"):
        given["--tokenizer"] = str(settings.tokenizer)
        say(f"the server gets the tokenizer {settings.tokenizer} too: {settings.model} brings none")
    elif settings.tokenizer is not None:
        say("the server keeps the tokenizer of its model; --tokenizer only counts the tokens to ask for")
    if settings.config is None:
        given["--threads"] = str(max(1, (os.cpu_count() or 1) - 1))  # a core is left to the client
    return [*flags(given), *([str(settings.config)] if settings.config else [])]


def _capture_arguments(settings: Settings, folder: Path) -> list[str]:
    """The flags with which the launched server captures rows into the folder of the run."""
    return capturing(
        folder / ROWS,
        settings.capture_tier,
        rate=settings.capture_rate,
        seed=settings.capture_seed,
        force=settings.force,
    )


def sayer(quiet: bool) -> Say:
    """Where notes go: stderr, so that stdout holds the result alone; nowhere when quiet."""

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    return say
