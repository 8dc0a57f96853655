"""The figures of many pairs of rows: read in blocks by several threads, each with scratch of its own.

Memory stays the same however many rows there are. NumPy gives up the interpreter's lock while it computes.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from llmbench.accuracy import bounds, measure
from llmbench.accuracy.measure import FIGURES, Figures, Int64, Scratch
from llmbench.accuracy.sides import Finding, Side, StoreSide, dtype_of

BLOCK_VALUES = 1 << 19  # as many values as keep a block's scratch within a core's cache
_MOST_ROWS = 64


class Work:
    """Fills `figures` FIGURES [n], pair by pair; what cannot be read is in `findings` by its place."""

    def __init__(self, base: Side, new: Side, base_numbers: Int64, new_numbers: Int64, *, ulp: bool) -> None:
        self._sides = base, new
        self._numbers = base_numbers, new_numbers
        self._ulp = ulp
        self._vocab_size = base.vocab_size or new.vocab_size or 1  # contest files do not say, and may be unreadable
        self._dtype = dtype_of(base)
        self.figures: Figures = np.zeros(len(base_numbers), FIGURES)
        self.findings: dict[int, list[Finding]] = {}
        self._whole = base.whole(base_numbers), new.whole(new_numbers)
        self._num_rows = max(1, min(_MOST_ROWS, BLOCK_VALUES // self._vocab_size))
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """How much the values that were compared take on disk."""
        total = 0
        for side, numbers in zip(self._sides, self._numbers, strict=True):
            if isinstance(side, StoreSide):
                kinds, counts = np.unique(side.store.table["kind"][numbers], return_counts=True)
                total += sum(side.store.row_bytes(int(kind)) * int(n) for kind, n in zip(kinds, counts, strict=True))
            else:
                total += 4 * self._vocab_size * len(numbers)
        return total

    def run(self, num_threads: int) -> None:
        """Compare all pairs. Raises what reading raises."""
        blocks = self._blocks()
        num_threads = max(1, min(num_threads, -(-len(self.figures) // self._num_rows)))
        with ThreadPoolExecutor(num_threads) as pool:
            for done in [pool.submit(self._work, blocks) for _ in range(num_threads)]:
                done.result()

    def _blocks(self) -> Iterator[Int64]:
        """Places of pairs of one kind, few enough for the scratch."""
        both = self._whole[0].astype(np.int8) * 2 + self._whole[1]
        for kind in range(4):
            places = np.flatnonzero(both == kind)
            for start in range(0, len(places), self._num_rows):
                yield places[start : start + self._num_rows]

    def _work(self, blocks: Iterator[Int64]) -> None:
        room = Scratch(self._num_rows, self._vocab_size)
        while True:
            with self._lock:
                block = next(blocks, None)
            if block is None:
                return
            self._compare(block, room)

    def _compare(self, block: Int64, room: Scratch) -> None:
        theirs, ours = self._numbers[0][block], self._numbers[1][block]
        tokens = self._sides[0].rows["token"][theirs]
        out = np.zeros(len(block), FIGURES)
        if self._whole[0][block[0]] and self._whole[1][block[0]]:
            self._compare_whole(block, theirs, ours, tokens, room, out)
        else:
            self._compare_parts(theirs, ours, tokens, room, out)
        self.figures[block] = out

    def _compare_whole(
        self, block: Int64, theirs: Int64, ours: Int64, tokens: Int64, room: Scratch, out: Figures
    ) -> None:
        n = len(block)
        z, y = room.base[:n], room.new[:n]
        base, new = self._sides
        known = None
        if isinstance(base, StoreSide) and isinstance(new, StoreSide):
            equal = base.store.read_pair(new.store, theirs, ours, z, y, room.bits)
            known = measure.Known(base.statistics(theirs), new.statistics(ours), equal)
        else:
            problems = [(base, theirs, p) for p in base.read(theirs, z, room.bits[0])]
            problems += [(new, ours, p) for p in new.read(ours, y, room.bits[1])]
            for side, numbers, problem in problems:
                z[problem.at] = y[problem.at] = 0.0
                number = int(numbers[problem.at])
                finding = Finding(
                    kind=problem.kind,
                    file=side.name(number),
                    request_id=side.request_id(number) or self._known_id(theirs, ours, problem.at),
                    message=problem.message,
                )
                self.findings.setdefault(int(block[problem.at]), []).append(finding)
        measure.measure(z, y, tokens, room, out, known)
        if self._ulp and not out["equal"].all():
            out["ulp"] = measure.units(z, y, self._dtype).max(axis=1)

    def _known_id(self, theirs: Int64, ours: Int64, at: int) -> str | None:
        base, new = self._sides
        return base.request_id(int(theirs[at])) or new.request_id(int(ours[at]))

    def _compare_parts(self, theirs: Int64, ours: Int64, tokens: Int64, room: Scratch, out: Figures) -> None:
        parts: list[bounds.Part | None] = [None, None]
        pairs = list(zip(self._sides, (theirs, ours), strict=True))
        for i, (side, numbers) in enumerate(pairs):
            if isinstance(side, StoreSide) and not side.whole(numbers[:1])[0]:
                parts[i] = bounds.Part(side.statistics(numbers), side.known(numbers))
        for i, (side, numbers) in enumerate(pairs):
            if parts[i] is None:
                rows = room.base[: len(numbers)]
                side.read(numbers, rows, room.bits[0])
                other = parts[1 - i]
                assert other is not None, "two whole sides are compared whole"
                parts[i] = bounds.of_whole(rows, other.known)
        assert parts[0] is not None and parts[1] is not None, "both sides were taken"  # noqa: PT018
        bounds.measure(parts[0], parts[1], tokens, self._vocab_size, out)


def num_threads() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
