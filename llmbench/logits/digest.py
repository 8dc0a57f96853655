"""What a row of logits is boiled down to: its statistics, a checksum, its k largest values and a sample of the rest."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llmbench.memory import aligned

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]

_SMALL = 512  # ids; of fewer, partitioning all is faster than finding out which ones need not be
_TILE_VALUES = 1 << 17

STATISTICS = np.dtype(
    [
        ("lse", "<f8"),  # log of the sum of exp: what a logit is less its log-probability
        ("mean", "<f8"),
        ("variance", "<f8"),
        ("checksum", "<u8"),  # of the row's float32 bits
        ("top", "<f4"),
        ("second", "<f4"),  # the largest of the others
        ("top_id", "<u4"),  # the lowest id among equals
        ("second_id", "<u4"),
    ]
)


class Gist(NamedTuple):
    """What n rows are boiled down to: STATISTICS [n], and of the k largest values of each row, in no order, the ids
    int64 [n, k] and the values float32 [n, k].
    """

    statistics: Records
    ids: Int64
    values: Float32


class Boiler(Protocol):
    """What boils rows down: `Room`, with NumPy, or quick.Compiled.

    `at_once` says whether the rows of one step take no longer alone than together with those of other steps.
    """

    at_once: bool

    def boil(self, rows: Float32, k: int) -> Gist:
        """The gist of rows float32 [n, V], V >= 2, k <= V; NaN anywhere in a row gives NaN in its figures."""
        ...


class Room:
    """Memory that rows are worked on in, few at a time, so that they stay in a core's cache from one step to the next.

    It is kept: to be given pages anew takes its time.
    """

    at_once = False

    def __init__(self, vocab_size: int) -> None:
        self.num_rows = max(1, _TILE_VALUES // vocab_size)
        self.values: Float32 = aligned((self.num_rows, vocab_size), np.float32)
        self.words: UInt64 = aligned((self.num_rows, vocab_size), np.uint64)

    def boil(self, rows: Float32, k: int) -> Gist:
        """The gist of rows float32 [n, V], V >= 2; NaN anywhere in a row gives NaN in its figures."""
        found = np.zeros(len(rows), STATISTICS)
        for tile in self._tiles(len(rows)):
            _outline(rows[tile], found[tile], self.values)
            found["checksum"][tile] = _checksum(rows[tile], self.words)
        ids, values = top(rows, k)
        return Gist(found, ids, values)

    def outline(self, rows: Float32, out: Records) -> None:
        """Set the fields of STATISTICS but the checksum, in records that have them among others."""
        for tile in self._tiles(len(rows)):
            _outline(rows[tile], out[tile], self.values)

    def _tiles(self, num_rows: int) -> Iterator[slice]:
        """So many rows, in pieces that fit."""
        return (slice(start, start + self.num_rows) for start in range(0, num_rows, self.num_rows))


def statistics(rows: Float32) -> Records:
    """STATISTICS [n] of rows float32 [n, V], V >= 2; NaN anywhere in a row gives NaN in its figures."""
    return Room(rows.shape[1]).boil(rows, 0).statistics


def _outline(rows: Float32, out: Records, room: Float32) -> None:
    n, vocab_size = rows.shape
    others = shifted = room[:n]
    places = np.arange(n)
    top_ids = rows.argmax(axis=1)
    top = rows[places, top_ids]
    np.copyto(others, rows)
    others[places, top_ids] = -np.inf
    second_ids = others.argmax(axis=1)
    second_ids[second_ids == top_ids] = 1  # all others are -inf, and the first of them is not 0
    with np.errstate(invalid="ignore", over="ignore"):
        np.subtract(rows, top[:, None], out=shifted)
        shifted[places, top_ids] = 0.0
        np.exp(shifted, out=shifted)
        mean = total(rows) / vocab_size
        out["variance"] = np.maximum(total(rows, rows) / vocab_size - mean**2, 0.0)
        out["lse"] = top + np.log(total(shifted))
    out["top_id"], out["top"] = top_ids, top
    out["second_id"], out["second"] = second_ids, rows[places, second_ids]
    out["mean"] = mean


def total(a: Float32, b: Float32 | None = None) -> Float64:
    """float64 [n]: the sums over each row of a, or of a b, float32 [n, V] both."""
    n, vocab_size = a.shape
    sums = np.empty((n, vocab_size // piece(vocab_size), 1, 1), np.float32)
    multiply(a, b, sums)
    return added(sums)


def multiply(a: Float32, b: Float32 | None, out: Float32) -> None:
    """The sums of a b, or of a, over the pieces of each row: float32 [n, V] both, into [n, pieces, 1, 1].

    For a row times a column NumPy calls the library's dot product, three times as fast as einsum and as its own sum.
    """
    n, vocab_size = a.shape
    size = piece(vocab_size)
    column = _ones(size) if b is None else b.reshape(n, -1, size, 1)
    np.matmul(a.reshape(n, -1, 1, size), column, out=out)


def added(pieces: Float32) -> Float64:
    """Sums over rows from those over their pieces: float64 [...] from float32 [..., pieces, 1, 1]."""
    found: Float64 = pieces.sum(axis=(-3, -2, -1), dtype=np.float64)
    return found


@lru_cache(maxsize=8)
def piece(vocab_size: int) -> int:
    """The longest divisor of the vocabulary up to 2048; all of it where there is none from 64 on."""
    return next((size for size in range(min(2048, vocab_size), 63, -1) if vocab_size % size == 0), vocab_size)


def checksum(rows: Float32) -> UInt64:
    """uint64 [n] over the bits of rows float32 [n, V]: the sum of each value's 32 bits times a fixed 64-bit weight.

    Multilinear hashing mod 2^64 (Dietzfelbinger 1996): two rows that differ have one checksum with probability 2^-32
    at most. It takes a fifth of the time of CRC-32. It is no signature: who knows the weights can forge it.
    """
    return _checksum(np.ascontiguousarray(rows), np.empty(rows.shape, np.uint64))


def _checksum(rows: Float32, room: UInt64) -> UInt64:
    words = room[: len(rows)]
    np.multiply(rows.view(np.uint32), weights(rows.shape[1]), out=words)
    total: UInt64 = words.sum(axis=1, dtype=np.uint64)
    return total


def top(rows: Float32, k: int) -> tuple[Int64, Float32]:
    """Ids int64 [n, k] and values float32 [n, k] of the k largest values of each row, in no order.

    The k-th largest of the maxima of groups is a bound below which none of the k can lie; few values pass it, and only
    those are sorted. Up to 128 numbers NumPy sorts without a branch where it can, ten times as fast as it partitions.
    """
    n, vocab_size = rows.shape
    if k == 0:
        return np.zeros((n, 0), np.int64), np.zeros((n, 0), np.float32)
    if vocab_size <= _SMALL:
        return _partitioned(rows, k)
    num = num_groups(vocab_size, k)
    size = vocab_size // num
    maxima = rows[:, : num * size].reshape(n, size, num).max(axis=1)
    maxima.sort(axis=1)
    flat = np.flatnonzero(rows >= maxima[:, num - k, None])
    owners = flat // vocab_size
    counts = np.bincount(owners, minlength=n)
    if counts.min() < k:  # there is a NaN in it
        return _partitioned(rows, k)
    width = int(counts.max())
    starts = np.arange(0, n * width, width)  # of each row among the values that passed, a place for the most of any row
    places = np.arange(len(flat)) + (starts - np.cumsum(counts) + counts)[owners]
    passed = np.full(n * width, np.iinfo(np.int64).min)
    bits = rows.reshape(-1)[flat].view(np.int32)
    rising = (bits ^ (bits >> 31 & 0x7FFFFFFF)).astype(np.int64)  # as integers in the order of the values
    passed[places] = rising << 32 | flat - owners * vocab_size
    ids = np.sort(passed.reshape(n, width), axis=1)[:, width - k :] & 0xFFFFFFFF
    return ids, np.take_along_axis(rows, ids, axis=1)


def num_groups(vocab_size: int, k: int) -> int:
    """How many groups of ids have their maxima looked at for the k largest: some 2 k, k at least."""
    return vocab_size // max(1, vocab_size // max(1, 2 * k))


def tail_ids(requests: UInt64, steps: npt.NDArray[np.uint32], vocab_size: int, num: int) -> Int64:
    """int64 [n, num]: ids spread evenly over the vocabulary from a start that request and step decide.

    `requests` are `request_key`s. The same request and step of another run get the same ids, so that values of both
    can be compared that neither run has among its largest.
    """
    starts = splitmix(requests + steps.astype(np.uint64)) % np.uint64(vocab_size)
    places = np.arange(num, dtype=np.int64) * vocab_size // max(1, num)
    found: Int64 = (starts.astype(np.int64)[:, None] + places) % vocab_size
    return found


def request_key(seed: str, request_id: str) -> int:
    """64 bits of a request under a seed: the keyed BLAKE2b of its id."""
    key = hashlib.blake2b(seed.encode(), digest_size=32).digest()
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8, key=key).digest(), "little")


def splitmix(values: UInt64) -> UInt64:
    """uint64 of any shape, mixed: splitmix64 (Steele, Lea and Flood 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: UInt64 = mixed ^ (mixed >> np.uint64(31))
    return found


def _partitioned(rows: Float32, k: int) -> tuple[Int64, Float32]:
    ids = np.argpartition(rows, rows.shape[1] - k, axis=1)[:, rows.shape[1] - k :]
    return ids.astype(np.int64), np.take_along_axis(rows, ids, axis=1)


@lru_cache(maxsize=8)
def _ones(size: int) -> Float32:
    return np.ones((size, 1), np.float32)


@lru_cache(maxsize=4)
def weights(vocab_size: int) -> UInt64:
    """uint64 [V]: what the bits of each id are multiplied with for the checksum."""
    found: UInt64 = splitmix(np.arange(vocab_size, dtype=np.uint64)) | np.uint64(1)
    return found
