"""One case after another: warmed up, timed, kept."""

from collections.abc import Callable, Sequence

from llmbench import clock
from llmbench.errors import RequestError, ServingError
from llmbench.metrics.sweep import Case, Measured, Round
from llmbench.sweep import Bench
from llmbench.sweep.journal import Journal

_WARM_UP = 10  # new tokens, as the ATB speed test


def sweep(
    cases: Sequence[Case], bench: Bench, journal: Journal, repeats: int, told: Callable[[Measured], None]
) -> None:
    """Measure what the journal does not have yet; a case that fails is kept as such, and the sweep goes on.

    Before the first case of a batch size the bench is warmed up once more, as the ATB speed test does.
    """
    batch = 0
    for case in cases:
        if journal.settled(case):
            continue
        found = measure(case, bench, repeats, warm_ups=1 if case.batch == batch else 2)
        batch = case.batch
        journal.append(found)
        told(found)


def measure(case: Case, bench: Bench, repeats: int, warm_ups: int = 1) -> Measured:
    """The rounds of one case, behind passes of up to 10 new tokens that nobody times."""
    start_ns = clock.now_ns()
    rounds: list[Round] = []
    reason = bench.unfit(case)
    if reason:
        return Measured(case=case, outcome="does not fit", reason=reason)
    try:
        for _ in range(warm_ups):
            bench.run(case, min(_WARM_UP, case.output_len))
        for _ in range(repeats):
            first = bench.run(case, 1)
            rounds.append(Round(first=first, whole=bench.run(case, case.output_len)))
    except (RequestError, MemoryError) as error:
        reason = str(error) or "out of memory"
        return Measured(case=case, outcome="does not fit", reason=reason, seconds=_since(start_ns))
    except ServingError as error:
        return Measured(case=case, outcome="failed", reason=str(error), seconds=_since(start_ns))
    return Measured(case=case, outcome="measured", rounds=rounds, seconds=_since(start_ns))


def _since(start_ns: int) -> float:
    return clock.seconds(start_ns, clock.now_ns())
