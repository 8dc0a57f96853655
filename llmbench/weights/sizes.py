"""How many bytes weights take, of one form of a model beside the others: float, W8A8, W8A8S, compressed."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from llmbench.weights import compress
from llmbench.weights.files import read_header
from llmbench.weights.sources import COMPRESSED, How, open_weights

_LINEAR = re.compile(r"(.*\.(?:self_attn|mlp)\.\w+_proj)\.\w+")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of a model's weights; `linears` are those of its decoder layers, with their scales and biases.

    `kinds` says how many linears there are of each kind, such as float32, W8A8, compressed. Of ranks, all are added up.
    """

    path: str
    kinds: dict[str, int]
    linears: int
    others: int

    @property
    def total(self) -> int:
        """Of linears, and of embeddings, norms and head."""
        return self.linears + self.others


def of(spec: str) -> Size:
    """The size of what `llmbench weights` takes, or of a folder that it compressed. Raises InputError."""
    folder = Path(spec)
    if (folder / COMPRESSED).is_file():
        found = compress.read(folder)
        sizes = [*_compressed(folder, found)]
        kinds = Counter("compressed" if not one.disabled else "NZ" for one in found.linears.values())
        return _size(spec, sizes, kinds)
    opened = open_weights(spec, How(strict=False))
    kinds = Counter(
        str(opened.config.quantised.get(name.removesuffix(".weight"), tensor.dtype))
        for name, tensor in opened.tensors.items()
        if _LINEAR.fullmatch(name) and name.endswith(".weight")
    )
    return _size(spec, [(name, tensor.num_bytes) for name, tensor in opened.tensors.items()], kinds)


def _compressed(folder: Path, found: compress.Compression) -> Iterator[tuple[str, int]]:
    for path in found.files:
        if PurePosixPath(path).suffix == ".safetensors":
            for name, entry in read_header(folder / path).items():
                yield name, entry.num_bytes


def _size(spec: str, sizes: list[tuple[str, int]], kinds: Counter[str]) -> Size:
    linears = sum(size for name, size in sizes if _LINEAR.fullmatch(name))
    return Size(
        path=spec,
        kinds=dict(kinds),
        linears=linears,
        others=sum(size for _, size in sizes) - linears,
    )


def ratio(one: int, other: int) -> float:
    """How much of `other` is left; infinite where that is nothing."""
    return one / other if other else math.inf
