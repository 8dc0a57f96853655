"""Real agent processes at the end of a real socket."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
import pytest

from llmbench import engines
from llmbench.engines import EngineSettings
from llmbench.errors import AgentDied, InputError, ServingError
from llmbench.link import frames
from llmbench.link.arena import Arena, Dimensions, Row, StepArrays
from llmbench.link.ranks import AgentGroup
from llmbench.link.remote import Agent
from llmbench.logits.contest import read_dump, read_row
from llmbench.logits.store import Store
from llmbench.types import Sampling
from llmbench.weights.model import open_model
from tests.conftest import poll

T = TypeVar("T")
SIZE = Dimensions(max_batch=4, max_tokens=32, max_blocks=8)
SETTINGS = EngineSettings(num_blocks=32, block_size=4, max_batch=4, threads=1)
TINY = frames.Load(model="random:tiny", engine="numpy_llama", settings=SETTINGS)
STUB = frames.Load(model="random:tiny", engine="stub", settings=SETTINGS)
PROMPT = [1, 50, 60, 70, 80]


def run(work: Coroutine[None, None, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 60))


def gone(pid: int, within_s: float = 20.0) -> bool:
    """Whether a process ends in time; one that only waits for its parent to ask has ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def place(arrays: StepArrays, seed: int = 0) -> tuple[list[Row], list[int]]:
    """The prefill of PROMPT in slot 0."""
    arrays.admit(0, Sampling(), seed)
    arrays.set_blocks(0, 0, [3, 1])
    return [Row(0, PROMPT, len(PROMPT), True)], [0]


async def answer(agent: Agent | AgentGroup, number: int) -> list[int]:
    """The first tokens that follow PROMPT."""
    rows, steps = place(agent.arrays)
    token_ids: list[int] = []
    while True:
        agent.begin(rows, steps, [], [])
        (token_id,), _, _ = await agent.finish(1)
        token_ids.append(token_id)
        if len(token_ids) == number:
            return token_ids
        rows, steps = [Row(0, [token_id], len(PROMPT) + len(token_ids), True)], [len(token_ids)]


def in_process(number: int) -> list[int]:
    """The same tokens from the engine in this process."""
    engine = engines.get("numpy_llama", open_model("random:tiny"), SETTINGS)
    arrays = StepArrays.private(SIZE)
    rows, steps = place(arrays)
    token_ids: list[int] = []
    while len(token_ids) < number:
        num_tokens = arrays.write(rows, steps)
        token_ids.append(int(engine.step(arrays.batch(1, num_tokens)).token_ids[0]))
        rows, steps = [Row(0, [token_ids[-1]], len(PROMPT) + len(token_ids), True)], [len(token_ids)]
    engine.close()
    return token_ids


def left_in_shared_memory() -> set[Path]:
    arena = Arena.create(SIZE)
    arena.unlink()
    return set(arena.path.parent.glob(f"llmbench-{os.getpid()}-*"))


def test_an_agent_gives_the_tokens_that_the_engine_gives_in_this_process() -> None:
    async def work() -> tuple[list[int], frames.Loaded, int, int]:
        agent = await Agent.start(TINY)
        try:
            await agent.attach(SIZE)
            assert not left_in_shared_memory(), "the name of the arena is gone as soon as both have it"
            return await answer(agent, 6), agent.loaded, agent.engine_ns, agent.pid
        finally:
            await agent.close()

    token_ids, loaded, engine_ns, pid = run(work())
    assert token_ids == in_process(6)
    assert (loaded.engine, loaded.dtype) == ("numpy_llama", "float32")
    assert (loaded.capacity.num_blocks, loaded.capacity.block_size) == (32, 4)
    assert engine_ns > 0
    assert gone(pid)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (frames.Load(model="random:huge", engine="stub", settings=SETTINGS), "unknown random model 'huge'"),
        (frames.Load(model="/no/such", engine="stub", settings=SETTINGS), "model '/no/such': no such folder"),
        (frames.Load(model="random:tiny", engine="stab", settings=SETTINGS), "unknown engine 'stab'. Did you mean"),
        (
            frames.Load(
                model="random:tiny",
                engine="stub",
                settings=SETTINGS,
                capture=frames.Capture(folder="/proc/no/rows", every=5),
            ),
            "/proc/no/rows: cannot write logits there",
        ),
    ],
)
def test_what_the_agent_refuses_comes_here_in_its_words(load: frames.Load, message: str) -> None:
    with pytest.raises(InputError) as caught:
        run(Agent.start(load))
    assert str(caught.value).startswith(message)


