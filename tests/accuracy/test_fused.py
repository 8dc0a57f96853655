"""The compiled pass against NumPy's, for values of every kind that is stored."""

import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.accuracy import blocks
from llmbench.accuracy.blocks import Work
from llmbench.accuracy.compare import Options, compare
from llmbench.accuracy.measure import FIGURES, PASSED, Figures, Known, Scratch, largest_units, measure
from llmbench.accuracy.sides import open_side
from llmbench.logits import digest, halves
from llmbench.logits.store import BF16, F16, F32, Pair, Tier
from tests.accuracy.captures import VOCAB, answers, store

pytest.importorskip("llvmlite")

from llmbench.accuracy.fused import _FACTORS, _NEAR, Fused
from llmbench.native import NONE, VARIABLE
from llmbench.native.isa import ISA

Float32 = npt.NDArray[np.float32]
Bits = npt.NDArray[np.uint16]

KINDS = {F16: "float16", BF16: "bfloat16", F32: "float32"}
SAME = ("max_abs", "max_abs_free", "at", "base_value", "new_value", "margin", "base_top", "new_top", "p")
SAME_FLAGS = ("equal", "finite", "close", "whole", "ulp")


@cache
def fused(kind: int) -> Fused:
    return Fused([kind], ulp=True)


def rounded(rows: npt.NDArray[np.float64], kind: int) -> Float32:
    """Values that a kind holds."""
    if kind == F16:
        with np.errstate(over="ignore"):
            return rows.astype(np.float16).astype(np.float32)
    values = rows.astype(np.float32)
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) if kind == BF16 else values


def pair(base: Float32, new: Float32, kind: int) -> Pair:
    """Rows as they come from two stores: of 16 bits, the values are not there."""
    if kind == F32:
        return Pair(base, new)
    pack = halves.to_half if kind == F16 else halves.to_bfloat
    packed = [pack(rows) for rows in (base, new)]
    assert all(exact.all() for _, exact in packed)
    nothing = np.full(base.shape, np.nan, np.float32)
    return Pair(nothing, nothing.copy(), kind, (packed[0][0], packed[1][0]))


def both(base: Float32, new: Float32, kind: int) -> tuple[Figures, Figures]:
    """The figures by NumPy, and by the compiled pass."""
    equal = np.array([(z == y).all() for z, y in zip(base.view(np.uint32), new.view(np.uint32), strict=True)])
    with np.errstate(all="ignore"):
        known = Known(digest.statistics(base), digest.statistics(new), equal)
    found = []
    for quick in (None, fused(kind)):
        out = np.zeros(len(base), FIGURES)
        rows, room = pair(base, new, kind), Scratch(len(base), base.shape[1], quick)
        measure(rows, np.arange(len(base)) % 3 - 1, room, out, known)
        out["ulp"][~equal] = largest_units(rows, KINDS[kind], room)[~equal]
        found.append(out)
    return found[0], found[1]


def hold(numpy: Figures, compiled: Figures) -> None:
    """What is whole numbers or chosen is the same; sums are within what each of the passes may be off."""
    for name in (*SAME, *SAME_FLAGS):
        np.testing.assert_array_equal(compiled[name], numpy[name], name)
    for name in ("rms", "rel_rms"):
        np.testing.assert_allclose(compiled[name], numpy[name], rtol=2e-6, atol=0, err_msg=name)
    np.testing.assert_allclose(compiled["one_minus_cos"], numpy["one_minus_cos"], rtol=1e-4, atol=1e-13)
    by = np.where(np.isfinite(numpy["max_abs"]), np.minimum(numpy["max_abs"], 60), 0)
    # where differences are small both are made of series; else NumPy's has little left of the smallest of them
    far = np.where(by < 0.1, 0.0, 2e-6 * (1 + by))
    for name, relative, near in (
        ("kld", 1e-3, 2e-6 * by**2),
        ("delta_nll", 1e-4, 1e-6 * by),
        ("delta_p", 1e-3, 1e-6 * by),
    ):
        allowed = relative * np.abs(numpy[name]) + near + far + 1e-15
        with np.errstate(invalid="ignore"):
            off = np.abs(compiled[name] - numpy[name])
        assert (np.isnan(off) | (off <= allowed)).all(), (name, off / allowed)
        np.testing.assert_array_equal(np.isfinite(compiled[name]), np.isfinite(numpy[name]), name)
    assert (compiled["kld"] == compiled["kld_most"]).all()


