"""`llmbench serve --engine mindspore_llama --ranks 2`: sums by MindSpore's own collectives, all else as with NumPy."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, Launch, ended, need, poll
from tests.e2e.test_faults import idle, known_answer, settings, work
from tests.e2e.test_mindspore import llmbench
from tests.e2e.test_ranks import TINY, answers, children, losing, stopped

pytestmark = [pytest.mark.mindspore, pytest.mark.slow, pytest.mark.timeout(900)]

MINDSPORE = (*TINY, "--engine", "mindspore_llama")
TWO = (*MINDSPORE, "--ranks", "2")


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    """Nothing new is left where the server was started."""
    need("mindspore")
    before = set(os.listdir(ROOT))
    yield
    assert set(os.listdir(ROOT)) == before


def test_two_ranks_give_the_answers_of_one(launch: Launch, tmp_path: Path) -> None:
    few = settings(tmp_path, limits={"max_batch": 8})
    with launch(few, *MINDSPORE, "--prefix-cache") as alone:
        expected = answers(alone)
        stopped(alone)
    with launch(few, *TWO, "--prefix-cache") as together:
        found = answers(together)
        assert [text for text, *_ in found] == [text for text, *_ in expected]
        for (_, logprobs, _), (_, others, _) in zip(found, expected, strict=True):
            assert logprobs == pytest.approx(others, abs=1e-4)
        idle(together)
        stopped(together)
        assert "Traceback" not in together.log


def test_a_run_against_two_ranks_is_answered_and_their_logits_pass_the_check_against_numpys(
    launch: Launch, tmp_path: Path
) -> None:
    config = settings(tmp_path, limits={"max_batch": 4}, threads=2, ranks=2, engine="mindspore_llama")
    with launch(config) as serving:
        assert len(serving.agent_pids) == 2
        done = llmbench("perf", "--url", serving.url, "-X", 2, "-T", 5, "--results", tmp_path / "results")
        assert "all 10 requests answered" in done.stdout, done.stdout + done.stderr
        stopped(serving)
    base, new = tmp_path / "base", tmp_path / "new"
    for folder, more in ((base, ()), (new, ("--config", config))):
        dumped = llmbench("acc", "dump", "-o", folder, "-n", 6, "--every", 5, *more)
        assert dumped.returncode == 0, dumped.stderr
    done = llmbench("acc", "compare", base, new, "--profile", "fp32")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_is_killed_the_group_is_replaced_and_nothing_is_left(
    launch: Launch, tmp_path: Path, rank: int
) -> None:
    with launch(settings(tmp_path, limits={"max_batch": 3}, kv_cache={"num_blocks": 48}), *TWO) as server:
        expected = known_answer(server)
        before = server.agent_pids
        lossy = losing(server, lambda server: os.kill(before[rank], signal.SIGKILL), num=3, length=230)
        _, lost, waited = work(lossy, within_s=400)  # another group has to compile its graphs
        assert {record.status for record in lost} == {"failed"}
        assert [(record.status, record.num_tokens) for record in waited] == [("answered", 10)] * 3
        assert poll(lambda: all(map(ended, before))), "the rank that lived was ended, too"
        assert known_answer(server) == expected
        idle(server)
        assert f"the agent process of rank {rank} has gone; 3 requests in flight are lost" in server.log
        assert len(children(server)) == 2
        stopped(server)
