"""numpy_llama, but in a batch every logit has noise of its own: no two runs under load are alike."""

import numpy as np

from llmbench.engines import EngineSettings, Float32
from llmbench.engines.numpy_llama import NumpyLlama
from llmbench.weights.model import Model

NOISE = 0.05


class Noisy(NumpyLlama):
    """Alone, every answer is right."""

    name = "noisy"

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        super().__init__(model, settings)
        self._rng = np.random.default_rng(0)

    def _head(self, hidden: Float32) -> Float32:
        logits = super()._head(hidden)
        if len(logits) == 1:
            return logits
        return logits + self._rng.normal(0, NOISE, logits.shape).astype(np.float32)


def engine(model: Model, settings: EngineSettings) -> Noisy:
    """The engine."""
    return Noisy(model, settings)
