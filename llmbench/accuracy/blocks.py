"""The figures of many pairs of rows: read in blocks, by several processes, each with scratch of its own.

Memory stays the same however many rows there are. The processes are forks, so that nothing is opened or read twice, and
write their figures into memory that they share. Threads would wait for the interpreter's lock between one step and the
next: a step takes some 50 us, and to be woken takes as long.
"""

import logging
import mmap
import os
import sys
import threading
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import native
from llmbench.accuracy import bounds, measure
from llmbench.accuracy.measure import FIGURES, Figures, Int64, Pass, Scratch
from llmbench.accuracy.sides import Finding, Side, StoreSide, dtype_of
from llmbench.errors import InputError
from llmbench.logits.store import F32, Pair

BLOCK_VALUES = 1 << 19  # as many values as keep a block's scratch within a core's cache
QUICK_VALUES = 1 << 21  # the compiled pass goes over them once, and is done sooner than what Python does for a block
WORTH_VALUES = 1 << 26  # of pairs of rows: fewer are compared before the compiled pass is ready
_MOST_ROWS = 64
_log = logging.getLogger(__name__)


class _Said(msgspec.Struct, frozen=True):
    """What a process tells besides its figures; `error` is an InputError's text, nothing if there was none."""

    findings: dict[int, list[Finding]]
    error: str = ""


class Work:
    """Fills `figures` FIGURES [n], pair by pair; what cannot be read is in `findings` by its place."""

    def __init__(self, base: Side, new: Side, base_numbers: Int64, new_numbers: Int64, *, ulp: bool) -> None:
        self._sides = base, new
        self._numbers = base_numbers, new_numbers
        self._ulp = ulp
        self._vocab_size = base.vocab_size or new.vocab_size or 1  # contest files do not say, and may be unreadable
        self._dtype = dtype_of(base)
        shared = mmap.mmap(-1, max(1, len(base_numbers) * FIGURES.itemsize))
        self.figures: Figures = np.ndarray(len(base_numbers), FIGURES, shared)
        self.findings: dict[int, list[Finding]] = {}
        self._whole = base.whole(base_numbers), new.whole(new_numbers)
        self._quick: Pass | None = None

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

    @property
    def computed_with(self) -> str:
        """What went over the rows: `numpy`, or the instruction set that the compiled pass is of."""
        return "numpy" if self._quick is None else self._quick.name

    @property
    def _num_rows(self) -> int:
        """Of a block, at most."""
        values = BLOCK_VALUES if self._quick is None else QUICK_VALUES
        return max(1, min(_MOST_ROWS, values // self._vocab_size))

    def run(self, num_processes: int) -> None:
        """Compare all pairs. Raises InputError for what cannot be read."""
        self._quick = self._quickest()  # compiled before there are other processes, which then have it
        blocks = list(self._blocks())
        num_processes = max(1, min(num_processes if _may_fork() else 1, len(blocks)))
        others = [self._fork(blocks[i::num_processes]) for i in range(1, num_processes)]
        try:
            self._work(blocks[::num_processes])
        finally:
            said = [_heard(*other) for other in others]
        for one in said:
            if one.error:
                raise InputError(one.error)
            self.findings |= one.findings

    def _quickest(self) -> Pass | None:
        """The compiled pass, where it can be had and is worth it."""
        whole = self._whole[0] & self._whole[1]
        if int(whole.sum()) * self._vocab_size < WORTH_VALUES:
            return None
        missing = native.why_not("llvmlite")
        if not missing:
            from llmbench.accuracy.fused import Fused

            try:
                return Fused(self._kinds(whole), ulp=self._ulp)
            except OSError as error:
                missing = str(error)
        _log.info("rows are compared with NumPy: %s", missing)
        return None

    def _kinds(self, whole: npt.NDArray[np.bool_]) -> set[int]:
        """Which kinds of values the pass will meet."""
        found = set()
        for side, numbers in zip(self._sides, self._numbers, strict=True):
            found |= set(side.store.table["kind"][numbers[whole]].tolist()) if isinstance(side, StoreSide) else {F32}
        return found if len(found) == 1 else found | {F32}

    def _fork(self, blocks: Sequence[Int64]) -> tuple[int, int]:
        """Compare these in another process: its id, and where it says what it found."""
        end, begin = os.pipe()
        pid = os.fork()
        if pid:
            os.close(begin)
            return pid, end
        status = 1
        try:
            os.close(end)
            self.findings.clear()
            try:
                self._work(blocks)
                said = _Said(self.findings)
            except InputError as error:
                said = _Said({}, str(error))
            with os.fdopen(begin, "wb") as file:
                file.write(msgspec.json.encode(said))
            status = 0
        except BaseException:  # noqa: BLE001 - nothing above this is to run twice
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _blocks(self) -> Iterator[Int64]:
        """Places of pairs of one kind, few enough for the scratch."""
        both = self._whole[0].astype(np.int8) * 2 + self._whole[1]
        for kind in range(4):
            places = np.flatnonzero(both == kind)
            for start in range(0, len(places), self._num_rows):
                yield places[start : start + self._num_rows]

    def _work(self, blocks: Sequence[Int64]) -> None:
        room = Scratch(self._num_rows, self._vocab_size, self._quick)
        for block in blocks:
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
            equal, pair = base.store.read_pair(new.store, theirs, ours, z, y, room.bits)
            known = measure.Known(base.statistics(theirs), new.statistics(ours), equal)
        else:
            pair = Pair(z, y)
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
        measure.measure(pair, tokens, room, out, known)
        differ = ~out["equal"]
        if self._ulp and differ.any():
            out["ulp"][differ] = measure.largest_units(pair, self._dtype, room)[differ]

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


def _heard(pid: int, end: int) -> _Said:
    """What a process said, when it has ended. Raises RuntimeError when it said nothing."""
    with os.fdopen(end, "rb") as file:
        data = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"a comparing process ended with status {os.waitstatus_to_exitcode(status)}")
    return msgspec.json.decode(data, type=_Said)


def _may_fork() -> bool:
    """Whether a copy of this process would go on: threads are not copied, and elsewhere libraries do not stand it."""
    return sys.platform == "linux" and threading.active_count() == 1


def num_processes() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
