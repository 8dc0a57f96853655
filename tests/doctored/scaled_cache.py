"""numpy_llama, but what decoding writes into the cache of one layer is half too large: a fault of a kernel."""

import numpy as np

from llmbench.engines import Batch, EngineSettings, StepResult
from llmbench.engines._pages import FloatPages
from llmbench.engines.numpy_llama import NumpyLlama
from llmbench.weights.model import Model

LAYER, FACTOR = 1, np.float32(1.5)


class ScaledCache(NumpyLlama):
    """Prefill is right."""

    name = "scaled_cache"

    def step(self, batch: Batch) -> StepResult:
        result = super().step(batch)
        decoded = np.flatnonzero(batch.query_lens == 1)
        positions = batch.context_lens[decoded] - 1
        blocks = batch.block_tables[decoded, positions // self._block_size]
        pages = self._cache[LAYER]
        assert isinstance(pages, FloatPages)
        pages.array[blocks, positions % self._block_size] *= FACTOR
        return result


def engine(model: Model, settings: EngineSettings) -> ScaledCache:
    """The engine."""
    return ScaledCache(model, settings)
