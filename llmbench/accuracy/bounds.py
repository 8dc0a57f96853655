"""How far a row is from its base when not all of its values are known: what is certain, and what is at most.

Of each row there are the log of its sum of exponentials (lse), its two largest values and the chosen token's, and
perhaps its k largest and a sample of the others. C are the ids that both rows know, R all others.

KL(p || q) = sum over C of p log(p / q) + p_R log(p_R / q_R) + p_R KL(p given R || q given R). The first two terms are
known, and the third is not negative (data-processing inequality): they are what the divergence is at least. If the
differences d of R lie within the range of those of C, the third is at most p_R (max d - min d)² / 8 (Hoeffding). That
is taken as what it is at most where C holds a sample of all ids, so that R had its chance to show a larger difference.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench.accuracy.measure import ATOL, RTOL, Figures, Float32, Int64
from llmbench.accuracy.sides import Known
from llmbench.logits import digest

Float64 = npt.NDArray[np.float64]
Records = npt.NDArray[np.void]

_NOTHING_LEFT = 1e-9  # a rest of less probability than this decides nothing


class Part(NamedTuple):
    """A side's rows: `statistics` digest.STATISTICS [n], and what is known of their values."""

    statistics: Records
    known: Known


def of_whole(rows: Float32, other: Known) -> Part:
    """Whole rows float32 [n, V] as a side of which only those ids are known that the other side knows."""
    values = np.take_along_axis(rows, other.ids, axis=1)
    return Part(digest.statistics(rows), Known(other.ids, values, other.representative))


def measure(base: Part, new: Part, tokens: Int64, vocab_size: int, out: Figures) -> None:
    """Fill `out` measure.FIGURES [n]. What cannot be known of a row that is not whole is NaN."""
    z, y = base.statistics, new.statistics
    for name in ("one_minus_cos", "rel_rms", "rms"):
        out[name] = np.nan
    out["ulp"], out["whole"] = -1, False
    out["base_top"], out["new_top"] = z["top_id"], y["top_id"]
    out["margin"] = z["top"] - z["second"]
    out["finite"] = np.isfinite(z["lse"]) & np.isfinite(y["lse"]) & np.isfinite(z["mean"]) & np.isfinite(y["mean"])
    out["equal"] = (z["checksum"] == y["checksum"]) & (z["lse"] == y["lse"])
    shared = _shared(base.known, new.known, vocab_size)
    with np.errstate(all="ignore"):
        _differences(shared, out)
        _divergence(shared, z["lse"], y["lse"], base.known.representative and new.known.representative, out)
        _chosen(shared, z["lse"], y["lse"], np.where(tokens < 0, z["top_id"], tokens), out)
    _settle_equal(out)


class _Shared(NamedTuple):
    """`ids` int64 [n, m], `z` and `y` float64 [n, m], `there` bool [n, m]: false for a repeated or unknown id."""

    ids: Int64
    z: Float64
    y: Float64
    there: npt.NDArray[np.bool_]


def _shared(base: Known, new: Known, vocab_size: int) -> _Shared:
    """The base's ids of each row, once each, with both values where the new row knows them."""
    order = np.argsort(base.ids, axis=1, kind="stable")
    ids = np.take_along_axis(base.ids, order, axis=1)
    z = np.take_along_axis(base.values, order, axis=1).astype(np.float64)
    once = np.ones(ids.shape, bool)
    once[:, 1:] = ids[:, 1:] != ids[:, :-1]
    # one search for all rows: each row's ids lie in a range of their own
    offsets = np.arange(len(ids), dtype=np.int64)[:, None] * vocab_size
    far_order = np.argsort(new.ids, axis=1, kind="stable")
    far_ids = (np.take_along_axis(new.ids, far_order, axis=1) + offsets).reshape(-1)
    far_values = np.take_along_axis(new.values, far_order, axis=1).reshape(-1)
    places = np.minimum(np.searchsorted(far_ids, (ids + offsets).reshape(-1)), len(far_ids) - 1)
    found = (far_ids[places] == (ids + offsets).reshape(-1)).reshape(ids.shape)
    y = far_values[places].reshape(ids.shape).astype(np.float64)
    return _Shared(ids, z, y, once & found)


