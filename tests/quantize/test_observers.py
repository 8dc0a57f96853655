"""Observers against their formulas written down directly, in float64."""

import numpy as np
import numpy.typing as npt
import pytest

from llmbench.quantize import observers
from llmbench.quantize.observers import Auto, CacheRange, ChannelWatch, Histogram, MinMax, Score, clip

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def batches(num: int = 7, width: int = 12, spread: float = 1.0) -> list[Float32]:
    """Batches of other lengths and other sizes, not centred."""
    rng = np.random.default_rng(3)
    found = []
    for i in range(num):
        x = rng.standard_normal((5 + 3 * i, width)) * spread * (1 + i) + 0.3
        found.append(x.astype(np.float32))
    return found


def test_min_max_is_the_mean_of_each_batchs_ends() -> None:
    seen, observer = batches(), MinMax()
    for x in seen:
        observer.see(x)
    expected = [np.mean([getattr(x, end)() for x in seen], dtype=np.float64) for end in ("min", "max")]
    assert observer.range() == pytest.approx(expected, rel=1e-12)


def test_values_have_the_ends_of_each_channel_over_everything() -> None:
    seen, observer = batches(), CacheRange(12)
    for x in seen:
        observer.see(x)
    np.testing.assert_array_equal(observer.low, np.concatenate(seen).min(axis=0))
    np.testing.assert_array_equal(observer.high, np.concatenate(seen).max(axis=0))


def test_keys_reach_as_far_as_any_turn_can_bring_them() -> None:
    seen, observer = batches(), CacheRange(12, head_dim=6)
    for x in seen:
        observer.see(x)
    whole = np.concatenate(seen).astype(np.float64)
    for head in range(2):
        for j in range(3):
            pair = [6 * head + j, 6 * head + j + 3]
            radius = np.sqrt(np.square(whole[:, pair]).sum(axis=1)).max()
            np.testing.assert_allclose(observer.high[pair], radius, rtol=1e-6)
            np.testing.assert_allclose(observer.low[pair], -radius, rtol=1e-6)


def test_a_histogram_that_grows_counts_as_if_it_had_known_its_ends() -> None:
    rng = np.random.default_rng(0)
    seen = [rng.standard_normal((50, 8)).astype(np.float32) * size for size in (0.1, 3.0, 1.0, 40.0)]
    seen.insert(0, np.zeros((4, 8), np.float32))
    observer = Histogram()
    for x in seen:
        observer.see(x)
    whole = np.concatenate([x.ravel() for x in seen[1:]])
    assert observer.low <= whole.min()
    assert observer.high >= whole.max()
    expected = np.histogram(whole.astype(np.float64), 2048, (observer.low, observer.high))[0]
    assert np.abs(observer.counts - expected).sum() <= 4, "but for values on the edge between two bins"
    assert observer.counts.sum() == whole.size


def direct_error(centres: Float64, counts: Float64, low: float, high: float) -> float:
    """The squared error of 256 values from low to high, bin by bin."""
    step = (high - low) / 255
    return float(
        sum(
            count * (step**2 / 12 if low <= x <= high else (x - min(max(x, low), high)) ** 2)
            for x, count in zip(centres, counts, strict=True)
        )
    )


@pytest.mark.parametrize(("low", "high"), [(-4.0, 6.0), (0.0, 3.0), (-2.5, 0.0)])
def test_the_clip_is_the_best_of_all_pairs_of_edges(low: float, high: float) -> None:
    rng = np.random.default_rng(5)
    x = np.clip(rng.standard_t(3, 3000) * 0.3, low, high)
    counts, edges = np.histogram(x, 24, (low, high))
    centres = (edges[1:] + edges[:-1]) / 2
    best = min(
        ((a, b) for a in edges if a <= 1e-9 for b in edges if b >= -1e-9 and b > a),
        key=lambda ends: direct_error(centres, counts, *ends),
    )
    assert clip(counts, low, high) == pytest.approx(best, abs=1e-9)


def squared_error(x: Float64, low: float, high: float) -> float:
    step = (high - low) / 255
    return float(np.square(np.clip(np.rint((x - low) / step), 0, 255) * step + low - x).sum())


def test_a_histogram_clips_the_few_and_saves_error_by_it() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((4000, 64)).astype(np.float32)
    x[0, 0] = 20.0
    histogram, min_max = Histogram(), MinMax()
    histogram.see(x)
    min_max.see(x)
    clipped, whole = histogram.range(), min_max.range()
    assert clipped[1] < 0.9 * whole[1]
    assert squared_error(x.astype(float), *clipped) < 0.9 * squared_error(x.astype(float), *whole)


def test_auto_takes_the_histogram_until_outliers_are_a_thing_of_their_own() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 64)).astype(np.float32)
    for outlier, expected in ((20.0, Histogram()), (400.0, MinMax())):
        x[0, 0] = outlier
        auto = Auto()
        auto.see(x)
        expected.see(x)
        assert auto.parameter() == pytest.approx(np.abs(x).max() / x.astype(float).std(), rel=1e-6)
        assert auto.range() == expected.range()


@pytest.mark.parametrize("name", list(observers.OBSERVERS))
def test_zeros_have_a_range(name: observers.Method) -> None:
    observer = observers.OBSERVERS[name]()
    observer.see(np.zeros((3, 4), np.float32))
    assert observer.range() == (0.0, 0.0)


def test_the_score_is_that_of_the_first_five_batches_centred() -> None:
    seen, observer = batches(), Score(12)
    for x in seen:
        observer.see(x)
    x = np.concatenate(seen[:5]).astype(np.float64)
    x -= (x.max(axis=0) + x.min(axis=0)) / 2
    assert observer.score() == pytest.approx(np.abs(x).max() / x.std(), rel=1e-6)


def test_a_score_of_nothing_that_varies_is_0() -> None:
    observer = Score(3)
    observer.see(np.ones((4, 3), np.float32))
    assert observer.score() == 0.0


def test_channels_for_smoothing_are_over_all_values_and_keep_the_rows_that_were_asked_for() -> None:
    seen, watch = batches(), ChannelWatch(12)
    for x in seen:
        watch.see(x, np.array([0, 3]))
    whole, found = np.concatenate(seen), watch.channels()
    np.testing.assert_array_equal(found.low, whole.min(axis=0))
    np.testing.assert_array_equal(found.high, whole.max(axis=0))
    np.testing.assert_allclose(found.size, np.abs(whole.astype(np.float64)).mean(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(found.rows, np.concatenate([x[[0, 3]] for x in seen]))
