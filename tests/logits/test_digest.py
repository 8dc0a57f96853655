"""What a row is boiled down to, against the same by the shortest way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.logits import digest, halves


@given(n=st.integers(1, 5), vocab_size=st.integers(2, 700), k=st.integers(1, 64), seed=st.integers(0, 1000))
def test_the_k_largest_values_of_any_row_are_found(n: int, vocab_size: int, k: int, seed: int) -> None:
    k = min(k, vocab_size)
    rows = np.random.default_rng(seed).normal(0, 2, (n, vocab_size)).astype(np.float32).round(1)  # with ties
    ids, values = digest.top(rows, k)
    assert (np.sort(values, axis=1) == np.sort(rows, axis=1)[:, -k:]).all()
    assert (np.take_along_axis(rows, ids, axis=1) == values).all()
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("num_nan", [1, 40, 499])
def test_nan_in_a_row_disturbs_no_other_row_and_shows_in_its_statistics(num_nan: int) -> None:
    rows = np.random.default_rng(0).normal(0, 2, (2, 500)).astype(np.float32)
    rows[0, :num_nan] = np.nan
    ids, _ = digest.top(rows, 16)
    assert len(set(ids[0].tolist())) == 16
    assert set(ids[1].tolist()) == set(np.argsort(-rows[1])[:16].tolist())
    found = digest.statistics(rows)
    assert [np.isnan(found[name][0]) for name in ("top", "lse", "mean")] == [True] * 3
    assert np.isfinite(found["lse"][1])


def test_changes_of_any_bits_change_the_checksum() -> None:
    """Two sign bits too, which a sum of 64-bit words would cancel."""
    row = np.random.default_rng(0).normal(0, 5, (1, 64)).astype(np.float32)
    seen = {int(digest.checksum(row)[0])}
    for i in range(64):
        for j in range(i, 64):
            changed = row.copy()
            changed[0, [i, j]] *= -1
            seen.add(int(digest.checksum(changed)[0]))
    assert len(seen) == 1 + 64 * 65 // 2
    assert int(digest.checksum(row[:, ::-1])[0]) not in seen


def test_the_checksum_never_changes_between_versions() -> None:
    row = np.arange(8, dtype=np.float32).reshape(1, -1)
    assert f"{int(digest.checksum(row)[0]):016x}" == "32b8aea7f6000000"


def test_the_sample_of_the_rest_is_spread_and_reaches_every_id() -> None:
    keys = np.full(5000, digest.request_key("seed", "r1"), np.uint64)
    ids = digest.tail_ids(keys, np.arange(5000, dtype=np.uint32), 1000, 8)
    assert ids.shape == (5000, 8)
    assert set(ids.reshape(-1).tolist()) == set(range(1000))
    gaps = np.diff(np.sort(ids, axis=1), axis=1)
    assert (gaps.min(), gaps.max()) == (125, 125)
    assert digest.request_key("seed", "r1") != digest.request_key("seed", "r2")
    assert digest.request_key("seed", "r1") != digest.request_key("other", "r1")


def test_every_float16_is_unpacked_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = bits.view(np.float16).astype(np.float32)
    finite = np.isfinite(expected)
    for chosen in (bits[finite], bits, bits[:1], bits[:0]):
        out = np.empty(chosen.shape, np.float32)
        halves.from_half(chosen, out)
        assert (out.view(np.uint32) == chosen.view(np.float16).astype(np.float32).view(np.uint32)).all()
    out = np.empty(finite.sum(), np.float32)
    halves.from_finite_half(bits[finite], out)
    assert (out.view(np.uint32) == expected[finite].view(np.uint32)).all()


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
def test_a_single_infinity_or_nan_is_unpacked_exactly(special: float) -> None:
    values = np.array([1.5, special, -2.0], np.float16)
    out = np.empty(3, np.float32)
    halves.from_half(values.view(np.uint16), out)
    np.testing.assert_array_equal(out, values.astype(np.float32))


def test_every_bfloat16_is_unpacked_exactly() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(bits.shape, np.float32)
    halves.from_bfloat(bits, out)
    assert (out.view(np.uint32) == bits.astype(np.uint32) << np.uint32(16)).all()
    back, exact = halves.to_bfloat(out.reshape(1, -1))
    assert exact.all()
    assert (back == bits).all()


def test_the_second_is_the_largest_of_the_others() -> None:
    """Also where it is as far from the top as the third, once that is subtracted, and where all others are -inf."""
    rows = np.full((4, 8), -np.inf, np.float32)
    rows[0] = (20, 3, np.nextafter(np.float32(3), np.float32(4)), 1, 0, 0, 0, 0)
    rows[1, 0] = rows[2, 5] = 4
    rows[3] = 2
    found = digest.statistics(rows)
    assert found["top_id"].tolist() == [0, 0, 5, 0]
    assert found["second_id"].tolist() == [2, 1, 0, 1]
    assert found["second"].tolist() == [rows[0, 2], -np.inf, -np.inf, 2]
