"""What `llmbench selftest` does: every planted fault is measured as `perf` would, and must trip its check alone."""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from llmbench import plugins, protocols
from llmbench.cli import _evidence
from llmbench.cli._machine import OTHERS_BUSY, Others
from llmbench.cli._selftest_cases import CASES, GAP_S, TTFT_S, Case, Figure, Measured, Work
from llmbench.clock import now_ns, seconds
from llmbench.errors import InputError
from llmbench.loadgen import calibrate, journal
from llmbench.loadgen.calibrate import Calibration
from llmbench.loadgen.client import Timeouts, locate
from llmbench.loadgen.monitor import monitor
from llmbench.loadgen.null_server import launched, truth
from llmbench.loadgen.run import run
from llmbench.loadgen.scrape import scraper
from llmbench.metrics import checks as validity
from llmbench.metrics.evidence import SHARE
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload import arrivals
from llmbench.workload import plan as plans

_ATTEMPTS = 3
_NOISE = frozenset({"lateness", "stalls", "client-cpu", "instrument", "rate"})
"""What trips where the machine is too busy to measure, whatever the server does."""
_WITH_NOISE = _NOISE | {"arrivals", "saturation", "drain", "coalescing", "streaming"}
"""What may then trip with them."""
_CALIBRATED = calibrate.Load(requests_per_s=100.0, num_tokens=24, ttft_s=TTFT_S, gap_s=GAP_S, send_s=2.0)
_EXIT = {"ok": 0, "FAILED": 1, "disturbed": 4}

Outcome = Literal["ok", "FAILED", "disturbed"]
"""Disturbed: others use this machine, and all is as it should be but for checks that say that it is too busy."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one case."""

    name: str
    says: str
    outcome: Outcome
    tripped: list[str]
    """The checks that were not ok."""
    missing: list[str]
    """Those that should have tripped and have not."""
    extra: list[str]
    """Those that should not have tripped."""
    figures: list[Figure]
    attempts: int
    others: float
    """The share of this machine's CPU time that others had meanwhile."""
    took_s: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All of a self-test; `instrument` is the error that the figures were held to."""

    outcome: Outcome
    took_s: float
    instrument: Calibration
    cases: list[Verdict]

    @property
    def exit_code(self) -> int:
        return _EXIT[self.outcome]


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases of these names, or all that this system can do. Raises InputError for a name that is none."""
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise InputError(f"--case: {plugins.unknown('case', name, list(known))}")
    return [known[name] for name in dict.fromkeys(names)] or [case for case in CASES if case.possible()]


def main(names: Sequence[str], json: bool) -> int:
    """Run the cases and print; the exit status."""
    start_ns = now_ns()
    cases = chosen(names)
    stated = instrument()
    if not json:
        print(f"calibrated: {calibrate.plus_minus(stated)}", flush=True)
    done: list[Verdict] = []
    for case in cases:
        done.append(try_case(case, stated))
        print("\n".join(lines(done[-1])), file=sys.stderr if json else sys.stdout, flush=True)
    report = Report(outcome=_worst(done), took_s=seconds(start_ns, now_ns()), instrument=stated, cases=done)
    if json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(sentence(report))
    return report.exit_code


def instrument() -> Calibration:
    """The client's own error on this machine now; the best of three while the machine is too busy for a good one."""
    found: list[Calibration] = []
    while len(found) < _ATTEMPTS:
        found.append(calibrate.calibrate(_CALIBRATED))
        if (found[-1].error.ttft.high_s or 0.0) <= SHARE * TTFT_S:
            break
    return min(found, key=lambda one: one.error.ttft.high_s or 0.0)


def try_case(case: Case, stated: Calibration) -> Verdict:
    """Run a case until it is as it should be, three times at most, and only while the machine was disturbed."""
    start_ns = now_ns()
    for attempt in range(1, _ATTEMPTS + 1):
        watch = Others()
        found = measure(case, stated)
        verdict = judge(case, found, watch.share(), attempt, seconds(start_ns, now_ns()))
        if verdict.outcome == "ok" or not _may_be_noise(verdict):
            break
    return verdict


def measure(case: Case, stated: Calibration) -> Measured:
    """One run of a case, as `perf` runs and judges it."""
    plan = case.client().plan(plan_of(case.work))
    with tempfile.TemporaryDirectory(prefix="llmbench-selftest-") as scratch:
        folder = Path(scratch)
        if case.calibrated:
            calibrate.save(stated, folder / _evidence.CALIBRATION)
        _send(case, plan, folder)
        trail = journal.read_run(folder, plan)
        outcomes = validity.check(_evidence.evidence(folder, plan, trail))
    answered = [record for record in trail.records if record.status == "answered"]
    return Measured(
        plan=plan,
        records=trail.records,
        answered=answered,
        truths=[truth(record.text) for record in answered],
        checks=outcomes,
        stated=stated,
    )


