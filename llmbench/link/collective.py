"""Sums and gathers between the agent processes of one model, through memory that all of them map.

Every rank has two places to write to, used in turn, and one counter that only it writes: the number of meetings it has
come to. It writes what it gives, then its counter, waits until all counters have come as far, and reads what the others
gave. Nobody can write into a place that another still reads: the place of two meetings ago is written only after the
meeting in between, to which everybody came when done with reading.
"""

import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np

from llmbench import clock
from llmbench.engines import Float32
from llmbench.errors import AgentDied
from llmbench.link.arena import create_memory, map_memory

_AWAKE_NS = 200_000  # as long as an agent waits awake for its next frame
_NAP_S = 50e-6
_PATIENCE_S = 60.0
_PLACE_ELEMENTS = 1 << 17  # 512 KiB: what of an array is exchanged in one meeting
_CELLS = 8  # int64 of a rank: a cache line of its own
_ARRIVED, _LEFT, _STAMP, _FAILED = 0, 1, 2, 4  # the last two twice, for the meetings of even and odd number
_SUM, _GATHER, _END = 0, 1, 2


def num_bytes(num_ranks: int) -> int:
    """How much memory so many ranks share."""
    return num_ranks * (8 * _CELLS + 2 * 4 * _PLACE_ELEMENTS)


def create(num_ranks: int) -> Path:
    """Make the memory, at the server, for the ranks to map. Raises OSError when there is no room."""
    path, memory = create_memory(num_bytes(num_ranks))
    memory.close()
    return path


class Collective:
    """An engines.Group over shared memory, for two ranks or more. All ranks call the same methods in the same order.

    What does not fit together, a rank that has left, and one that does not come within `patience_s` raise AgentDied:
    the group is of no use after that.
    """

    def __init__(self, memory: mmap.mmap, rank: int, size: int, patience_s: float = _PATIENCE_S) -> None:
        self.rank = rank
        self.size = size
        self._patience_ns = int(patience_s * 1e9)
        header = 8 * _CELLS * size
        self._cells = memoryview(memory)[:header].cast("q")
        self._places = np.frombuffer(memory, np.float32, offset=header).reshape(2, size, _PLACE_ELEMENTS)
        self._others = [other for other in range(size) if other != rank]
        self._fence = threading.Lock()
        self._fence.acquire()
        self._meetings = 0
        self._steps = 0

    @classmethod
    def join(cls, path: Path, rank: int, size: int, patience_s: float = _PATIENCE_S) -> "Collective":
        """Map the memory that the server made."""
        return cls(map_memory(path, num_bytes(size)), rank, size, patience_s)

    def all_reduce(self, array: Float32) -> Float32:
        """The sum over all ranks of arrays of one shape, in `array` itself where it is contiguous.

        Added in the order of the ranks, so that all of them get the same bits.
        """
        flat = array.reshape(-1)
        for start in range(0, flat.size, _PLACE_ELEMENTS):
            piece = flat[start : start + _PLACE_ELEMENTS]
            given = self._exchange(_SUM, piece)
            np.add(given[0], given[1], out=piece)
            for other in given[2:]:
                piece += other
        return flat.reshape(array.shape)

    def gather(self, array: Float32) -> Float32 | None:
        """At rank 0 the arrays, of one shape, of all ranks: float32 [size, ...]; None at the others."""
        flat = array.reshape(-1)
        gathered = np.empty((self.size, flat.size), np.float32) if self.rank == 0 else None
        for start in range(0, flat.size, _PLACE_ELEMENTS):
            piece = flat[start : start + _PLACE_ELEMENTS]
            given = self._exchange(_GATHER, piece)
            if gathered is not None:
                gathered[:, start : start + piece.size] = given
        return None if gathered is None else gathered.reshape(self.size, *array.shape)

    def end_step(self, failed: bool) -> None:
        """Meet when the step is done, so that none is ahead; `failed` says that it ended with an error of its own.

        Rank 0 may fail alone, behind its last exchange, and all may fail alike; another rank that fails alone ends the
        group.
        """
        half = (self._meetings + 1) & 1
        self._cells[self.rank * _CELLS + _FAILED + half] = failed
        self._meet(_END, 0)
        self._steps += 1
        failures = self._cells[_FAILED + half :: _CELLS].tolist()
        if any(failures) and not failures[0]:
            raise AgentDied(f"a step failed at rank {failures.index(1)} and not at rank 0")

    def leave(self) -> None:
        """Let those who wait for this rank know that it comes no more."""
        self._cells[self.rank * _CELLS + _LEFT] = 1

    def _exchange(self, kind: int, piece: Float32) -> Float32:
        """float32 [size, n]: what all ranks give; valid until the meeting after the next one."""
        places = self._places[(self._meetings + 1) & 1, :, : piece.size]
        places[self.rank] = piece
        self._meet(kind, piece.size)
        return places

    def _meet(self, kind: int, count: int) -> None:
        """Wait for all ranks, each of which must have come for the same."""
        self._meetings += 1
        cells, stamp_at = self._cells, _STAMP + (self._meetings & 1)
        stamp = (self._steps & 0xFFFFFF) << 34 | kind << 32 | count
        own = self.rank * _CELLS
        cells[own + stamp_at] = stamp
        self._order()
        cells[own + _ARRIVED] = self._meetings
        for other in self._others:
            if cells[other * _CELLS + _ARRIVED] < self._meetings:
                self._wait_for(other)
        self._order()
        for other in self._others:
            if cells[other * _CELLS + stamp_at] != stamp:
                raise AgentDied(f"ranks {self.rank} and {other} are at different places of a step")

    def _wait_for(self, other: int) -> None:
        """Awake for a moment, giving way to whoever wants to run; then in naps, to leave the cores to the others."""
        cells, arrived, left = self._cells, other * _CELLS + _ARRIVED, other * _CELLS + _LEFT
        start_ns = clock.now_ns()
        while cells[arrived] < self._meetings:
            waited_ns = clock.now_ns() - start_ns
            if cells[left] and cells[arrived] < self._meetings:
                raise AgentDied(f"rank {other} has gone")
            if waited_ns < _AWAKE_NS:
                os.sched_yield()
            elif waited_ns < self._patience_ns:
                time.sleep(_NAP_S)
            else:
                raise AgentDied(f"rank {other} did not come within {self._patience_ns / 1e9:g} s")

    def _order(self) -> None:
        """What was written before is seen before what is written later, and likewise for reading: some processors
        (aarch64) reorder both, and a lock that is given back and taken again is the fence that Python has.
        """
        self._fence.release()
        self._fence.acquire()
