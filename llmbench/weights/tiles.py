"""int8 matrices compressed without loss, in tiles that can be read alone: the triple of weight, index and info.

A matrix [n, k] is padded with zeros to multiples of 16 and 32 and cut into blocks of 16 x 32, FRACTAL_NZ: [K1, N1, 16,
32], as Ascend's matrix unit takes them. 8 x 8 blocks are a tile, 32 KiB (fewer at the edges). The triple has the parts
of CANN's compressor (ascend-formats, 4.6), but the stream in it is llmbench's own: an Atlas 300I cannot unzip it.

    weight  bytes     the tiles, those with the same K1 beside each other, each: u32 CRC-32 of the rest, u8 method, rest
    index   bytes     for each tile u64: where it begins << 24 | how long it is; empty where the blocks lie as they are
    info    int64[9]  MAGIC, VERSION, tiling_k, tiling_n, k, n, bytes of weight, CRC-32 of index (of weight where that
                      is empty), CRC-32 of the eight before

Numbers are little-endian. Methods: 0 the blocks as they are, 1 deflate (RFC 1951). Values of W8A8S do not depend on
their neighbours, so that deflate is asked for Huffman codes alone: on normal weights they are within 2 % of the
entropy, where its matches, LZMA and bz2 are 5 to 19 % larger and ten times as slow (benchmarks/compression.py). Where
most values are zeros, runs of them are tried, too.
"""

import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError

Int8 = npt.NDArray[np.int8]
Int64 = npt.NDArray[np.int64]

ROWS, COLUMNS = 16, 32
"""Of a block."""
TILING = 8
"""Blocks of a tile, in both directions."""
MAGIC = int.from_bytes(b"llmbench", "little")
VERSION = 1

_HEAD_BYTES = 5  # of a tile: its CRC-32 and its method
_RAW, _DEFLATE = range(2)
_MOSTLY_ZEROS = 6  # times smaller: a Huffman code has at least a bit for each value, an eighth
_NUM_WORDS = 9


class Triple(msgspec.Struct, frozen=True):
    """A compressed matrix: `weight` and `index` int8, of any length, `info` int64."""

    weight: Int8
    index: Int8
    info: Int64

    @property
    def num_bytes(self) -> int:
        """All three together."""
        return self.weight.nbytes + self.index.nbytes + self.info.nbytes


