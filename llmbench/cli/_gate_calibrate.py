"""`gate calibrate`: what the gate does on this machine when nothing differs."""

import sys
from pathlib import Path

import msgspec
import numpy as np

from llmbench.cli import _compare, _gate
from llmbench.metrics.compare.looks import looks
from llmbench.metrics.compare.power import Power, power
from llmbench.report import files


def main(path: Path, side: _gate.Side, pairs: int, results: Path, json: Path | None) -> None:
    """Make A/A pairs, and print what they say."""
    settings = _gate.read(path)
    experiment = _gate.Experiment(settings, files.new_folder(results, "gate-calibrate"))
    twins = msgspec.structs.replace(side, name="a"), msgspec.structs.replace(side, name="b")
    for number in range(1, pairs + 1):
        experiment.pair(twins)
        print(f"pair {number} of {pairs}", file=sys.stderr)
    primaries = settings.primaries()
    looked = list(looks(settings.max_repeats, settings.alpha))
    found = [
        power(
            pair.primary.metric,
            pair.primary.delta,
            np.log(np.array(pair.b.values)) - np.log(np.array(pair.a.values)),
            looked,
            len(primaries),
        )
        for pair in _compare.pairs(primaries, experiment.runs["a"], experiment.runs["b"])
    ]
    for each in found:
        print(_line(each, settings.max_repeats))
    print(f"files: {experiment.folder}")
    if json is not None:
        files.write_json(json, {"settings": path, "pairs": pairs, "metrics": found})


def _line(each: Power, most: int) -> str:
    smallest = "only by more than a doubling" if each.smallest is None else f"{each.smallest:.1%}"
    return (
        f"{each.metric}: runs side by side differ by {each.deviation:.2%}; false alarms {each.false_alarms:.2%}; "
        f"smallest slow-down that 95 of 100 gates of {most} repeats find: {smallest} (delta {each.delta:.1%})"
    )
