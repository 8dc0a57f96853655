"""Random weights: each tensor from its own generator, so that it is the same whatever is read before or besides it."""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.weights import _presets as presets
from llmbench.weights.config import ModelConfig, expected_shapes

Float32 = npt.NDArray[np.float32]

_BLOCK_ELEMENTS = 1 << 20  # 4 MiB: what is generated at once, however large the tensor


class RandomWeights:
    """Tensors of given shapes, normal(0, std); a std of None gives ones. Nothing is held."""

    def __init__(self, seed: int, shapes: Mapping[str, tuple[int, ...]], stds: Mapping[str, float | None]) -> None:
        self._seed = seed
        self._shapes = shapes
        self._stds = stds

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """What a tensor is stored as."""
        return "float32"

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: rows of a tensor; equal whichever slices it is read in."""
        shape = self._shapes[name]
        std = self._stds[name]
        if std is None:
            return np.ones((stop - start, *shape[1:]), np.float32)
        out = np.empty((stop - start, *shape[1:]), np.float32)
        step = max(1, _BLOCK_ELEMENTS // int(np.prod(shape[1:], dtype=np.int64)))
        for index in range(start // step, -(-stop // step)):
            first = index * step
            block = self._block(name, index, (min(step, shape[0] - first), *shape[1:]))
            low, high = max(start, first), min(stop, first + step)
            np.multiply(block[low - first : high - first], np.float32(std), out=out[low - start : high - start])
        return out

    def _block(self, name: str, index: int, shape: tuple[int, ...]) -> Float32:
        """Standard normal float32: block number `index` of a tensor, by the counter's high word."""
        key = int.from_bytes(hashlib.sha256(f"{self._seed}:{name}".encode()).digest()[:16], "little")
        generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))
        return generator.standard_normal(shape, dtype=np.float32)


def open_random(spec: str, seed: int) -> tuple[ModelConfig, RandomWeights]:
    """`<preset>[,layers=N][,seed=S]` as a shape and its weights; `seed` where the spec has none. Raises InputError."""
    preset, *options = spec.split(",")
    if preset not in presets.names():
        raise InputError(plugins.unknown("random model", preset, presets.names()))
    given = _options(spec, options)
    fields = presets.fields(preset)
    config = ModelConfig(**(fields | {"num_layers": given.get("layers", fields["num_layers"])}))
    if config.num_layers < 1:
        raise InputError(f"model random:{spec}: layers must be at least 1, got {config.num_layers}")
    shapes = expected_shapes(config)
    stds = {name: _std(name, shape) for name, shape in shapes.items()}
    return config, RandomWeights(given.get("seed", seed), shapes, stds)


def _options(spec: str, options: list[str]) -> dict[str, int]:
    """`layers=2,seed=3` as integers. Raises InputError for another key or no integer."""
    found = {}
    for option in options:
        key, _, value = option.partition("=")
        if key not in ("layers", "seed"):
            raise InputError(f"model random:{spec}: {plugins.unknown('option', key, ['layers', 'seed'])}")
        if not value.isdecimal():
            raise InputError(f"model random:{spec}: {key} must be a whole number, got {value!r}")
        found[key] = int(value)
    return found


def _std(name: str, shape: tuple[int, ...]) -> float | None:
    """The standard deviation of a random tensor; None for norms, which are ones.

    With the usual 0.02 everywhere greedy text is one token for ever. Embeddings of 1 and matrices of 1/sqrt(inputs) let
    both the last token and its context decide, at any width; logits of 2 are as far apart as a real model's.
    """
    if name.endswith("norm.weight"):
        return None
    if name == "model.embed_tokens.weight":
        return 1.0
    if name.endswith(".bias"):
        return 0.5
    return (2.0 if name == "lm_head.weight" else 1.0) / math.sqrt(shape[1])
