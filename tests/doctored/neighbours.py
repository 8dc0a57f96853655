"""numpy_llama, but in larger batches every longer sequence decodes with the first block of the one before it."""

import msgspec
import numpy as np

from llmbench.engines import Batch, EngineSettings, StepResult
from llmbench.engines.numpy_llama import NumpyLlama
from llmbench.weights.model import Model

FROM = 4  # sequences


class Neighbours(NumpyLlama):
    """Alone, every answer is right."""

    name = "neighbours"

    def step(self, batch: Batch) -> StepResult:
        longer = (batch.query_lens == 1) & (batch.context_lens > self._block_size)  # what is written lies behind
        if len(batch.query_lens) >= FROM:
            tables = batch.block_tables.copy()
            tables[longer, 0] = np.roll(tables[longer, 0], 1)
            batch = msgspec.structs.replace(batch, block_tables=tables)
        return super().step(batch)


def engine(model: Model, settings: EngineSettings) -> Neighbours:
    """The engine."""
    return Neighbours(model, settings)
