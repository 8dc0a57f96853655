"""Which codec for tiles of W8A8S weights: ratio and speed of what the standard library has, on one core.

    python benchmarks/compression.py                      # the embedded model, and normal weights of 7B's shapes
    python benchmarks/compression.py MODEL

Of each matrix the tiles of 32 KiB are coded one by one, as `llmbench weights compress` does; the entropy of its values
is what a coder of single values cannot pass.
"""

import bz2
import lzma
import sys
import time
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from llmbench.quantize import sparse
from llmbench.quantize.sparse import Knobs
from llmbench.weights import tiles
from llmbench.weights.model import open_model

Int8 = npt.NDArray[np.int8]
TILE = 1 << 15
_MOST_BYTES = 2 << 20  # of a matrix that are coded


def deflate(level: int, strategy: int) -> Callable[[bytes], bytes]:
    """Raw deflate with a strategy."""

    def coded(data: bytes) -> bytes:
        coder = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        return coder.compress(data) + coder.flush()

    return coded


def lzma1(mode: int) -> Callable[[bytes], bytes]:
    """Raw LZMA without contexts of positions and neighbours."""
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 16, "lc": 0, "lp": 0, "pb": 0, "mode": mode}]
    return lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=filters)


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "huffman only": deflate(9, zlib.Z_HUFFMAN_ONLY),
    "huffman and runs": deflate(9, zlib.Z_RLE),
    "deflate 6": deflate(6, zlib.Z_DEFAULT_STRATEGY),
    "lzma fast": lzma1(lzma.MODE_FAST),
    "lzma normal": lzma1(lzma.MODE_NORMAL),
    "bz2": bz2.compress,
}


def matrices(spec: str | None) -> Iterator[tuple[str, Int8]]:
    """int8 matrices as they are compressed, by what they are."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((1024, 4096)).astype(np.float32)
    kinds = {
        "W8A8S": Knobs(),
        "W8A8S 0.05": Knobs(fraction=0.05),
        "W8A8S 0.1": Knobs(fraction=0.1),
        "W8A8S uneven": Knobs(nonuniform=True),
    }
    model = open_model(spec or "embedded")
    name = next(name for name in model.names() if name.endswith("down_proj.weight"))
    for what, weight in (("normal", normal), (model.name, model.tensor(name))):
        for kind, knobs in kinds.items():
            yield f"{what}, {kind}", sparse.quantised(weight, knobs).values
    w8a8 = np.rint(normal / (np.abs(normal).max(axis=1, keepdims=True) / 127)).astype(np.int8)
    yield "normal, W8A8", w8a8
    yield (
        "normal, W8A8S, 0.3 kept",
        (sparse.quantised(normal, Knobs()).values * (rng.random(normal.shape) < 0.3)).astype(np.int8),
    )


def entropy(values: Int8) -> float:
    """Bits of a value over 8."""
    counts = np.bincount(values.reshape(-1).view(np.uint8), minlength=256)
    shares = counts[counts > 0] / values.size
    return float(-(shares * np.log2(shares)).sum()) / 8


def main() -> None:
    """A line for each matrix and codec."""
    for what, values in matrices(sys.argv[1] if len(sys.argv) > 1 else None):
        data = tiles.to_nz(values).tobytes()[:_MOST_BYTES]
        pieces = [data[start : start + TILE] for start in range(0, len(data), TILE)]
        print(f"{what}: {values.shape}, {(values == 0).mean():.1%} zeros, entropy {entropy(values):.4f}")
        for name, codec in CODECS.items():
            start_s = time.perf_counter()
            size = sum(len(codec(piece)) for piece in pieces)
            print(
                f"    {name:18} {size / len(data):.4f}  {len(data) / 1e6 / (time.perf_counter() - start_s):6.1f} MB/s"
            )
        start_s = time.perf_counter()
        triple = tiles.pack(values)
        packed_s = time.perf_counter() - start_s
        start_s = time.perf_counter()
        assert np.array_equal(tiles.unpack(triple, what), values)
        there, back = [values.size / 1e6 / took_s for took_s in (packed_s, time.perf_counter() - start_s)]
        print(f"    {'as it is done':18} {triple.num_bytes / values.size:.4f}  {there:6.1f} MB/s, back {back:.1f}")


if __name__ == "__main__":
    main()
