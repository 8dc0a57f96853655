"""Matrices in tiles: the layout of Ascend's blocks, and a codec that loses nothing and refuses every changed bit."""

import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from llmbench.errors import InputError
from llmbench.weights import tiles
from llmbench.weights.model import open_model
from llmbench.weights.tiles import Int8, Triple

SHAPES = ((1, 1), (16, 32), (17, 33), (128, 256), (129, 257), (300, 520))


def matrix(kind: str, shape: tuple[int, int], seed: int = 0) -> Int8:
    rng = np.random.default_rng(seed)
    dense: Int8 = rng.integers(-128, 128, shape, np.int8)
    if kind == "random":
        return dense
    if kind == "sparse":
        return np.where(rng.random(shape) < 0.05, dense, 0).astype(np.int8)
    if kind == "zeros":
        return np.zeros(shape, np.int8)
    return on_a_grid(rng.standard_normal(shape).astype(np.float32))


def on_a_grid(weight: npt.NDArray[np.float32]) -> Int8:
    """As W8A8S is: 15 values, and a few others."""
    units = weight / np.maximum(weight.std(axis=1, keepdims=True), 0.1) * 32
    grid = 11 * np.clip(np.rint(units / 11), -7, 7)
    values: Int8 = np.clip(np.where(np.abs(units) > 85, np.rint(units), grid), -127, 127).astype(np.int8)
    return values


@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_lie_as_ascend_has_them(shape: tuple[int, int]) -> None:
    weight = matrix("random", shape)
    n, k = shape
    blocks = tiles.to_nz(weight)
    assert blocks.shape == (-(-k // 32), -(-n // 16), 16, 32)
    for row, column in ((0, 0), (n - 1, k - 1), (n // 2, k // 3)):
        assert blocks[column // 32, row // 16, row % 16, column % 32] == weight[row, column]
    assert np.count_nonzero(blocks) == np.count_nonzero(weight), "what is added are zeros"
    assert np.array_equal(tiles.from_nz(blocks, n, k), weight)


@pytest.mark.parametrize("kind", ["random", "sparse", "zeros", "w8a8s"])
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_lost(shape: tuple[int, int], kind: str) -> None:
    weight = matrix(kind, shape)
    for triple in (tiles.pack(weight), tiles.plain(weight)):
        assert np.array_equal(tiles.unpack(triple, "x"), weight)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 140), st.integers(0, 2**32), st.integers(1, 127))
def test_nothing_is_lost_of_whatever_matrix(n: int, k: int, seed: int, spread: int) -> None:
    weight = np.random.default_rng(seed).integers(-spread, spread + 1, (n, k), np.int8)
    assert np.array_equal(tiles.unpack(tiles.pack(weight), "x"), weight)


def test_nothing_is_lost_of_real_weights_and_what_is_sparse_becomes_small() -> None:
    model = open_model("embedded")
    name = next(name for name in model.names() if name.endswith("0.mlp.down_proj.weight"))
    weight = model.tensor(name)
    values = on_a_grid(weight)
    triple = tiles.pack(values)
    assert np.array_equal(tiles.unpack(triple, name), values)
    dense = np.rint(weight / (np.abs(weight).max(axis=1) / 127)[:, None]).astype(np.int8)
    w8a8 = tiles.pack(dense)
    assert np.array_equal(tiles.unpack(w8a8, name), dense)
    assert triple.num_bytes < 0.55 * weight.size < 0.8 * weight.size < w8a8.num_bytes


def test_the_index_has_eight_bytes_for_each_tile_and_a_tile_is_read_alone() -> None:
    weight = matrix("w8a8s", (300, 520))
    triple = tiles.pack(weight)
    blocks = tiles.to_nz(weight)
    num_k, num_n = 3, 3  # of 17 x 19 blocks
    assert len(triple.index) == 8 * num_k * num_n
    assert triple.info[:7].tolist() == [tiles.MAGIC, 1, 8, 8, 520, 300, triple.weight.nbytes]
    for k in range(num_k):
        for n in range(num_n):
            expected = blocks[8 * k : 8 * k + 8, 8 * n : 8 * n + 8]
            assert np.array_equal(tiles.tile(triple, k, n, "x"), expected)
            assert np.array_equal(tiles.tile(tiles.plain(weight), k, n, "x"), expected)
    for k, n in ((-1, 0), (0, 3), (3, 0)):
        with pytest.raises(IndexError):
            tiles.tile(triple, k, n, "x")


def test_a_damaged_tile_leaves_the_others_readable() -> None:
    triple = tiles.pack(matrix("w8a8s", (300, 520)))
    stream = triple.weight.copy()
    stream[-1] ^= 1
    damaged = structs.replace(triple, weight=stream)
    assert tiles.tile(damaged, 0, 0, "x").shape == (8, 8, 16, 32)
    with pytest.raises(InputError, match="x: damaged: a tile is not what its checksum says"):
        tiles.tile(damaged, 2, 2, "x")
    with pytest.raises(InputError, match="x: damaged: a tile is not what its checksum says"):
        tiles.unpack(damaged, "x")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["sparse", "w8a8s"])
def test_every_flipped_bit_and_every_missing_byte_is_refused(kind: str, packed: bool) -> None:
    triple = tiles.pack(matrix(kind, (20, 40))) if packed else tiles.plain(matrix(kind, (20, 40)))
    parts = [triple.weight.tobytes(), triple.index.tobytes(), triple.info.astype("<i8").tobytes()]
    num = 0
    for which, part in enumerate(parts):
        step = 1 if packed else 7  # of the blocks as they are some bits; it is one checksum over all
        for bit in range(0, 8 * len(part), step):
            flipped = bytearray(part)
            flipped[bit // 8] ^= 1 << bit % 8
            refused([*parts[:which], bytes(flipped), *parts[which + 1 :]])
            num += 1
        for length in range(len(part)):
            refused([*parts[:which], part[:length], *parts[which + 1 :]])
    assert num > 1000


def refused(parts: list[bytes]) -> None:
    weight, index = (np.frombuffer(part, np.int8) for part in parts[:2])
    info = np.frombuffer(parts[2][: len(parts[2]) // 8 * 8], "<i8")
    with pytest.raises(InputError, match=r"^x: "):
        tiles.unpack(Triple(weight, index, info), "x")


def test_another_version_and_another_tool_are_named() -> None:
    triple = tiles.pack(matrix("sparse", (20, 40)))
    with pytest.raises(InputError, match="x: not compressed by llmbench"):
        tiles.unpack(structs.replace(triple, info=np.array([8, 8, 40, 20, 1])), "x")
    info = triple.info.copy()
    info[1] = 2
    info[-1] = zlib.crc32(info[:-1].tobytes())
    with pytest.raises(InputError, match="x: compressed in version 2 of the format; this llmbench reads 1"):
        tiles.unpack(structs.replace(triple, info=info), "x")
