"""The largest batch whose decode steps stay within a limit: doubled until one does not, then halved in between.

It is taken that a larger batch is never faster, as in MindIE's `performance_maxbs`. A batch that does not fit, or
fails, counts as above the limit; where measured values contradict each other, `Largest.monotone` says so.
"""

from collections.abc import Callable, Sequence

from llmbench.metrics.sweep import Case, Largest, Measured, Probe, figures

_AS_SHORT = 0.9  # of another batch's steps: that much is noise


def search(within: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from `low` to `high` for which `within` holds, if it holds for all below; None for none."""
    if not within(low):
        return None
    best, above = low, high + 1
    while 2 * best < above:  # nothing above is known yet
        if not within(2 * best):
            above = 2 * best
            break
        best *= 2
    while above - best > 1:
        middle = (best + above) // 2
        if within(middle):
            best = middle
        else:
            above = middle
    return best


def largest(
    lengths: tuple[int, int], limit_s: float, low: int, high: int, measured: Callable[[Case], Measured]
) -> Largest:
    """Search with what `measured` gives for each case that is asked for."""
    probes: dict[int, Probe] = {}

    def within(batch: int) -> bool:
        case = Case(batch=batch, input_len=lengths[0], output_len=lengths[1])
        probes[batch] = _probe(measured(case), limit_s)
        return probes[batch].within

    best = search(within, low, high)
    tried = [probes[batch] for batch in sorted(probes)]
    above = [probe.batch for probe in tried if best is None or probe.batch > best]
    return Largest(
        input_len=lengths[0],
        output_len=lengths[1],
        limit_s=limit_s,
        batch=best,
        next=min(above, default=None),
        monotone=_monotone(tried),
        probes=tried,
    )


def _probe(measured: Measured, limit_s: float) -> Probe:
    found = figures(measured)
    step_s = None if found is None else found.step_s
    within = step_s is not None and step_s <= limit_s
    return Probe(batch=measured.case.batch, step_s=step_s, within=within, reason=measured.reason)


def _monotone(tried: Sequence[Probe]) -> bool:
    """Whether no larger batch had much shorter steps than a smaller one, as far as they were measured."""
    steps = [probe.step_s for probe in tried if probe.step_s is not None]
    return all(later >= _AS_SHORT * max(steps[:number], default=0.0) for number, later in enumerate(steps))