def _differences(shared: _Shared, out: Figures) -> None:
    """The largest difference among the shared ids, and whether the contest's rule is broken there."""
    rows = np.arange(len(shared.ids))
    d = np.where(shared.there, shared.y - shared.z, 0.0)
    at = np.abs(d).argmax(axis=1)
    out["at"] = shared.ids[rows, at]
    out["max_abs"] = np.abs(d[rows, at])
    low, high = _range(shared, d)
    out["max_abs_free"] = (high - low) / 2
    out["base_value"], out["new_value"] = shared.z[rows, at], shared.y[rows, at]
    out["close"] = (np.abs(d) <= ATOL + RTOL * np.abs(shared.z)).all(axis=1)


def _range(shared: _Shared, d: Float64) -> tuple[Float64, Float64]:
    """The lowest and the highest difference of each row; the same where there is none."""
    low = np.where(shared.there, d, np.inf).min(axis=1)
    high = np.where(shared.there, d, -np.inf).max(axis=1)
    none = ~shared.there.any(axis=1)
    return np.where(none, 0.0, low), np.where(none, 0.0, high)


def _divergence(shared: _Shared, lse_z: Float64, lse_y: Float64, representative: bool, out: Figures) -> None:
    log_p, log_q = shared.z - lse_z[:, None], shared.y - lse_y[:, None]
    p = np.where(shared.there, np.exp(log_p), 0.0)
    q = np.where(shared.there, np.exp(log_q), 0.0)
    rest_p, rest_q = np.clip(1 - p.sum(axis=1), 0.0, 1.0), np.clip(1 - q.sum(axis=1), 0.0, 1.0)
    certain = (p * np.where(shared.there, log_p - log_q, 0.0)).sum(axis=1)
    nothing = (rest_p < _NOTHING_LEFT) | (rest_q < _NOTHING_LEFT)
    certain += np.where(nothing, 0.0, rest_p * np.log(np.maximum(rest_p, 1e-300) / np.maximum(rest_q, 1e-300)))
    out["kld"] = np.maximum(certain, 0.0)
    low, high = _range(shared, shared.y - shared.z)
    slack = rest_p * (high - low) ** 2 / 8 if representative else np.where(rest_p < _NOTHING_LEFT, 0.0, np.inf)
    out["kld_most"] = out["kld"] + slack


def _chosen(shared: _Shared, lse_z: Float64, lse_y: Float64, tokens: Int64, out: Figures) -> None:
    """What the probability of the base's token became; NaN where the new row does not know that token."""
    here = shared.there & (shared.ids == tokens[:, None])
    known = here.any(axis=1)
    rows, at = np.arange(len(tokens)), here.argmax(axis=1)
    log_p, log_q = shared.z[rows, at] - lse_z, shared.y[rows, at] - lse_y
    out["p"] = np.where(known, np.exp(log_p), np.nan)
    out["delta_nll"] = np.where(known, log_p - log_q, np.nan)
    out["delta_p"] = np.where(known, np.exp(log_q) - np.exp(log_p), np.nan)


def _settle_equal(out: Figures) -> None:
    """Rows of one checksum are one row: everything is known of their differences."""
    equal = out["equal"]
    for name in ("kld", "kld_most", "one_minus_cos", "rel_rms", "rms", "max_abs", "max_abs_free"):
        out[name] = np.where(equal, 0.0, out[name])
    for name in ("delta_p", "delta_nll"):
        out[name] = np.where(equal, 0.0, out[name])
    out["ulp"] = np.where(equal, 0, out["ulp"])
    out["close"] |= equal
    out["whole"] |= equal
