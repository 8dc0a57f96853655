"""How often a clean run is not VALID: short runs of `llmbench perf`, again and again, of servers that are sound.

    python benchmarks/clean_repeats.py [--repeats 100] [--seconds 4] [--servers null stub embedded] [--keep FOLDER]

Three servers in turn: the null server (times that are spread as a real one's), the stack around a stub engine, and the
stack with the embedded model; Poisson arrivals, another seed each time. Prints how many runs were VALID, which checks
tripped, and the one-sided 95 % bound of the share (Clopper and Pearson). Target: at most 1 of 100 is not VALID. A run
is not clean while others use the machine: one in which they had more than a tenth of its CPU time is not counted.
Exit status 1 when the target is missed.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
from rich.console import Console
from rich.table import Table
from scipy import stats

from llmbench.cli._machine import OTHERS_BUSY, Others
from llmbench.loadgen import null_server
from llmbench.loadgen.null_server import Settings
from llmbench.serving.launch import launched
from llmbench.tokenizer import embedded_path

TARGET = 0.01
CORES = max(1, (os.cpu_count() or 1) - 1)  # one is left to the client
SERVERS = {
    "null": "null server",
    "stub": "stack, stub engine",
    "embedded": "stack, embedded model",
}
QPS = {"null": 40.0, "stub": 20.0, "embedded": 15.0}
FLAGS = {
    "stub": ["--model", "random:tiny", "--engine", "stub", "--step-time", "0.005"],
    "embedded": ["--model", "embedded", "--threads", str(CORES)],
}


class Tripped(msgspec.Struct, frozen=True):
    """A check of a run that was not ok."""

    id: str
    verdict: str
    value: float | None
    limit: float | None


class Run(msgspec.Struct, frozen=True):
    """What one run came to."""

    server: str
    verdict: str
    tripped: list[Tripped]
    others: float
    """The share of the machine's CPU time that went to neither the run nor its server, or was stolen by the host."""


class Target(msgspec.Struct, frozen=True):
    """A server that answers, and its processes."""

    url: str
    pid: int

    def cpu_s(self) -> float:
        """CPU time of all of them so far."""
        root = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(one.user + one.system for one in times)


@contextlib.contextmanager
def target(server: str) -> Iterator[Target]:
    """A server of this kind."""
    if server == "null":
        with null_server.launched(Settings(spread=0.3, tokenizer=str(embedded_path()))) as null:
            yield Target(null.url, null.pid)
    else:
        with launched(FLAGS[server]) as stack:
            yield Target(stack.url, stack.pid)


def measure(server: str, there: Target, seed: int, seconds: float, results: Path) -> Run:
    """One run of `llmbench perf` in a process of its own."""
    name, watch = f"{server}-{seed:03d}", Others(there.cpu_s)
    command = [sys.executable, "-m", "llmbench", "perf", "--url", there.url, "-X", str(QPS[server]), "-T", str(seconds)]
    command += ["--seed", str(seed), "--name", name, "--results", str(results), "--json"]
    command += ["--dialect", "openai_completions", "--ignore-eos", "--max-new-tokens", "16"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (0, 3, 4):
        raise SystemExit(f"run {name} ended with {done.returncode}: {done.stderr}")
    summary = msgspec.json.decode(done.stdout)
    tripped = [
        Tripped(check["id"], check["verdict"], check["value"], check["limit"])
        for check in summary["checks"]
        if check["verdict"] in ("failed", "inconclusive")
    ]
    return Run(server, summary["verdict"], tripped, watch.share())


def upper(number: int, of: int, alpha: float = 0.05) -> float:
    """The largest share with which so many or fewer come with probability alpha."""
    return 1.0 if number == of else float(stats.beta.ppf(1 - alpha, number + 1, of - number))


def show(runs: list[Run]) -> bool:
    """Print; whether the target is met."""
    table = Table("server", "machine", "runs", "VALID", "INVALID", "INCONCLUSIVE", "checks that tripped")
    for server, calm in dict.fromkeys((run.server, run.others <= OTHERS_BUSY) for run in runs):
        own = [run for run in runs if (run.server, run.others <= OTHERS_BUSY) == (server, calm)]
        verdicts = Counter(run.verdict for run in own)
        alarms = Counter(check.id for run in own for check in run.tripped)
        shown = ", ".join(f"{name} {count}" for name, count in alarms.most_common()) or "none"
        counts = (str(verdicts[word]) for word in ("VALID", "INVALID", "INCONCLUSIVE"))
        table.add_row(SERVERS[server], "calm" if calm else "shared", str(len(own)), *counts, shown)
    Console().print(table)
    print(f"{sum(run.verdict != 'VALID' for run in runs)} of all {len(runs)} runs are not VALID")
    counted = [run for run in runs if run.others <= OTHERS_BUSY]
    if not counted:
        print("in every run others used the machine: nothing can be said")
        return False
    bad = sum(run.verdict != "VALID" for run in counted)
    most = 100 * upper(bad, len(counted))
    print(f"{bad} of {len(counted)} clean runs are not VALID: at most {most:.1f} % with 95 % confidence")
    met = bad <= max(1, int(TARGET * len(counted)))
    print(f"target: at most 1 of 100: {'met' if met else 'MISSED'}")
    return met


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--servers", nargs="+", choices=list(SERVERS), default=list(SERVERS))
    parser.add_argument("--keep", type=Path, help="where the folders of the runs stay; else they are thrown away")
    given = parser.parse_args()
    runs: list[Run] = []
    with contextlib.ExitStack() as stack:
        results = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = {server: stack.enter_context(target(server)) for server in given.servers}
        for seed in range(given.repeats):
            server = given.servers[seed % len(given.servers)]
            runs.append(measure(server, targets[server], seed, given.seconds, results))
            tripped = (f"{one.id} {one.verdict}, {one.value} against {one.limit}" for one in runs[-1].tripped)
            print(
                f"{server}-{seed:03d} {runs[-1].verdict}, others {runs[-1].others:.0%}", *tripped, sep="; ", flush=True
            )
    if not show(runs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
