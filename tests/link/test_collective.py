"""Exchanges between real processes through shared memory."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llmbench.errors import AgentDied
from llmbench.link import collective
from llmbench.link.collective import Collective
from tests.conftest import poll

RANK = """
import hashlib, sys, time
from pathlib import Path
import numpy as np
from llmbench.errors import AgentDied
from llmbench.link.collective import Collective

path, rank, size, patience_s = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
group = Collective.join(path, rank, size, patience_s)
print("joined", flush=True)
try:
{body}
except AgentDied as error:
    print(error, flush=True)
finally:
    group.leave()
"""

EXCHANGES = """
    sizes = np.random.default_rng(7)  # the same at every rank
    own = np.random.default_rng(rank)
    sums, gathered = hashlib.sha256(), hashlib.sha256()
    for i in range(200):
        rows = int(sizes.integers(0, 5))
        columns = int(np.exp(sizes.uniform(0, 12)))
        array = (own.standard_normal((rows, columns)) * 10.0 ** own.integers(-6, 7)).astype(np.float32)
        if sizes.integers(3):
            sums.update(group.all_reduce(array).tobytes())
        elif (found := group.gather(array)) is not None:
            gathered.update(found.tobytes())
        if i % 10 == 9:
            group.end_step(failed=False)
    print(sums.hexdigest(), gathered.hexdigest(), flush=True)
"""


@pytest.fixture
def path() -> Iterator[Path]:
    found = collective.create(4)  # enough for any of them
    yield found
    found.unlink()


def start(path: Path, rank: int, size: int, body: str, patience_s: float = 60.0) -> "subprocess.Popen[str]":
    """A rank that has joined."""
    command = [sys.executable, "-c", RANK.format(body=body), str(path), str(rank), str(size), str(patience_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "joined\n"
    return process


def rest(process: "subprocess.Popen[str]") -> str:
    """What a rank says until it ends; not by `communicate`, which does not know of what `readline` has read already."""
    with process:
        assert process.stdout is not None
        return process.stdout.read().strip()


def said(path: Path, *bodies: str, patience_s: float = 60.0) -> list[str]:
    """What the ranks say, each with its own work."""
    processes = [start(path, rank, len(bodies), body, patience_s) for rank, body in enumerate(bodies)]
    return [rest(process) for process in processes]


def expected(size: int) -> str:
    """The digests of EXCHANGES, of sums in the order of the ranks."""
    sizes = np.random.default_rng(7)
    owns = [np.random.default_rng(rank) for rank in range(size)]
    sums, gathered = hashlib.sha256(), hashlib.sha256()
    for _ in range(200):
        rows = int(sizes.integers(0, 5))
        columns = int(np.exp(sizes.uniform(0, 12)))
        arrays = [
            (own.standard_normal((rows, columns)) * 10.0 ** own.integers(-6, 7)).astype(np.float32) for own in owns
        ]
        if sizes.integers(3):
            total = arrays[0]
            for array in arrays[1:]:
                total = total + array
            sums.update(total.tobytes())
        else:
            gathered.update(np.stack(arrays).tobytes())
    return f"{sums.hexdigest()} {gathered.hexdigest()}"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_of_any_size_are_the_same_bits_at_every_rank_in_the_order_of_the_ranks(path: Path, size: int) -> None:
    first, *others = said(path, *[EXCHANGES] * size)
    assert first == expected(size)
    sums, _ = first.split()
    nothing = hashlib.sha256().hexdigest()
    assert others == [f"{sums} {nothing}"] * (size - 1), "only rank 0 gathers"


def test_an_array_that_is_not_contiguous_is_summed_too(path: Path) -> None:
    body = "    print(group.all_reduce(np.arange(12, dtype=np.float32).reshape(3, 4)[:, :2]).tolist())"
    assert said(path, body, body) == ["[[0.0, 2.0], [8.0, 10.0], [16.0, 18.0]]"] * 2


def test_a_rank_that_leaves_is_noticed_at_once_by_those_who_wait(path: Path) -> None:
    waiting = "    group.all_reduce(np.zeros(5, np.float32))"
    assert said(path, waiting, "    raise AgentDied('I have had enough')", waiting) == [
        "rank 1 has gone",
        "I have had enough",
        "rank 1 has gone",
    ]


def test_what_a_rank_gave_before_it_left_still_counts(path: Path) -> None:
    late = "    time.sleep(0.2)\n    print(group.all_reduce(np.ones(1, np.float32)).tolist())"
    first = start(path, 0, 2, late)
    second = Collective.join(path, 1, 2)
    try:
        assert second.all_reduce(np.ones(1, np.float32)).tolist() == [2.0]
    finally:
        second.leave()
        assert rest(first) == "[2.0]"


def test_a_rank_that_does_not_come_is_waited_for_no_longer_than_agreed(path: Path) -> None:
    other = start(path, 1, 2, "    time.sleep(3600)")
    try:
        group = Collective.join(path, 0, 2, patience_s=0.3)
        with pytest.raises(AgentDied, match=r"rank 1 did not come within 0\.3 s"):
            group.gather(np.zeros((2, 3), np.float32))
    finally:
        other.kill()
        rest(other)


def test_a_rank_that_is_stopped_for_a_while_is_waited_for(path: Path) -> None:
    body = "    time.sleep(0.3)\n    print(group.all_reduce(np.ones(1, np.float32)).tolist())"
    other = start(path, 1, 2, body)
    os.kill(other.pid, signal.SIGSTOP)
    resumed = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.5; kill -CONT {other.pid}"])
    group = Collective.join(path, 0, 2)
    assert group.all_reduce(np.ones(1, np.float32)).tolist() == [2.0]
    assert rest(other) == "[2.0]"
    resumed.wait()


@pytest.mark.parametrize(
    "different",
    [
        "group.all_reduce(np.zeros(6, np.float32))",
        "group.gather(np.zeros(5, np.float32))",
        "group.end_step(False)",
    ],
)
def test_ranks_that_come_for_different_things_hear_it_instead_of_mixing_them(path: Path, different: str) -> None:
    answers = said(path, "    group.all_reduce(np.zeros(5, np.float32))", f"    {different}")
    assert answers == [
        "ranks 0 and 1 are at different places of a step",
        "ranks 1 and 0 are at different places of a step",
    ]


def test_ranks_in_different_steps_hear_it(path: Path) -> None:
    ahead = "    group.all_reduce(np.zeros(1, np.float32))\n" * 2
    behind = "    group.end_step(False)\n" + "    group.all_reduce(np.zeros(1, np.float32))"
    assert all("different places" in answer for answer in said(path, ahead, behind))


@pytest.mark.parametrize(
    ("failing", "answer"),
    [
        ((True, False, False), ""),
        ((True, True, True), ""),
        ((False, False, True), "a step failed at rank 2 and not at rank 0"),
    ],
)
def test_a_step_may_fail_at_rank_0_or_everywhere_but_not_elsewhere_alone(
    path: Path, failing: tuple[bool, ...], answer: str
) -> None:
    assert said(path, *(f"    group.end_step({failed})" for failed in failing)) == [answer] * 3


def test_waiting_leaves_the_core_to_others(path: Path) -> None:
    body = "    group.all_reduce(np.zeros(1, np.float32))\n    print(time.process_time() - began)"
    waiting = start(path, 0, 2, "    began = time.process_time()\n" + body)
    assert not poll(lambda: waiting.poll() is not None, within_s=2.0)
    Collective.join(path, 1, 2).all_reduce(np.zeros(1, np.float32))
    assert float(rest(waiting)) < 0.5
