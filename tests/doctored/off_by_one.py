"""numpy_llama, but a token that is decoded stands one place further than it does: a fault of positions."""

import msgspec
import numpy as np

from llmbench.engines import Batch, EngineSettings
from llmbench.engines.numpy_llama import NumpyLlama, Plan
from llmbench.weights.model import Model


class OffByOne(NumpyLlama):
    """Prefill is right."""

    name = "off_by_one"

    def _plan(self, batch: Batch) -> Plan:
        plan = super()._plan(batch)
        decoded = np.cumsum(batch.query_lens)[batch.query_lens == 1] - 1
        rotations = plan.rotations.copy()
        rotations[decoded] *= self._rotations[1]
        return msgspec.structs.replace(plan, rotations=rotations)


def engine(model: Model, settings: EngineSettings) -> OffByOne:
    """The engine."""
    return OffByOne(model, settings)
