"""What is left of a run that broke off, as a plan that can be sent like any other."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from llmbench.clock import seconds
from llmbench.errors import InputError
from llmbench.loadgen import journal
from llmbench.workload.plan import Plan, PlannedRequest


class Rest(msgspec.Struct, frozen=True, kw_only=True):
    """The requests of a run without a final record, to be sent as `attempt` from second `from_s` of the plan on.

    `url` is where the attempts before it were sent; empty when there was none.
    """

    plan: Plan
    attempt: int
    from_s: float
    url: str


def rest(folder: Path, plan: Plan) -> Rest:
    """What is left of the run in this folder. Journals that hold nothing are removed.

    An answered and a failed request are final; one that was unfinished is sent again. Raises InputError when the run
    is going on, when nothing is left of it, and when a journal is of another plan.
    """
    if journal.going_on(folder):
        raise InputError(f"{folder}: this run is going on; a process is writing its journal")
    for path in journal.paths(folder):
        if not journal.begun(path):
            path.unlink()
    segments = journal.segments(folder, plan)
    if not segments:
        return Rest(plan=plan, attempt=1, from_s=0.0, url="")
    trail = journal.read_run(folder, plan)
    final = {record.index for record in trail.records if record.status != "unfinished"}
    if len(final) == len(plan.requests):
        raise InputError(f"{folder}: nothing is left to send; see `llmbench report {folder}`")
    ended_ns = max((record.done_ns or 0 for record in trail.records), default=0)
    broke_off_s = max(0.0, seconds(trail.header.start_ns, ended_ns))
    left, from_s = _left(plan.requests, final, broke_off_s)
    return Rest(
        plan=msgspec.structs.replace(plan, requests=left),
        attempt=segments[-1].header.attempt + 1,
        from_s=from_s,
        url=trail.header.url,
    )


def _left(
    requests: Sequence[PlannedRequest], final: set[int], broke_off_s: float
) -> tuple[tuple[PlannedRequest, ...], float]:
    """The requests that are left, and the second of the plan at which the first of them is due.

    An open load goes on at the earliest instant that is left. Where answers pace the load it goes on when it broke off:
    as many users as there were begin at once, and a turn is due `think_s` later if the one before it has ended.
    """
    left = [planned for planned in requests if planned.index not in final]
    own = [planned.due_s for planned in left if planned.after is None]
    closed = any(planned.after == "slot" for planned in requests)
    from_s = broke_off_s if closed or not own else min(own)
    users = sum(planned.after is None for planned in requests)
    users -= len(own) + sum(isinstance(planned.after, int) and planned.after in final for planned in left)
    taken_up: list[PlannedRequest] = []
    for planned in left:
        due_s = None
        if planned.after is None:
            due_s = max(planned.due_s, from_s)
        elif planned.after == "slot":
            due_s, users = (from_s, users - 1) if users > 0 else (None, users)
        elif planned.after in final:
            due_s = from_s + planned.think_s
        taken_up.append(planned if due_s is None else msgspec.structs.replace(planned, after=None, due_s=due_s))
    return tuple(taken_up), min(planned.due_s for planned in taken_up if planned.after is None)
