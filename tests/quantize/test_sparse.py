"""W8A8S: a grid of 4 bits with outliers at 8, by channel, against its definition written down a second time."""

import numpy as np
import numpy.typing as npt
import pytest

from llmbench.errors import ConfigError
from llmbench.quantize import sparse
from llmbench.quantize.sparse import Knobs

Float32 = npt.NDArray[np.float32]


def weight(shape: tuple[int, int] = (24, 400), seed: int = 0) -> Float32:
    """Channels of different sizes, with some far outliers."""
    rng = np.random.default_rng(seed)
    found = rng.standard_normal(shape) * rng.uniform(0.1, 3, (shape[0], 1))
    found[rng.random(shape) < 0.003] *= 12
    return found.astype(np.float32)


def by_definition(weight: Float32, num_outliers: int, reach: int, power: float) -> list[list[int]]:
    """Value by value, in float64."""
    levels = [round(reach * (i / 7) ** power) for i in range(8)]
    found: list[list[int]] = []
    for row in weight.astype(np.float64):
        size = np.abs(row)
        outliers = set(np.argsort(size, kind="stable")[len(row) - num_outliers :].tolist())
        top = max(size[i] for i in range(len(row)) if i not in outliers)
        scale = float(np.float32(max(top / reach, size.max() / 127)))
        found.append([])
        for i, value in enumerate(row.tolist()):
            units = abs(value) / scale
            level = min(127, round(units)) if i in outliers else min(levels, key=lambda n: abs(n - units))
            found[-1].append(int(np.copysign(level, value)))
    return found


@pytest.mark.parametrize("fraction", [0.0, 0.011, 0.1])
@pytest.mark.parametrize("nonuniform", [False, True])
def test_every_value_is_the_one_of_the_definition(fraction: float, nonuniform: bool) -> None:
    given = weight()
    found = sparse.quantised(given, Knobs(fraction=fraction, nonuniform=nonuniform))
    num = round(fraction * given.shape[1])
    assert found.values.tolist() == by_definition(given, num, found.reach, found.power)
    assert found.num_outliers == num * len(given)
    if not nonuniform:
        assert found.power == 1.0


def test_the_reach_is_the_largest_that_leaves_every_outlier_within_eight_bits_but_no_less_than_35() -> None:
    given = np.random.default_rng(0).standard_normal((24, 400)).astype(np.float32)
    found = sparse.quantised(given, Knobs(fraction=0.05))
    size = np.sort(np.abs(given), axis=1)
    share = (size[:, -21] / size[:, -1]).min()
    assert 35 < found.reach == int(127 * share)
    assert np.allclose(found.scale, size[:, -21] / found.reach)
    given[3, 7] = 100
    found = sparse.quantised(given, Knobs(fraction=0.05))
    assert found.reach == 35
    assert found.values[3, 7] == 127
    assert found.scale[3] == np.float32(100 / 127), "a coarser grid, in this channel alone"
    assert np.abs(found.values[4]).max() > 35


def test_beside_the_outliers_there_are_fifteen_values_and_outliers_are_rounded_to_all_of_eight_bits() -> None:
    given = weight()
    found = sparse.quantised(given, Knobs(fraction=0.05))
    size = np.abs(given)
    is_outlier = size > np.sort(size, axis=1)[:, -1 - round(0.05 * size.shape[1]), None]
    assert len(np.unique(found.values[~is_outlier])) == 15
    assert np.array_equal(found.values[is_outlier], np.rint(given / found.scale[:, None])[is_outlier])


def test_outliers_by_sigma_are_those_beyond_so_many_deviations() -> None:
    given = weight()
    found = sparse.quantised(given, Knobs(sigma_factor=3.0))
    beyond = np.abs(given) > 3 * np.sqrt((given.astype(np.float64) ** 2).mean(axis=1, keepdims=True))
    assert found.num_outliers == beyond.sum() > 0
    assert np.array_equal(found.values[beyond], np.rint(given / found.scale[:, None])[beyond])


def test_with_both_limits_outliers_are_those_that_pass_both() -> None:
    given = weight()
    alone, both = (sparse.quantised(given, Knobs(fraction=f, sigma_factor=3.0)) for f in (None, 0.005))
    few = sparse.quantised(given, Knobs(fraction=0.005))
    assert both.num_outliers < min(alone.num_outliers, few.num_outliers)
    assert sparse.quantised(given, Knobs()).num_outliers == round(sparse.FRACTION * given.shape[1]) * len(given)


def test_more_outliers_are_more_accurate_and_less_sparse() -> None:
    given = weight((64, 1024))

    def told(knobs: Knobs) -> sparse.Figures:
        return sparse.figures(given, sparse.quantised(given, knobs))

    by_fraction = [told(Knobs(fraction=fraction)) for fraction in (0.01, 0.03, 0.1)]
    by_sigma = [told(Knobs(sigma_factor=factor)) for factor in (4.0, 3.5, 3.0)]
    for found in (by_fraction, by_sigma):
        assert [one.error for one in found] == sorted((one.error for one in found), reverse=True)
        assert [one.zeros for one in found] == sorted((one.zeros for one in found), reverse=True)
        assert found[0].zeros > 0.1
    even, uneven = told(Knobs()), told(Knobs(nonuniform=True))
    assert uneven.error < 0.97 * even.error
    assert uneven.power > 1


