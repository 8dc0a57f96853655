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
from llmbench.weights import sources
from llmbench.weights.config import ModelConfig, check_shapes, expected_shapes
from llmbench.weights.tensors import Source, Tensor, Tensors, blocks, of, widen

Float32 = npt.NDArray[np.float32]


class Model:
    """A model that is open but not read: `config`, and tensors under their Hugging Face names."""

    def __init__(self, name: str, config: ModelConfig, tokenizer_path: Path | None, source: Source) -> None:
        self.name = name
        self.config = config
        self.tokenizer_path = tokenizer_path
        self._source = source
        self._shapes = expected_shapes(config)
        check_shapes(name, self._shapes, {there: source.shape(there) for there in source.names()})

    def names(self) -> list[str]:
        """The tensors that the architecture has; others in the files are left alone."""
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
        return widen(self._source.rows(name, start, stop))

    def blocks(self, name: str) -> Iterator[tuple[int, Float32]]:
        """A tensor in pieces of about 16 MiB: the first row of each, and float32 [rows, ...]."""
        return blocks(self.shape(name), partial(self.rows, name))

    def stored(self) -> dict[str, Tensor]:
        """The tensors of the architecture as they are stored, not read yet."""
        found = of(self._source)
        return {name: found[name] for name in self._shapes}

    def fingerprint(self) -> str:
        """The sha256 (hex) over the names, shapes and float32 values of all tensors; it reads the whole model."""
        digest = hashlib.sha256()
        for name in sorted(self._shapes):
            digest.update(json.dumps([name, self._shapes[name]]).encode())
            for _, block in self.blocks(name):
                digest.update(np.ascontiguousarray(block, "<f4").data)
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
