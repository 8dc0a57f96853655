"""Sending the accuracy requests to a stack that captures logits: the samples in order, at any concurrency."""

from collections.abc import Callable, Sequence
from pathlib import Path

from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.client import Target, Timeouts, locate
from llmbench.loadgen.driver import Counts
from llmbench.loadgen.run import Outcome, run
from llmbench.protocols import ClientHalf
from llmbench.tokenizer import Tokenizer
from llmbench.workload.arrivals.burst import Arrival
from llmbench.workload.plan import Plan, PlanSettings, Sample, make_plan


def plan(samples: Sequence[Sample], dataset: str, num_requests: int, tokenizer: Tokenizer) -> Plan:
    """The first samples, each once. Raises InputError when there are fewer."""
    if not 1 <= num_requests <= len(samples):
        raise InputError(f"--num-requests: {dataset} has {len(samples)} samples, got {num_requests}")
    settings = PlanSettings(dataset=dataset, num_samples=len(samples), arrivals="burst", qps=0.0, rate=None, seed=0)
    return make_plan(samples[:num_requests], Arrival(), num_requests, settings, tokenizer)


def replay(
    plan: Plan,
    url: str | Target,
    dialect: ClientHalf,
    concurrency: int,
    journal: Path,
    progress: Callable[[Counts], None] | None = None,
) -> Outcome:
    """Send the plan, `concurrency` at a time. Raises InvalidMeasurement unless every request was answered."""
    target = locate(url) if isinstance(url, str) else url
    outcome = run(plan, target, dialect, Timeouts(), journal, concurrency, progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    lost = [record for record in outcome.records if record.status != "answered"]
    if lost:
        first = lost[0]
        raise InvalidMeasurement(
            f"{len(lost)} of {len(plan.requests)} requests were not answered, so rows are missing; the first, "
            f"{first.request_id}: {first.reason}"
        )
    return outcome
