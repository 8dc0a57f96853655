"""A step of the numba engine as a program: operations one after the other, each cut into chunks that threads take.

Threads are not given shares, and do not wait for each other by name. A word in memory says which operation is being
done and how many of its chunks are taken; whoever is free takes the next one, and whoever finishes the last one moves
on to the next operation. So a thread that the system has put aside holds up at most the chunk that it has in hand, and
one that has not even woken up holds up nobody. Who finds nothing to take looks again for some microseconds, and then
sleeps for as long.
"""

import queue
import threading
from typing import Any, NamedTuple

import llvmlite.ir as ir
import numba
import numpy as np
import numpy.typing as npt

from llmbench import clock
from llmbench.engines import _numba_attention as attention
from llmbench.engines import _numba_kernels as kernels
from llmbench.engines._numba_code import kernel
from llmbench.memory import aligned
from llmbench.native.cache import compiled
from llmbench.native.code import I32, I64, Code, Value
from llmbench.native.isa import ISA

NORMALISE, FLOAT, NARROW, INTEGER, TURN, ATTEND, GATE, PICK, QUANTISE = range(9)
"""What an operation does; see the functions below."""

OP = np.dtype(
    [
        ("kind", np.int64),
        ("chunks", np.int64),
        ("rows", np.int64),  # of the step
        ("chunk_rows", np.int64),  # of a chunk
        ("num", np.int64),  # numbers in a row that goes in
        ("x", np.int64),
        ("x_stride", np.int64),
        ("out", np.int64),
        ("out_stride", np.int64),
        # products: panels of weights, in chunks of some panels; what is in `out` may stay below the result
        ("weight", np.int64),
        ("panels", np.int64),
        ("panel_bytes", np.int64),
        ("chunk_panels", np.int64),
        ("offset", np.int64),
        ("scale", np.int64),
        ("bias", np.int64),
        ("add", np.int64),
        # the result once more, quantised, where q is not 0
        ("q", np.int64),
        ("q_stride", np.int64),
        ("q_scale", np.float32),
        ("q_offset", np.float32),
        # attention: the cache of the layer, and where keys and values are in a row
        ("keys", np.int64),
        ("values", np.int64),
        ("k_column", np.int64),
        ("v_column", np.int64),
    ],
    align=True,
)

MODEL = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("num_heads", "num_kv_heads", "head_dim", "padded_dim", "block_size", "padded_block", "cosines", "sines"),
        )
    ]
    + [("epsilon", np.float32), ("q_scale", np.float32)],
    align=True,
)

_CHUNK_BITS = 24  # of the word: how many chunks are taken; above them, which operation it is since the engine began
_WORD, _FINISHED = 0, 128  # bytes: each on a cache line of its own
_LOOKS = 2000  # before a thread sleeps: about 50 microseconds
_SLEEP_US = 50
ROWS, WIDTH = ISA.rows, ISA.width
_MANY_ROWS = 2 * ROWS  # from here on int8 weights are widened once for all rows of a chunk


@kernel(returns=True)
def look(code: Code, control: Value, offset: Value) -> Value:
    """The int64 there, and what other threads wrote before it."""
    place = code.builder.inttoptr(code.builder.add(control, offset), I64.as_pointer())
    return code.builder.load_atomic(place, "acquire", 8)


@kernel()
def put(code: Code, control: Value, offset: Value, number: Value) -> None:
    """Write an int64 after all that was written before."""
    place = code.builder.inttoptr(code.builder.add(control, offset), I64.as_pointer())
    code.builder.store_atomic(number, place, "release", 8)


@kernel(returns=True)
def take(code: Code, control: Value, expected: Value) -> Value:
    """Add one to the word if it is as expected: 1 where it was."""
    place = code.builder.inttoptr(control, I64.as_pointer())
    more = code.builder.add(expected, I64(1))
    found = code.builder.cmpxchg(place, expected, more, "acq_rel", "acquire")
    return code.builder.zext(code.builder.extract_value(found, 1), I64)


@kernel(returns=True)
def count(code: Code, control: Value) -> Value:
    """One chunk more is finished: how many are."""
    place = code.builder.inttoptr(code.builder.add(control, I64(_FINISHED)), I64.as_pointer())
    return code.builder.add(code.builder.atomic_rmw("add", place, I64(1), "acq_rel"), I64(1))


