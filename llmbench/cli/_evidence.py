"""What a run's folder has to say for the checks: its plan, its journals, and the calibration that went before it."""

import math
from collections import Counter
from pathlib import Path

from llmbench.cli import _plan
from llmbench.loadgen import calibrate
from llmbench.loadgen.journal import Trail
from llmbench.metrics.evidence import Evidence
from llmbench.workload import arrivals
from llmbench.workload.plan import Plan

CALIBRATION = "calibration.json"
SERVER = "server.json"
"""What the server of a run with rows said that it is, before the load."""


def evidence(folder: Path, plan: Plan, trail: Trail) -> Evidence:
    """All that is known of the run in this folder. Raises InputError for a calibration that is none."""
    file = folder / CALIBRATION
    calibration = calibrate.read(file) if file.is_file() else None
    return Evidence(
        traces=trail.records,
        declared=_plan.declaration(plan),
        steady_rate=_steady_rate(plan),
        seams_s=trail.seams_s,
        samples=trail.samples,
        scrapes=trail.scrapes,
        instrument=None if calibration is None else calibration.error,
        ceiling_share=None if calibration is None else _ceiling_share(plan, calibration),
        cache=plan.settings.cache,
        prompts=_repeated(plan),
    )


def _steady_rate(plan: Plan) -> float | None:
    """Requests per second of a plan whose process goes on as it began, and waits for nobody."""
    rate = plan.settings.rate
    if rate is None or not math.isfinite(rate):
        return None
    process = arrivals.get(plan.settings.arrivals, plan.settings.qps)
    return None if process.users is not None or process.duration_s is not None else rate


def _ceiling_share(plan: Plan, calibration: calibrate.Calibration) -> float | None:
    """The planned load over what this client sustains; None where the calibration did not look for that."""
    rate = _steady_rate(plan)
    if calibration.ceiling is None or rate is None:
        return None
    tokens = [each.expected_tokens or each.request.max_new_tokens or 0 for each in plan.requests]
    return calibrate.share_of_ceiling(calibration, rate, sum(tokens) / len(tokens))


def _repeated(plan: Plan) -> dict[int, str | tuple[int, ...]]:
    """The prompts that are sent more than once, by index."""
    times = Counter(planned.request.prompt for planned in plan.requests)
    return {each.index: each.request.prompt for each in plan.requests if times[each.request.prompt] > 1}
