"""From the settings of `llmbench report` to its output: which part of a run, in which definitions, as which files."""

import sys
from pathlib import Path

import msgspec

from llmbench.cli import _formats, _results
from llmbench.errors import InputError
from llmbench.metrics import definitions, foreign
from llmbench.report import console as screen
from llmbench.report import contest, files, words
from llmbench.report.terminal import Terminal
from llmbench.report.view import View


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for."""

    run: Path
    from_s: float | None
    to_s: float | None
    steady: bool
    definition: str | None
    formats: list[str]
    output: Path | None
    allow: list[str]
    slo: str | None
    json: bool
    quiet: bool


def main(settings: Settings) -> int:
    """Do it all; the exit status."""
    formats = _formats.chosen(settings.formats)
    definition = None if settings.definition is None else definitions.get(settings.definition)
    if settings.run.is_file():
        return _foreign(settings, formats)
    results = _results.read(settings.run, settings.allow, settings.slo)
    windowed = settings.from_s is not None or settings.to_s is not None
    if windowed and settings.steady:
        raise InputError("--steady: it finds its part of the run itself; leave --from and --to out")
    part = _results.part(results, settings.from_s, settings.to_s) if windowed else None
    shown = _results.view(results, part, steadily=settings.steady or bool(formats))
    if definition is not None:
        _print_definition(definition, shown, settings.json)
        return results.exit_code
    if part is None and not formats and settings.output is None and not settings.steady:
        _results.show(results, _results.write(results), settings.json, settings.quiet)
        return results.exit_code
    folder = settings.output or settings.run
    if part is not None and settings.output is None:
        folder = settings.run / f"window-{part.from_s:g}-{part.to_s:g}"  # the whole run's files stay as they are
    files.make_folder(folder, "--output")
    written = _formats.write(formats or _formats.ALWAYS, _results.export(results, _with_steady(results, shown)), folder)
    _print(settings, shown, results.verdict)
    if not settings.quiet:
        print(f"files: {', '.join(map(str, written))}" if formats else f"files: {folder}", file=sys.stderr)
    return results.exit_code


def _with_steady(results: _results.Results, shown: View) -> View:
    """What goes into files names the steady part, whether it was asked for on the screen or not."""
    return shown if shown.window is not None or shown.steady is not None else _results.view(results, steadily=True)


def _print(settings: Settings, shown: View, verdict: str) -> None:
    """The screen, or the summary as JSON, or the verdict alone."""
    if settings.json:
        print(files.as_json(files.summary(shown)).decode(), end="")
    elif settings.quiet:
        print(verdict)
    else:
        screen.show(Terminal(), shown, settings.steady)


def _print_definition(definition: definitions.Definition, shown: View, json: bool) -> None:
    """What the tool would have printed of these traces, in its own names and units."""
    figures = definition.figures(shown.traces)
    if json:
        print(files.as_json({"definition": definition.TOOL, "figures": figures}).decode(), end="")
    else:
        screen.show_figures(Terminal(), shown, definition.TOOL, figures, definition.__doc__ or "")


_FOREIGN = ("json", "csv", "txt", "md", "html", "parquet")


def _foreign(settings: Settings, formats: list[str]) -> int:
    """What another tool's file tells: shown, written where asked, never judged. Exit status 0."""
    if settings.from_s is not None or settings.to_s is not None or settings.steady:
        raise InputError(f"{settings.run}: --from, --to and --steady are for runs of our own")
    told = foreign.read(settings.run.read_bytes(), settings.run.name)
    definition = None if settings.definition is None else definitions.get(settings.definition)
    for number, each in enumerate(told):
        shown = _told(each, settings.run.name if len(told) == 1 else f"{settings.run.name} {number + 1}")
        if definition is not None:
            if not shown.traces:
                raise InputError(f"{shown.title}: --definition needs the instants of sending, which are not in it")
            _print_definition(definition, shown, settings.json)
        else:
            _print(settings, shown, words.verdict(shown))
        if formats or settings.output is not None:
            folder = (settings.output or Path()) / ("" if len(told) == 1 else f"{number + 1}")
            files.make_folder(folder, "--output")
            wanted = [name for name in (formats or ["json", "md", "html"]) if name in _FOREIGN]
            export = _formats.Export(view=shown, answers=(), about=_NOBODY)
            print(f"files: {', '.join(map(str, _formats.write(wanted, export, folder)))}", file=sys.stderr)
    return 0


def _told(each: foreign.Told, title: str) -> View:
    return View(
        title=title,
        numbers=each.numbers,
        not_judged=each.not_judged,
        traces=each.traces,
        start_ns=each.start_ns,
        load=each.load,
        target=each.tool,
        notes=each.notes,
    )


_NOBODY = contest.Run(qps=0, interval_s=0, num_samples=0, prompts=(), start_ns=0, start_wall_s=0)
