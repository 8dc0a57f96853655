"""What `digest` finds of a row of logits, compiled: a row is gone over while it lies in the first cache.

LLVM makes vectors of these loops: they run over contiguous memory, do not branch, and their sums are of whole numbers
or may be taken in any order. So that float32 can be compared as whole numbers, too, each has a rank.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from llmbench.native.cache import compiled

_ANY_ORDER = {"reassoc", "contract", "nsz"}  # of sums; NaN and infinity are what they are
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_LOWEST_RANK = -(2**31)
_IDS = 0xFFFFFFFF
_LANES = 32

# Cephes' expf: x = n ln 2 + r, and a polynomial for e^r
_MAGIC, _MAGIC_BITS = np.float32(1.5 * 2**23), 0x4B400000  # added to a small float32, leaves it rounded to an integer
_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH, _LN_2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_A, _B, _C = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_D, _E, _F = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ONE, _NOTHING = np.float32(1), np.float32(-87)  # e^-87 is nothing beside 1


@numba.njit(error_model="numpy")
def _rank(bits: Any) -> Any:
    """A whole number of 32 bits that rises with the float32 of these bits, int32; -0.0, of -1, comes before 0.0."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@numba.njit(error_model="numpy")
def _largest(bits: Any, below: int) -> int:
    """The largest value's rank above its id, turned so that the lowest id among equals wins; only what is `below`."""
    found = _LOWEST
    for i in range(len(bits)):
        rank = _rank(bits[i])
        rank += rank == -1  # as values, -0.0 and 0.0 are equal
        place = (rank << 32) | (_IDS - i)
        found = max(found, place if place < below else _LOWEST)
    return found


@numba.njit(error_model="numpy", fastmath=_ANY_ORDER)
def _sums(row: Any) -> tuple[float, float]:
    """Of the values, and of their squares."""
    total = squares = 0.0
    for i in range(len(row)):
        value: Any = np.float64(row[i])
        total += value
        squares += value * value
    return total, squares


@numba.njit(error_model="numpy")
def _checksum(bits: Any, weights: Any) -> Any:
    total = np.uint64(0)
    for i in range(len(bits)):
        total += np.uint64(np.uint32(bits[i])) * weights[i]
    return total


@numba.njit(error_model="numpy", fastmath={"contract"})
def _exp(x: Any) -> Any:
    """e^x of a float32 from -87 to 0, within 2 units in the last place."""
    moved = np.float32(x * _LOG2_E + _MAGIC)
    n = moved - _MAGIC
    r = x - n * _LN_2_HIGH - n * _LN_2_LOW
    power = ((((_A * r + _B) * r + _C) * r + _D) * r + _E) * r + _F
    power = power * (r * r) + r + _ONE
    exponent = (moved.view(np.int32) - _MAGIC_BITS + 127) << 23
    return power * np.int32(exponent).view(np.float32)


@numba.njit(error_model="numpy", fastmath=_ANY_ORDER)
def _exponentials(row: Any, top: Any) -> float:
    """The sum of e^(value - top)."""
    total = 0.0
    for i in range(len(row)):
        below = row[i] - top
        wide: Any = np.float64(_exp(below if below > _NOTHING else _NOTHING))
        total += wide
    return total


@numba.njit(error_model="numpy")
def _bound(ranks: Any, k: int, most: int, low: int, high: int) -> int:
    """A bound from low to high that k to `most` ranks reach; where ties leave none, the largest that more do.

    At least k are to reach `low`, and none what is above `high`.
    """
    while low < high:
        middle = (low + high + 1) >> 1
        count = 0
        for i in range(len(ranks)):
            count += ranks[i] >= middle
        if k <= count <= most:
            return middle
        if count > k:
            low = middle
        else:
            high = middle - 1
    return low