def test_the_figures_are_those_of_the_matrix() -> None:
    given = np.array([[127, 0, 63, -63, 4], [0, 0, 0, 0, 0]], np.float32)
    found = sparse.quantised(given, Knobs(fraction=0.2))
    assert found.values.tolist() == [[127, 0, 63, -63, 0], [0, 0, 0, 0, 0]]
    assert found.reach == 63
    assert found.scale.tolist() == [1.0, 1.0]
    told = sparse.figures(given, found)
    assert (told.zeros, told.num_distinct, told.outliers) == (0.7, 4, 0.1)
    assert told.error == pytest.approx(4 / np.linalg.norm(given))


def test_a_large_matrix_is_worked_on_in_parts_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    given = weight()
    whole = sparse.quantised(given, Knobs())
    monkeypatch.setattr(sparse, "_BLOCK", 1000)
    parts = sparse.quantised(given, Knobs())
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.scale, parts.scale)
    assert whole.num_outliers == parts.num_outliers


def inputs(num: int, width: int, seed: int = 1) -> Float32:
    """Rows in which channels hang together, and some are larger."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((num, 20)) @ np.random.default_rng(2).standard_normal((20, width))
    found: Float32 = (mixed + 0.3 * rng.standard_normal((num, width))).astype(np.float32)
    return found * np.linspace(0.2, 3, width, dtype=np.float32)


def compensated_by_definition(weight: Float32, x: Float32, found: sparse.Sparse, top: list[float]) -> list[list[int]]:
    """GPTQ column by column, over all later columns at once."""
    levels = [round(found.reach * (i / 7) ** found.power) for i in range(8)]
    gram = x.T.astype(np.float64) @ x
    gram += sparse.DAMPING * gram.trace() / len(gram) * np.eye(len(gram))
    order = np.argsort(-gram.diagonal(), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(gram[np.ix_(order, order)])).T
    values = np.zeros(weight.shape, int)
    for n, row in enumerate(weight.astype(np.float64)):
        left, scale = row[order].copy(), float(found.scale[n])
        for j, column in enumerate(order.tolist()):
            units = abs(left[j]) / scale
            is_outlier = abs(row[column]) > top[n]
            level = min(127, round(units)) if is_outlier else min(levels, key=lambda i: abs(i - units))
            values[n, column] = np.copysign(level, left[j])
            left[j + 1 :] -= (left[j] - values[n, column] * scale) / upper[j, j] * upper[j, j + 1 :]
    return [list(map(int, row)) for row in values]


def test_with_inputs_what_a_weight_loses_is_made_up_for_by_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given, x = weight((6, 150)), inputs(300, 150)
    knobs = Knobs(fraction=0.02)
    found = sparse.quantised(given, knobs, x)
    top = np.sort(np.abs(given), axis=1)[:, -1 - round(0.02 * 150)].tolist()
    assert found.values.tolist() == compensated_by_definition(given, x, found, top)
    monkeypatch.setattr(sparse, "GROUP", 80)
    parts = sparse.quantised(given, knobs, x)
    for some in (slice(0, 80), slice(80, 150)):
        expected = compensated_by_definition(given[:, some], x[:, some], found._replace(values=parts.values), top)
        assert parts.values[:, some].tolist() == expected


def test_the_outputs_of_other_inputs_are_nearer_with_it() -> None:
    given, x, others = weight((40, 300)), inputs(400, 300), inputs(200, 300, seed=5)

    def error(found: sparse.Sparse) -> float:
        exact = others @ given.T
        return float(np.linalg.norm(others @ (found.values * found.scale[:, None]).T - exact) / np.linalg.norm(exact))

    plain = sparse.quantised(given, Knobs(compensate=False), x)
    assert np.array_equal(plain.values, sparse.quantised(given, Knobs()).values), "it needs inputs"
    found = sparse.quantised(given, Knobs(), x)
    assert error(found) < 0.5 * error(plain)
    assert np.array_equal(found.scale, plain.scale)
    assert found.num_outliers == plain.num_outliers
    nothing = sparse.quantised(given, Knobs(), np.zeros_like(x))
    assert np.array_equal(nothing.values, plain.values), "inputs that are all 0 say nothing"


@pytest.mark.parametrize(
    ("knobs", "what"),
    [
        (Knobs(fraction=-0.1), "--fraction: must be from 0 to 0.5, got -0.1"),
        (Knobs(fraction=0.6), "--fraction"),
        (Knobs(fraction=float("nan")), "--fraction"),
        (Knobs(sigma_factor=0.0), "--sigma-factor: must be above 0 and up to 10, got 0"),
        (Knobs(sigma_factor=11.0), "--sigma-factor"),
    ],
)
def test_knobs_out_of_range_are_refused(knobs: Knobs, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        sparse.check(knobs)
    sparse.check(Knobs(sigma_factor=3.5))
