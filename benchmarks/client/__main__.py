"""How wrong load generators are, against a server whose emission times are known; in turns, on one machine.

    python -m benchmarks.client --rounds 3                       llmbench and the lower bound
    python -m benchmarks.client --rounds 3 --peers all           and those peers that can be installed here

An oracle in C (oracle.c) holds core 0, each client with all its processes core 1. Every client sends the same: 32
tokens of prompt, 64 of answer; 32 streams without gaps, then 50 and 200 requests per second at 10 ms between tokens and
a true time to first token of 50 ms. Errors are what a client's own report says minus the same statistic of what the
oracle did, so a report that is right says 0. Medians over the rounds. Peers are installed into ~/.cache/llmbench-peers,
which takes some GB and minutes the first time. On a shared machine only the ratios within a round mean something.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.client import oracle
from benchmarks.client.contenders import CONTENDERS, ROOT, Contender, Job, Load, Reported, install
from benchmarks.client.watch import Watched, watch

CACHE = Path.home() / ".cache" / "llmbench-peers"
TOKENS, TTFT_S, GAP_S = 64, 0.05, 0.01
TIMEOUT_S = 120.0


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


class Target(NamedTuple):
    """A figure that llmbench is held to: at most this much, or at most this share of the best peer's."""

    label: str
    load: str
    of: Callable[[Found], float | None]
    limit: float
    share: float | None
    unit: str
    scale: float


TARGETS = (
    Target("CPU-s per 1,000 requests", "32 streams", lambda f: f.cpu_s_per_1000, 0.36, 0.80, "s", 1),
    Target("TTFT mean", "200/s", lambda f: f.ttft_mean, 0.25e-3, 0.20, "ms", 1e3),
    Target("TTFT p99", "200/s", lambda f: f.ttft_p99, 1.5e-3, 0.33, "ms", 1e3),
    Target("ICL p99", "200/s", lambda f: f.icl_p99, 0.5e-3, 0.33, "ms", 1e3),
    Target("send lag p99", "200/s", lambda f: f.late_p99, 1.2e-3, None, "ms", 1e3),
    Target("CPU-s per 1,000 requests", "200/s", lambda f: f.cpu_s_per_1000, 1.2, 0.45, "s", 1),
    Target("TTFT p99", "600/s", lambda f: f.ttft_p99, 5e-3, None, "ms", 1e3),
    Target("peak RSS", "32 streams", lambda f: f.rss_bytes, 115e6, 0.25, "MB", 1e-6),
    Target("launch to first request", "50/s", lambda f: f.first_request_s, 0.5, 0.10, "s", 1),
)
HELP_LIMIT_S, HELP_SHARE = 0.13, 0.25
RATES = (50, 200, 600)


def main() -> None:
    """Measure in turns and print Markdown."""
    options = _options()
    loads = [load for load in _loads(options.seconds) if load.name in (options.loads or load.name).split(",")]
    wanted = ["llmbench", "raw", *options.peers]
    CACHE.mkdir(parents=True, exist_ok=True)
    contenders = [CONTENDERS[name] for name in wanted if _installed(CONTENDERS[name])]
    program = oracle.build(CACHE)
    found: dict[tuple[str, str], list[Found]] = {}
    for number in range(options.rounds):
        for load in loads:
            for contender in contenders:
                _say(f"round {number + 1} of {options.rounds}: {load.name}, {contender.name}")
                if (one := _run(contender, load, program)) is not None:
                    found.setdefault((contender.name, load.name), []).append(one)
    helps = {contender.name: _help_s(contender) for contender in contenders}
    names = [contender.name for contender in contenders]
    print(
        f"{os.cpu_count()} CPUs, {options.rounds} rounds of {options.seconds:g} s; medians; errors: reported - true\n"
    )
    for load in loads:
        print(_table(load, names, found, helps))
    print(_verdicts(names, found, helps))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the paced loads send")
    parser.add_argument("--peers", default="", help="`all`, or names with commas")
    parser.add_argument("--loads", default="", help="only these, as they are called in the tables: `50/s,200/s`")
    options = parser.parse_args()
    peers = [name for name in CONTENDERS if CONTENDERS[name].packages]
    options.peers = peers if options.peers == "all" else [name for name in options.peers.split(",") if name]
    if wrong := set(options.peers) - set(peers):
        parser.error(f"--peers: unknown {', '.join(sorted(wrong))}; known: all, {', '.join(peers)}")
    return options


def _loads(seconds: float) -> list[Load]:
    paced = [Load(f"{rate}/s", rate, 0, max(1, round(rate * seconds)), TOKENS, TTFT_S, GAP_S) for rate in RATES]
    return [Load("32 streams", 0.0, 32, round(400 * seconds), TOKENS, 0.0, 0.0), *paced]


def _installed(contender: Contender) -> bool:
    if contender.packages:
        _say(f"{contender.name}: looking for it in {CACHE}")
    reason = install(contender, CACHE)
    if reason:
        _say(f"{contender.name} is left out: {reason}")
    return not reason


