"""Attention over the paged cache for the numba engine: a few queries of one head at a time, with an online softmax.

The keys of a block and head lie as [head_dim, positions], its values as [positions, head_dim], so that both products
go along vectors of memory. A tile of scores is ISA.rows queries by ISA.vectors vectors of positions, each vector within
one block; the tiles of a sequence begin at its first position, whatever the query sees, so that a query has the same
bits alone, among others, in a prompt and as a decoded token.
"""

from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np

from llmbench.engines import _numba_kernels as kernels
from llmbench.engines._numba_code import kernel
from llmbench.native.code import F32, I32, I64, Code, Value, floats, integers, same
from llmbench.native.isa import ISA

VECTOR, PANEL_ROW = kernels.VECTOR, kernels.PANEL_ROW
ROWS, LANES, VECTORS = ISA.rows, ISA.lanes, ISA.vectors

# a thread's `cells`, int64: where the vectors of a tile are, their first positions, how many of each are in its block;
# then the same of the tile after it
_KEYS, _VALUES, _STARTS, _SIZES, _NEXT = (VECTORS * i for i in range(5))
NUM_CELLS = 2 * _NEXT
# a thread's floats, in bytes: the scores of a tile; then the maximum, the sum and the last factor of each row; sums
_STATE = ROWS * PANEL_ROW
_STATE_ROW = 64  # bytes
_SUMS = _STATE + 3 * _STATE_ROW
_NOWHERE = 1 << 40  # behind every position

ITEM = np.dtype(
    [(name, np.int64) for name in ("row", "num", "head", "kv_head", "kv_heads", "visible", "growth", "table")]
)
"""Some queries: those of `num` tokens from the step's token `row` on, of one head; or, where `growth` is 0, those of
one token, of the `num` heads that share `kv_head`, then of those that share the next ones, `kv_heads` in all. The first
sees `visible` positions, each one after it `growth` more.
"""


