"""The oracle of this benchmark, compiled where it runs: cheaper than any client, so that the client is the limit.

The null server of llmbench tells the same truth, but it is Python itself: without gaps it would be the bottleneck.
"""

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class Truth(NamedTuple):
    """What the oracle did for one run, in seconds; instants on the clock of all processes."""

    num_requests: int
    num_events: int
    first_s: float
    """The first request had been read."""
    last_s: float
    """The last token was sent."""
    arrivals_s: list[float]
    """When each request had been read, in order."""
    ttft_s: list[float]
    gaps_s: list[float]


def build(cache: Path) -> Path:
    """Compile it, with gcc."""
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "oracle"
    subprocess.run(["gcc", "-O2", "-o", str(program), str(Path(__file__).with_name("oracle.c"))], check=True)
    return program


@contextmanager
def running(program: Path, ttft_s: float, gap_s: float, pin: list[str]) -> Iterator[str]:
    """Its URL while it runs."""
    command = [*pin, str(program), str(round(ttft_s * 1e6)), str(round(gap_s * 1e6))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def dump(url: str) -> Truth:
    """What it did since the last dump."""
    with urllib.request.urlopen(f"{url}/dump") as response:
        rows = [[int(word) for word in line.split()] for line in response.read().decode().splitlines()]
    rows = [row for row in rows if len(row) > 1]
    if not rows:
        return Truth(0, 0, 0.0, 0.0, [], [], [])
    return Truth(
        num_requests=len(rows),
        num_events=sum(len(row) - 1 for row in rows),
        first_s=min(row[0] for row in rows) / 1e9,
        last_s=max(row[-1] for row in rows) / 1e9,
        arrivals_s=sorted(row[0] / 1e9 for row in rows),
        ttft_s=[(row[1] - row[0]) / 1e9 for row in rows],
        gaps_s=[(after - before) / 1e9 for row in rows for before, after in pairwise(row[1:])],
    )