def _run(contender: Contender, load: Load, program: Path) -> Found | None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with oracle.running(program, load.ttft_s, load.gap_s, _pin(0)) as url:
            job = Job(load, url, folder, CACHE / contender.name)
            watched = watch([*_pin(1), *contender.command(job)], folder, TIMEOUT_S, _environment())
            truth = oracle.dump(url)
        try:
            return _found(load, truth, watched, contender.reported(job))
        except (OSError, LookupError, ValueError, TypeError, StopIteration) as error:
            lines = (folder / "stderr.txt").read_text(errors="replace").strip().splitlines()
            _say(f"  no result (status {watched.status}; {error!r}); its last words: {' | '.join(lines[-3:])[:300]}")
            return None


def _found(load: Load, truth: oracle.Truth, watched: Watched, reported: Reported) -> Found:
    def off(mine: float | None, true: float) -> float | None:
        return None if mine is None else mine - true

    time_s = truth.last_s - truth.first_s
    return Found(
        answered=truth.num_requests,
        events_per_s=truth.num_events / time_s,
        cpu_s_per_1000=1000 * watched.cpu_s(truth.first_s, truth.last_s) / truth.num_requests,
        ttft_mean=off(reported.ttft_mean, statistics.fmean(truth.ttft_s)),
        ttft_p99=off(reported.ttft_p99, _p99(truth.ttft_s)),
        icl_p99=off(reported.icl_p99, _p99(truth.gaps_s)),
        late_p99=reported.late_p99,
        rss_bytes=watched.peak_rss_bytes,
        first_request_s=truth.first_s - watched.launched_s,
    )


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def _help_s(contender: Contender) -> float:
    """The fastest of five, the first of which may have read files from the disk."""
    taken = []
    for _ in range(5):
        before_s = time.monotonic()
        subprocess.run(contender.help(CACHE / contender.name), capture_output=True, env=_environment())
        taken.append(time.monotonic() - before_s)
    return min(taken)


def _pin(core: int) -> list[str]:
    return ["taskset", "-c", str(core)] if (os.cpu_count() or 1) > 1 else []


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


# -- what is printed ---------------------------------------------------------------------------------------------------


def _table(load: Load, names: Sequence[str], found: dict[tuple[str, str], list[Found]], helps: dict[str, float]) -> str:
    """One line for each client at a load, median (lowest - highest)."""
    heads = [
        "client",
        "answered",
        "k events/s",
        "CPU-s per 1,000",
        "TTFT mean, ms",
        "TTFT p99, ms",
        "ICL p99, ms",
        "send lag p99, ms",
    ]
    heads += ["peak RSS, MB", "to first request, s", "`--help`, s"]
    lines = [f"### {load.name}\n", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name in names:
        runs = found.get((name, load.name), [])
        cells = [
            f"{min((run.answered for run in runs), default=0):,} of {load.number:,}",
            _cell([run.events_per_s for run in runs], 1e-3, 1),
            _cell([run.cpu_s_per_1000 for run in runs], 1, 2),
            *(_cell([run[index] for run in runs], 1e3, 2, signed=True) for index in (3, 4, 5, 6)),
            _cell([run.rss_bytes for run in runs], 1e-6, 0),
            _cell([run.first_request_s for run in runs], 1, 2),
            f"{helps[name]:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float | None], scale: float, digits: int, *, signed: bool = False) -> str:
    known = [value * scale for value in values if value is not None]
    if not known:
        return "-"
    sign = "+" if signed else ""
    low, middle, high = (f"{value:{sign}.{digits}f}" for value in (min(known), statistics.median(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _verdicts(names: Sequence[str], found: dict[tuple[str, str], list[Found]], helps: dict[str, float]) -> str:
    """Each target, and whether it is met."""
    lines = [
        "### llmbench against its targets\n",
        "| figure | llmbench | target | lower bound | best peer | of the peer's | met |",
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---|")

    def median(name: str, target: Target) -> float:
        values = [target.of(run) for run in found.get((name, target.load), [])]
        return statistics.median(known) if (known := [value for value in values if value is not None]) else math.nan

    rows = [
        (f"{target.label}, {target.load}", {name: median(name, target) for name in names}, target) for target in TARGETS
    ]
    rows.append(("`--help`", helps, Target("", "", lambda _: None, HELP_LIMIT_S, HELP_SHARE, "s", 1)))
    for label, values, target in rows:
        mine, bound = values["llmbench"] * target.scale, values["raw"] * target.scale
        peers = [values[name] for name in names if name not in ("llmbench", "raw") and values[name] == values[name]]
        best = min((abs(value) for value in peers), default=math.nan) * target.scale
        within = mine <= target.limit * target.scale
        wanted = f"≤ {target.limit * target.scale:g} {target.unit}"
        wanted += "" if target.share is None else f", ≤ {target.share:g} of the best peer"
        met = "yes" if within and not mine > (target.share or math.inf) * best else "no"
        met = met if mine == mine else "not measured"
        lines.append(f"| {label} | {mine:.3g} | {wanted} | {bound:.3g} | {best:.3g} | {mine / best:.2f} | {met} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
