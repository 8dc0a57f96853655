"""What an audit prints and writes: the verdict first, then each test with its value, its limit and its reason."""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

from llmbench import __version__
from llmbench.accuracy.audit import Finding, Verdict
from llmbench.cli import _formats, _results
from llmbench.report import files
from llmbench.report.junit import Case, Outcome, junit
from llmbench.report.terminal import Terminal

_WORDS: dict[Verdict, str] = {
    "passed": "PASSED",
    "failed": "FAILED",
    "broken": "EVIDENCE BROKEN",
    "inconclusive": "INCONCLUSIVE",
    "not applicable": "INCONCLUSIVE",
}
_STYLES: dict[Verdict, str] = {
    "passed": "green",
    "failed": "bold red",
    "broken": "bold red",
    "inconclusive": "yellow",
    "not applicable": "dim",
}
_OUTCOMES: dict[Verdict, Outcome] = {
    "passed": "passed",
    "failed": "failure",
    "broken": "error",
    "inconclusive": "error",
    "not applicable": "skipped",
}
_REMADE = ("json", "csv", "contest")


def show(verdict: Verdict, why: str, run: str, trusted: str, findings: Sequence[Finding], notes: Sequence[str]) -> None:
    """The screen."""
    console = Terminal()
    say = console.print
    against = f"; trusted: {trusted}" if trusted else ""
    say(
        Text(f"audit {_WORDS[verdict]}  {run}{f': {why}' if why else ''}{against}", style=_STYLES[verdict]),
        soft_wrap=True,
    )
    for finding in findings:
        line = Text.assemble(f"  {finding.test:<4}", (f"{finding.verdict:<15}", _STYLES[finding.verdict]), finding.what)
        limit = f" (limit: {finding.limit})" if finding.limit and finding.value else ""
        line.append(f": {finding.value}{limit}" if finding.value else "")
        line.append(f" [{finding.tier}]" if finding.tier else "")
        if finding.why:
            line.append(f" -> {finding.why}", style=_STYLES[finding.verdict])
        say(line, soft_wrap=True)
    for text in (*_power(findings), *notes):
        say(text, soft_wrap=True, markup=False, highlight=False)


def _power(findings: Sequence[Finding]) -> Iterator[str]:
    """What the number of requests can show."""
    for finding in findings:
        bound = finding.figures.get("bad_requests_would_be_seen")
        if bound is not None and finding.verdict != "not applicable":
            yield (
                f"{finding.test}: {finding.figures['requests']:.0f} requests; a share of {bound:.1%} bad ones or more "
                "would have been seen with 95 %"
            )


def write(report: Any, findings: Sequence[Finding], json: Path | None, to_junit: Path | None) -> None:
    """The files that were asked for. Raises InputError when one cannot be written."""
    with files.wanted():
        if json is not None:
            files.write_json(json, report)
        if to_junit is not None:
            files.write(to_junit, junit("llmbench audit", [_case(finding) for finding in findings]))


def _case(finding: Finding) -> Case:
    told = "; ".join(text for text in (finding.value, finding.limit and f"limit {finding.limit}", finding.why) if text)
    return Case(name=f"{finding.test} {finding.what}", outcome=_OUTCOMES[finding.verdict], message=told)


@contextlib.contextmanager
def counting(what: str, number: int) -> Iterator[Callable[[int], None]]:
    """Says how many are done, on a terminal, on one line."""
    shown = sys.stderr.isatty() and number > 0

    def done(count: int) -> None:
        if shown:
            print(f"\r{what} {count}/{number} ", end="", file=sys.stderr, flush=True)

    yield done
    if shown:
        print(file=sys.stderr)


def remade(folder: Path) -> Finding:
    """Whether the files that people read are those that the journals give."""
    verdict, why = _remade(folder)
    return Finding(
        test="A10",
        what="summary.json, records.csv and the contest's result, made again from the journals",
        verdict=verdict,
        value=f"{len(_REMADE)} of {len(_REMADE)}" if verdict == "passed" else "",
        limit="the same",
        why=why,
    )


def _remade(folder: Path) -> tuple[Verdict, str]:
    """The verdict, and the first line that is another one."""
    try:
        summary = msgspec.json.decode((folder / "summary.json").read_bytes())
        allowed = [check["id"] for check in summary.get("checks", []) if check.get("allowed")]
        by = msgspec.json.decode((folder / "environment.json").read_bytes()).get("llmbench")
    except (OSError, msgspec.DecodeError, AttributeError, KeyError, TypeError) as error:
        return "broken", f"summary.json: cannot be read ({error})"
    if by != __version__:
        return "not applicable", f"they were made by llmbench {by}, this is {__version__}"
    results = _results.read(folder, allowed)
    export = _results.export(results, _results.view(results, steadily=True))
    with tempfile.TemporaryDirectory() as scratch:
        for path in _formats.write(_REMADE, export, Path(scratch)):
            there = folder / path.name
            if not there.is_file():
                return "broken", f"{path.name}: is missing"
            if place := _first_difference(there.read_bytes(), path.read_bytes()):
                return "broken", f"{path.name}, line {place}: is not what the journals give"
    return "passed", ""


def _first_difference(found: bytes, made: bytes) -> int:
    """The number of the first line that is another one; 0 when there is none."""
    ours, theirs = found.split(b"\n"), made.split(b"\n")
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if one != other:
            return number
    return 0 if len(ours) == len(theirs) else min(len(ours), len(theirs)) + 1
