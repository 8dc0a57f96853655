"""Weight matrices cut so that OpenBLAS is fast with few rows, and the threads that multiply with them.

A plain sgemm first packs the whole weight matrix, which costs more than multiplying until there are some hundred rows:
measured here with 2 to 8 rows, 7 to 9 times what the memory needs. OpenBLAS's kernels for small matrices do not pack,
and serve products of up to a million multiplications. So the matrix is stored as panels that are small enough, and one
call of np.matmul goes over all of them. Where there are no such kernels, there is one panel, and BLAS has the threads.

With one row the memory's speed is the limit, and a matrix in large pages is read faster: measured with one thread,
24 to 27 GB/s where it was 17 to 24.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.memory import aligned

Float32 = npt.NDArray[np.float32]
Numbers = Float32 | npt.NDArray[np.int8]

# measured: 64 columns are as fast with several rows, but with one row reach 3/4 of the memory's speed; 32 all of it
_WIDTH = 32  # columns of a panel
_DEPTH = 1024  # rows of a panel, at most
_FILL_ROWS = 64  # rows of a weight that are turned at once, so that they stay in the processor's cache
_SMALL = 1_000_000  # OpenBLAS: multiplications in what is a small matrix
_WORTH_A_THREAD = 1 << 21  # multiplications below which handing over to a thread costs more than it saves


class Layout(msgspec.Struct, frozen=True):
    """How matrices are cut: panels of `width` columns and at most `depth` rows, or one panel where they are None."""

    width: int | None
    depth: int | None


PANELS = Layout(_WIDTH, _DEPTH)
WHOLE = Layout(None, None)


class Workers:
    """Threads for what NumPy does without holding the interpreter's lock."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads - 1, "llmbench-engine") if num_threads > 1 else None

    def num_parts(self, multiplications: int) -> int:
        """Into how many parts to cut what takes so many multiplications."""
        return 1 if multiplications < _WORTH_A_THREAD else self.num_threads

    def run(self, work: Callable[[int], None], num_parts: int) -> None:
        """work(part) for every part below num_parts, each in a thread of its own; the first in this one."""
        waiting = [self._pool.submit(work, part) for part in range(1, num_parts)] if self._pool is not None else []
        work(0)
        for future in waiting:
            future.result()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


class Matrix:
    """A matrix [num_in, num_out] as a list of slabs [panels, 1, depth, width], one for each range of inputs.

    It is float32, or float64 where that is asked for; then so are its products.
    """

    def __init__(
        self, num_in: int, num_out: int, layout: Layout, workers: Workers, dtype: npt.DTypeLike = np.float32
    ) -> None:
        self.num_in = num_in
        self.num_out = num_out
        self._workers = workers
        self._width = layout.width or num_out
        self._num_panels = -(-num_out // self._width)
        num_slabs = -(-num_in // (layout.depth or num_in))
        bounds = [num_in * i // num_slabs for i in range(num_slabs + 1)]
        self._ranges = list(itertools.pairwise(bounds))
        numbers = aligned((num_in, self.padded), dtype)
        self._slabs: list[npt.NDArray[Any]] = [
            numbers[start:stop].reshape(self._num_panels, 1, stop - start, self._width) for start, stop in self._ranges
        ]
        # rows of a product at once: so few that it still counts as small
        self._rows = _SMALL // (self._slabs[-1].shape[2] * self._width) if layout.width else None

    @property
    def padded(self) -> int:
        """The columns of a product: num_out, up to a whole panel."""
        return self._num_panels * self._width

    def fill(self, column: int, blocks: Iterable[tuple[int, Numbers]]) -> None:
        """Set columns from `column` on from a weight [out, in]: its blocks, each with the number of its first row."""
        for first, block in blocks:
            for panel, inside, piece in self._pieces(column + first, block):
                for slab, (start, stop) in zip(self._slabs, self._ranges, strict=True):
                    slab[panel, 0, :, inside : inside + len(piece)] = piece[:, start:stop].T

    def _pieces(self, column: int, block: Numbers) -> Iterator[tuple[int, int, Numbers]]:
        """A block [out, in] cut where panels end: the panel, the column in it, and some rows."""
        row = 0
        while row < len(block):
            panel, inside = divmod(column + row, self._width)
            num = min(_FILL_ROWS, self._width - inside, len(block) - row)
            yield panel, inside, block[row : row + num]
            row += num

    def columns(self, ids: npt.NDArray[np.int32]) -> Float32:
        """float32 [len(ids), num_in]: some columns, as rows."""
        panels, inside = np.divmod(ids, self._width)
        return np.concatenate([slab[panels, 0, :, inside] for slab in self._slabs], axis=1)

    def multiply(self, x: Float32, out: Float32) -> Float32:
        """float32 [M, num_out], a view of `out` [M, padded]: x [M, num_in] times this matrix."""
        if not len(x):
            return out[:, : self.num_out]
        panels = self._num_panels
        num_parts = min(panels, self._workers.num_parts(len(x) * self.num_in * self.num_out))

        def work(part: int) -> None:
            self._multiply_panels(x, out, panels * part // num_parts, panels * (part + 1) // num_parts)

        self._workers.run(work, num_parts)
        return out[:, : self.num_out]

    def _multiply_panels(self, x: Float32, out: Float32, start: int, stop: int) -> None:
        """The columns of out that belong to panels start..stop, in chunks of few rows."""
        num_chunks = -(-len(x) // (self._rows or len(x)))
        chunk = -(-len(x) // num_chunks)
        whole = len(x) // chunk * chunk
        self._multiply_chunks(x[:whole], out[:whole], chunk, slice(start, stop))
        if whole < len(x):
            self._multiply_chunks(x[whole:], out[whole:], len(x) - whole, slice(start, stop))

    def _multiply_chunks(self, x: Float32, out: Float32, chunk: int, panels: slice) -> None:
        chunks = x.reshape(1, -1, chunk, self.num_in)
        places = out.reshape(-1, chunk, self._num_panels, self._width).transpose(2, 0, 1, 3)[panels]
        for i, (slab, (start, stop)) in enumerate(zip(self._slabs, self._ranges, strict=True)):
            if i == 0:
                np.matmul(chunks[..., start:stop], slab[panels], out=places)
            else:
                places += np.matmul(chunks[..., start:stop], slab[panels])
