"""What is measured: one client at one load, the highest load that a client bears, its arrivals, its lateness alone."""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.client import oracle
from benchmarks.client.contenders import CONTENDERS, ROOT, Contender, Job, Load, Reported
from benchmarks.client.watch import Watched, watch

TIMEOUT_S = 120.0
TOKENS, TTFT_S, GAP_S = 64, 0.05, 0.01
BEARABLE_S = 5e-3
LADDER = (25, 50, 100, 200, 400, 600, 800, 1000, 1200, 1500, 2000)
WORKERS = range(1, 9)
_TRIES = 2  # of a step of the ladder: one stall of the machine is not the client's limit


class Found(NamedTuple):
    """One run of one client; errors and times in seconds."""

    answered: int
    events_per_s: float
    cpu_s_per_1000: float
    ttft_mean: float | None
    ttft_p99: float | None
    icl_p99: float | None
    late_p99: float | None
    rss_bytes: float
    first_request_s: float
    offered: float | None
    """How far the rate of the requests as they came is from that of the plan; of peers, from what was asked for."""
    dispersion: float | None
    """Variance over mean of the requests in each second: 1 where they are a Poisson process."""
    status: int


class Lab(NamedTuple):
    """Where everything runs: the oracle's program, the folder with what was installed; and what was found so far."""

    program: Path
    cache: Path
    log: list[tuple[str, Load, Found]]


def load_at(rate: float, seconds: float) -> Load:
    """Requests as a Poisson process of this rate."""
    return Load(f"{rate:g}/s", rate, 0, max(2, round(rate * seconds)), TOKENS, TTFT_S, GAP_S)


