"""Compiled code boils rows down as NumPy does: ids and checksums to the bit, what is added up within rounding."""

import logging
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.logits import digest, quick
from llmbench.logits.store import INDEX, Manifest, Store, Writer

pytest.importorskip("numba")

Float32 = npt.NDArray[np.float32]
SPECIAL = (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e4, -3e4)


@cache
def compiled(vocab_size: int) -> quick.Compiled:
    return quick.Compiled(vocab_size)


def random_rows(n: int, vocab_size: int, seed: int, decimals: int = 7) -> Float32:
    """float32 [n, V]; with few decimals, many are equal."""
    rows: Float32 = np.random.default_rng(seed).normal(0, 4, (n, vocab_size)).astype(np.float32).round(decimals)
    return rows


def check(rows: Float32, k: int) -> None:
    """That both ways find the same."""
    vocab_size = rows.shape[1]
    found, expected = compiled(vocab_size).boil(rows, k), digest.Room(vocab_size).boil(rows, k)
    for name in ("checksum", "top_id", "second_id", "top", "second"):
        np.testing.assert_array_equal(found.statistics[name], expected.statistics[name], name)
    size = max(1.0, float(np.abs(rows, where=np.isfinite(rows), out=np.zeros_like(rows)).max()))
    for name, scale in (("lse", size), ("mean", size), ("variance", size**2)):
        np.testing.assert_allclose(
            found.statistics[name], expected.statistics[name], rtol=1e-6, atol=2e-6 * scale, err_msg=name
        )
    assert found.ids.shape == found.values.shape == (len(rows), k)
    np.testing.assert_array_equal(found.values, np.take_along_axis(rows, found.ids, axis=1))
    np.testing.assert_array_equal(np.sort(found.values), np.sort(expected.values))
    np.testing.assert_array_equal([len(set(ids)) for ids in found.ids.tolist()], k)
    if vocab_size > 512:  # of fewer, NumPy does not say which of equal values it takes
        np.testing.assert_array_equal(np.sort(found.ids), np.sort(expected.ids))


@given(
    n=st.integers(1, 5),
    vocab_size=st.integers(2, 1200),
    k=st.integers(0, 64),
    seed=st.integers(0, 1000),
    decimals=st.sampled_from([0, 1, 7]),
    special=st.lists(st.tuples(st.integers(0, 5999), st.sampled_from(SPECIAL)), max_size=6),
)
def test_compiled_code_finds_what_numpy_finds(
    n: int, vocab_size: int, k: int, seed: int, decimals: int, special: Sequence[tuple[int, float]]
) -> None:
    rows = random_rows(n, vocab_size, seed, decimals)
    for place, value in special:
        rows.flat[place % rows.size] = value
    check(rows, min(k, vocab_size))


@pytest.mark.parametrize("vocab_size", [2, 63, 513, 2048, 4099, 32000])
@pytest.mark.parametrize("value", [0.0, -0.0, -np.inf, 7.5, np.inf, np.nan])
def test_where_all_or_all_but_one_are_equal_the_rules_decide(vocab_size: int, value: float) -> None:
    rows = np.full((4, vocab_size), value, np.float32)
    rows[1, 0] = rows[2, -1] = rows[3, vocab_size // 2] = 1.0
    for k in {1, min(64, vocab_size), min(vocab_size, 700)}:
        check(rows, k)


@pytest.mark.parametrize("vocab_size", [2048, 32000, 151936])
def test_rows_of_real_vocabularies_are_boiled_down_as_by_numpy(vocab_size: int) -> None:
    rows = random_rows(3, vocab_size, 1)
    rows[1, 5::7] = -np.inf  # as banned tokens are
    check(rows, 64)
    check(rows[:, ::-1], 64)  # not one behind the other in memory
    rows.flags.writeable = False
    check(rows, 0)


def test_nothing_is_compiled_while_rows_come() -> None:
    boiler = compiled(600)
    before = list(boiler._kernel.signatures)
    assert len(before) == 1
    rows = random_rows(5, 1200, 0)
    rows.flags.writeable = False
    for given_rows, k in ((rows[:, :600], 0), (rows[::2, ::2], 64), (rows[:0, :600], 3)):
        boiler.boil(given_rows, k)
    assert boiler._kernel.signatures == before


def test_exponentials_are_added_up_to_the_last_places_of_float32() -> None:
    rows = np.linspace(-100, 0, 3 * 4096, dtype=np.float32).reshape(-1, 3).T.copy()
    rows[1] = np.linspace(-1, 0, 4096)
    exact = np.log(np.exp(rows.astype(np.float64)).sum(axis=1))
    np.testing.assert_allclose(compiled(4096).boil(rows, 0).statistics["lse"], exact, rtol=0, atol=1.2e-7)


def test_a_store_is_the_same_whoever_boils_its_rows_down(tmp_path: Path) -> None:
    manifest = Manifest(model="m", fingerprint="f", engine="e", dtype="float32", vocab_size=2048)
    rows = random_rows(12, 2048, 3)
    stores = []
    for name, boiler in (("numpy", None), ("compiled", compiled(2048))):
        writer = Writer(tmp_path / name, manifest, boiler)
        records = np.zeros(12, INDEX)
        records["request"], records["step"], records["token"] = writer.request("r", 4), np.arange(12), 9
        writer.append([writer.boil(rows[:5]), writer.boil(rows[5:])], records)
        writer.close()
        stores.append(Store(tmp_path / name))
    ours, theirs = stores
    for name in INDEX.names or ():
        if name not in ("lse", "mean", "variance", "crc"):
            np.testing.assert_array_equal(ours.table[name], theirs.table[name], name)
    tops = [store.top(np.arange(12)) for store in stores]
    for field in ("ids", "values", "tail_ids", "tail"):
        found, expected = (np.sort(getattr(top, field)) for top in tops)
        np.testing.assert_array_equal(found, expected, field)


def test_numba_is_taken_where_it_is_installed_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmbench.logits.quick")
    assert isinstance(quick.boiler(50), quick.Compiled)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert isinstance(quick.boiler(50), digest.Room)
    assert caplog.messages == [
        "rows of logits are boiled down by compiled code",
        "rows of logits are boiled down by NumPy: numba is not installed; pip install 'llmbench[fast]'",
    ]