def noisy(n: int, vocab_size: int, by: float, kind: int, seed: int = 0) -> tuple[Float32, Float32]:
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 5, (n, vocab_size))
    return rounded(base, kind), rounded(base + rng.normal(0, by, base.shape), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [7, 16, 1000, 1024, 4096 + 17, 32_000])
@pytest.mark.parametrize("by", [1e-4, 0.01, 0.3, 3.0, 60.0])
def test_both_passes_find_the_same(kind: int, vocab_size: int, by: float) -> None:
    base, new = noisy(5, vocab_size, by, kind)
    new[3] = base[3]
    hold(*both(base, new, kind))


@given(
    seed=st.integers(0, 1 << 32),
    vocab_size=st.integers(50, 3000),
    exponent=st.floats(-5, 2),
    kind=st.sampled_from([*KINDS]),
)
def test_both_passes_find_the_same_of_any_vocabulary(seed: int, vocab_size: int, exponent: float, kind: int) -> None:
    hold(*both(*noisy(2, vocab_size, 10.0**exponent, kind, seed), kind))


@pytest.mark.parametrize("kind", [BF16, F32])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_found_by_both(kind: int, value: float) -> None:
    base, new = noisy(4, 2000, 0.01, kind)
    base[0, 77] = value
    new[1, 1999] = value
    base[2, 5] = new[2, 5] = value
    numpy, compiled = both(base, new, kind)
    assert compiled["finite"].tolist() == [False, False, False, True]
    assert compiled["at"][:3].tolist() == [77, 1999, 5]
    hold(numpy, compiled)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_each_kind_are_as_good_as_others(kind: int) -> None:
    """Subnormal numbers, both zeros, and the largest that there are: of float32 too large to be squared."""
    base, new = noisy(3, 1500, 0.01, kind)
    tiny = {F16: 2.0**-24, BF16: 2.0**-133, F32: 2.0**-149}[kind]
    base[0, :8] = np.array([0.0, -0.0, tiny, -tiny, 3 * tiny, 5 * tiny, 0.0, -0.0], np.float32)
    new[0, :8] = np.array([-0.0, 0.0, -tiny, tiny, tiny, 0.0, 7 * tiny, tiny], np.float32)
    base[1], new[1] = 0.0, 0.0
    base[1, 1200], new[1, 700] = 2 * tiny, 3 * tiny  # nothing else differs
    largest = {F16: 65504.0, BF16: 3.3895e38, F32: 3.4028e38}[kind]
    base[2] = rounded(np.full(1500, -largest), kind)
    new[2] = rounded(np.full(1500, largest), kind)
    numpy, compiled = both(base, new, kind)
    assert (compiled["at"][1], compiled["ulp"][1]) == (700, 3)
    hold(numpy, compiled)