def padded_dim(head_dim: int) -> int:
    """How many numbers of a head's value are stored: whole vectors."""
    return -(-head_dim // LANES) * LANES


def padded_block(block_size: int) -> int:
    """How many positions of a block's keys are stored: whole vectors."""
    return -(-block_size // LANES) * LANES


def num_floats(head_dim: int) -> int:
    """What a thread needs room for: the scores of a tile, and the state and the sums of its rows."""
    return _SUMS // 4 + ROWS * padded_dim(head_dim)


@kernel()
def score(
    code: Code, rows: Value, q: Value, q_stride: Value, cells: Value, key_stride: Value, dim: Value, out: Value
) -> None:
    """A tile of q [rows, dim] times keys [dim, positions], float32 [rows, width]."""

    def write(num_rows: int) -> None:
        inputs = [code.pointer(q, row, q_stride) for row in range(num_rows)]
        keys = [code.pointer(address) for address in _cells(code, cells, _KEYS)]
        values = [code.pointer(address) for address in _cells(code, cells, _VALUES)]
        nexts = [code.pointer(address) for address in _cells(code, cells, _NEXT + _KEYS)]

        def columns(index: Value) -> list[Value]:
            place = code.builder.mul(index, key_stride)
            for value in values:  # as many bytes as of keys; what is fetched behind the last ones is not used
                code.prefetch(value, code.times(index, VECTOR))
            for key in nexts:
                code.prefetch(key, place)
            return [code.load(floats(), key, place) for key in keys]

        def factor(row: int, index: Value) -> Value:
            return kernels.spread(code, inputs[row], index)

        sums = kernels.tile(code, num_rows, same(floats(), 0.0), dim, columns, factor, code.fma)
        for (row, vector), total in zip(kernels.PLACES, sums, strict=False):
            code.store(total, code.pointer(out), row * PANEL_ROW + vector * VECTOR)

    code.by_rows(rows, write)


@kernel()
def soften(code: Code, scores: Value, cells: Value, visible: Value, state: Value) -> None:
    """One row of a tile of scores to exp(score - maximum), 0 where nothing is to be seen; its state goes on.

    The state is the maximum so far, the sum so far, and what sums so far are to be multiplied with.
    """
    builder, row, kept = code.builder, code.pointer(scores), code.pointer(state)
    counts = _counts(code, cells, visible)
    lanes = ir.Constant(integers(), list(range(LANES)))
    found = []
    for vector, count in enumerate(counts):
        seen = builder.icmp_signed("<", lanes, code.splat(builder.trunc(count, I32)))
        here = code.load(floats(), row, vector * VECTOR)
        found.append(builder.select(seen, here, same(floats(), float("-inf"))))
    highest = found[0]
    for other in found[1:]:
        highest = code.larger(highest, other)
    before, total = code.load(F32, kept), code.load(F32, kept, _STATE_ROW)
    maximum = code.larger(before, code.reduce(highest, code.larger))
    code.store(maximum, kept)
    parts = [code.exp(builder.fsub(each, code.splat(maximum))) for each in found]
    for vector, part in enumerate(parts):
        code.store(part, row, vector * VECTOR)
    summed = parts[0]
    for part in parts[1:]:
        summed = builder.fadd(summed, part)
    change = code.splat(builder.fsub(before, maximum))
    factor = builder.extract_element(code.exp(change), I32(0))
    code.store(factor, kept, 2 * _STATE_ROW)
    code.store(builder.fadd(builder.fmul(total, factor), code.reduce(summed, builder.fadd)), kept, _STATE_ROW)


def _add_values(
    code: Code,
    num_rows: int,
    num_vectors: int,
    scores: Value,
    cells: Value,
    visible: Value,
    stride: Value,
    state: Value,
    sums: Value,
    sums_stride: Value,
    offset: Value,
) -> None:
    """Go on with the sums of some vectors of head_dim: times the row's factor, plus scores times values."""
    builder = code.builder
    weights = [code.pointer(builder.add(scores, I64(row * PANEL_ROW))) for row in range(num_rows)]
    places = [code.pointer(builder.add(sums, offset), row, sums_stride) for row in range(num_rows)]
    totals = []
    for row, place in enumerate(places):
        factor = code.splat(code.load(F32, code.pointer(state), 2 * _STATE_ROW + 4 * row))
        totals += [builder.fmul(code.load(floats(), place, v * VECTOR), factor) for v in range(num_vectors)]
    counts = _counts(code, cells, visible)
    for part, (address, count) in enumerate(zip(_cells(code, cells, _VALUES), counts, strict=True)):
        values = code.pointer(builder.add(address, offset))

        def step(index: Value, so_far: list[Value], values: Value = values, part: int = part) -> list[Value]:
            start = builder.mul(index, stride)
            vectors = [code.load(floats(), values, builder.add(start, I64(v * VECTOR))) for v in range(num_vectors)]
            inside = builder.add(code.times(index, 4), I64(part * VECTOR))
            factors = [code.splat(code.load(F32, weight, inside)) for weight in weights]
            return [
                code.fma(factor, vector, so_far[row * num_vectors + v])
                for row, factor in enumerate(factors)
                for v, vector in enumerate(vectors)
            ]

        totals = code.loop(count, totals, step)
    for row, place in enumerate(places):
        for v in range(num_vectors):
            code.store(totals[row * num_vectors + v], place, v * VECTOR)


@kernel()
def gather_values(
    code: Code,
    rows: Value,
    scores: Value,
    cells: Value,
    visible: Value,
    value_stride: Value,
    state: Value,
    sums: Value,
    sums_stride: Value,
    vectors: Value,
) -> None:
    """sums [rows, vectors] = sums * factor of the row + scores [rows, width] times values [positions, vectors]."""
    builder = code.builder

    def write(num_rows: int) -> None:
        wide = builder.sdiv(vectors, I64(VECTORS))
        rest = builder.sub(vectors, code.times(wide, VECTORS))
        begun = code.times(wide, PANEL_ROW)

        def several(index: Value, _: list[Value]) -> list[Value]:
            _add_values(
                code,
                num_rows,
                VECTORS,
                scores,
                cells,
                visible,
                value_stride,
                state,
                sums,
                sums_stride,
                code.times(index, PANEL_ROW),
            )
            return []

        def single(index: Value, _: list[Value]) -> list[Value]:
            offset = builder.add(begun, code.times(index, VECTOR))
            _add_values(code, num_rows, 1, scores, cells, visible, value_stride, state, sums, sums_stride, offset)
            return []

        code.loop(wide, [], several)
        code.loop(rest, [], single)

    code.by_rows(rows, write)


@kernel()
def divide(code: Code, sums: Value, state: Value, num: Value, out: Value) -> None:
    """float32 [num]: the sums of a row by the sum of its softmax."""
    source, target = code.pointer(sums), code.pointer(out)
    total = code.load(F32, code.pointer(state), _STATE_ROW)

    def some(lanes: int, place: Value) -> None:
        found = code.builder.fdiv(code.load(floats(lanes), source, place), code.splat(total, lanes))
        code.store(found, target, place)

    code.each(num, 4, some)


@kernel()
def begin(code: Code, state: Value, sums: Value, num: Value) -> None:
    """A row that has seen nothing yet: its state, and its sums float32 [num]."""
    kept, place = code.pointer(state), code.pointer(sums)
    code.store(F32(float("-inf")), kept)
    code.store(F32(0.0), kept, _STATE_ROW)

    def some(lanes: int, offset: Value) -> None:
        code.store(same(floats(lanes), 0.0), place, offset)

    code.each(num, 4, some)


def _cells(code: Code, cells: Value, first: int) -> list[Value]:
    return [code.load(I64, code.pointer(cells), 8 * (first + vector)) for vector in range(VECTORS)]


def _counts(code: Code, cells: Value, visible: Value) -> list[Value]:
    """How many positions of each vector of a tile are among the first `visible` ones, and in its block."""
    starts, sizes = _cells(code, cells, _STARTS), _cells(code, cells, _SIZES)
    pairs = zip(starts, sizes, strict=True)
    return [code.clamp(code.builder.sub(visible, start), I64(0), size) for start, size in pairs]


@numba.njit(error_model="numpy")
def _find(cells: Any, first: int, op: Any, model: Any, table: Any, kv_head: int, vector: int, num_vectors: int) -> None:
    """Fill cells from `first` on with the tile of positions that begins with a vector; there are `num_vectors`."""
    vectors_per_block = model.padded_block // LANES
    for i in range(VECTORS):
        block, part = divmod(min(vector + i, num_vectors - 1), vectors_per_block)
        page = table[block] * model.num_kv_heads + kv_head
        cells[first + _KEYS + i] = op.keys + (page * model.head_dim * model.padded_block + part * LANES) * 4
        cells[first + _VALUES + i] = op.values + (page * model.block_size + part * LANES) * model.padded_dim * 4
        cells[first + _STARTS + i] = block * model.block_size + part * LANES if vector + i < num_vectors else _NOWHERE
        cells[first + _SIZES + i] = min(LANES, model.block_size - part * LANES)


@numba.njit(error_model="numpy")
def attend(op: Any, model: Any, item: Any, table: Any, cells: Any, space: int) -> None:
    """One ITEM. `table` int32 [blocks] of its sequence; `cells` int64 and `space`, an address, are the thread's own."""
    size = 4 * model.head_dim
    q_stride, out_stride = (size, size) if item.growth == 0 else (op.x_stride, op.out_stride)
    for kv_head in range(item.kv_head, item.kv_head + item.kv_heads):
        column = (item.head + (kv_head - item.kv_head) * item.num) * size
        for first in range(0, item.num, ROWS):
            rows = min(ROWS, item.num - first)
            q = op.x + item.row * op.x_stride + column + first * q_stride
            out = op.out + item.row * op.out_stride + column + first * out_stride
            visible = item.visible + first * item.growth
            more = kv_head + 1 < item.kv_head + item.kv_heads
            _attend(op, model, table, cells, space, kv_head, more, rows, q, q_stride, visible, item.growth)
            for row in range(rows):
                sums, state = space + _SUMS + row * 4 * model.padded_dim, space + _STATE + 4 * row
                divide(sums, state, model.head_dim, out + row * out_stride)


@numba.njit(error_model="numpy")
def _attend(
    op: Any,
    model: Any,
    table: Any,
    cells: Any,
    space: int,
    kv_head: int,
    more: bool,
    rows: int,
    q: int,
    q_stride: int,
    visible: int,
    growth: int,
) -> None:
    """A few rows of queries: their states and sums. `more` says that the next head follows."""
    state, sums, where, stride = space + _STATE, space + _SUMS, np.int64(cells.ctypes.data), 4 * model.padded_dim
    last = visible + (rows - 1) * growth
    num_vectors = (
        (last - 1) // model.block_size * (model.padded_block // LANES) + (last - 1) % model.block_size // LANES + 1
    )
    for row in range(rows):
        begin(state + 4 * row, sums + row * stride, model.padded_dim)
    _find(cells, _NEXT, op, model, table, kv_head, 0, num_vectors)
    for vector in range(0, num_vectors, VECTORS):
        cells[:_NEXT] = cells[_NEXT:]
        if vector + VECTORS < num_vectors:
            _find(cells, _NEXT, op, model, table, kv_head, vector + VECTORS, num_vectors)
        elif more:
            _find(cells, _NEXT, op, model, table, kv_head + 1, 0, num_vectors)
        score(rows, q, q_stride, where, model.padded_block * 4, model.head_dim, space)
        for row in range(rows):
            soften(space + row * PANEL_ROW, where, visible + row * growth, state + 4 * row)
        gather_values(rows, space, where, last, stride, state, sums, stride, model.padded_dim // LANES)
