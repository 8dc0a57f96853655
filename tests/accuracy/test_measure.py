"""Every figure of a row against its formula in float64, one row at a time, by the shortest way; of both passes."""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmbench.accuracy.measure import ATOL, FIGURES, RTOL, Pass, Scratch, _factors, measure, units
from llmbench.errors import InputError
from llmbench.logits.store import F32, Pair

Float32 = npt.NDArray[np.float32]

QUICK: Pass | None = None


@cache
def compiled() -> Pass:
    """The compiled pass over float32; skips where it cannot be had."""
    pytest.importorskip("llvmlite")
    from llmbench.accuracy.fused import Fused

    return Fused([F32])


@pytest.fixture(params=["numpy", "compiled"], scope="module", autouse=True)
def _of_both_passes(request: pytest.FixtureRequest) -> None:
    global QUICK
    QUICK = compiled() if request.param == "compiled" else None


def figures(base: Float32, new: Float32, tokens: npt.ArrayLike = -1) -> npt.NDArray[np.void]:
    out = np.zeros(len(base), FIGURES)
    before = base.tobytes(), new.tobytes()
    room = Scratch(len(base), base.shape[1], QUICK)
    measure(Pair(base, new), np.broadcast_to(np.asarray(tokens), len(base)), room, out)
    assert (base.tobytes(), new.tobytes()) == before
    return out


def logits(n: int, vocab_size: int, seed: int = 0, scale: float = 5.0) -> Float32:
    return np.random.default_rng(seed).normal(0, scale, (n, vocab_size)).astype(np.float32)


def changed(base: Float32, by: float, seed: int = 1) -> Float32:
    return (base + np.random.default_rng(seed).normal(0, by, base.shape)).astype(np.float32)


def log_softmax(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = row - row.max()
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


@pytest.mark.parametrize("vocab_size", [7, 63, 1000, 32_000, 50_257])  # without and with short pieces, a prime factor
@pytest.mark.parametrize("by", [1e-6, 1e-4, 1e-2, 0.05, 0.5, 5.0, 60.0])
def test_every_figure_is_its_formula(vocab_size: int, by: float) -> None:
    base = logits(3, vocab_size)
    new = changed(base, by)
    tokens = np.array([1, -1, 3])
    found = figures(base, new, tokens)
    for i in range(3):
        z, y = base[i].astype(np.float64), new[i].astype(np.float64)
        log_p, log_q, d = log_softmax(z), log_softmax(y), y - z
        token = tokens[i] if tokens[i] >= 0 else int(z.argmax())
        kld = float((np.exp(log_p) * (log_p - log_q)).sum())
        row = found[i]
        assert row["kld"] == pytest.approx(kld, rel=2e-3, abs=1e-15 + 1e-9 * by), by
        assert row["kld_most"] == row["kld"]
        cos = (z * y).sum() / np.sqrt((z * z).sum() * (y * y).sum())
        assert row["one_minus_cos"] == pytest.approx(1 - cos, rel=1e-3, abs=1e-15)
        assert row["rms"] == pytest.approx(np.sqrt((d * d).mean()), rel=1e-5)
        assert row["rel_rms"] == pytest.approx(np.linalg.norm(d) / np.linalg.norm(z - z.mean()), rel=1e-5)
        assert row["p"] == pytest.approx(np.exp(log_p[token]), rel=1e-6)
        assert row["delta_p"] == pytest.approx(np.exp(log_q[token]) - np.exp(log_p[token]), rel=1e-3, abs=1e-7 * by)
        assert row["delta_nll"] == pytest.approx(log_p[token] - log_q[token], rel=1e-4, abs=1e-6 * by)
        assert row["max_abs"] == np.float32(np.abs(new[i] - base[i]).max())
        assert row["max_abs_free"] == pytest.approx((d.max() - d.min()) / 2, rel=1e-5)
        assert np.abs(d)[row["at"]] == pytest.approx(np.abs(d).max(), rel=1e-6)
        assert (row["base_value"], row["new_value"]) == (base[i, row["at"]], new[i, row["at"]])
        assert (row["base_top"], row["new_top"]) == (z.argmax(), y.argmax())
        first, second = np.sort(z)[-1:-3:-1]
        assert row["margin"] == pytest.approx(first - second, rel=1e-5)
        assert row["close"] == np.allclose(y, z, atol=ATOL, rtol=RTOL)
        assert (row["equal"], row["finite"], row["whole"]) == (False, True, True)


@given(largest=st.floats(1e-6, 0.1))
@example(largest=3e-4)
@example(largest=0.0346)
@example(largest=0.0489)
@example(largest=0.1)
def test_few_powers_stand_for_the_exponential_within_the_allowed_error(largest: float) -> None:
    u = np.linspace(-largest, largest, 401)
    series = sum(factor * u ** (k + 2) for k, factor in enumerate(_factors(largest)))
    exact = sum(u**k / math.factorial(k) for k in range(2, 12))  # of expm1(u) - u too little would be left
    assert (np.abs(series - exact) <= 1.02e-4 * u**2 / 2).all()


def test_rows_that_are_equal_have_no_difference_at_all() -> None:
    base = logits(4, 500)
    for rows in (base, np.concatenate([base[:3], changed(base[3:], 0.1)])):  # all of a block, or some of it
        found = figures(base, rows)[:3]
        for name in ("kld", "one_minus_cos", "rel_rms", "rms", "delta_p", "delta_nll", "max_abs", "max_abs_free"):
            assert (found[name] == 0).all(), name
        assert found["equal"].all()
        assert found["close"].all()
        assert (found["base_top"] == base[:3].argmax(axis=1)).all()


def test_one_bit_makes_a_row_another() -> None:
    base = logits(2, 500)
    new = base.copy()
    new.view(np.uint32)[1, 250] ^= 1
    found = figures(base, new)
    assert found["equal"].tolist() == [True, False]
    assert found["at"][1] == 250
    assert 0 < found["max_abs"][1] < 1e-6


@pytest.mark.parametrize("shift", [-100.0, 1e-3, 1.0, 32.0])
def test_a_shift_of_all_logits_changes_nothing_that_softmax_sees(shift: float) -> None:
    base = logits(1, 4096).round(2)
    new = (base + np.float32(shift)).astype(np.float32)
    (row,) = figures(base, new)
    assert row["max_abs"] == pytest.approx(abs(shift), rel=1e-2)
    assert row["max_abs_free"] < 1e-5
    assert row["kld"] < 1e-11
    assert abs(row["delta_p"]) < 1e-6


@pytest.mark.parametrize("peak", [-300.0, -19.0, 19.0, 55.0, 300.0])
def test_large_logits_that_move_far_have_a_divergence(peak: float) -> None:
    base = logits(1, 500)
    base[0, 3:5] = 30.0, 29.0
    base += np.float32(peak - 30)
    new = base.copy()
    new[0, 4] += 50
    log_p, log_q = (log_softmax(row[0].astype(np.float64)) for row in (base, new))
    assert figures(base, new)["kld"][0] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), rel=1e-5)


