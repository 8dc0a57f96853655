"""How far a row of logits is from its base: every figure of a row in one pass over it.

z is the base row, y the new one, d = y - z, p = softmax(z), q = softmax(y), V the vocabulary. Differences and
exponentials are float32, as the rows are; sums of up to 2048 of them are float32 too, and those sums are added up in
float64. Few rows are worked on at a time, so that they stay in a core's second cache from the first step to the last:
from the third, each step takes twice as long. `fused` has the same pass in compiled code, of which this one is the
reference. Formulas: accuracy-methods, section 2.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError
from llmbench.logits import digest
from llmbench.logits.store import Pair
from llmbench.memory import aligned

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

PASSED = np.dtype(
    [
        ("square", "<f8"),  # the sum of d²
        ("mixed", "<f8"),  # of z d
        ("first", "<f8"),  # of w u, where w = exp(z - scale) and u = d - shift
        ("rest", "<f8"),  # of w (exp u - 1 - u)
        ("highest", "<i8"),  # the id where d is largest, the lowest one of equals
        ("lowest", "<i8"),  # where it is smallest
        ("up", "<f4"),  # the largest d
        ("down", "<f4"),  # the smallest, with its sign turned
        ("scale", "<f4"),  # given, and `shift` too: d at the base's largest logit
        ("shift", "<f4"),
    ]
)
"""What a pass over all values of a row finds: the figures are made of it. Without a gap, as compiled code has it."""

_SMALL = 0.1  # below it, exp(u) - 1 - u is taken from its series
_SERIES_ERROR = 1e-4  # of what is left out, relative to the first term
_MOST_TERMS = 4  # powers of u: what the error above wants at _SMALL
_LARGE = 60.0  # above it, exp in float32 comes near its end
_LOWEST, _HIGHEST = -20.0, 20.0  # a largest logit with which neither w nor w exp(u), up to there, comes near an end
_TILE_VALUES = 1 << 17  # a few arrays of this size fit into a second cache of 1 MB


class Known(NamedTuple):
    """What the captures say about the rows, so that it need not be found again: `base` and `new` digest.STATISTICS [n],
    `equal` bool [n] which rows are bit by bit.
    """

    base: Figures
    new: Figures
    equal: Bools


class Pass(Protocol):
    """Another way to go over rows than NumPy's; `name` says which."""

    name: str

    def over(self, pair: Pair, passed: Figures) -> bool:
        """Fill PASSED [n], of which `scale` and `shift` are there; false where it cannot."""

    def units(self, pair: Pair, dtype: str) -> Int64 | None:
        """As `largest_units`; None where it cannot."""


