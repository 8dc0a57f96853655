"""One perf run from settings to exit status: plan, target, load, numbers, files."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from llmbench.cli import _plan, _results
from llmbench.cli._progress import overwrite
from llmbench.errors import InputError, ServingError
from llmbench.loadgen import fleet, journal
from llmbench.loadgen.client import Target, Timeouts, locate
from llmbench.loadgen.monitor import monitor
from llmbench.loadgen.run import Observer, run
from llmbench.loadgen.scrape import scraper
from llmbench.report import files
from llmbench.serving.launch import flags, launched
from llmbench.workload import plan as plans

_INTERRUPTED = 130


class Settings(_plan.Wanted, frozen=True, kw_only=True):
    """What the user asked for; written to `config.json`."""

    url: str | None
    port: int
    out_dir: Path | None
    data_shape: str | None
    concurrency: int | None
    workers: int | Literal["auto"]
    timeout_s: float
    metrics_url: str | None
    allow: list[str]
    plan: Path | None
    model: str | None
    engine: str | None
    config: Path | None
    name: str
    results: Path


Say = Callable[[str], None]


def main(settings: Settings, json: bool, quiet: bool) -> int:
    """Do it all; the exit status. Raises LlmbenchError before anything is sent."""
    say = _sayer(quiet)
    plan = _sealed(settings, say)
    speech = _speech(settings, plan)
    speech.dialect()  # a wrong name is wrong now
    if settings.out_dir is not None:
        files.make_folder(settings.out_dir, "--out-dir")
    with _target(settings, say) as target:
        folder = files.new_folder(settings.results, settings.name)
        plans.save(plan, folder / _results.PLAN)
        files.write_json(folder / "config.json", settings)
        files.write_json(folder / "environment.json", files.environment())
        interrupted = _send(settings, plan, target, speech, folder, quiet)
    results = _results.read(folder, settings.allow)
    _results.show(results, _results.write(results, settings.out_dir), json, quiet)
    return _INTERRUPTED if interrupted else results.exit_code


def _sealed(settings: Settings, say: Say) -> plans.Plan:
    """The plan that is asked for, or the one to repeat."""
    plan = plans.load(settings.plan) if settings.plan is not None else _plan.make(settings, say)
    say(f"plan: {_plan.line(plan)}")
    return plan


def _speech(settings: Settings, plan: plans.Plan) -> fleet.Speech:
    """The dialect that is asked for, or the one of the plan."""
    options = {"data_shape": settings.data_shape} if settings.data_shape else {}
    return fleet.Speech(name=settings.dialect or plan.settings.dialect or "contest", options=options)


def _send(
    settings: Settings, plan: plans.Plan, target: Target, speech: fleet.Speech, folder: Path, quiet: bool
) -> bool:
    """Send the plan, with one process or several; whether it was interrupted."""
    timeouts = Timeouts(head_s=settings.timeout_s, total_s=settings.timeout_s)
    progress = None if quiet or not sys.stderr.isatty() else overwrite
    slots = settings.concurrency
    watching = _watching(settings, target)
    workers = fleet.num_workers(plan, slots) if settings.workers == "auto" else settings.workers
    if workers > 1:
        return fleet.send(plan, target, speech, timeouts, folder, workers, slots, progress, watching)
    path = folder / journal.name(1, 0)
    return run(plan, target, speech.dialect(), timeouts, path, slots, progress, [monitor, *watching]).interrupted


def _watching(settings: Settings, target: Target) -> list[Observer]:
    """Who reads the server's counters: at /metrics of the target if it has them, or where --metrics-url says."""
    if settings.metrics_url == "off":
        return []
    if settings.metrics_url is None:
        return [scraper(msgspec.structs.replace(target, prefix=""))]
    page = locate(settings.metrics_url, flag="--metrics-url")
    return [scraper(page, path="" if page.prefix else "/metrics", required=True)]


@contextmanager
def _target(settings: Settings, say: Say) -> Iterator[Target]:
    """The server to measure: the one named, the one on the port, or the bundled stack, launched for this run."""
    try:
        target = locate(settings.url or f"http://localhost:{settings.port}")
    except ServingError:
        if settings.url is not None:
            raise
        say(f"nobody listens on port {settings.port}: launching the bundled stack for this run")
        with launched(_serve_arguments(settings, say)) as server:
            say(f"target: {server.url} (pid {server.pid})")
            yield locate(server.url)
        return
    if settings.model or settings.engine or settings.config:
        raise InputError(
            f"--model, --engine and --config are for a stack that is launched, but {target.url} is there already; "
            "leave them out, or choose another --port"
        )
    say(f"target: {target.url} ({target.host} port {target.port})")
    yield target


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


def _sayer(quiet: bool) -> Say:
    """Where notes go: stderr, so that stdout holds the result alone; nowhere when quiet."""

    def say(text: str) -> None:
        if not quiet:
            print(text, file=sys.stderr)

    return say