def test_an_engine_that_cannot_do_a_step_says_so_and_goes_on() -> None:
    async def work() -> list[int]:
        agent = await Agent.start(STUB)
        try:
            await agent.attach(SIZE)
            rows, steps = place(agent.arrays)
            rows[0].context_len = 5000
            agent.begin(rows, steps, [], [])
            with pytest.raises(ServingError, match="a sequence of 5000 tokens; at most 128 fit"):
                await agent.finish(1)
            return await answer(agent, 3)
        finally:
            await agent.close()

    assert len(run(work())) == 3


@pytest.mark.parametrize("when", ["idle", "in a step"])
def test_an_agent_that_is_killed_has_died(when: str) -> None:
    async def work() -> None:
        agent = await Agent.start(STUB)
        try:
            await agent.attach(SIZE)
            rows, steps = place(agent.arrays)
            os.kill(agent.pid, signal.SIGSTOP)  # so that it cannot answer before it is killed
            if when == "in a step":
                agent.begin(rows, steps, [], [])
            os.kill(agent.pid, signal.SIGKILL)
            assert gone(agent.pid)
            with pytest.raises(AgentDied, match="the agent process has gone"):
                await agent.finish(1)
            with pytest.raises(AgentDied, match="the agent process has gone"):
                agent.begin(rows, steps, [], [])
        finally:
            await agent.close()

    run(work())


def test_an_agent_that_does_not_end_by_itself_is_killed() -> None:
    async def work() -> int:
        agent = await Agent.start(STUB)
        os.kill(agent.pid, signal.SIGSTOP)
        await agent.close()
        return agent.pid

    assert gone(run(work()))


def test_a_start_that_is_cancelled_leaves_no_process() -> None:
    async def work() -> None:
        before = {child.pid for child in psutil.Process().children()}
        starting = asyncio.ensure_future(Agent.start(TINY))
        new: set[int] = set()
        while not new:
            await asyncio.wait({starting}, timeout=0.01)
            new = {child.pid for child in psutil.Process().children()} - before
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert all(map(gone, new))

    run(work())


