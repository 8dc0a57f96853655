"""Groups of real agent processes that hold one model together."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import psutil
import pytest

from llmbench.errors import AgentDied, InputError, ServingError
from llmbench.link import frames
from llmbench.link.arena import Row
from llmbench.link.ranks import AgentGroup
from llmbench.link.remote import Agent
from llmbench.logits.contest import read_dump, read_row
from llmbench.types import Sampling
from tests.engines.test_numpy_llama import LLAMA, QWEN2, write
from tests.link import faulty_engine
from tests.link.test_agent import PROMPT, SETTINGS, SIZE, STUB, TINY, answer, gone, left_in_shared_memory, place, run

FAULTY = msgspec.structs.replace(TINY, engine="faulty")
HOST = "127.0.0.1"


@asynccontextmanager
async def group(load: frames.Load, num_ranks: int = 2) -> AsyncIterator[AgentGroup]:
    """A group with an arena; afterwards no process of it is left."""
    found = await AgentGroup.start(load, HOST, (0,) * num_ranks)
    try:
        await found.attach(SIZE)
        assert not left_in_shared_memory(), "all names are gone as soon as all have them"
        yield found
    finally:
        await found.close()
        assert all(gone(pid) for pid in found.pids)


def children() -> set[int]:
    """Processes that this one has started, those of other tests' servers among them."""
    return {child.pid for child in psutil.Process().children()}


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", faulty_engine.install(tmp_path))


# -- the same answers -----------------------------------------------------------------------------------------------


async def rows_of(load: frames.Load, num_ranks: int, folder: Path) -> tuple[list[int], list[npt.NDArray[np.float32]]]:
    """Tokens and captured logits of PROMPT, its prefill in two pieces, and a few tokens more."""
    load = msgspec.structs.replace(load, capture=frames.Capture(folder=str(folder), every=1))
    agent = await (Agent.start(load) if num_ranks == 1 else AgentGroup.start(load, HOST, (0,) * num_ranks))
    try:
        await agent.attach(SIZE)
        admitted = frames.Admitted(slot=0, request_id="r", arrival_s=1.0, prompt_ids=PROMPT)
        agent.arrays.admit(0, Sampling(), 0)
        agent.arrays.set_blocks(0, 0, [3, 1, 2])
        agent.begin([Row(0, PROMPT[:2], 2, False)], [0], [admitted], [])
        await agent.finish(1)
        token_ids, new = [], PROMPT[2:]
        for length in range(len(PROMPT), len(PROMPT) + 7):
            agent.begin([Row(0, new, length, True)], [length - len(PROMPT)], [], [])
            new, _, _ = await agent.finish(1)
            token_ids += new
    finally:
        await agent.close()
    rows = sorted(read_dump(folder).rows or (), key=lambda row: row.index)
    return token_ids, [read_row(folder / row.file) for row in rows]


@pytest.mark.parametrize(
    ("model", "num_ranks"),
    [
        ("random:tiny", 2),
        ("random:tiny", 4),  # 2 kv heads
        ("embedded", 2),
        (LLAMA | {"num_key_value_heads": 1}, 2),
        (QWEN2, 2),  # biases, and embeddings that are the head, too
    ],
    ids=["tiny", "4 ranks", "embedded", "1 kv head", "qwen2"],
)
def test_a_group_gives_the_tokens_and_the_logits_that_one_agent_gives(
    tmp_path: Path, model: str | dict[str, Any], num_ranks: int
) -> None:
    spec = model if isinstance(model, str) else str(write(tmp_path / "model", model))
    load = msgspec.structs.replace(TINY, model=spec)
    alone, rows = run(rows_of(load, 1, tmp_path / "alone"))
    together, found = run(rows_of(load, num_ranks, tmp_path / "together"))
    assert together == alone
    assert len(found) == len(rows) == 7
    np.testing.assert_allclose(np.stack(found), np.stack(rows), rtol=0, atol=1e-4)


def test_a_hollow_group_and_one_of_stubs_answer_too() -> None:
    async def work(load: frames.Load) -> list[int]:
        async with group(load) as agents:
            return await answer(agents, 3)

    assert len(run(work(STUB))) == 3
    assert run(work(msgspec.structs.replace(TINY, hollow=True))) == [300, 300, 300]


def test_every_rank_holds_as_many_blocks_as_the_server_hears_of() -> None:
    async def work() -> None:
        load = msgspec.structs.replace(TINY, settings=msgspec.structs.replace(SETTINGS, num_blocks=None))
        async with group(load) as agents:
            assert agents.loaded.capacity.num_blocks >= 4 * 2048 // 4
            assert agents.loaded.engine == "numpy_llama"

    run(work())


