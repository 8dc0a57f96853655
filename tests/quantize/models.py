"""Models for these tests, calibrated, and what they compute: in float, and with int8 linears in place of float ones."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmbench import engines
from llmbench.quantize import calibrate, forward, linears, samples, smooth
from llmbench.quantize.calibrate import Calibration
from llmbench.quantize.forward import Layer
from llmbench.quantize.samples import Wanted
from llmbench.weights.model import Model, of_weights
from llmbench.weights.quantised import Linear
from llmbench.weights.sources import How, Opened, open_weights

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def opened(spec: str | Path) -> Opened:
    return open_weights(str(spec), How(strict=False))


def calibrated(model: Opened, folder: Path, method: smooth.Method = "m1", **wanted: object) -> Calibration:
    """On a few short samples: the stand-in's for the embedded model, else drawn ids."""
    dataset = "alpaca_521" if model.name == "embedded" else "random"
    chosen = Wanted(**({"dataset": dataset, "num_samples": 8, "max_tokens": 64} | wanted))  # type: ignore[arg-type]
    found = samples.load(chosen, of_weights(model))
    return calibrate.calibrate(model, found, calibrate.Settings(method=method), folder, lambda *_: None)


class _Replaced(Layer):
    """A layer in which some linears are int8."""

    def __init__(self, model: Model, layer: int, turns: forward.Complex64, others: Mapping[str, Linear]) -> None:
        super().__init__(model.config, forward.tensors(model, layer), turns)
        self._others = {name.removeprefix(forward.prefix(layer)): linear for name, linear in others.items()}

    def linear(self, name: str, x: Float32) -> Float32:
        if name in self._others:
            return linears.output(self._others[name], x).astype(np.float32)
        return super().linear(name, x)


def logits(model: Model, ids: list[int], others: Mapping[str, Linear] = {}) -> Float32:
    """float32 [T, vocab]."""
    x = model.tensor("model.embed_tokens.weight")[ids]
    turns = engines.rotations(model.config, len(ids))
    for layer in range(model.config.num_layers):
        x = _Replaced(model, layer, turns, others)(x, lambda point, values: None)
    x = forward.rms_norm(x, model.tensor("model.norm.weight"), model.config.rms_norm_eps)
    tied = model.config.tie_embeddings
    found: Float32 = x @ model.tensor("model.embed_tokens.weight" if tied else "lm_head.weight").T
    return found