@numba.njit(error_model="numpy")
def _maxima(bits: Any, maxima: Any) -> Any:
    """The largest rank of each group of values, which are as far apart as there are groups; the smallest of these."""
    num = len(maxima)
    for i in range(num):
        maxima[i] = _rank(bits[i])
    for start in range(num, len(bits) - num + 1, num):
        group = bits[start : start + num]
        for i in range(num):
            rank = np.int32(_rank(group[i]))
            maxima[i] = max(maxima[i], rank)
    smallest = np.int64(maxima[0])
    for i in range(num):
        smallest = min(smallest, np.int64(maxima[i]))
    return smallest


@intrinsic
def _trailing_zeros(context: Any, word: Any) -> Any:
    """How many bits of a word that is not 0 are 0 below the first that is not."""

    def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), call


@numba.njit(error_model="numpy")
def _passed(bits: Any, bound: int, ranks: Any, ids: Any) -> int:
    """Ranks and ids of those that reach the bound, in the order of their ids; how many they are."""
    num = 0
    whole = len(bits) // 64 * 64
    for start in range(0, whole, 64):
        word: Any = np.uint64(0)
        for i in range(64):
            word |= np.uint64(_rank(bits[start + i]) >= bound) << np.uint64(i)
        while word:
            place = start + int(_trailing_zeros(word))
            word &= word - np.uint64(1)
            ranks[num], ids[num] = _rank(bits[place]), place
            num += 1
    for place in range(whole, len(bits)):
        rank = _rank(bits[place])
        ranks[num], ids[num] = rank, place
        num += rank >= bound
    return num


@numba.njit(error_model="numpy")
def _top(row: Any, bits: Any, high: int, ids: Any, values: Any, maxima: Any, room: Any) -> None:
    """The k largest, none of a rank above `high`; of equal ones at their end, those of the highest ids."""
    k = len(ids)
    low = _bound(maxima, k, k + k // 8, _maxima(bits, maxima), high)  # k values reach it, and not many more
    ranks, places = room[0], room[1]
    num = _passed(bits, low, ranks, places)
    padded = min(len(ranks), -(-num // _LANES) * _LANES)  # whole vectors
    ranks[num:padded] = _LOWEST_RANK
    bound = _bound(ranks[:padded], k, k, low, high)
    spare, found = k, 0
    for i in range(num):
        spare -= ranks[i] > bound
    for i in range(num - 1, -1, -1):
        equal = ranks[i] == bound
        if ranks[i] > bound or (equal and spare > 0):
            spare -= equal
            ids[found], values[found] = places[i], row[places[i]]
            found += 1


@compiled
def boil(rows: Any, bits: Any, weights: Any, statistics: Any, ids: Any, values: Any, maxima: Any, room: Any) -> int:
    """Fill digest.STATISTICS [n], and ids int64 and values float32 [n, k], of rows float32 [n, V] whose bits are int32.

    Gives the number of rows that it cannot do: those with a NaN, or without a finite maximum. `maxima` int32 [groups],
    at least k and at most V of them, and `room` int32 [2, V] are to work in.
    """
    num_odd, vocab_size = 0, rows.shape[1]
    for i in range(len(rows)):
        row, own = rows[i], bits[i]
        first = _largest(own, _HIGHEST)
        second = _largest(own, first)
        top_id, second_id = _IDS - (first & _IDS), _IDS - (second & _IDS)
        total, squares = _sums(row)
        top, mean = row[top_id], total / vocab_size
        if not np.isfinite(top) or np.isnan(mean):
            num_odd += 1
            continue
        found = statistics[i]
        found.lse = top + math.log(_exponentials(row, top))
        found.mean = mean
        variance = squares / vocab_size - mean * mean
        found.variance = 0.0 if variance < 0.0 else variance
        found.checksum = _checksum(own, weights)
        found.top, found.second = top, row[second_id]
        found.top_id, found.second_id = np.uint32(top_id), np.uint32(second_id)
        if ids.shape[1]:
            _top(row, own, first >> 32, ids[i], values[i], maxima, room)
    return num_odd
