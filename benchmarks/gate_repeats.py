"""The gate for real: servers with a stub engine of 10 ms a step, gated against themselves and against a slower one.

    python benchmarks/gate_repeats.py [--gates 20] [--slower 0.1]

Each gate is `llmbench gate` with servers, plan and client of its own. Targets: no gate of equal builds says regression,
the one of the slower build does. Exit status 1 when they are missed.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from llmbench.metrics.compare import EXIT

STEP_S = 0.01
SETTINGS = """
load: {qps: 20, num_requests: 40, max_new_tokens: 8, ignore_eos: true, dataset: alpaca_521, calibrate: false}
metrics:
  tpot:mean: {delta: 0.02}
  e2el:mean: {delta: 0.02}
max_repeats: 8
"""
WORDS = {code: verdict for verdict, code in EXIT.items()}


def gate(folder: Path, step_a_s: float, step_b_s: float) -> str:
    """One gate: its verdict, or "not valid"."""
    (folder / "gate.yaml").write_text(SETTINGS)
    for name, step_s in (("a", step_a_s), ("b", step_b_s)):
        (folder / f"{name}.yaml").write_text(f"model: embedded\nengine: stub\nstep_time_s: {step_s}\n")
    command = [sys.executable, "-m", "llmbench", "gate", "--settings", str(folder / "gate.yaml"), "--one-line"]
    command += ["--a", str(folder / "a.yaml"), "--b", str(folder / "b.yaml"), "--results", str(folder / "results")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in (*WORDS, 3):
        raise SystemExit(f"the gate ended with {done.returncode}: {done.stderr}")
    said = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1]
    looks = [line for line in done.stderr.splitlines() if line.startswith("after")]
    print(f"{step_a_s * 1e3:g} ms and {step_b_s * 1e3:g} ms: {said}; {len(looks)} looks", flush=True)
    return WORDS.get(done.returncode, "not valid")


def main() -> None:
    """Gate, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gates", type=int, default=20)
    parser.add_argument("--slower", type=float, default=0.1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        slower = gate(Path(scratch), STEP_S, STEP_S * (1 + given.slower))
        alike = Counter(gate(Path(scratch), STEP_S, STEP_S) for _ in range(given.gates))
    print(f"{given.slower:.0%} slower: {slower}; equal builds: {dict(alike)}")
    met = slower == "regression" and not alike["regression"]
    print(f"targets: {'met' if met else 'MISSED'}")
    if not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
