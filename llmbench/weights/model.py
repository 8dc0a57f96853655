"""Models by what users type: `embedded`, `random:<preset>`, weights in files; weights are read when asked for."""

import difflib
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError
from llmbench.weights import quantised, sources
from llmbench.weights.config import ModelConfig, check_shapes, expected_shapes, float_shapes
from llmbench.weights.tensors import Source, Tensor, Tensors, blocks, of, widen

Float32 = npt.NDArray[np.float32]


class Model:
    """A model that is open but not read: `config`, and tensors under their Hugging Face names.

    What is quantised is de-quantised where it is asked for as a tensor; `linear` and `kv_scales` give it as it is.
    """

    def __init__(self, name: str, config: ModelConfig, tokenizer_path: Path | None, source: Source) -> None:
        self.name = name
        self.config = config
        self.tokenizer_path = tokenizer_path
        self._shapes = float_shapes(config)
        expected = expected_shapes(config)
        check_shapes(name, expected, {there: source.shape(there) for there in source.names()})
        found = of(source)
        self._stored = {there: found[there] for there in expected}

    def names(self) -> list[str]:
        """The float tensors that the architecture has; others in the files are left alone."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor. Raises InputError when the model has no such tensor."""
        if name not in self._shapes:
            near = difflib.get_close_matches(name, self._shapes, n=1)
            raise InputError(
                f"model {self.name}: no tensor {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return self._shapes[name]

    def tensor(self, name: str) -> Float32:
        """A whole tensor, float32."""
        return self.rows(name, 0, self.shape(name)[0])

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: some rows of a tensor, without reading the others."""
        linear, _, part = name.rpartition(".")
        kind = self.config.quantised.get(linear)
        if kind is None or (part == "bias" and name in self._stored):
            return widen(self._stored[name].rows(start, stop))
        found = quantised.linear(self._stored, linear, kind, start, stop)
        return found.dequantised() if part == "weight" else found.bias()

    def blocks(self, name: str) -> Iterator[tuple[int, Float32]]:
        """A tensor in pieces of about 16 MiB: the first row of each, and float32 [rows, ...]."""
        return blocks(self.shape(name), partial(self.rows, name))

    def stored(self) -> dict[str, Tensor]:
        """The tensors of the architecture as they are stored, not read yet."""
        return dict(self._stored)

    def linear(self, name: str) -> quantised.Linear | None:
        """A quantised linear, by its name without ".weight"; None for one that is float."""
        kind = self.config.quantised.get(name)
        return None if kind is None else quantised.linear(self._stored, name, kind, 0, self.shape(f"{name}.weight")[0])

    def kv_scales(self, layer: int) -> quantised.KVScales | None:
        """How the keys and values of a layer become int8; None where they stay floats."""
        return None if self.config.kv_cache is None else quantised.kv_scales(self._stored, layer)

    def fingerprint(self) -> str:
        """The sha256 (hex) over the names, shapes and values of all tensors; it reads the whole model.

        Values are float32, in whatever dtype they are stored; int8 and int32 those of quantised linears.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self._stored.items()):
            digest.update(json.dumps([name, tensor.shape]).encode())
            for _, block in tensor.blocks():
                digest.update(np.ascontiguousarray(quantised.comparable(name, block)).data)
        return digest.hexdigest()

    def identity(self) -> str:
        """The fingerprint; of random weights the sha256 of their name, which tells them wholly and takes no time."""
        if self.name.startswith("random:"):
            return hashlib.sha256(self.name.encode()).hexdigest()
        return self.fingerprint()


def open_model(spec: str, seed: int = 0) -> Model:
    """Open a model: `embedded`, `random:<preset>[,layers=N][,seed=S]`, or a folder; `seed` is for random weights.

    A folder is Hugging Face's, or one that `llmbench weights` wrote: for MindSpore, or cut into ranks. Raises
    InputError or ConfigError that names the file, key or tensor. No weights are read.
    """
    return of_weights(sources.open_weights(spec, sources.How(strict=False), seed))


def of_weights(opened: sources.Opened) -> Model:
    """The model whose weights are open."""
    return Model(opened.name, opened.config, opened.tokenizer_path, Tensors(opened.tensors))
