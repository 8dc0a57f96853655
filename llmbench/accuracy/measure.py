"""How far a row of logits is from its base: every figure of a row in one pass over it.

z is the base row, y the new one, d = y - z, p = softmax(z), q = softmax(y), V the vocabulary. Differences and
exponentials are float32, as the rows are; sums of up to 1024 of them are float32 too, and those sums are added up in
float64. Formulas: accuracy-methods, section 2.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Figures = npt.NDArray[np.void]

ATOL, RTOL = 5e-3, 1e-5
"""The contest's rule, |y - z| <= 0.005 + 1e-5 |z|: acc_allclose.py's `np.allclose(new, base, atol=5e-3)`."""

FIGURES = np.dtype(
    [
        ("kld", "<f8"),  # KL(p || q) in nats; of rows that are not whole, what it is at least
        ("kld_most", "<f8"),  # what it is at most; the same for whole rows
        ("one_minus_cos", "<f8"),
        ("rel_rms", "<f8"),  # |d| / |z - mean z|
        ("rms", "<f8"),  # of d
        ("delta_p", "<f8"),  # q - p of the token that the base chose
        ("p", "<f8"),  # p of that token
        ("delta_nll", "<f8"),  # -log q + log p of that token
        ("max_abs", "<f4"),  # max |d|
        ("max_abs_free", "<f4"),  # max |d - c| with the shift c that makes it least
        ("margin", "<f4"),  # the base's largest logit less its second
        ("base_value", "<f4"),  # z and y where |d| is largest
        ("new_value", "<f4"),
        ("at", "<i4"),  # the id where |d| is largest; where a value is not finite, if one is not
        ("base_top", "<i4"),
        ("new_top", "<i4"),
        ("ulp", "<i8"),  # the largest distance in representable numbers; -1 when it was not asked for
        ("equal", "?"),  # all bits are
        ("finite", "?"),  # all values of both rows are
        ("close", "?"),  # the contest's rule holds for every value
        ("whole", "?"),  # every value was compared
    ]
)

_SMALL = 0.1  # below it, exp(u) - 1 - u is taken from its series
_SERIES_ERROR = 1e-4  # of the first term that is left out, relative to the first of all
_LARGE = 60.0  # above it, exp in float32 comes near its end
_LOWEST = -20.0  # below it as the largest, the others come near its other end


class Known(NamedTuple):
    """What the captures say about the rows, so that it need not be found again: `base` and `new` digest.STATISTICS [n],
    `equal` bool [n] which rows are bit by bit.
    """

    base: Figures
    new: Figures
    equal: Bools


class Scratch:
    """Room for blocks of up to `num_rows` rows, taken once: `base` and `new` float32 [num_rows, V] are filled by the
    caller, `bits` uint16 is for reading 16-bit values.
    """

    def __init__(self, num_rows: int, vocab_size: int) -> None:
        shape = (num_rows, vocab_size)
        self.base = np.empty(shape, np.float32)
        self.new = np.empty(shape, np.float32)
        self.bits = (np.empty(shape, np.uint16), np.empty(shape, np.uint16))
        self.delta = np.empty(shape, np.float32)
        self.weight = np.empty(shape, np.float32)
        self.flags = np.empty(shape, np.bool_)


def measure(
    base: Float32, new: Float32, tokens: Int64, room: Scratch, out: Figures, known: Known | None = None
) -> None:
    """Fill `out` FIGURES [n] for rows z and y, float32 [n, V]; `tokens` [n] are what the base chose, -1 its largest.

    `base` and `new` are left as they are.
    """
    if known is None:
        equal = np.equal(base.view(np.uint32), new.view(np.uint32), out=room.flags[: len(base)]).all(axis=1)
    else:
        equal = known.equal
    if equal.all():
        equal_rows(base, out)
        return
    _measure(base, new, tokens, room, out, known)
    out["equal"], out["ulp"], out["whole"] = equal, -1, True
    for i in np.flatnonzero(~out["finite"]).tolist():
        _not_finite(base[i], new[i], out[i : i + 1])


def equal_rows(rows: Float32, out: Figures) -> None:
    """The figures of rows that equal their base bit by bit: only what the rows themselves decide is looked at."""
    for name in ("kld", "kld_most", "one_minus_cos", "rel_rms", "rms", "delta_p", "delta_nll", "max_abs"):
        out[name] = 0.0
    out["max_abs_free"] = out["at"] = 0
    out["p"] = out["margin"] = np.nan  # not worth an exponential
    top = rows.argmax(axis=1)
    out["base_top"] = out["new_top"] = top
    out["base_value"] = out["new_value"] = rows[:, 0]
    out["equal"] = out["close"] = out["finite"] = out["whole"] = True
    out["ulp"] = 0
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = ~np.isfinite(_sum_of_products(rows, rows))
    for i in np.flatnonzero(suspect).tolist():
        if not np.isfinite(rows[i]).all():
            _not_finite(rows[i], rows[i], out[i : i + 1])


def _measure(z: Float32, y: Float32, tokens: Int64, room: Scratch, out: Figures, known: Known | None) -> None:
    n, vocab_size = z.shape
    rows = np.arange(n)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        d = np.subtract(y, z, out=room.delta[:n])
        if known is None:
            out["base_top"], out["new_top"] = z.argmax(axis=1), y.argmax(axis=1)
        else:
            out["base_top"], out["new_top"] = known.base["top_id"], known.new["top_id"]
        up, down = _largest(z, y, d, out)
        top = out["base_top"].astype(np.int64)
        peak = z[rows, top]
        w, scale = room.weight[:n], peak
        if known is None:
            zz, mean = _sum_of_products(z, z), _sum(z) / vocab_size
            np.subtract(z, peak[:, None], out=w)
            w[rows, top] = -np.inf
            out["margin"] = -w.max(axis=1)
            w[rows, top] = 0.0
            np.exp(w, out=w)
        elif ((peak > _LOWEST) & (peak < _LARGE)).all():
            np.exp(z, out=w)  # within float32 as they are
            scale = np.zeros_like(peak)
        else:
            np.exp(np.subtract(z, peak[:, None], out=w), out=w)
        if known is not None:
            mean = known.base["mean"]
            zz = (known.base["variance"] + mean**2) * vocab_size
            out["margin"] = known.base["top"] - known.base["second"]
        sum_w = _sum(w) if known is None else np.exp(known.base["lse"] - scale)
        zd, dd = _sum_of_products(z, d), _sum_of_products(d, d)
        out["finite"] = np.isfinite(zz) & np.isfinite(dd)
        out["rms"] = np.sqrt(dd / vocab_size)
        out["rel_rms"] = np.sqrt(dd / (zz - mean**2 * vocab_size))
        out["one_minus_cos"] = one_minus_cos(zz, zd, dd)
        chosen = np.where(tokens < 0, top, tokens)
        chosen_z, chosen_d = z[rows, chosen].astype(np.float64), d[rows, chosen].astype(np.float64)
        delta_lse = _divergence(w, sum_w, d, d[rows, top], up, down, out)
        out["p"] = np.exp(chosen_z - scale.astype(np.float64) - np.log(sum_w))
        out["delta_nll"] = delta_lse - chosen_d
        out["delta_p"] = out["p"] * np.expm1(-out["delta_nll"])
    out["kld_most"] = out["kld"]


def _largest(z: Float32, y: Float32, d: Float32, out: Figures) -> tuple[Float32, Float32]:
    """The largest differences, and the contest's rule; gives max d and -min d, float32 [n]."""
    rows = np.arange(len(z))
    highest, lowest = d.argmax(axis=1), d.argmin(axis=1)
    up, down = d[rows, highest], -d[rows, lowest]
    at = np.where(up >= down, highest, lowest)
    out["at"], out["max_abs"] = at, np.maximum(up, down)
    out["max_abs_free"] = (up.astype(np.float64) + down) / 2
    out["base_value"], out["new_value"] = z[rows, at], y[rows, at]
    difference, allowed = tolerated(out)
    out["close"] = out["max_abs"] < ATOL * (1 - 1e-6)
    for i in np.flatnonzero(~out["close"] & (difference <= allowed)).tolist():
        exact = np.abs(y[i].astype(np.float64) - z[i])  # the largest difference is allowed; is every other one?
        out["close"][i] = bool((exact <= ATOL + RTOL * np.abs(z[i].astype(np.float64))).all())
    return up, down


