"""`llmbench maxload` against a server whose queue is known: the edge that a simulation gives is within the bounds."""

import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from heapq import heapify, heapreplace
from pathlib import Path

import numpy as np
import pytest

from llmbench.loadgen.null_server import NullServer, Settings, launched

TTFT_S, GAP_S, TOKENS, SLOTS = 0.02, 0.004, 8, 2
SERVICE_S = TTFT_S + (TOKENS - 1) * GAP_S
LIMIT_S = 0.08
ALWAYS_KEPT = "ttft:p90<5s"  # here, however busy the machine is
NOISE = ("lateness", "rate", "arrivals", "stalls", "client-cpu", "instrument", "ledger-queue")


@pytest.fixture
def server() -> Iterator[NullServer]:
    with launched(Settings(ttft_s=TTFT_S, gap_s=GAP_S, num_tokens=TOKENS, slots=SLOTS)) as running:
        yield running


def share_within(rate: float) -> float:
    """Of Poisson arrivals at a server of two slots with a fixed service time: who has a first token in time."""
    rng = np.random.default_rng(0)
    free = [0.0] * SLOTS
    heapify(free)
    within, now, num = 0, 0.0, 100_000
    for gap in rng.exponential(1 / rate, num).tolist():
        now += gap
        begun = max(now, free[0])
        heapreplace(free, begun + SERVICE_S)
        within += begun + TTFT_S - now < LIMIT_S
    return within / num


def search(
    tmp_path: Path, url: str, *flags: str, slo: str = f"ttft:p90<{LIMIT_S * 1e3:g}ms"
) -> "subprocess.CompletedProcess[str]":
    allow = [word for each in NOISE for word in ("--allow", each)]
    command = ["maxload", "--slo", slo, "--url", url, "--dialect", "openai_completions"]
    common = ["--max-new-tokens", str(TOKENS), "--results", str(tmp_path), *allow, *flags]
    return subprocess.run([sys.executable, "-m", "llmbench", *command, *common], capture_output=True, text=True)


@pytest.mark.alone
def test_the_edge_of_a_queue_that_is_known_lies_between_the_bounds(tmp_path: Path, server: NullServer) -> None:
    done = search(tmp_path, server.url, "--round-time", "3", "--precision", "0.6", "--json")
    assert done.returncode in (0, 4), done.stderr
    found = json.loads(done.stdout)
    assert share_within(found["low"]) > 0.9, found
    assert share_within(found["high"]) < 0.9, found
    assert done.returncode == 4 or found["high"] / found["low"] <= 1.6
    folder = next(tmp_path.iterdir())
    rows = list(csv.DictReader((folder / "maxload.csv").read_text().splitlines()))
    assert [float(row["rate"]) for row in rows] == sorted(probe["rate"] for probe in found["probes"])
    assert all(
        (folder / "rounds" / name / "journal.jsonl").is_file() for row in found["probes"] for name in row["runs"]
    )


def test_a_search_that_ran_out_of_time_is_gone_on_with(tmp_path: Path, server: NullServer) -> None:
    first = search(tmp_path, server.url, "--round-time", "2", "--start", "5", "--budget", "1", slo=ALWAYS_KEPT)
    assert first.returncode == 4, first.stderr
    assert "Sustains 5 requests/s" in first.stdout
    folder = next(tmp_path.iterdir())
    assert f"--resume {folder}" in first.stdout.replace("\n", "")
    before = (folder / "probes.jsonl").read_bytes()
    settings = json.loads((folder / "search.json").read_text())
    settings["search"] |= {"budget_s": 60.0, "max_rate": 10.0}
    (folder / "search.json").write_text(json.dumps(settings))
    again = subprocess.run(
        [sys.executable, "-m", "llmbench", "maxload", "--slo", ALWAYS_KEPT, "--resume", str(folder)],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 4, again.stderr
    assert "raise that" in again.stdout
    assert (folder / "probes.jsonl").read_bytes().startswith(before)
    assert [json.loads(line)["rate"] for line in (folder / "probes.jsonl").read_text().splitlines()] == [5, 10]


def test_an_objective_that_no_rate_keeps_is_a_failed_check(tmp_path: Path, server: NullServer) -> None:
    done = search(tmp_path, server.url, "--start", "4", "--min-rate", "2", "--round-time", "2", slo="ttft:p90<10ms")
    assert done.returncode == 1, done.stderr
    assert "Does not keep ttft:p90<10ms at any rate probed" in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--slo", "tfft:p99<1s"], "did you mean ttft"),
        (["--min-rate", "5", "--max-rate", "2"], "is above --max-rate"),
        (["--resume", "nowhere"], "nowhere/search.json: cannot read"),
        (["--allow", "latness"], "--allow latness: there is no such check"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_sent(tmp_path: Path, flags: list[str], says: str) -> None:
    done = search(tmp_path, "http://127.0.0.1:9", *flags)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert not list(tmp_path.iterdir())