def test_an_agent_that_ends_while_starting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")  # no Python starts with this
    with pytest.raises(AgentDied, match="the agent process ended while starting, exit status 1"):
        run(Agent.start(STUB))


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"cannot listen for the agent on 127\.0\.0\.1:{port} \("):
            run(Agent.start(STUB, port=port))


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\r\n\r\n", frames.encode(frames.Hello(token="guess", pid=1)), frames.encode(frames.Ok()),
     frames.encode(frames.Hello(token="gue\u00df", pid=1))],
)  # fmt: skip
def test_a_stranger_at_the_agents_port_is_turned_away(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def stranger() -> bytes:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                break
            except OSError:
                await asyncio.sleep(0.001)
        writer.write(said)
        if not said:
            writer.write_eof()
        try:
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def work() -> tuple[bytes, list[int]]:
        # the stranger comes before the agent's Python has even started
        agent, heard = await asyncio.gather(Agent.start(STUB, port=port), stranger())
        try:
            await agent.attach(SIZE)
            return heard, await answer(agent, 2)
        finally:
            await agent.close()

    heard, token_ids = run(work())
    assert heard == b""
    assert len(token_ids) == 2


SERVER = """
import asyncio
from llmbench.engines import EngineSettings
from llmbench.link import frames
from llmbench.link.arena import Dimensions
from llmbench.link.ranks import AgentGroup
from llmbench.link.remote import Agent

async def main():
    agent = await Agent.start(frames.Load(model="random:tiny", engine="stub", settings=EngineSettings(num_blocks=32)))
    {attach}
    print(agent.pid, flush=True)
    await asyncio.sleep(3600)

asyncio.run(main())
"""
ATTACH = "await agent.attach(Dimensions(max_batch=4, max_tokens=32, max_blocks=8))"


@pytest.mark.parametrize("attach", ["", ATTACH], ids=["loaded", "attached"])
def test_an_agent_ends_by_itself_when_its_server_is_killed(attach: str) -> None:
    command = [sys.executable, "-c", SERVER.format(attach=attach)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        assert psutil.pid_exists(pid)
        server.kill()
    assert gone(pid)


def test_ctrl_c_does_not_reach_an_agent_past_its_server() -> None:
    async def work() -> list[int]:
        agent = await Agent.start(STUB)
        try:
            await agent.attach(SIZE)
            os.kill(agent.pid, signal.SIGINT)
            return await answer(agent, 2)
        finally:
            await agent.close()

    assert len(run(work())) == 2


def test_rows_are_captured_where_the_index_divides_and_named_by_their_request(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    capture = frames.Capture(folder=str(folder), every=3)
    load = frames.Load(model="random:tiny", engine="numpy_llama", settings=SETTINGS, capture=capture)

    async def work() -> None:
        agent = await Agent.start(load)
        try:
            await agent.attach(SIZE)
            admitted = frames.Admitted(slot=0, request_id="r9", arrival_s=1000.5, prompt_ids=PROMPT[:4])
            agent.arrays.admit(0, Sampling(), 0)
            agent.arrays.set_blocks(0, 0, [3, 1])
            token_ids = PROMPT[:4]  # index 3 is the prompt's last: a prefill row
            for length in range(4, 8):
                new = token_ids if length == 4 else token_ids[-1:]
                agent.begin([Row(0, new, length, True)], [length - 4], [admitted] if length == 4 else [], [])
                (token_id,), _, _ = await agent.finish(1)
                token_ids = [*token_ids, token_id]
        finally:
            await agent.close()

    run(work())
    dump = read_dump(folder)
    assert dump.header is not None
    assert (dump.header.every, dump.header.vocab_size) == (3, open_model("random:tiny").config.vocab_size)
    assert [(row.request_id, row.index, row.prefill, row.batch_size) for row in dump.rows or ()] == [
        ("r9", 3, True, 1),
        ("r9", 6, False, 1),
    ]
    for row in dump.rows or ():
        assert int(np.argmax(read_row(folder / row.file))) == row.token_id
    prefill, decode = (np.load(folder / row.file) for row in dump.rows or ())
    assert (prefill.ndim, decode.ndim) == (2, 3)


def test_a_killed_agent_loses_the_rows_of_a_few_steps_at_most_and_none_once_it_has_had_time(tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    capture = frames.Capture(folder=str(folder), every=None, tier="topk")
    load = frames.Load(model="random:tiny", engine="numpy_llama", settings=SETTINGS, capture=capture)

    async def work() -> None:
        agent = await Agent.start(load)
        try:
            await agent.attach(SIZE)
            admitted = frames.Admitted(slot=0, request_id="r9", arrival_s=1000.5, prompt_ids=PROMPT)
            rows, steps = place(agent.arrays)
            for length in range(len(PROMPT), len(PROMPT) + 3):
                agent.begin(rows, steps, [] if steps[0] else [admitted], [])
                (token_id,), _, _ = await agent.finish(1)
                rows, steps = [Row(0, [token_id], length + 1, True)], [steps[0] + 1]
            assert poll(lambda: len(Store(folder)) == 3)  # nobody has asked for anything since
            for length in range(len(PROMPT) + 3, len(PROMPT) + 9):
                agent.begin(rows, steps, [], [])
                (token_id,), _, _ = await agent.finish(1)
                rows, steps = [Row(0, [token_id], length + 1, True)], [steps[0] + 1]
            os.kill(agent.pid, signal.SIGKILL)
        finally:
            await agent.close()

    run(work())
    store = Store(folder)
    assert store.table["step"].tolist() == list(range(len(store)))
    assert 9 - 4 <= len(store) <= 9


def test_nothing_is_left_in_shared_memory_when_an_agent_dies_before_it_has_attached() -> None:
    async def work() -> None:
        agent = await Agent.start(STUB)
        try:
            os.kill(agent.pid, signal.SIGKILL)
            assert gone(agent.pid)
            with pytest.raises(AgentDied):
                await agent.attach(SIZE)
        finally:
            await agent.close()
        assert not left_in_shared_memory()

    run(work())
