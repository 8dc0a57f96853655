"""`llmbench serve --ranks N` from outside: it answers as one rank does, and fails and is replaced as a whole."""

import asyncio
import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from llmbench.loadgen.record import Record
from tests.conftest import Launch, Serving, ended, poll
from tests.e2e.test_faults import (
    COMPLETIONS,
    DIALECTS,
    LONG,
    asked,
    client,
    fetched,
    idle,
    known_answer,
    request,
    settings,
    shared_memory,
    until,
    work,
)
from tests.link import faulty_engine

pytestmark = pytest.mark.alone

TINY = ("--model", "random:tiny", "--threads", "1")
TWO = (*TINY, "--ranks", "2")


def children(server: Serving) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


def stopped(server: Serving) -> None:
    """SIGTERM ends it and leaves nothing."""
    agents = children(server)
    assert server.stop(signal.SIGTERM) == 0
    assert all(ended(agent.pid) for agent in agents)
    assert not shared_memory()


# -- answers --------------------------------------------------------------------------------------------------------


def answers(server: Serving) -> list[tuple[str, list[float], int]]:
    """Text, log-probabilities and cached tokens of prompts shorter and longer than a step, all at once, twice."""
    prompts = [list(range(5, 5 + length)) for length in (1, 3, 16, 17, 100, 600, 1500)]

    async def one(prompt: list[int]) -> tuple[str, list[float], int]:
        body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 1}
        status, answer, _ = await fetched(server, COMPLETIONS, body)
        assert status == 200, answer
        choice = answer["choices"][0]
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        return choice["text"], choice["logprobs"]["token_logprobs"], cached

    async def all_of_them() -> list[tuple[str, list[float], int]]:
        first = await asyncio.gather(*map(one, prompts))
        return [*first, *await asyncio.gather(*map(one, prompts))]

    return work(all_of_them())


def test_two_ranks_give_the_answers_of_one_in_batches_in_pieces_and_from_the_prefix_cache(launch: Launch) -> None:
    with launch(*TINY, "--prefix-cache") as alone, launch(*TWO, "--prefix-cache") as together:
        expected, found = answers(alone), answers(together)
        assert [text for text, *_ in found] == [text for text, *_ in expected]
        for (_, logprobs, _), (_, others, _) in zip(found, expected, strict=True):
            assert logprobs == pytest.approx(others, abs=1e-4)
        assert found[-1][2] > 1000, "the second time the prompt was in the cache"
        assert asked(together, "/v2/models/random:tiny/config")[1]["world_size"] == 2
        idle(together)
        stopped(together)
        assert "Traceback" not in together.log


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ranks", "3"), "llmbench: ranks: 3 ranks do not fit the 4 attention heads of model random:tiny; possible:"),
        (("--ranks", "0"), "llmbench: flags: ranks: must be at least 1, got 0"),
        (("--ranks", "2", "--engine", "alone"), "llmbench: engine alone: it runs on one rank only, 2 were asked for"),
        (("--ranks", "2", "--stub", "http"), "llmbench: flags: ranks: there are no agents with stub http; got 2"),
    ],
)
def test_ranks_that_cannot_be_had_end_with_status_2_and_one_line(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], message: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", faulty_engine.install(tmp_path))
    server = launch(*TINY, *flags)
    assert server.process.wait(30) == 2
    errors = [line for line in server.log.splitlines() if line.startswith("llmbench: ")]
    assert len(errors) == 1
    assert errors[0].startswith(message)
    assert "Traceback" not in server.log
    assert not shared_memory()