def judge(case: Case, found: Measured, others: float = 0.0, attempt: int = 1, took_s: float = 0.0) -> Verdict:
    """Whether the checks that should have tripped have, and no others, and the figures are what was planted."""
    tripped = [check.id for check in found.checks if check.verdict in ("failed", "inconclusive")]
    missing = [name for name in sorted(case.trips) if name not in tripped]
    extra = [name for name in tripped if name not in case.trips | case.may]
    figures = case.figures(found) if found.answered else []
    outcome: Outcome = "FAILED"
    if not missing and not extra and all(figure.ok for figure in figures):
        outcome = "ok"
    elif others > OTHERS_BUSY and not missing and _NOISE & set(extra) and set(extra) <= _WITH_NOISE:
        outcome = "disturbed"
    return Verdict(
        name=case.name,
        says=case.says,
        outcome=outcome,
        tripped=tripped,
        missing=missing,
        extra=extra,
        figures=figures,
        attempts=attempt,
        others=others,
        took_s=took_s,
    )


def plan_of(work: Work) -> plans.Plan:
    """The plan of a case: Poisson arrivals, prompts of their own unless some are to be repeated."""
    tokenizer = Tokenizer.from_file(embedded_path())
    number = work.num_prompts or work.num_requests
    samples = [plans.Turn(prompt=f"Say {index} and go on counting from there, in words.") for index in range(number)]
    process = arrivals.get("poisson", work.qps)
    settings = plans.PlanSettings(
        dataset="selftest",
        num_samples=number,
        arrivals="poisson",
        qps=work.qps,
        rate=process.rate,
        seed=1,
        cache=work.cache,
    )
    return plans.make_plan(samples, process, work.num_requests, settings, tokenizer, work.num_tokens)


def lines(verdict: Verdict) -> list[str]:
    """A case on the screen: one line, and one more for what is not as it should be."""
    tripped = ", ".join(verdict.tripped) or "nothing"
    busy = f", others had {verdict.others:.0%} of the CPUs" if verdict.outcome != "ok" else ""
    again = (f", attempt {verdict.attempts}" if verdict.attempts > 1 else "") + busy
    figures = "".join(f"; {figure}" for figure in verdict.figures)
    shown = [f"{verdict.outcome:9} {verdict.name:16} tripped {tripped}{again}{figures}"]
    if verdict.missing:
        shown.append(f"          should have tripped: {', '.join(verdict.missing)}")
    if verdict.extra:
        shown.append(f"          should not have tripped: {', '.join(verdict.extra)}")
    return shown


def sentence(report: Report) -> str:
    """The last line."""
    bad = [one.name for one in report.cases if one.outcome == "FAILED"]
    noisy = [one.name for one in report.cases if one.outcome == "disturbed"]
    number = len(report.cases)
    took = f"{number} case{'' if number == 1 else 's'} in {report.took_s:.0f} s"
    if bad:
        return f"SELF-TEST FAILED: {', '.join(bad)}; {took}"
    if noisy:
        return f"NOT TOLD: this machine was too busy to measure {', '.join(noisy)}; {took}; try again when it is calm"
    return f"this installation sees every planted fault, and nothing else: {took}"


def _send(case: Case, plan: plans.Plan, folder: Path) -> None:
    client, timeouts = case.client(), Timeouts(head_s=case.work.timeout_s, total_s=case.work.timeout_s)
    dialect = client.dialect(protocols.get("openai_completions"))
    server = msgspec.structs.replace(case.server, tokenizer=str(embedded_path()))
    with launched(server) as target, client.around():
        there = locate(target.url)
        outcome = run(
            plan,
            there,
            dialect,
            timeouts,
            folder / journal.name(1, 0),
            observers=[monitor, scraper(there), *client.observers],
            driven_by=client.driver,
        )
    if outcome.interrupted:
        raise KeyboardInterrupt


def _may_be_noise(verdict: Verdict) -> bool:
    """Whether a busy machine could be why: its own checks tripped, or nothing is wrong but figures."""
    return bool(_NOISE & set(verdict.extra)) or not (verdict.missing or verdict.extra)


def _worst(verdicts: Sequence[Verdict]) -> Outcome:
    found = {verdict.outcome for verdict in verdicts}
    return "FAILED" if "FAILED" in found else "disturbed" if "disturbed" in found else "ok"


def table(names: Sequence[str]) -> list[str]:
    """Each case: its name, what is planted, and what must trip."""
    cases = chosen(names)
    return [f"{case.name:16} {case.says} → {' + '.join(sorted(case.trips)) or 'nothing'}" for case in cases]