class _Head(NamedTuple):
    """What info says."""

    k: int
    n: int
    is_tiled: bool

    @property
    def blocks(self) -> tuple[int, int]:
        """K1 and N1."""
        return -(-self.k // COLUMNS), -(-self.n // ROWS)


def to_nz(weight: Int8) -> Int8:
    """FRACTAL_NZ, int8 [K1, N1, 16, 32], of [n, k], with zeros where that ends within a block."""
    n, k = weight.shape
    num_k, num_n = -(-k // COLUMNS), -(-n // ROWS)
    whole = np.zeros((num_n * ROWS, num_k * COLUMNS), np.int8)
    whole[:n, :k] = weight
    return np.ascontiguousarray(whole.reshape(num_n, ROWS, num_k, COLUMNS).transpose(2, 0, 1, 3))


def from_nz(blocks: Int8, n: int, k: int) -> Int8:
    """int8 [n, k] of FRACTAL_NZ [K1, N1, 16, 32]."""
    num_k, num_n = blocks.shape[:2]
    whole = blocks.transpose(1, 2, 0, 3).reshape(num_n * ROWS, num_k * COLUMNS)
    return np.ascontiguousarray(whole[:n, :k])


def pack(weight: Int8) -> Triple:
    """Compress int8 [n, k]; n and k are at least 1."""
    blocks = to_nz(weight)
    pieces = [blocks[at].tobytes() for at in _tiles(*blocks.shape[:2])]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # zlib works without the interpreter's lock
        coded = list(pool.map(_coded, pieces))
    lengths = np.array([len(piece) for piece in coded], np.uint64)
    starts = np.cumsum(lengths) - lengths
    index = (starts << np.uint64(24) | lengths).astype("<u8").view(np.int8)
    stream = np.frombuffer(b"".join(coded), np.int8)
    return Triple(stream, index, _info(weight.shape, stream, zlib.crc32(index.tobytes())))


def plain(weight: Int8) -> Triple:
    """The blocks of int8 [n, k] as they are, with an empty index."""
    stream = to_nz(weight).reshape(-1)
    return Triple(stream, np.empty(0, np.int8), _info(weight.shape, stream, zlib.crc32(stream.tobytes())))


def unpack(triple: Triple, name: str) -> Int8:
    """int8 [n, k] of what `pack` or `plain` gave. Raises InputError, with the name, for anything else."""
    head = _head(triple, name)
    num_k, num_n = head.blocks
    if not head.is_tiled:
        return from_nz(triple.weight.reshape(num_k, num_n, ROWS, COLUMNS), head.n, head.k)
    places = list(_tiles(num_k, num_n))
    found = np.empty((num_k, num_n, ROWS, COLUMNS), np.int8)
    pieces = _pieces(triple, name)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        decoded = pool.map(_decoded, pieces, [found[at].size for at in places], [name] * len(places))
        for at, values in zip(places, decoded, strict=True):
            found[at] = values.reshape(found[at].shape)
    return from_nz(found, head.n, head.k)


def tile(triple: Triple, at_k: int, at_n: int, name: str) -> Int8:
    """One tile alone, int8 [up to 8, up to 8, 16, 32]. Raises as `unpack`, IndexError for a tile that is not there."""
    head = _head(triple, name)
    num_k, num_n = head.blocks
    places = list(_tiles(num_k, num_n))
    across = -(-num_n // TILING)
    if not (0 <= at_k < -(-num_k // TILING) and 0 <= at_n < across):
        raise IndexError(f"{name}: no tile {at_k}, {at_n}")
    number = at_k * across + at_n
    k, n = places[number]
    shape = (min(k.stop, num_k) - k.start, min(n.stop, num_n) - n.start, ROWS, COLUMNS)
    if not head.is_tiled:
        return triple.weight.reshape(num_k, num_n, ROWS, COLUMNS)[k, n]
    return _decoded(_pieces(triple, name)[number], int(np.prod(shape)), name).reshape(shape)


def _tiles(num_k: int, num_n: int) -> Iterator[tuple[slice, slice]]:
    """Where each tile lies in the blocks."""
    for k in range(0, num_k, TILING):
        for n in range(0, num_n, TILING):
            yield slice(k, k + TILING), slice(n, n + TILING)


def _coded(blocks: bytes) -> bytes:
    """A tile by the method that makes it smallest."""
    payload = _deflated(blocks, zlib.Z_HUFFMAN_ONLY)
    if len(payload) * _MOSTLY_ZEROS < len(blocks):
        payload = min(payload, _deflated(blocks, zlib.Z_RLE), key=len)
    rest = bytes([_DEFLATE]) + payload if len(payload) < len(blocks) else bytes([_RAW]) + blocks
    return zlib.crc32(rest).to_bytes(4, "little") + rest


def _deflated(blocks: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return coder.compress(blocks) + coder.flush()


def _decoded(piece: bytes, size: int, name: str) -> Int8:
    """int8 [size]: the blocks of a tile. Raises InputError."""
    if len(piece) < _HEAD_BYTES or zlib.crc32(piece[4:]) != int.from_bytes(piece[:4], "little"):
        raise _damaged(name, "a tile is not what its checksum says")
    method, payload = piece[4], piece[_HEAD_BYTES:]
    try:
        if method == _DEFLATE:
            payload = zlib.decompress(payload, -zlib.MAX_WBITS, size)
    except zlib.error as error:
        raise _damaged(name, f"a tile cannot be decoded: {error}") from error
    if method > _DEFLATE or len(payload) != size:
        raise _damaged(name, f"a tile of {size} bytes has {len(payload)}, method {method}")
    return np.frombuffer(payload, np.int8)


def _info(shape: tuple[int, ...], stream: Int8, checksum: int) -> Int64:
    n, k = shape
    words = np.array([MAGIC, VERSION, TILING, TILING, k, n, stream.nbytes, checksum], "<i8")
    return np.append(words, np.int64(zlib.crc32(words.tobytes())))


def _head(triple: Triple, name: str) -> _Head:
    """What info says. Raises InputError when it was changed, or when index and stream do not fit it."""
    info = triple.info.astype("<i8")
    if info.shape != (_NUM_WORDS,) or info[0] != MAGIC:
        raise InputError(f"{name}: not compressed by llmbench; CANN's own streams cannot be read here")
    if info[-1] != zlib.crc32(info[:-1].tobytes()):
        raise _damaged(name, "its info is not what its checksum says")
    _, version, tiling_k, tiling_n, k, n, num_bytes, checksum, _ = info.tolist()
    if (version, tiling_k, tiling_n) != (VERSION, TILING, TILING):
        raise InputError(f"{name}: compressed in version {version} of the format; this llmbench reads {VERSION}")
    head = _Head(k, n, len(triple.index) > 0)
    num_k, num_n = head.blocks
    wanted = 8 * len(list(_tiles(num_k, num_n))) if head.is_tiled else 0
    if triple.weight.nbytes != num_bytes or triple.index.nbytes != wanted:
        raise _damaged(name, "its stream or its index was cut off")
    if zlib.crc32((triple.index if head.is_tiled else triple.weight).tobytes()) != checksum:
        raise _damaged(name, "its index or its blocks are not what their checksum says")
    return head


def _pieces(triple: Triple, name: str) -> list[bytes]:
    """The stream cut into tiles. Raises InputError when the index leaves bytes out."""
    entries = np.frombuffer(triple.index.tobytes(), "<u8")
    starts, lengths = entries >> np.uint64(24), entries & np.uint64((1 << 24) - 1)
    ends = np.cumsum(lengths)
    if not np.array_equal(starts, ends - lengths) or int(ends[-1]) != triple.weight.nbytes:
        raise _damaged(name, "its index does not fit its stream")
    stream = triple.weight.tobytes()
    return [stream[start:end] for start, end in zip((ends - lengths).tolist(), ends.tolist(), strict=True)]


def _damaged(name: str, what: str) -> InputError:
    return InputError(f"{name}: damaged: {what}; compress the model again")
