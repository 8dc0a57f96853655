"""What `llmbench doctor` does: look at the machine, calibrate the client on it, say what to make of it."""

import sys
from pathlib import Path

import msgspec

from llmbench.cli._machine import Finding, Steal, findings
from llmbench.loadgen import calibrate
from llmbench.loadgen.calibrate import Calibration, Load
from llmbench.report.terminal import Terminal

_CANNOT_MEASURE = 3
_BUSY = 0.7  # of the ceiling


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The planned load, and how thoroughly to look."""

    qps: float | None
    concurrency: int | None
    output_tokens: int
    dialect: str
    send_s: float
    """How long the calibration sends."""
    search_s: float
    """How long the ceiling is searched for."""
    save: Path | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that was found. `share` is how much of the ceiling the planned load uses, at most."""

    can_measure: bool
    share: float
    advice: list[str]
    machine: list[Finding]
    calibration: Calibration


def main(settings: Settings, json: bool) -> int:
    """Examine and print; the exit status."""
    report = examine(settings)
    if settings.save is not None:
        calibrate.save(report.calibration, settings.save)
    if json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        show(Terminal(highlight=False, soft_wrap=True), report)
    return 0 if report.can_measure else _CANNOT_MEASURE


def examine(settings: Settings) -> Report:
    """Look, calibrate, search the ceiling. Progress goes to stderr."""
    looked, steal = findings(), Steal()
    load = Load(
        requests_per_s=settings.qps,
        streams=settings.concurrency,
        num_tokens=settings.output_tokens,
        gap_s=min(0.01, 0.64 / settings.output_tokens),  # so that an answer takes less than a second
        send_s=settings.send_s,
    )
    _say(f"calibrating at {load.rate:.4g} requests/s of {load.num_tokens} tokens")
    found = calibrate.calibrate(load, settings.dialect)
    if not found.good:
        _say("not good; once more, in case something disturbed it")
        found = calibrate.calibrate(load, settings.dialect)
    _say("searching for the ceiling: is this load measured?")
    most = calibrate.ceiling(settings.dialect, min(settings.output_tokens, 64), settings.search_s, _say)
    found = msgspec.structs.replace(found, ceiling=most)
    share = calibrate.share_of_ceiling(found, load.rate, load.num_tokens)
    looked.append(steal.finding())
    return Report(
        can_measure=found.good and share <= 1,
        share=share,
        advice=_advice(found, share, looked),
        machine=looked,
        calibration=found,
    )


def show(console: Terminal, report: Report) -> None:
    """One screen."""
    found, error = report.calibration, report.calibration.error
    console.print(f"{found.machine}; {found.software}")
    for one in report.machine:
        console.print(f"  {'?' if one.ok is None else '✓' if one.ok else '!'} {one.name}: {one.value}")
    console.print(
        f"\nat {found.load.rate:.4g} requests/s of {found.load.num_tokens} tokens, "
        f"{found.num_answered} of {found.num_requests} requests answered, ms:"
    )
    console.print(f"  {'':32}{'mean':>9}{'p50':>9}{'p95':>9}{'p99':>9}")
    names = {"ttft": "TTFT, reported - true", "stamp": "a chunk's stamp - its emission", "lateness": "sent - due"}
    for field, name in names.items():
        one = getattr(error, field)
        cells = "".join(_ms(value) for value in (one.mean_s, one.p50_s, one.p95_s, one.p99_s))
        console.print(f"  {name:32}{cells}")
    console.print(
        f"  client: {found.cpu_s_per_1000_requests:.2f} CPU s per 1,000 requests, "
        f"{100 * found.cpu_utilisation:.0f} % of a core"
    )
    if (most := found.ceiling) is not None:
        console.print(
            f"ceiling: {most.events_per_s:,.0f} tokens/s, {most.requests_per_s:,.0f} requests/s with TTFT p99 right "
            f"within {1e3 * calibrate.MAX_ERROR_S:g} ms; ended by {most.bound_by}; "
            f"this load uses at most {100 * report.share:.0f} %"
        )
    console.print(f"\n{calibrate.plus_minus(found)}")
    console.print("this machine measures that load" if report.can_measure else "THIS MACHINE CANNOT MEASURE THAT LOAD")
    for line in report.advice:
        console.print(f"  - {line}")


def _advice(found: Calibration, share: float, looked: list[Finding]) -> list[str]:
    advice = [f"{one.name} {one.value}: {one.remedy}" for one in looked if one.ok is False]
    if found.num_answered < found.num_requests:
        advice.append(f"{found.num_requests - found.num_answered} calibration requests were not answered")
    if not found.good or share > 1:
        advice.append("lower -X or --output-tokens, or run the client on a machine of its own")
    elif share > _BUSY:
        advice.append(f"the load uses {100 * share:.0f} % of the ceiling: errors grow quickly from here on")
    return advice


def _ms(value_s: float | None) -> str:
    return f"{'-' if value_s is None else f'{1e3 * value_s:.3f}':>9}"


def _say(text: str) -> None:
    print(text, file=sys.stderr)