# -- what cannot start ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "num_ranks", "message"),
    [
        (TINY, 3, "ranks: 3 ranks do not fit the 4 attention heads of model random:tiny; possible: 1, 2, 4"),
        (msgspec.structs.replace(TINY, engine="alone"), 2, "engine alone: it runs on one rank only, 2 were asked for"),
        (msgspec.structs.replace(TINY, model="/no/such"), 2, "model '/no/such': no such folder"),
    ],
)
@pytest.mark.usefixtures("faulty")
def test_what_a_group_cannot_be_is_said_and_leaves_nothing(load: frames.Load, num_ranks: int, message: str) -> None:
    async def work() -> None:
        before = children()
        with pytest.raises(InputError) as caught:
            await AgentGroup.start(load, HOST, (0,) * num_ranks)
        assert str(caught.value).startswith(message)
        assert not left_in_shared_memory()
        assert children() == before

    run(work())


def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    async def work() -> None:
        before = children()
        starting = asyncio.ensure_future(AgentGroup.start(TINY, HOST, (0, 0)))
        while len(pids := children() - before) < 2:
            await asyncio.wait({starting}, timeout=0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert all(map(gone, pids))
        assert not left_in_shared_memory()

    run(work())


# -- one fails, all fail --------------------------------------------------------------------------------------------


async def lost(agents: AgentGroup, within_s: float = 10.0) -> AgentDied:
    """The error that a step under way ends with."""
    with pytest.raises(AgentDied) as caught:
        await asyncio.wait_for(agents.finish(1), within_s)
    with pytest.raises(AgentDied):
        agents.begin([], [], [], [])
    assert agents.died is not None
    assert all(gone(pid) for pid in agents.pids), "the others are ended, too"
    return caught.value


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("when", ["idle", "in a step"])
def test_when_one_rank_is_killed_the_group_has_died(rank: int, when: str) -> None:
    async def work() -> None:
        ended = asyncio.Event()
        async with group(TINY, num_ranks=4 if rank == 2 else 2) as agents:
            agents.watch(ended.set)
            rows, steps = place(agents.arrays)
            os.kill(agents.pids[rank], signal.SIGSTOP)  # so that it cannot take its part before it is killed
            if when == "in a step":
                agents.begin(rows, steps, [], [])
            os.kill(agents.pids[rank], signal.SIGKILL)
            error = await lost(agents)
            assert str(error) == f"the agent process of rank {rank} has gone"
            assert ended.is_set()

    run(work())


@pytest.mark.parametrize(
    "fault",
    [
        faulty_engine.CRASH,
        faulty_engine.OUT_OF_MEMORY,
        faulty_engine.BEFORE,
        faulty_engine.BETWEEN,
        faulty_engine.BEHIND,
    ],
    ids=["crash", "memory", "before", "between", "behind"],
)
@pytest.mark.usefixtures("faulty")
def test_when_rank_1_fails_alone_wherever_in_a_step_the_group_has_died(fault: int) -> None:
    async def work() -> None:
        async with group(FAULTY) as agents:
            await answer(agents, 2)
            rows, steps = place(agents.arrays)
            rows[0].token_ids = [*PROMPT[:-1], fault]
            agents.begin(rows, steps, [], [])
            await lost(agents)

    run(work())


@pytest.mark.parametrize("fault", [faulty_engine.ALIKE, faulty_engine.FIRST], ids=["alike", "rank 0 at the end"])
@pytest.mark.usefixtures("faulty")
def test_a_step_that_all_refuse_or_rank_0_at_the_end_is_lost_and_the_group_goes_on(fault: int) -> None:
    async def work() -> None:
        async with group(FAULTY) as agents:
            expected = await answer(agents, 3)
            rows, steps = place(agents.arrays)
            rows[0].token_ids = [*PROMPT[:-1], fault]
            agents.begin(rows, steps, [], [])
            with pytest.raises(ServingError, match=r"nowhere|too late") as caught:
                await agents.finish(1)
            assert not isinstance(caught.value, AgentDied)
            assert await answer(agents, 3) == expected

    run(work())


def test_a_group_whose_ranks_do_not_end_by_themselves_is_killed() -> None:
    async def work() -> None:
        async with group(STUB) as agents:
            for pid in agents.pids:
                os.kill(pid, signal.SIGSTOP)

    run(work())


# -- cores ----------------------------------------------------------------------------------------------------------


def affinities(pids: tuple[int, ...]) -> list[list[int]]:
    return [psutil.Process(pid).cpu_affinity() for pid in pids]


@pytest.mark.parametrize(
    ("number", "bound"),
    [
        pytest.param("1", True, marks=pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")),
        ("1000", False),
    ],
)
def test_ranks_are_bound_to_cores_of_their_own_where_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, number: str, bound: bool
) -> None:
    async def work() -> list[list[int]]:
        async with group(msgspec.structs.replace(STUB, bind_cpu=True)) as agents:
            return affinities(agents.pids)

    monkeypatch.setenv("CPU_BINDING_NUM", number)
    first, second = run(work())
    if bound:
        assert len(first) == len(second) == 1
        assert first != second
    else:
        assert first == second == sorted(os.sched_getaffinity(0))
