"""Memory for weights is zeros, begins where vectors and large pages do, and takes what is written."""

import mmap

import numpy as np
import numpy.typing as npt
import pytest

from llmbench.memory import aligned

LARGE = (3 << 20) + 40


@pytest.mark.parametrize("shape", [1, (3, 5), (7, 1 << 18), LARGE])
@pytest.mark.parametrize("dtype", [np.int8, np.float32, np.float64])
def test_memory_is_zeros_of_the_shape_on_a_cache_line(shape: int | tuple[int, ...], dtype: npt.DTypeLike) -> None:
    found = aligned(shape, dtype)
    assert found.shape == np.zeros(shape).shape
    assert found.dtype == dtype
    assert found.ctypes.data % 64 == 0
    assert not found.any()
    found[...] = 1
    assert found.all()


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="large pages are asked for on Linux")
def test_arrays_that_fill_large_pages_begin_with_one() -> None:
    assert aligned(LARGE, np.int8).ctypes.data % (2 << 20) == 0
