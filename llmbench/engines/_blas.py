"""The BLAS library that NumPy brought along: its threads, and which kernels it chose for this processor."""

import ctypes
import logging
import os
import sys

_log = logging.getLogger(__name__)

# the prefixes and suffixes of OpenBLAS's names in NumPy 2 wheels, in NumPy 1 wheels, and in Linux distributions
_NAMES = ("scipy_openblas_{}64_", "openblas_{}64_", "openblas_{}")
# OpenBLAS multiplies small float32 matrices without packing them first on these; see _matrix
_SMALL_MATRIX_CORES = (b"SkylakeX", b"Cooperlake", b"SapphireRapids")


def available_threads() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def set_threads(num_threads: int) -> None:
    """Let BLAS use this many threads in this process; one that is not known keeps its own, and the log says so."""
    function = _find("set_num_threads")
    if function is None:
        _log.warning("the BLAS library of NumPy is not OpenBLAS; how many threads it uses is not set")
    else:
        function(num_threads)


def has_small_matrix_kernels() -> bool:
    """Whether matrices of less than a million multiplications are multiplied in place, without being packed."""
    function = _find("get_corename")
    if function is None:
        return False
    function.restype = ctypes.c_char_p
    return function() in _SMALL_MATRIX_CORES


def _find(name: str) -> "ctypes._NamedFuncPointer | None":
    """A function of OpenBLAS: looking it up in NumPy's extension module also looks into what that is linked with."""
    module = sys.modules.get("numpy._core._multiarray_umath") or sys.modules["numpy.core._multiarray_umath"]
    library = ctypes.CDLL(module.__file__)
    for pattern in _NAMES:
        try:
            return library[pattern.format(name)]
        except AttributeError:
            continue
    return None
