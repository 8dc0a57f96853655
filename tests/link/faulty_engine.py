"""A third-party engine, installed by `install`, in which a rank fails when a step has a certain token."""

from pathlib import Path

CRASH, OUT_OF_MEMORY, BEFORE, BETWEEN, BEHIND, ALIKE, FIRST = range(1000, 1007)
"""Rank 1 alone, by an error that is none of ours, by want of memory, by a refusal before, between and behind the
exchanges of a step; every rank by the same refusal; rank 0 alone behind the last exchange.
"""

_SOURCE = f"""
import numpy as np
from llmbench.errors import ServingError
from llmbench.engines.numpy_llama import NumpyLlama, ShardedLlama, engine

class Faulty(ShardedLlama):
    def step(self, batch):
        told, rank = set(batch.token_ids.tolist()), self._group.rank
        if {CRASH} in told and rank == 1:
            raise RuntimeError("rank 1 is broken")
        if {OUT_OF_MEMORY} in told and rank == 1:
            raise MemoryError
        if {BEFORE} in told and rank == 1:
            raise ServingError("not at rank 1")
        if {ALIKE} in told:
            raise ServingError("nowhere")
        self._between = {BETWEEN} in told and rank == 1
        result = super().step(batch)
        if ({BEHIND} in told and rank == 1) or ({FIRST} in told and rank == 0):
            raise ServingError("too late")
        return result

    def _row_parallel(self, by, x, scratch):
        if self._between:
            raise ServingError("half way")
        return super()._row_parallel(by, x, scratch)

def sharded(model, settings, group):
    return Faulty(model, settings, group)
"""
_ALONE = "from llmbench.engines.numpy_llama import engine\n"


def install(folder: Path) -> str:
    """Write the engines `faulty` and `alone`, which knows nothing of ranks; gives the PYTHONPATH they are found on."""
    (folder / "faulty_engine_module.py").write_text(_SOURCE)
    (folder / "alone_engine_module.py").write_text(_ALONE)
    about = folder / "faulty-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    points = "[llmbench.engines]\nfaulty = faulty_engine_module\nalone = alone_engine_module\n"
    (about / "entry_points.txt").write_text(points)
    return str(folder)
