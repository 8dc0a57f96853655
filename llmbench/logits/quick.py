"""The quickest way of boiling rows down that there is here: compiled where numba is installed, else NumPy's."""

import importlib
import logging

import numpy as np

from llmbench import native
from llmbench.logits import digest
from llmbench.logits.digest import Boiler, Float32, Gist

_log = logging.getLogger(__name__)


class Compiled:
    """As digest.Room, in a fraction of the time; the few rows that have a NaN, or no finite maximum, are left to it.

    Its code is compiled now, or read, if an earlier process did that.
    """

    at_once = True

    def __init__(self, vocab_size: int) -> None:
        self._kernel = importlib.import_module("llmbench.logits._numba_digest").boil
        self._numpy = digest.Room(vocab_size)
        self._weights = digest.weights(vocab_size)
        self._room = np.empty((2, vocab_size), np.int32)
        self.boil(np.zeros((1, vocab_size), np.float32), 1)

    def boil(self, rows: Float32, k: int) -> Gist:
        """The gist of rows float32 [n, V], V >= 2."""
        n, vocab_size = rows.shape
        rows = np.require(rows, requirements=["C", "W"])  # what the code is compiled for
        statistics = np.empty(n, digest.STATISTICS)
        ids, values = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
        maxima = np.empty(digest.num_groups(vocab_size, k), np.int32)
        bits = rows.view(np.int32)
        num_odd = self._kernel(rows, bits, self._weights, statistics, ids, values, maxima, self._room)
        return self._numpy.boil(rows, k) if num_odd else Gist(statistics, ids, values)


def boiler(vocab_size: int) -> Boiler:
    """The quickest one for rows of so many ids; the log says which. To load numba takes half a second."""
    missing = native.why_not()
    _log.info("rows of logits are boiled down by %s", f"NumPy: {missing}" if missing else "compiled code")
    return digest.Room(vocab_size) if missing else Compiled(vocab_size)