def test_every_finite_float16_is_widened_exactly() -> None:
    """Each alone in a row of zeros, among whole vectors and behind them: the largest difference is the value itself."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    base, new = np.zeros((len(bits), 35), np.uint16), np.zeros((len(bits), 35), np.uint16)
    new[np.arange(len(bits)), np.arange(len(bits)) % 35] = bits
    rows = Pair(np.zeros(base.shape, np.float32), np.zeros(base.shape, np.float32), F16, (base, new))
    passed = np.zeros(len(base), PASSED)
    assert fused(F16).over(rows, passed)
    largest = np.maximum(passed["up"], passed["down"])
    np.testing.assert_array_equal(largest, np.abs(bits.view(np.float16).astype(np.float32)))
    room = Scratch(1, 35, fused(F16))
    np.testing.assert_array_equal(largest_units(rows, "float16", room), bits & 0x7FFF)


def test_the_lowest_of_equally_large_differences_is_told() -> None:
    base = np.random.default_rng(5).integers(-8, 8, (6, 5000)).astype(np.float32)
    new = base.copy()
    for row, places in enumerate([(4999,), (0, 1, 4999), (1023, 1024), (2048, 2047), (17, 3000), (4998, 4999)]):
        new[row, places] += np.float32(2)
        new[row, [places[0] - 5, 4000]] -= np.float32(1)
    numpy, compiled = both(base, new, F32)
    assert compiled["at"].tolist() == [4999, 0, 1023, 2047, 17, 4998]
    hold(numpy, compiled)


def test_small_differences_beside_a_large_one_keep_their_weight() -> None:
    """Of exp u - 1 - u in float32 nothing would be left of what the likely tokens contribute."""
    base, new = noisy(1, 4000, 1e-3, F32)
    unlikely = int(base[0].argmin())
    new[0, unlikely] += np.float32(3)
    _, compiled = both(base, new, F32)
    z, y = base[0].astype(np.float64), new[0].astype(np.float64)
    log_p, log_q = z - np.logaddexp.reduce(z), y - np.logaddexp.reduce(y)
    assert compiled["kld"][0] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(), rel=1e-4)


def test_the_series_is_the_exponential_as_far_as_float32_can_tell() -> None:
    u = np.linspace(-_NEAR, _NEAR, 401)
    series = sum(factor * u ** (k + 2) for k, factor in enumerate(_FACTORS))
    exact = sum(u**k / math.factorial(k) for k in range(2, 14))
    assert (np.abs(series - exact) <= 4e-7 * u**2 / 2).all()


def test_a_kind_that_it_was_not_made_for_is_left_to_numpy() -> None:
    base, new = noisy(2, 300, 0.01, F32)
    out = [np.zeros(2, FIGURES), np.zeros(2, FIGURES)]
    for found, quick in zip(out, (None, fused(F16)), strict=True):
        room = Scratch(len(base), base.shape[1], quick)
        measure(Pair(base, new), np.array([-1, -1]), room, found)
        found["ulp"] = largest_units(Pair(base, new), "float16", room)
    assert out[0].tobytes() == out[1].tobytes()


def halved(values: Float32) -> Float32:
    return values.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("tier", ["full16", "full32"])
def test_captures_are_compared_with_it_where_that_is_worth_it(
    tmp_path: Path, tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several processes, rows of 16 bits that are not all exact, and some equal, among them."""
    rng = np.random.default_rng(3)
    rows = [row.but(values=halved(row.logits())) for row in answers([f"r{i}" for i in range(9)], 5)]
    moved = []
    for i, row in enumerate(rows):
        values = row.logits() + rng.choice([0, 0.0625], row.logits().shape).astype(np.float32)
        moved.append((row, row.but(values=values), row.but(values=halved(values)))[i % 3])
    base, new = store(tmp_path / "base", rows, tier), store(tmp_path / "new", moved, tier)
    monkeypatch.setattr(blocks, "QUICK_VALUES", VOCAB)  # a block for each row
    slow, by_numpy = compare(base, new, Options(ulp=True, processes=2))
    monkeypatch.setattr(blocks, "WORTH_VALUES", 0)
    quick, compiled = compare(base, new, Options(ulp=True, processes=2))
    assert (slow.computed_with, quick.computed_with) == ("numpy", ISA.name)
    assert 0 < quick.num_equal < quick.num_compared
    hold(by_numpy.figures, compiled.figures)
    monkeypatch.setenv(VARIABLE, NONE)
    assert compare(base, new)[0].computed_with == "numpy"


def test_where_no_code_can_be_made_numpy_does_it_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def forbidden() -> None:
        raise OSError("no memory may be executed")

    monkeypatch.setattr("llvmlite.binding.check_jit_execution", forbidden)
    monkeypatch.setattr(blocks, "WORTH_VALUES", 0)
    caplog.set_level("INFO", blocks.__name__)
    base, new = (open_side(store(tmp_path / name, answers(["r1"], 2), "full32")) for name in ("base", "new"))
    work = Work(base, new, np.arange(2), np.arange(2), ulp=False)
    work.run(1)
    assert work.computed_with == "numpy"
    assert caplog.messages == ["rows are compared with NumPy: no memory may be executed"]


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_other_instructions_find_the_same(isa: str) -> None:
    code = (
        "from tests.accuracy import test_fused as ours\n"
        "for kind in ours.KINDS:\n"
        "    for by in (0.01, 3.0):\n"
        "        ours.hold(*ours.both(*ours.noisy(3, 2077, by, kind), kind))\n"
        "print(ours.ISA.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {VARIABLE: isa}, capture_output=True, text=True, check=False
    )
    if "unknown instruction set of this processor" in done.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert done.stdout.strip() == isa, done.stderr
