"""Matrices in panels give what a plain product gives."""

import numpy as np
import pytest

from llmbench.engines._matrix import PANELS, WHOLE, Layout, Matrix, Workers


@pytest.mark.parametrize("layout", [PANELS, WHOLE, Layout(16, 48)])
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (48, 130), (200, 1000), (2000, 70)])
def test_a_product_is_that_of_the_weight(layout: Layout, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal(shape[::-1]).astype(np.float32)
    workers = Workers(2)
    matrix = Matrix(*shape, layout, workers)
    matrix.fill(0, [(0, weight)])
    for num_rows in (1, 2, 7, 19, 20, 21, 100, 333):
        x = rng.standard_normal((num_rows, shape[0])).astype(np.float32)
        found = matrix.multiply(x, np.empty((num_rows, matrix.padded), np.float32))
        np.testing.assert_allclose(found, x.astype(np.float64) @ weight.T, atol=5e-4, rtol=0)
    workers.close()


@pytest.mark.parametrize("layout", [PANELS, WHOLE])
def test_blocks_may_come_at_any_column(layout: Layout) -> None:
    weight = np.random.default_rng(0).standard_normal((150, 800)).astype(np.float32)
    pieces, whole = (Matrix(800, 150, layout, Workers(1)) for _ in range(2))
    whole.fill(0, [(0, weight)])
    pieces.fill(0, [(0, weight[:33])])
    pieces.fill(33, [(0, weight[33:100]), (67, weight[100:])])
    ids = np.arange(150, dtype=np.int32)
    assert (pieces.columns(ids) == weight).all()
    assert (whole.columns(ids[::-7]) == weight[::-7]).all()


def test_an_error_in_a_thread_is_raised() -> None:
    workers = Workers(2)

    def work(part: int) -> None:
        if part == 1:
            raise ZeroDivisionError(part)

    with pytest.raises(ZeroDivisionError):
        workers.run(work, 2)
    workers.close()