def tolerated(figures: Figures) -> tuple[Float64, Float64]:
    """The difference where |d| is largest, float64 [n], and what the contest's rule allows there."""
    base = figures["base_value"].astype(np.float64)
    return np.abs(figures["new_value"] - base), ATOL + RTOL * np.abs(base)


def one_minus_cos(zz: Float64, zd: Float64, dd: Float64) -> Float64:
    """1 - z·y / (|z| |y|) from |z|², z·d and |d|², float64 [n], without taking 1 - 1.

    With y = z + d, sin² = (|z|²|d|² - (z·d)²) / (|z|² |y|²), and 1 - cos = sin² / (1 + cos).
    """
    yy = zz + 2 * zd + dd
    sin_squared = np.maximum(zz * dd - zd**2, 0.0) / (zz * yy)
    cos = (zz + zd) / np.sqrt(zz * yy)
    found: Float64 = np.where(cos > 0, sin_squared / (1 + cos), 1 - cos)
    return np.where(dd == 0, 0.0, found)


def _divergence(
    w: Float32, sum_w: Float64, d: Float32, shift: Float32, up: Float32, down: Float32, out: Figures
) -> Float64:
    """KL(p || q) into `out`; gives lse(y) - lse(z), float64 [n]. `d` is given up for it, and where d is small, `w`.

    With u = d - c for any c: KL = log(1 + b + a) - b, where b = sum p u and a = sum p (exp u - 1 - u). c is d at the
    largest logit, so that what weighs most has u = 0 exactly. Where every |u| is small, a is taken from its series:
    of exp(u) in float32 too little would be left.
    """
    u = np.subtract(d, shift[:, None], out=d)
    span = np.maximum(up - shift, down + shift)  # the largest |u|: up and down are max d and -min d
    b = _sum_of_products(w, u) / sum_w
    a = np.empty(len(w))
    small, large = span <= _SMALL, ~(span <= _LARGE)
    if small.all():
        a = _by_series(w, u, float(span.max())) / sum_w
    elif small.any():
        a[small] = _by_series(w[small], u[small], float(span[small].max())) / sum_w[small]
    middle = ~small & ~large
    if middle.all():
        a = _sum_of_products(w, np.exp(u, out=u)) / sum_w - 1 - b
    elif middle.any():
        a[middle] = _sum_of_products(w[middle], np.exp(u[middle])) / sum_w[middle] - 1 - b[middle]
    for i in np.flatnonzero(large).tolist():
        a[i] = float((w[i] * np.exp(np.minimum(u[i].astype(np.float64), 700.0))).sum()) / sum_w[i] - 1 - b[i]
    grown = np.log1p(np.maximum(a + b, -1 + 1e-300))
    out["kld"] = np.maximum(grown - b, 0.0)
    delta_lse: Float64 = shift.astype(np.float64) + grown
    return delta_lse


