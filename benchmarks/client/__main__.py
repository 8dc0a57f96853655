"""How wrong load generators are, against a server whose emission times are known; in turns, on one machine.

    python -m benchmarks.client                                   llmbench and the lower bound; about ten minutes
    python -m benchmarks.client --rounds 5 --peers all            and those peers that can be installed here
    python -m benchmarks.client --only 200/s,highest              parts of it

An oracle in C (oracle.c) holds core 0, each client with all its processes core 1. Every client sends the same: 32
tokens of prompt, 64 of answer; 32 streams without gaps, then 50, 200 and 600 requests per second at 10 ms between
tokens and a true time to first token of 50 ms. Errors are what a client's own report says minus the same statistic of
what the oracle did, so a report that is right says 0. Medians over the rounds. Peers are installed into
~/.cache/llmbench-peers, which takes some GB and minutes the first time. On a shared machine only the ratios within a
round mean something.
"""

import argparse
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.client import oracle, runs, targets
from benchmarks.client.contenders import CONTENDERS, Contender, Load, install
from benchmarks.client.runs import Found, Lab, say
from benchmarks.client.targets import Values

CACHE = Path.home() / ".cache" / "llmbench-peers"
RATES = (50, 200, 600)
BEGIN = {"llmbench": 600, "raw": 1000}
"""Where the ladder to the highest load is stepped on; peers begin at 200."""
OTHER_PARTS = ("highest", "dispersion", "lag", "detection", "help")


def main() -> None:
    """Measure part by part, and print Markdown as it is found."""
    options = _options()
    loads = [load for load in _loads(options.seconds) if load.name in options.only]
    CACHE.mkdir(parents=True, exist_ok=True)
    contenders = [CONTENDERS[name] for name in ("llmbench", "raw", *options.peers) if _installed(CONTENDERS[name])]
    names = [contender.name for contender in contenders]
    lab = Lab(oracle.build(CACHE), CACHE, [])
    found: dict[tuple[str, str], list[Found]] = {}
    held: list[str] = []
    kept: dict[str, Any] = {"cpus": os.cpu_count(), "rounds": options.rounds, "seconds": options.seconds}
    _print(
        f"{os.cpu_count()} CPUs, {options.rounds} rounds of {options.seconds:g} s; medians; errors: reported - true\n"
    )
    for load in loads:
        for number in range(options.rounds):
            for contender in contenders:
                say(f"{load.name}, round {number + 1} of {options.rounds}: {contender.name}")
                if (one := runs.run(contender, load, lab)) is not None:
                    found.setdefault((contender.name, load.name), []).append(one)
        _print(_table(load, names, found))
        figures = [figure for figure in targets.FIGURES if figure.load == load.name]
        held += [targets.line(one.target, one.load, targets.medians(one, found, names)) for one in figures]
    for part in (part for part in OTHER_PARTS if part in options.only):
        say(f"{part} ...")
        kept[part] = _other(part, contenders, lab, options.seconds)
        if part in ("highest", "lag", "help"):
            held.append(targets.line(_TARGETS[part], "", kept[part]))
        elif part == "dispersion":
            _print("### arrivals, 20/s\n", *targets.dispersion_lines(kept[part]), "")
        else:
            _print("### faults\n", *targets.detection_lines(lab.log, kept[part]), "")
    _print("### llmbench against its targets\n", targets.HEAD, *held)
    if options.json:
        kept["runs"] = [{"client": name, "load": load._asdict(), **one._asdict()} for name, load, one in lab.log]
        options.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")


_TARGETS = {"highest": targets.HIGHEST, "lag": targets.LAG, "help": targets.HELP}


def _other(part: str, contenders: Sequence[Contender], lab: Lab, seconds: float) -> Values | tuple[int, int]:
    """What the parts find that are no table of runs."""
    if part == "highest":
        return {one.name: runs.highest(one, lab, BEGIN.get(one.name, 200), seconds / 2) for one in contenders}
    if part == "dispersion":
        return runs.dispersions(contenders, lab, 60.0)
    if part == "lag":
        return runs.lags(5.0)
    if part == "help":
        return {one.name: runs.help_s(one, lab) for one in contenders}
    return runs.seen_faults()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.client", description=(__doc__ or "").splitlines()[0])
    parts = [*(load.name for load in _loads(1.0)), *OTHER_PARTS]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="how long the paced loads send")
    parser.add_argument("--peers", default="", help="`all`, or names with commas")
    parser.add_argument("--only", "--loads", default=",".join(parts), help="these parts, with commas; all: %(default)s")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="keep every run here, too")
    options = parser.parse_args()
    peers = [name for name in CONTENDERS if CONTENDERS[name].packages]
    options.peers = peers if options.peers == "all" else _words(options.peers)
    options.only = _words(options.only)
    for flag, given, known in (("--peers", options.peers, ["all", *peers]), ("--only", options.only, parts)):
        if wrong := sorted(set(given) - set(known)):
            parser.error(f"{flag}: unknown {', '.join(wrong)}; known: {', '.join(known)}")
    return options


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _loads(seconds: float) -> list[Load]:
    streams = Load("32 streams", 0.0, 32, round(400 * seconds), runs.TOKENS, 0.0, 0.0)
    return [streams, *(runs.load_at(rate, seconds) for rate in RATES)]


def _installed(contender: Contender) -> bool:
    if contender.packages:
        say(f"{contender.name}: looking for it in {CACHE}")
    reason = install(contender, CACHE)
    if reason:
        say(f"{contender.name} is left out: {reason}")
    return not reason


# -- what is printed ---------------------------------------------------------------------------------------------------


def _table(load: Load, names: Sequence[str], found: dict[tuple[str, str], list[Found]]) -> str:
    """One line for each client at a load, median (lowest to highest)."""
    heads = ["client", "answered", "k events/s", "CPU-s per 1,000", "TTFT mean, ms", "TTFT p99, ms", "ICL p99, ms"]
    heads += ["send lag p99, ms", "offered, % off", "peak RSS, MB", "to first request, s"]
    lines = [f"### {load.name}\n", f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for name in names:
        of = found.get((name, load.name), [])
        cells = [
            f"{min((run.answered for run in of), default=0):,} of {load.number:,}",
            _cell([run.events_per_s for run in of], 1e-3, 1),
            _cell([run.cpu_s_per_1000 for run in of], 1, 2),
            _cell([run.ttft_mean for run in of], 1e3, 2, signed=True),
            _cell([run.ttft_p99 for run in of], 1e3, 2, signed=True),
            _cell([run.icl_p99 for run in of], 1e3, 2, signed=True),
            _cell([run.late_p99 for run in of], 1e3, 2),
            _cell([run.offered for run in of], 100, 3),
            _cell([run.rss_bytes for run in of], 1e-6, 0),
            _cell([run.first_request_s for run in of], 1, 2),
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


def _print(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