class Scratch:
    """Room for blocks of up to `num_rows` rows, taken once: `base` and `new` float32 [num_rows, V] are filled by the
    caller, `bits` uint16 is for reading 16-bit values. `quick` is the pass that is taken where it can be.

    `weight` and `powers` are of a tile of rows. Sums are taken piece by piece of a row: `products` of w and the powers
    of u, `square` of d and d, `mixed` of z and d.
    """

    def __init__(self, num_rows: int, vocab_size: int, quick: Pass | None = None) -> None:
        shape = (num_rows, vocab_size)
        self.quick = quick
        self.base: Float32 = aligned(shape, np.float32)
        self.new: Float32 = aligned(shape, np.float32)
        self.bits = (aligned(shape, np.uint16), aligned(shape, np.uint16))
        self.digest = digest.Room(vocab_size)
        self.tile = max(1, min(num_rows, _TILE_VALUES // vocab_size))
        self.weight: Float32 = aligned((self.tile, vocab_size), np.float32)
        self.powers: list[Float32] = [aligned((self.tile, vocab_size), np.float32) for _ in range(_MOST_TERMS)]
        num_pieces = vocab_size // digest.piece(vocab_size)
        self.products = np.empty((num_rows, _MOST_TERMS, num_pieces, 1, 1), np.float32)
        self.square = np.empty((num_rows, num_pieces, 1, 1), np.float32)
        self.mixed = np.empty((num_rows, num_pieces, 1, 1), np.float32)


class _Rows(NamedTuple):
    """Rows of a tile, and what NumPy's pass over them needs or finds: `passed` is PASSED.

    `by_series` says whether `products` are with powers of u, or with u and exp u; `factors` are those of the powers.
    """

    z: Float32
    y: Float32
    passed: Figures
    by_series: Bools
    factors: Float64
    products: Float32
    square: Float32
    mixed: Float32

    def some(self, which: slice) -> "_Rows":
        """Only these rows."""
        return _Rows._make(field[which] for field in self)


def measure(pair: Pair, tokens: Int64, room: Scratch, out: Figures, known: Known | None = None) -> None:
    """Fill `out` FIGURES [n] for a pair of n rows; `tokens` [n] are what the base chose, -1 its largest.

    Values are left as they are; of a row that is known to equal its base, those of `new` are not looked at.
    """
    with np.errstate(all="ignore"):
        known = known or _looked_at(pair, room)
        if not known.equal.all():
            _measure(pair, tokens, room, out, known)
            out["equal"], out["ulp"], out["whole"] = False, -1, True
    if known.equal.any():
        _settle_equal(pair, out, known)
    for i in np.flatnonzero(~out["finite"]).tolist():
        z, y = pair.rows(slice(i, i + 1))
        _not_finite(z[0], z[0] if known.equal[i] else y[0], out[i : i + 1])


def _looked_at(pair: Pair, room: Scratch) -> Known:
    """What is known of rows about which no capture says anything."""
    base, new = pair.rows(slice(None))
    theirs, ours = np.zeros(len(base), digest.STATISTICS), np.zeros(len(base), digest.STATISTICS)
    room.digest.outline(base, theirs)
    ours["top_id"] = new.argmax(axis=1)
    pairs = zip(base.view(np.uint32), new.view(np.uint32), strict=True)
    return Known(theirs, ours, np.array([np.array_equal(z, y) for z, y in pairs]))


def _settle_equal(pair: Pair, out: Figures, known: Known) -> None:
    """The figures of rows that equal their base bit by bit; what an exponential would be needed for is not known."""
    equal = np.flatnonzero(known.equal)
    found = np.zeros(len(equal), FIGURES)
    found["p"] = found["margin"] = np.nan
    found["base_top"], found["new_top"] = known.base["top_id"][equal], known.new["top_id"][equal]
    found["base_value"] = found["new_value"] = pair.at(np.zeros(len(out), np.int64))[0][equal]
    found["equal"] = found["close"] = found["whole"] = True
    found["finite"] = np.isfinite(known.base["variance"][equal])
    for i in np.flatnonzero(~found["finite"]).tolist():
        place = int(equal[i])
        z, _ = pair.rows(slice(place, place + 1))
        found["finite"][i] = np.isfinite(z).all()  # or its values are only too large to be squared
    out[equal] = found


def _measure(pair: Pair, tokens: Int64, room: Scratch, out: Figures, known: Known) -> None:
    """The figures of all rows but those that are equal, of which nothing is said."""
    top, vocab_size = known.base["top_id"].astype(np.int64), pair.base.shape[1]
    passed = np.zeros(len(top), PASSED)
    passed["scale"] = known.base["top"]
    z, y = pair.at(top)
    passed["shift"] = y - z
    if room.quick is None or not room.quick.over(pair, passed):
        _by_numpy(pair, passed, room, known)
    _largest(pair, passed, out)
    mean = known.base["mean"]
    zz = (known.base["variance"] + mean**2) * vocab_size
    zd, dd = passed["mixed"], passed["square"]
    out["base_top"], out["new_top"] = known.base["top_id"], known.new["top_id"]
    out["margin"] = known.base["top"] - known.base["second"]
    out["finite"] = np.isfinite(zz) & np.isfinite(dd)
    out["rms"] = np.sqrt(dd / vocab_size)
    out["rel_rms"] = np.sqrt(dd / (known.base["variance"] * vocab_size))
    out["one_minus_cos"] = one_minus_cos(zz, zd, dd)
    delta_lse = _divergence(pair, passed, known, out)
    z, y = pair.at(np.where(tokens < 0, top, tokens))
    out["p"] = np.exp(z.astype(np.float64) - known.base["lse"])
    out["delta_nll"] = delta_lse - (y - z)
    out["delta_p"] = out["p"] * np.expm1(-out["delta_nll"])
    out["kld_most"] = out["kld"]


def _by_numpy(pair: Pair, passed: Figures, room: Scratch, known: Known) -> None:
    """Fill PASSED [n], `scale` anew: what can be taken as it is, is."""
    n, peak = len(passed), known.base["top"]
    passed["scale"] = np.where((peak > _LOWEST) & (peak < _HIGHEST), np.float32(0), peak)
    rows = _Rows(
        z=pair.base,
        y=pair.new,
        passed=passed,
        by_series=np.zeros(n, np.bool_),
        factors=np.zeros((n, _MOST_TERMS - 1)),
        products=room.products[:n],
        square=room.square[:n],
        mixed=room.mixed[:n],
    )
    for start in range(0, n, room.tile):
        tile = slice(start, start + room.tile)
        if not known.equal[tile].all():
            pair.rows(tile)
            _pass(rows.some(tile), room)
    products = digest.added(rows.products)
    passed["square"], passed["mixed"] = digest.added(rows.square), digest.added(rows.mixed)
    passed["first"] = products[:, 0]
    by_exp = products[:, 1] - _sum_w(passed, known) - products[:, 0]
    passed["rest"] = np.where(rows.by_series, (products[:, 1:] * rows.factors).sum(axis=1), by_exp)


def _sum_w(passed: Figures, known: Known) -> Float64:
    found: Float64 = np.exp(known.base["lse"] - passed["scale"])
    return found


def _pass(rows: _Rows, room: Scratch) -> None:
    """Every pass over the values of a tile of rows."""
    n, passed = len(rows.z), rows.passed
    powers, w = [power[:n] for power in room.powers], room.weight[:n]
    d = np.subtract(rows.y, rows.z, out=powers[0])
    each = np.arange(n)
    passed["highest"], passed["lowest"] = d.argmax(axis=1), d.argmin(axis=1)
    passed["up"], passed["down"] = d[each, passed["highest"]], -d[each, passed["lowest"]]
    digest.multiply(d, d, rows.square)
    digest.multiply(d, rows.z, rows.mixed)
    span = _span(passed)
    largest = float(span.max())
    if n > 1 and not largest <= _SMALL:  # each as it needs
        for i in range(n):
            row = slice(i, i + 1)
            _weigh(rows.some(row), [power[row] for power in powers], w[row], float(span[i]))
    else:
        _weigh(rows, powers, w, largest)


def _span(passed: Figures) -> Float32:
    """The largest |u| of each row."""
    found: Float32 = np.maximum(passed["up"] - passed["shift"], passed["down"] + passed["shift"])
    return found


def _weigh(rows: _Rows, powers: list[Float32], w: Float32, largest: float) -> None:
    """Take the `products`; `powers` begins with d, and `largest` is the largest |u|."""
    scale, shift = rows.passed["scale"], rows.passed["shift"]
    if scale.any():
        np.exp(np.subtract(rows.z, scale[:, None], out=w), out=w)
    else:
        np.exp(rows.z, out=w)
    u = np.subtract(powers[0], shift[:, None], out=powers[0])
    rows.by_series[:] = largest <= _SMALL
    if largest <= _SMALL:
        factors = _factors(largest)
        num_terms = 1 + len(factors)
        rows.factors[:, : len(factors)] = factors
        for k in range(1, num_terms):
            np.multiply(powers[k - 1], u, out=powers[k])
    else:
        num_terms = 2
        np.exp(u, out=powers[1])
    for k in range(num_terms):
        digest.multiply(powers[k], w, rows.products[:, k])
    rows.products[:, num_terms:] = 0.0


def _factors(largest: float) -> tuple[float, ...]:
    """Of u^2, u^3, ... in exp(u) - 1 - u, of as few as leave less than the allowed error where |u| <= `largest`.

    Those of its series; but in the place of a term in u^4 that is left out, half of the largest u^2 may stand for u^2:
    (Chebyshev) no other number is nearer to all of them.
    """
    if largest / 3 <= _SERIES_ERROR:
        return (1 / 2,)
    if largest**2 / 12 <= _SERIES_ERROR:
        return 1 / 2, 1 / 6
    if largest**2 / 24 <= _SERIES_ERROR:
        return 1 / 2 + largest**2 / 48, 1 / 6
    return 1 / 2, 1 / 6, 1 / 24  # the next is 2e-5 of the first at _SMALL


def _largest(pair: Pair, passed: Figures, out: Figures) -> None:
    """The largest differences, and the contest's rule."""
    up, down = passed["up"], passed["down"]
    at = np.where(up >= down, passed["highest"], passed["lowest"])
    out["at"], out["max_abs"] = at, np.maximum(up, down)
    out["max_abs_free"] = (up.astype(np.float64) + down) / 2
    out["base_value"], out["new_value"] = pair.at(at)
    difference, allowed = tolerated(out)
    out["close"] = out["max_abs"] < ATOL * (1 - 1e-6)
    for i in np.flatnonzero(~out["close"] & (difference <= allowed)).tolist():
        z, y = (row[0].astype(np.float64) for row in pair.rows(slice(i, i + 1)))
        out["close"][i] = bool((np.abs(y - z) <= ATOL + RTOL * np.abs(z)).all())  # the largest is; is every other one?


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


def _divergence(pair: Pair, passed: Figures, known: Known, out: Figures) -> Float64:
    """KL(p || q) into `out`; gives lse(y) - lse(z), float64 [n].

    With u = d - c for any c: KL = log(1 + b + a) - b, where b = sum p u and a = sum p (exp u - 1 - u). c is d at the
    largest logit, so that what weighs most has u = 0 exactly. Where every |u| is small, a is taken from its series:
    of exp(u) in float32 too little would be left.
    """
    sum_w = _sum_w(passed, known)
    b, a = passed["first"] / sum_w, passed["rest"] / sum_w
    for i in np.flatnonzero(~(_span(passed) <= _LARGE)).tolist():
        z, y = (row[0].astype(np.float64) for row in pair.rows(slice(i, i + 1)))
        u = y - z - passed["shift"][i]
        a[i] = (np.exp(z - passed["scale"][i]) * np.exp(np.minimum(u, 700.0))).sum() / sum_w[i] - 1 - b[i]
    grown = np.log1p(np.maximum(a + b, -1 + 1e-300))
    out["kld"] = np.maximum(grown - b, 0.0)
    delta_lse: Float64 = passed["shift"].astype(np.float64) + grown
    return delta_lse


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


def largest_units(pair: Pair, dtype: str, room: Scratch) -> Int64:
    """The largest of `units` of each row of a pair, int64 [n]."""
    found = room.quick.units(pair, dtype) if room.quick is not None else None
    return units(*pair.rows(slice(None)), dtype).max(axis=1) if found is None else found


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