def run(contender: Contender, load: Load, lab: Lab, *, pinned: bool = True) -> Found | None:
    """One run; None when there is no result, which is told."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with oracle.running(lab.program, load.ttft_s, load.gap_s, pin(0) if pinned else []) as url:
            job = Job(load, url, folder, lab.cache / contender.name)
            words = [*(pin(1) if pinned else []), *contender.command(job)]
            watched = watch(words, folder, TIMEOUT_S, environment())
            truth = oracle.dump(url)
        try:
            found = _found(load, truth, watched, contender.reported(job))
        except (OSError, LookupError, ValueError, TypeError, StopIteration) as error:
            lines = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
            say(f"  no result (status {watched.status}; {error!r}); its last words: {' | '.join(lines[-3:])[:300]}")
            return None
    lab.log.append((contender.name, load, found))
    return found


def highest(contender: Contender, lab: Lab, begin: int, seconds: float) -> float:
    """The highest rate of the ladder, climbed from `begin`, at which all is answered and TTFT p99 within 5 ms.

    0 when there is none.
    """
    place = LADDER.index(begin)
    if not _bears(contender, LADDER[place], lab, seconds):
        while place and not _bears(contender, LADDER[place - 1], lab, seconds):
            place -= 1
        return LADDER[place - 1] if place else 0.0
    while place + 1 < len(LADDER) and _bears(contender, LADDER[place + 1], lab, seconds):
        place += 1
    return LADDER[place]


def _bears(contender: Contender, rate: int, lab: Lab, seconds: float) -> bool:
    load = load_at(rate, seconds)
    for _ in range(_TRIES):
        found = run(contender, load, lab)
        error = math.inf if found is None or found.ttft_p99 is None else found.ttft_p99
        answered = 0 if found is None else found.answered
        say(f"  {contender.name} at {rate}/s: {answered} of {load.number} answered, TTFT p99 {error * 1e3:+.2f} ms")
        if answered == load.number and error <= BEARABLE_S:
            return True
    return False


def dispersions(contenders: Sequence[Contender], lab: Lab, seconds: float) -> dict[str, float | None]:
    """The index of dispersion of each client's arrivals at 20 requests per second; of llmbench, with 1 to 8 processes.

    What starts in a second sends side by side, each to an oracle of its own, in no core's place: milliseconds do not
    show in bins of one second. The peers, which compute for ten seconds and more before they send, go one by one.
    """
    load = Load("20/s", 20.0, 0, round(20 * seconds), 4, TTFT_S, GAP_S)
    sides = {
        f"llmbench, workers {number}": (CONTENDERS["llmbench"], load._replace(workers=number)) for number in WORKERS
    }
    sides["raw"] = (CONTENDERS["raw"], load)
    with ThreadPoolExecutor(len(sides)) as pool:
        done = {name: pool.submit(run, *side, lab, pinned=False) for name, side in sides.items()}
    found = {name: one.result() for name, one in done.items()}
    found |= {one.name: run(one, load, lab, pinned=False) for one in contenders if one.name not in ("llmbench", "raw")}
    return {name: None if one is None else one.dispersion for name, one in found.items()}


def lags(seconds: float) -> dict[str, float]:
    """How late 1 % of 1,000 sends per second are when nothing is received: llmbench's, and a kernel timer's alone."""
    words = [*pin(1), sys.executable, "-m", "benchmarks.client.lag", str(seconds)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=ROOT, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def seen_faults() -> tuple[int, int]:
    """Of how many planted faults the self-test sees all, and nothing else; and how many there are."""
    words = [sys.executable, "-m", "llmbench", "selftest", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    cases = json.loads(done.stdout)["cases"]
    for case in cases:
        if case["outcome"] != "ok":
            say(f"  {case['name']}: {case['outcome']}, missing {case['missing']}, extra {case['extra']}")
    return sum(case["outcome"] == "ok" for case in cases), len(cases)


def help_s(contender: Contender, lab: Lab) -> float:
    """The fastest of five, the first of which may have read files from the disk."""
    taken = []
    for _ in range(5):
        before_s = time.monotonic()
        subprocess.run(contender.help(lab.cache / contender.name), capture_output=True, env=environment())
        taken.append(time.monotonic() - before_s)
    return min(taken)


def pin(core: int) -> list[str]:
    """What stands before a command that is to have this core."""
    return ["taskset", "-c", str(core)] if (os.cpu_count() or 1) > 1 else []


def environment() -> dict[str, str]:
    """Of every client."""
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


def say(text: str) -> None:
    """What is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def _found(load: Load, truth: oracle.Truth, watched: Watched, reported: Reported) -> Found:
    def off(mine: float | None, true: float) -> float | None:
        return None if mine is None else mine - true

    planned_s = reported.planned_s or (len(truth.arrivals_s) - 1) / load.rate if load.rate else None
    return Found(
        answered=truth.num_requests,
        events_per_s=truth.num_events / (truth.last_s - truth.first_s),
        cpu_s_per_1000=1000 * watched.cpu_s(truth.first_s, truth.last_s) / truth.num_requests,
        ttft_mean=off(reported.ttft_mean, statistics.fmean(truth.ttft_s)),
        ttft_p99=off(reported.ttft_p99, p99(truth.ttft_s)),
        icl_p99=off(reported.icl_p99, p99(truth.gaps_s)),
        late_p99=reported.late_p99,
        rss_bytes=watched.peak_rss_bytes,
        first_request_s=truth.first_s - watched.launched_s,
        offered=None if planned_s is None else abs(planned_s / (truth.arrivals_s[-1] - truth.arrivals_s[0]) - 1),
        dispersion=_dispersion(truth.arrivals_s),
        status=watched.status,
    )


def _dispersion(arrivals_s: Sequence[float]) -> float | None:
    """Variance over mean of the arrivals in whole seconds from the first on."""
    counts = Counter(_seconds(arrivals_s))
    in_each = [counts[number] for number in range(int(arrivals_s[-1] - arrivals_s[0]))]
    return statistics.variance(in_each) / statistics.fmean(in_each) if len(in_each) > 1 else None


def _seconds(arrivals_s: Sequence[float]) -> Iterator[int]:
    return (int(at - arrivals_s[0]) for at in arrivals_s)


def p99(values: Sequence[float]) -> float:
    """Linear interpolation between neighbours."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]