def test_binding_that_is_not_possible_is_a_note_in_the_log(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIND_CPU", "1")
    monkeypatch.setenv("CPU_BINDING_NUM", "1000")
    with launch(*TWO, "--engine", "stub") as server:
        known_answer(server)
        for rank in (0, 1):
            assert f"rank {rank} is not bound to cores: CPU_BINDING_NUM: 1000 cores" in server.log


# -- a rank that fails ----------------------------------------------------------------------------------------------

Fault = Callable[[Serving], Any]


async def losing(
    server: Serving, fault: Fault, num: int = 10, length: int = LONG
) -> tuple[float, list[Record], list[Record]]:
    """Streams of all dialects run and 3 requests wait when the fault comes; how long it took, and their records."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(client(server, DIALECTS[i % len(DIALECTS)])) for i in range(num)]
        streams = [asyncio.ensure_future(each.send(request(length))) for each in clients]
        await until(server, num_requests_running=num)
        waiting = [asyncio.ensure_future(each.send(request(10))) for each in clients[:3]]
        await until(server, num_requests_waiting=3)
        start = time.monotonic()
        fault(server)
        lost = await asyncio.gather(*streams)
        return time.monotonic() - start, lost, await asyncio.gather(*waiting)


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_is_killed_streams_hear_it_in_their_dialect_and_those_that_wait_are_answered(
    launch: Launch, tmp_path: Path, rank: int
) -> None:
    with launch(settings(tmp_path, limits={"max_batch": 10}), *TWO) as server:
        expected = known_answer(server)
        before = server.agent_pids
        took_s, lost, waited = work(losing(server, lambda server: os.kill(before[rank], signal.SIGKILL)))
        assert took_s < 5
        for record in lost:
            assert (record.status, record.http_status) == ("failed", 200)
            assert "agent" in record.reason or "error304" in record.reason
        assert [(record.status, record.num_tokens) for record in waited] == [("answered", 10)] * 3
        assert poll(lambda: all(map(ended, before))), "the rank that lived was ended, too"
        assert known_answer(server) == expected
        idle(server)
        assert f"the agent process of rank {rank} has gone; 10 requests in flight are lost" in server.log
        assert len(children(server)) == 2
        stopped(server)
        assert "Traceback" not in server.log


def test_an_error_in_rank_1_is_heard_by_all_in_flight_and_the_next_request_is_answered(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", faulty_engine.install(tmp_path))
    with launch(settings(tmp_path, limits={"max_batch": 11}), *TWO, "--engine", "faulty") as server:
        expected = known_answer(server)

        async def failing() -> tuple[list[Record], tuple[int, Any, dict[str, str]]]:
            async with client(server, "vllm") as sender:
                streams = [asyncio.ensure_future(sender.send(request(LONG))) for _ in range(10)]
                await until(server, num_requests_running=10)
                answer = await fetched(server, COMPLETIONS, {"prompt": [1, faulty_engine.CRASH], "max_tokens": 5})
                return await asyncio.gather(*streams), answer

        lost, (status, answer, _) = work(failing())
        assert {record.status for record in lost} == {"failed"}
        assert status == 500
        assert "agent" in answer["error"]["message"]
        assert known_answer(server) == expected
        assert "rank 1 is broken" in server.log
        assert re.search(r"the agent process of rank [01] has gone; 11 requests in flight are lost", server.log)
        idle(server)
        stopped(server)


def test_a_rank_that_is_killed_idle_is_replaced_before_anybody_asks(launch: Launch) -> None:
    with launch(*TWO) as server:
        expected = known_answer(server)
        os.kill(server.agent_pids[1], signal.SIGKILL)
        assert poll(lambda: "is ready" in server.log)
        assert known_answer(server) == expected
        stopped(server)


def test_a_killed_server_takes_all_ranks_along(launch: Launch) -> None:
    with launch(*TWO) as server:

        async def killed() -> list[Record]:
            async with client(server) as sender:
                streams = [asyncio.ensure_future(sender.send(request(LONG))) for _ in range(5)]
                await until(server, num_requests_running=5)
                server.process.kill()
                return await asyncio.gather(*streams)

        assert {record.status for record in work(killed())} == {"failed"}
        server.process.wait(30)
        assert poll(lambda: all(map(ended, server.agent_pids))), "a rank lives on"
        assert not shared_memory()


def test_a_signal_while_the_ranks_start_ends_all(tmp_path: Path) -> None:
    with Serving(*TWO, log=tmp_path / "log") as serving:
        assert poll(lambda: len(children(serving)) == 2)
        stopped(serving)
        assert "Traceback" not in serving.log
