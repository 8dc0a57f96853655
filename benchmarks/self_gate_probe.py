"""What `self_gate` runs in each tree: prints its figures as JSON on the last line.

It is this file in both trees, over the llmbench that PYTHONPATH names.
"""

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmbench.accuracy.compare import compare
from llmbench.cli import _layers
from llmbench.logits.store import INDEX, Manifest, Writer

VOCAB, ROWS, REQUESTS = 32_000, 64, 16


def stack() -> dict[str, float]:
    """Seconds per step at batch 1 and tokens per second at batch 64, with a stub engine whose steps take no time."""
    found = {}
    for batch, tokens in ((1, 512), (64, 64)):
        load = _layers.Load(concurrency=batch, num_requests=2 * batch, max_new_tokens=tokens)
        settings = _layers.Stack(model="random:tiny", engine="stub", tokenizer=None, step_time_s=0.0)
        found[batch] = _layers.measure("model", _layers.plan(load), load, settings)
    return {
        "stack:step_s_at_1": found[1].step_ms / 1e3,
        "stack:tokens_per_s_at_64": found[64].tokens_per_s,
    }


def comparer() -> dict[str, float]:
    """Bytes of both sides compared per second, whole float32 rows that differ; the best of three."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, VOCAB)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        base, new = (_capture(Path(folder) / name, rows + shift) for name, shift in (("base", 0.0), ("new", 1e-3)))
        times = []
        for _ in range(3):
            start_s = time.perf_counter()
            compare(base, new)
            times.append(time.perf_counter() - start_s)
    return {"acc_compare:bytes_per_s": 2 * REQUESTS * rows.nbytes / min(times)}


def _capture(folder: Path, rows: npt.NDArray[np.float32]) -> Path:
    manifest = Manifest(
        model="made up", fingerprint="0", engine="none", dtype="float32", vocab_size=VOCAB, tier="full32"
    )
    writer = Writer(folder, manifest)
    for request in range(REQUESTS):
        records = np.zeros(ROWS, INDEX)
        records["request"] = writer.request(f"request-{request}", 1)
        records["step"] = records["position"] = np.arange(ROWS)
        records["token"], records["batch"] = rows.argmax(axis=1), 1
        writer.write(rows.astype(np.float32), records)
    writer.close()
    return folder


if __name__ == "__main__":
    print(json.dumps(stack() | comparer()))