@kernel()
def rest(code: Code) -> None:
    """A moment, for the processor."""
    if ISA.name != "portable":
        code.call("llvm.x86.sse2.pause", ir.VoidType())


@kernel()
def sleep(code: Code) -> None:
    """A moment, for others who want this core."""
    code.call("usleep", I32, I32(_SLEEP_US))


@numba.njit(error_model="numpy")
def _multiply(op: Any, chunk: int, space: int) -> None:
    row_chunks = -(-op.rows // op.chunk_rows)
    group, part = divmod(chunk, row_chunks)
    start = part * op.chunk_rows
    num_rows = min(op.chunk_rows, op.rows - start)
    tiles = -(-num_rows // ROWS)
    for panel in range(group * op.chunk_panels, min(op.panels, (group + 1) * op.chunk_panels)):
        column = panel * kernels.PANEL_ROW
        weight = op.weight + panel * op.panel_bytes
        offset, scale, bias = op.offset + column, op.scale + column, op.bias + column
        widened = op.kind == NARROW and num_rows > _MANY_ROWS
        if widened:
            kernels.widen(weight, op.num, offset, space)
            weight = space
        step = min(128, op.panel_bytes // (op.num * tiles))
        for tile in range(tiles):
            first = start + num_rows * tile // tiles
            rows = start + num_rows * (tile + 1) // tiles - first
            x, out = op.x + first * op.x_stride, op.out + first * op.out_stride + column
            ahead = op.weight + (panel + 1) * op.panel_bytes + tile * step * op.num
            given = (rows, x, op.x_stride, weight, op.num, offset, scale, bias, out, op.out_stride, op.add, ahead, step)
            if op.kind == INTEGER:
                kernels.multiply_integer(*given)
            elif op.kind == FLOAT or widened:
                kernels.multiply_float(*given)
            else:
                kernels.multiply_narrow(*given)


@numba.njit(error_model="numpy")
def _turn(op: Any, model: Any, tokens: Any, start: int, stop: int) -> None:
    """RoPE of queries and keys, in place; keys and values go into the cache."""
    half, size = model.head_dim // 2, 4 * model.head_dim
    for row in range(start, stop):
        position, slot = tokens[row, 0], tokens[row, 1]
        x, table = op.x + row * op.x_stride, 4 * half * position
        block, inside = divmod(slot, model.block_size)
        for head in range(model.num_heads):
            kernels.turn(x + head * size, half, model.cosines + table, model.sines + table, model.q_scale)
        for head in range(model.num_kv_heads):
            page = block * model.num_kv_heads + head
            key, value = x + op.k_column + head * size, x + op.v_column + head * size
            kernels.turn(key, half, model.cosines + table, model.sines + table, np.float32(1))
            place = op.keys + (page * model.head_dim * model.padded_block + inside) * 4
            kernels.scatter(key, place, model.head_dim, 4 * model.padded_block)
            place = op.values + (page * model.block_size + inside) * 4 * model.padded_dim
            kernels.copy(value, place, model.head_dim)


@numba.njit(error_model="numpy")
def _attend(op: Any, model: Any, item: Any, tables: Any, cells: Any, space: int) -> None:
    attention.attend(op, model, item, tables[item.table], cells, space)
    if op.q != 0:
        size = 4 * model.head_dim
        rows, heads = (1, item.num * item.kv_heads) if item.growth == 0 else (item.num, 1)
        for row in range(item.row, item.row + rows):
            for head in range(item.head, item.head + heads):
                out = op.out + row * op.out_stride + head * size
                q = op.q + row * op.q_stride + head * model.head_dim * kernels.BYTES
                kernels.quantise(out, model.head_dim, op.q_scale, op.q_offset, q)


@numba.njit(error_model="numpy")
def _do(
    op: Any, chunk: int, model: Any, tokens: Any, items: Any, tables: Any, picked: Any, cells: Any, space: int
) -> None:
    """One chunk of an operation."""
    if op.kind == FLOAT or op.kind == NARROW or op.kind == INTEGER:
        _multiply(op, chunk, space)
        return
    if op.kind == ATTEND:
        _attend(op, model, items[chunk], tables, cells, space)
        return
    start = chunk * op.chunk_rows
    stop = min(op.rows, start + op.chunk_rows)
    if op.kind == TURN:
        _turn(op, model, tokens, start, stop)
        return
    for row in range(start, stop):
        x, out = op.x + row * op.x_stride, op.out + row * op.out_stride
        if op.kind == NORMALISE:
            kernels.normalise(x, op.num, op.panels * WIDTH, model.epsilon, op.scale, op.bias, out)
        elif op.kind == GATE:
            kernels.gate(x, x + op.offset, op.panels * WIDTH, out)
        elif op.kind == PICK:  # rows ascend, and none is picked before it is read: one chunk
            kernels.copy(op.x + picked[row] * op.x_stride, out, op.num)
        if op.q != 0:
            source = x if op.kind == QUANTISE else out
            kernels.quantise(source, op.num, op.q_scale, op.q_offset, op.q + row * op.q_stride)


@compiled
def run(
    program: Any,
    first: int,
    control: Any,
    models: Any,
    tokens: Any,
    items: Any,
    tables: Any,
    picked: Any,
    cells: Any,
    floats: Any,
) -> None:
    """Take part in a program, whose first operation has the number `first`, until it has ended."""
    word, space = np.int64(control.ctypes.data), np.int64(floats.ctypes.data)
    last, idle = first + len(program), 0
    while True:
        seen = look(word, _WORD)
        number, chunk = seen >> _CHUNK_BITS, seen & ((1 << _CHUNK_BITS) - 1)
        if number >= last:
            return
        op = program[number - first]
        if chunk >= op.chunks:
            idle += 1
            if idle < _LOOKS:
                rest()
            else:
                sleep()
        elif take(word, seen):
            idle = 0
            _do(op, chunk, models[0], tokens, items, tables, picked, cells, space)
            if count(word) == op.chunks:
                put(word, _FINISHED, 0)
                put(word, _WORD, (number + 1) << _CHUNK_BITS)


class Step(NamedTuple):
    """What the operations of a step share. `tokens` int64 [T, 2]: the position of each new token, and its slot in the
    cache; `items` ITEM [items]; `tables` int32 [n, W]; `picked` int64 [m]: the tokens whose logits are wanted.
    """

    tokens: npt.NDArray[np.int64]
    items: npt.NDArray[np.void]
    tables: npt.NDArray[np.int32]
    picked: npt.NDArray[np.int64]


NOTHING = Step(
    np.zeros((0, 2), np.int64), np.zeros(0, attention.ITEM), np.zeros((0, 0), np.int32), np.zeros(0, np.int64)
)


class Crew:
    """The threads that run programs: the caller's, and helpers that wait between programs.

    `num_floats` is the room that each has to itself; `compiled_s` is what the compiler has taken, or reading what it
    gave an earlier process.
    """

    def __init__(self, num_threads: int, num_floats: int) -> None:
        start = clock.now_ns()
        self._control = aligned(32, np.int64)
        self._number = 0
        self._num_floats = num_floats
        self._jobs: list[queue.SimpleQueue[tuple[Any, ...] | None]] = [
            queue.SimpleQueue() for _ in range(num_threads - 1)
        ]
        self._own = self._space()
        self._threads = [
            threading.Thread(target=_help, args=(jobs, *self._space()), name="llmbench-engine", daemon=True)
            for jobs in self._jobs
        ]
        self.run(np.empty(0, OP), np.zeros(1, MODEL), NOTHING)
        for thread in self._threads:
            thread.start()
        self.compiled_s = (clock.now_ns() - start) / 1e9

    def _space(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        return np.zeros(attention.NUM_CELLS, np.int64), aligned(self._num_floats, np.float32)

    def run(self, program: npt.NDArray[np.void], model: npt.NDArray[np.void], step: Step) -> None:
        """Do every operation. The arrays that the program has the addresses of must be kept by the caller."""
        job = (program, self._number, self._control, model, *step)
        for jobs in self._jobs:
            jobs.put(job)
        run(*job, *self._own)
        self._number += len(program)

    def close(self) -> None:
        """End the helpers."""
        for jobs in self._jobs:
            jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._jobs.clear()
        self._threads.clear()


def _help(jobs: "queue.SimpleQueue[tuple[Any, ...] | None]", cells: Any, floats: Any) -> None:
    while (job := jobs.get()) is not None:
        run(*job, cells, floats)
