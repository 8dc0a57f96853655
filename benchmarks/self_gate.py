"""The gate on llmbench itself: is this tree slower than an earlier commit, in what the stack costs and in comparing.

    python benchmarks/self_gate.py [--against HEAD~1] [--most 5] [--delta 0.2]

Both trees take the same probes in turn (ABBA), each in a process of its own. Exit status 1 for a regression; a verdict
that stays open, or an earlier tree that is not there or too different to be probed, fails nothing and says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from llmbench.metrics.compare import Pair, Primary, compare
from llmbench.metrics.compare.effects import Measured, Settings
from llmbench.metrics.compare.looks import looks
from llmbench.report import regression
from llmbench.report.terminal import Terminal

ROOT = Path(__file__).parents[1]
PROBE = Path(__file__).parent / "self_gate_probe.py"
METRICS = {
    "stack:step_s_at_1": "lower",
    "stack:tokens_per_s_at_64": "higher",
    "acc_compare:bytes_per_s": "higher",
}


def probe(tree: Path) -> dict[str, float] | None:
    """The figures of a tree; None when the probe does not run in it."""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run([sys.executable, str(PROBE)], env=environment, cwd=tree, capture_output=True, text=True)
    if done.returncode:
        print(f"the probe does not run in {tree}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
        return None
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def judge(before: Path, most: int, delta: float) -> int:
    """Probe both trees until there is a verdict; the exit status."""
    primaries = [Primary(metric=name, better=better, delta=delta) for name, better in METRICS.items()]  # type: ignore[arg-type]
    runs: dict[Path, list[dict[str, float]]] = {before: [], ROOT: []}
    for look in looks(most, Settings().alpha):
        while len(runs[ROOT]) < look.num_runs:
            for tree in (before, ROOT) if len(runs[ROOT]) % 2 == 0 else (ROOT, before):
                found = probe(tree)
                if found is None and tree == before:
                    print("nothing to compare with: not judged")
                    return 0
                if found is None:
                    return 1
                runs[tree].append(found)
        pairs = [
            Pair(primary=primary, a=_measured(runs[before], primary), b=_measured(runs[ROOT], primary))
            for primary in primaries
        ]
        verdict = compare(pairs, level=look.level, paired=True)
        if verdict.verdict != "inconclusive":
            break
    regression.show(Terminal(), verdict, f"{before.name}, {look.num_runs} runs", "this tree")
    return int(verdict.verdict == "regression")


def _measured(runs: list[dict[str, float]], primary: Primary) -> Measured:
    return Measured(values=tuple(run[primary.metric] for run in runs))


def main() -> None:
    """Check the earlier commit out beside this tree, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", default="HEAD~1")
    parser.add_argument("--most", type=int, default=5)
    parser.add_argument("--delta", type=float, default=0.2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="llmbench-self-gate-") as folder:
        tree = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        added = subprocess.run([*git, "add", "--detach", str(tree), given.against], capture_output=True, text=True)
        if added.returncode:
            print(f"no {given.against} here ({added.stderr.strip().splitlines()[-1]}): not judged")
            return
        try:
            status = judge(tree, given.most, given.delta)
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
