"""What is left of a run that broke off, worked out by hand for each kind of load."""

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from llmbench.errors import InputError
from llmbench.loadgen import journal
from llmbench.loadgen.record import Record
from llmbench.loadgen.resume import Rest, rest
from llmbench.types import Request
from llmbench.workload import plan as plans

START_NS = 1_000_000_000_000
Wait = int | Literal["slot"] | None


def plan_of(*requests: tuple[float, Wait, float]) -> plans.Plan:
    """A plan of (due, after, think)."""
    planned = tuple(
        plans.PlannedRequest(index=i, due_s=due_s, after=after, think_s=think_s, request=Request(prompt=f"p{i}"))
        for i, (due_s, after, think_s) in enumerate(requests)
    )
    settings = plans.PlanSettings(dataset="toy", num_samples=1, arrivals="constant", qps=1.0, rate=1.0, seed=0)
    return plans.Plan(settings=settings, requests=planned, sha256=plans.hash_of(planned))


def header(plan: plans.Plan) -> journal.Header:
    return journal.Header(
        plan_sha256=plan.sha256,
        num_requests=len(plan.requests),
        url="http://x:1",
        dialect="contest",
        start_ns=START_NS,
        start_wall_s=0.0,
    )


def broken_off(folder: Path, plan: plans.Plan, final: Collection[int], done_s: float = 5.0) -> Rest:
    """What is left when these requests had ended, the last of them after `done_s`."""
    with journal.Journal(folder / journal.name(1, 0), header(plan)) as written:
        for index in final:
            status: Literal["answered", "failed"] = "failed" if index % 2 else "answered"
            due_ns = START_NS + round(plan.requests[index].due_s * 1e9)
            written.append(Record(index=index, status=status, due_ns=due_ns, done_ns=START_NS + round(done_s * 1e9)))
    return rest(folder, plan)


def lines(found: Rest) -> list[tuple[int, float, Wait]]:
    return [(planned.index, planned.due_s, planned.after) for planned in found.plan.requests]


def test_an_open_load_goes_on_at_the_earliest_instant_that_is_left(tmp_path: Path) -> None:
    plan = plan_of(*[(float(i), None, 0.0) for i in range(6)])
    found = broken_off(tmp_path, plan, [0, 1, 3])
    assert lines(found) == [(2, 2.0, None), (4, 4.0, None), (5, 5.0, None)]
    assert (found.from_s, found.attempt, found.url) == (2.0, 2, "http://x:1")
    assert found.plan.sha256 == plan.sha256


def test_a_closed_loop_goes_on_with_all_its_users_at_once_when_it_broke_off(tmp_path: Path) -> None:
    later: tuple[float, Wait, float] = (0.0, "slot", 1.0)
    plan = plan_of(*[(0.0, None, 0.0)] * 3, *[later] * 6)
    found = broken_off(tmp_path, plan, [0, 1, 3], done_s=7.0)  # one user has still its first request to send
    assert lines(found) == [
        (2, 7.0, None),
        (4, 7.0, None),
        (5, 7.0, None),
        (6, 0.0, "slot"),
        (7, 0.0, "slot"),
        (8, 0.0, "slot"),
    ]
    assert found.from_s == 7.0


def test_a_user_in_the_middle_of_a_conversation_goes_on_with_it(tmp_path: Path) -> None:
    plan = plan_of(
        (0.0, None, 0.0), (0.0, 0, 2.0), (0.0, 1, 3.0), (0.0, None, 0.0), (0.0, "slot", 0.0), (0.0, "slot", 0.0)
    )
    found = broken_off(tmp_path, plan, [0, 3], done_s=4.0)
    assert lines(found) == [(1, 6.0, None), (2, 0.0, 1), (4, 4.0, None), (5, 0.0, "slot")]


def test_turns_of_an_open_load_are_due_a_think_time_after_the_start(tmp_path: Path) -> None:
    plan = plan_of((0.0, None, 0.0), (0.0, 0, 2.0), (1.0, None, 0.0), (9.0, None, 0.0), (9.0, 3, 1.0))
    found = broken_off(tmp_path, plan, [0, 2], done_s=4.0)
    assert lines(found) == [(1, 11.0, None), (3, 9.0, None), (4, 9.0, 3)]
    assert found.from_s == 9.0


def test_a_load_of_which_only_turns_are_left_goes_on_when_it_broke_off(tmp_path: Path) -> None:
    found = broken_off(tmp_path, plan_of((0.0, None, 0.0), (0.0, 0, 2.0)), [0], done_s=4.0)
    assert lines(found) == [(1, 6.0, None)]
    assert found.from_s == 6.0


def test_unfinished_requests_are_sent_again(tmp_path: Path) -> None:
    plan = plan_of((0.0, None, 0.0), (1.0, None, 0.0))
    with journal.Journal(tmp_path / journal.name(1, 0), header(plan)) as written:
        written.append(Record(index=0, reason="not sent: interrupted", due_ns=START_NS))
        written.append(Record(index=1, status="answered", due_ns=START_NS + 1))
    assert lines(rest(tmp_path, plan)) == [(0, 0.0, None)]


def test_a_run_that_had_not_begun_is_begun(tmp_path: Path) -> None:
    plan = plan_of((0.5, None, 0.0))
    torn = tmp_path / journal.name(1, 0)
    torn.write_bytes(b'{"kind": "llm')
    found = rest(tmp_path, plan)
    assert (found.plan, found.attempt, found.from_s, found.url) == (plan, 1, 0.0, "")
    assert not torn.exists()


def test_a_run_that_is_complete_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is left to send; see `llmbench report"):
        broken_off(tmp_path, plan_of((0.0, None, 0.0), (1.0, None, 0.0)), [0, 1])


def test_a_run_that_is_going_on_is_refused(tmp_path: Path) -> None:
    plan = plan_of((0.0, None, 0.0))
    with journal.Journal(tmp_path / journal.name(1, 0), header(plan)), pytest.raises(InputError, match="is going on"):
        rest(tmp_path, plan)


def test_a_journal_of_another_plan_is_refused(tmp_path: Path) -> None:
    plan = plan_of((0.0, None, 0.0))
    other = msgspec.structs.replace(header(plan), plan_sha256="0123456789abcdef")
    with journal.Journal(tmp_path / journal.name(1, 0), other):
        pass
    with pytest.raises(InputError, match="a journal is of plan 0123456789ab"):
        rest(tmp_path, plan)
