"""How often a clean run is not VALID: short runs of `llmbench perf`, again and again, of servers that are sound.

    python benchmarks/clean_repeats.py [--repeats 100] [--seconds 4] [--servers null stub embedded] [--keep FOLDER]

Three servers in turn: the null server (times that are spread as a real one's), the stack around a stub engine, and the
stack with the embedded model; Poisson arrivals, another seed each time. Prints how many runs were VALID, which checks
tripped, and the one-sided 95 % bound of the share (Clopper and Pearson). Target: at most 1 of 100 is not VALID, on a
machine that is calm; its load average and the time stolen from it are printed. Exit status 1 when it is missed.
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

from llmbench.loadgen import null_server
from llmbench.loadgen.null_server import Settings
from llmbench.serving.launch import launched
from llmbench.tokenizer import embedded_path

TARGET = 0.01
CORES = max(1, (os.cpu_count() or 1) - 1)  # one is left to the client
SERVERS = {
    "null": "the null server, TTFT 50 ms, 10 ms a token, spread",
    "stub": "the stack, a stub engine of 5 ms a step",
    "embedded": "the stack, the embedded model",
}
QPS = {"null": 40.0, "stub": 20.0, "embedded": 5.0}
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
    folder: str


@contextlib.contextmanager
def url_of(server: str) -> Iterator[str]:
    """A server of this kind, answering."""
    if server == "null":
        with null_server.launched(Settings(spread=0.3, tokenizer=str(embedded_path()))) as null:
            yield null.url
    else:
        with launched(FLAGS[server]) as stack:
            yield stack.url


def measure(server: str, url: str, seed: int, seconds: float, results: Path) -> Run:
    """One run of `llmbench perf` in a process of its own."""
    name = f"{server}-{seed:03d}"
    command = [sys.executable, "-m", "llmbench", "perf", "--url", url, "-X", str(QPS[server]), "-T", str(seconds)]
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
    folder = next(results.glob(f"*-{name}*"))
    return Run(server, summary["verdict"], tripped, str(folder))


def upper(number: int, of: int, alpha: float = 0.05) -> float:
    """The largest share with which so many or fewer come with probability alpha."""
    return 1.0 if number == of else float(stats.beta.ppf(1 - alpha, number + 1, of - number))


def show(runs: list[Run], stolen_s: float) -> bool:
    """Print; whether the target is met."""
    table = Table("server", "runs", "VALID", "INVALID", "INCONCLUSIVE", "checks that tripped")
    for server in dict.fromkeys(run.server for run in runs):
        own = [run for run in runs if run.server == server]
        verdicts = Counter(run.verdict for run in own)
        alarms = Counter(check.id for run in own for check in run.tripped)
        shown = ", ".join(f"{name} {count}" for name, count in alarms.most_common()) or "none"
        counts = (str(verdicts[word]) for word in ("VALID", "INVALID", "INCONCLUSIVE"))
        table.add_row(SERVERS[server], str(len(own)), *counts, shown)
    Console().print(table)
    bad = sum(run.verdict != "VALID" for run in runs)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"load average {load} on {os.cpu_count()} cores; {stolen_s:.1f} s of CPU time stolen by the host")
    print(f"{bad} of {len(runs)} runs are not VALID: at most {100 * upper(bad, len(runs)):.1f} % with 95 % confidence")
    met = bad <= max(1, int(TARGET * len(runs)))
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
    stolen_s = float(getattr(psutil.cpu_times(), "steal", 0.0))
    with contextlib.ExitStack() as stack:
        results = given.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {server: stack.enter_context(url_of(server)) for server in given.servers}
        for seed in range(given.repeats):
            server = given.servers[seed % len(given.servers)]
            runs.append(measure(server, urls[server], seed, given.seconds, results))
            for check in runs[-1].tripped:
                print(f"{runs[-1].folder}: {check.id} {check.verdict}, {check.value} against {check.limit}")
    if not show(runs, float(getattr(psutil.cpu_times(), "steal", 0.0)) - stolen_s):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