def _by_series(w: Float32, u: Float32, largest: float) -> Float64:
    """sum w (exp u - 1 - u) by as many terms u^k / k! as the largest |u| wants; `w` is given up for it."""
    total = np.zeros(len(w))
    k, error = 1, 1.0
    while k < 3 or error > _SERIES_ERROR:
        k += 1
        np.multiply(w, u, out=w)
        total += _sum_of_products(w, u) / math.factorial(k)
        error = 2 * largest ** (k - 1) / math.factorial(k + 1)
    return total


def _not_finite(z: Float32, y: Float32, out: Figures) -> None:
    """A row with a value that is no finite number has no figures: where the first one is stands in their place.

    A row whose values are finite and too large to be squared is not such a row, but has no figures either.
    """
    wrong = ~(np.isfinite(z) & np.isfinite(y))
    at = int(wrong.argmax())
    for name in ("kld", "kld_most", "one_minus_cos", "rel_rms", "rms", "delta_p", "delta_nll", "max_abs"):
        out[name] = np.inf
    out["max_abs_free"] = np.inf
    out["at"], out["base_value"], out["new_value"] = at, z[at], y[at]
    out["finite"] = not wrong.any()
    out["close"] = False


def _sum_of_products(a: Float32, b: Float32) -> Float64:
    """sum a b of each row, float64 [n], of float32 [n, V]."""
    piece = _piece(a.shape[1])
    if piece is None:
        found: Float64 = np.einsum("ij,ij->i", a, b, dtype=np.float64)
        return found
    # for a row times a column NumPy calls the library's dot product, which is twice as fast as einsum
    sums: Float32 = np.matmul(a.reshape(len(a), -1, 1, piece), b.reshape(len(a), -1, piece, 1))
    total: Float64 = sums.sum(axis=(1, 2, 3), dtype=np.float64)
    return total


def _sum(a: Float32) -> Float64:
    """The sum of each row, float64 [n], of float32 [n, V]."""
    piece = _piece(a.shape[1])
    if piece is None:
        slow: Float64 = a.sum(axis=1, dtype=np.float64)
        return slow
    sums: Float32 = np.matmul(a.reshape(len(a), -1, piece), np.ones(piece, np.float32))
    total: Float64 = sums.sum(axis=1, dtype=np.float64)
    return total


@functools.lru_cache(maxsize=8)
def _piece(vocab_size: int) -> int | None:
    """The longest divisor of the vocabulary up to 1024; None when there is none from 64 on."""
    return next((size for size in range(min(1024, vocab_size), 63, -1) if vocab_size % size == 0), None)


def units(base: Float32, new: Float32, dtype: str) -> Int64:
    """How many representable numbers of `dtype` lie between the values, int64 of their shape.

    Values are rounded to `dtype` first. Raises InputError for a type other than float16, bfloat16 and float32.
    """
    distance: Int64 = np.abs(_ordinal(base, dtype) - _ordinal(new, dtype))
    return distance


def _ordinal(values: Float32, dtype: str) -> Int64:
    """Sign and magnitude as one rising integer, so that neighbours differ by 1 and both zeros are 0."""
    if dtype == "float16":
        with np.errstate(over="ignore"):
            bits, sign = values.astype(np.float16).view(np.uint16).astype(np.int64), 1 << 15
    elif dtype == "bfloat16":
        wide = values.view(np.uint32).astype(np.int64)
        bits, sign = (wide + 0x7FFF + (wide >> 16 & 1)) >> 16, 1 << 15  # to the nearest, ties to even
    elif dtype == "float32":
        bits, sign = values.view(np.uint32).astype(np.int64), 1 << 31
    else:
        raise InputError(f"units in the last place of {dtype}: only float16, bfloat16 and float32 have them here")
    return np.where(bits & sign, sign - bits, bits)
