"""The threads of the BLAS library that NumPy brought along, set for this process."""

import ctypes
import logging
import os
import sys

_log = logging.getLogger(__name__)

# OpenBLAS as NumPy 2 and NumPy 1 wheels name it, as Linux distributions do, then MKL
_SETTERS = (
    "scipy_openblas_set_num_threads64_",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
    "MKL_Set_Num_Threads",
)


def available_threads() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Threads:
    """Sets the number of BLAS threads; where the library is not known, it keeps its own and says so once."""

    def __init__(self) -> None:
        numpy_core = sys.modules.get("numpy._core._multiarray_umath") or sys.modules["numpy.core._multiarray_umath"]
        # looking a name up in NumPy's own extension module also finds it in the BLAS library it is linked with
        library = ctypes.CDLL(numpy_core.__file__)
        self._setter = next((setter for name in _SETTERS if (setter := _find(library, name))), None)
        if self._setter is None:
            _log.warning("the BLAS library of NumPy is not known here; `threads` has no effect")

    def set(self, num_threads: int) -> None:
        """Use this many threads from now on."""
        if self._setter is not None:
            self._setter(num_threads)


def _find(library: ctypes.CDLL, name: str) -> "ctypes._NamedFuncPointer | None":
    try:
        return library[name]
    except AttributeError:
        return None
