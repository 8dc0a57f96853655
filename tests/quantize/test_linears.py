"""The formulas of int8 against float64 written down directly, and the figures of the reference."""

import numpy as np
import pytest

from llmbench.errors import InputError
from llmbench.quantize import linears
from llmbench.weights import quantised

RNG = np.random.default_rng(11)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.5, 2.0), (-7.0, -1.0), (-0.3, 0.3), (0.0, 0.0), (-1e-12, 0.0)]
)
def test_an_input_has_the_scale_and_offset_of_the_formula(low: float, high: float) -> None:
    scale, offset = linears.activation(low, high)
    least, greatest = min(low, 0.0), max(high, 0.0)
    assert scale == pytest.approx(max((greatest - least) / 255, np.finfo(np.float32).eps), rel=1e-7)
    assert offset == round(-least / scale) - 128
    assert -128 <= offset <= 127
    assert linears.rounded(np.zeros(1), scale, offset)[0] == offset, "0 stays 0"
    if greatest - least > 1e-6:
        for end in (least, greatest):
            back = (float(linears.rounded(np.array([end]), scale, offset)[0]) - offset) * scale
            assert back == pytest.approx(end, abs=0.51 * scale)


def test_halves_are_rounded_to_even() -> None:
    assert linears.rounded(np.array([0.5, 1.5, 2.5, -0.5]), 1.0, 0).tolist() == [0, 2, 2, 0]


def test_a_linear_has_the_tensors_of_the_formula() -> None:
    weight, bias = RNG.standard_normal((6, 40)), RNG.standard_normal(6)
    found = linears.w8a8("linear", weight, bias, 0.05, -7)
    for n in range(6):
        weight_scale = max(abs(weight[n])) / 127
        row = [min(max(round(w / weight_scale), -128), 127) for w in weight[n]]
        assert found.weight[n].tolist() == row
        assert found.deq_scale[n] == pytest.approx(0.05 * weight_scale, rel=1e-6)
        assert found.quant_bias[n] == round(bias[n] / float(found.deq_scale[n]) - sum(row) * -7)
    assert [str(x.dtype) for x in (found.weight, found.deq_scale, found.quant_bias)] == ["int8", "float32", "int32"]


def test_what_it_computes_is_the_formula_in_integers() -> None:
    weight, bias, x = RNG.standard_normal((6, 40)), RNG.standard_normal(6), RNG.standard_normal((9, 40)) + 0.4
    scale, offset = linears.activation(float(x.min()), float(x.max()))
    found = linears.w8a8("linear", weight, bias, scale, offset)
    xq = [[min(max(round(v / scale + offset), -128), 127) for v in row] for row in x.tolist()]
    for t in range(9):
        for n in range(6):
            total = sum(a * int(w) for a, w in zip(xq[t], found.weight[n], strict=True)) + int(found.quant_bias[n])
            assert linears.output(found, x)[t, n] == pytest.approx(total * float(found.deq_scale[n]), rel=1e-12)


def test_the_relative_error_on_gaussian_data_is_about_one_percent() -> None:
    """ascend-formats, section 4.2: 0.96 %; more inputs have larger ends, and so a larger scale."""
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((64, 128)), rng.standard_normal((32, 128))
    found = linears.w8a8("linear", weight, None, *linears.activation(float(x.min()), float(x.max())))
    assert linears.relative_error(found, weight, None, x) == pytest.approx(0.0096, rel=0.15)


def test_the_scales_survive_being_packed_into_int64() -> None:
    found = linears.w8a8("linear", RNG.standard_normal((6, 40)), None, 0.05, -7)
    packed = quantised.packed(found.deq_scale)
    assert packed.dtype == np.int64
    assert (packed & 0xFFFFFFFF).astype(np.uint32).view(np.float32).tolist() == found.deq_scale.tolist()
    np.testing.assert_array_equal(quantised.unpacked(packed), found.deq_scale)


def test_the_float_linear_can_be_had_back_from_a_quantised_one() -> None:
    weight, bias = RNG.standard_normal((6, 40)), RNG.standard_normal(6)
    found = linears.w8a8("linear", weight, bias, 0.05, -7)
    np.testing.assert_allclose(found.dequantised(), weight, atol=np.abs(weight).max() / 127 / 2 * 1.001)
    np.testing.assert_allclose(found.bias(), bias, atol=float(found.deq_scale.max()))


@pytest.mark.parametrize("asymmetric", [False, True])
def test_weights_alone_are_rounded_by_half_a_step_at_most(asymmetric: bool) -> None:
    weight, bias = RNG.standard_normal((6, 40)) + 1.5, RNG.standard_normal(6)
    found = linears.w8a16(weight, bias, asymmetric=asymmetric)
    for n in range(6):
        if asymmetric:
            scale = (max(0, weight[n].max()) - min(0, weight[n].min())) / 255
            offset = round(-min(0, weight[n].min()) / scale) - 128
        else:
            scale, offset = np.abs(weight[n]).max() / 127, 0
        assert (found.weight_scale[n, 0], found.weight_offset[n, 0]) == (pytest.approx(scale, rel=1e-6), offset)
        exact = np.clip(np.rint(weight[n] / scale + offset), -128, 127)
        assert np.abs(found.weight[n] - exact).max() <= 1
        assert np.abs((found.weight[n].astype(int) - offset) * scale - weight[n]).max() <= 0.51 * scale
    x = RNG.standard_normal((3, 40))
    np.testing.assert_allclose(linears.output(found, x), x @ found.dequantised().T.astype(np.float64) + bias, atol=1e-5)


def test_asymmetric_weights_of_one_sign_are_rendered_better() -> None:
    weight, x = RNG.standard_normal((6, 40)) + 2.5, RNG.standard_normal((9, 40))
    errors = [
        linears.relative_error(linears.w8a16(weight, None, asymmetric=way), weight, None, x) for way in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_a_row_of_zeros_gives_zeros_or_its_bias() -> None:
    weight = np.zeros((2, 8))
    weight[0] = 1.0
    found = linears.w8a8("linear", weight, np.array([0.0, 3.0]), 0.1, 5)
    x = RNG.standard_normal((4, 8))
    np.testing.assert_allclose(linears.output(found, x)[:, 1], 3.0, atol=0.06)
    nothing = linears.w8a8("linear", weight * 0, None, 0.1, 5)
    assert linears.relative_error(nothing, weight * 0, None, x) == 0.0


def test_a_bias_that_int32_does_not_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer: its bias of up to 5e\+08 is no int32 .* --float-linears"):
        linears.w8a8("layer", np.ones((1, 8)), np.array([5e8]), 0.1, 0)


def test_a_cache_has_scales_by_channel() -> None:
    low, high = np.array([-1.0, 0.0, -3.0]), np.array([2.0, 5.0, -1.0])
    scales, offsets = linears.channel_activations(low, high)
    expected = [linears.activation(*ends) for ends in zip(low, high, strict=True)]
    assert list(zip(scales.tolist(), offsets.tolist(), strict=True)) == expected
    assert [str(x.dtype) for x in (scales, offsets)] == ["float32", "float32"]