@given(seed=st.integers(0, 10_000), by=st.floats(1e-4, 3.0))
def test_kld_is_bounded_by_the_largest_difference(seed: int, by: float) -> None:
    """Hoeffding: KL <= e²/2 where no logit moves by more than e but for a shift."""
    base = logits(2, 256, seed)
    new = (base + np.random.default_rng(seed + 1).uniform(-by, by, base.shape)).astype(np.float32)
    for row in figures(base, new):
        assert 0 <= row["kld"] <= row["max_abs_free"] ** 2 / 2 * (1 + 1e-5) + 1e-12


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spoilt", ["base", "new", "both"])
def test_a_value_that_is_no_number_is_found_on_either_side(value: float, spoilt: str) -> None:
    base = logits(3, 500)
    new = changed(base, 1e-3)
    if spoilt == "both":
        new[1] = base[1]
    for side, rows in (("base", base), ("new", new)):
        if spoilt in (side, "both"):
            rows[1, 17] = value
    found = figures(base, new)
    assert found["finite"].tolist() == [True, False, True]
    assert (found["at"][1], found["close"][1]) == (17, False)
    assert not np.isfinite([found["base_value"][1], found["new_value"][1]]).all()
    assert found["kld"][0] < 1e-5


def test_a_whole_block_of_equal_infinities_is_found() -> None:
    base = logits(2, 500)
    base[0, 3] = np.inf
    assert figures(base, base.copy())["finite"].tolist() == [False, True]


def test_values_too_large_to_be_squared_are_numbers_and_never_pass() -> None:
    base = logits(1, 500)
    base[0, 3] = 1e30
    new = base.copy()
    new[0, 4] += 1
    (row,) = figures(base, new)
    assert (row["finite"], row["close"], row["kld"]) == (True, False, np.inf)
    (same,) = figures(base, base.copy())
    assert (same["finite"], same["close"], same["kld"]) == (True, True, 0)


def test_a_large_difference_within_its_tolerance_does_not_hide_a_small_one_beyond() -> None:
    base = logits(1, 500)
    base[0, 3] = 4000.0
    new = base.copy()
    new[0, 3] += 0.04  # 0.045 is allowed there
    assert figures(base, new)["close"][0]
    new[0, 7] = base[0, 7] + 0.02
    assert figures(base, new)["max_abs"][0] == pytest.approx(0.04, rel=1e-2)
    assert not figures(base, new)["close"][0]


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_neighbours_are_one_unit_apart_across_every_boundary(dtype: str) -> None:
    if dtype == "float32":
        some = np.array([-1e30, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.9999999, 2.0, 1e30], np.float32)
        after = np.nextafter(some, np.float32(np.inf))
    else:
        bits = np.arange(0x7C00 if dtype == "float16" else 0x7F80, dtype=np.uint16)
        values = (bits.view(np.float16).astype(np.float32) if dtype == "float16" else
                  (bits.astype(np.uint32) << np.uint32(16)).view(np.float32))  # fmt: skip
        some, after = values[:-1], values[1:]
        assert (units(-some, -after, dtype) == 1).all()
    assert (units(some, after, dtype) == 1).all()
    assert (units(some, some, dtype) == 0).all()
    assert units(np.array([0.0], np.float32), np.array([-0.0], np.float32), dtype)[0] == 0


def test_float16_between_8_and_16_is_coarser_than_the_contests_tolerance() -> None:
    base, new = np.array([8.0], np.float32), np.array([8.0078125], np.float32)
    assert units(base, new, "float16")[0] == 1
    assert not np.allclose(new, base, atol=ATOL, rtol=RTOL)


def test_units_of_another_type_are_refused() -> None:
    with pytest.raises(InputError, match="units in the last place of int8"):
        units(np.zeros(1, np.float32), np.zeros(1, np.float32), "int8")
