"""The service-level objectives of a run: from the settings in its folder to lines on the screen."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from llmbench.metrics import Trace, slo
from llmbench.report import files

_FILE = "slo.json"
_WORDS = {"pass": "kept", "fail": "NOT KEPT", "unknown": "UNSURE"}


class _Asked(msgspec.Struct):
    """What of a run's config.json is of use here."""

    slo: str | None = None


def asked(folder: Path) -> str | None:
    """The objectives that the run in this folder was begun with."""
    try:
        return msgspec.json.decode((folder / "config.json").read_bytes(), type=_Asked).slo
    except (OSError, msgspec.DecodeError):
        return None


def judged(text: str | None, traces: Sequence[Trace]) -> list[slo.Outcome]:
    """What a run has shown of some objectives; nothing when there are none. Raises InputError."""
    return slo.judge(slo.parse(text), traces) if text else []


def write(folder: Path, outcomes: Sequence[slo.Outcome]) -> None:
    """`slo.json`, when there were objectives."""
    if outcomes:
        files.write_json(folder / _FILE, list(outcomes))


def lines(outcomes: Sequence[slo.Outcome]) -> list[str]:
    """`objective kept: ttft:p99<500ms: 99.7 % of 1500 requests keep it [99.4, 99.8]`."""
    return [_line(outcome) for outcome in outcomes]


def _line(outcome: slo.Outcome) -> str:
    line = f"objective {_WORDS[outcome.answer]}: {outcome.objective}"
    if outcome.share is not None and outcome.low is not None and outcome.high is not None:
        line += f": {outcome.share:.2%} of {outcome.num} requests keep it [{outcome.low:.2%}, {outcome.high:.2%}]"
    return line + (f" -> {outcome.remedy}" if outcome.remedy else "")
