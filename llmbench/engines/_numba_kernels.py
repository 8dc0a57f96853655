"""What the numba engine computes with vectors: products of a tile, and what is done to a row of activations.

Addresses, strides and offsets are in bytes, `num` and `rows` are counts. Rows are as long as their stride says: behind
what belongs to them there are zeros, up to a whole panel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import llvmlite.ir as ir

from llmbench.engines._numba_code import kernel
from llmbench.native.code import F32, I8, I16, I32, I64, Code, Value, floats, integers, same
from llmbench.native.isa import ISA

PLACES = [(row, vector) for row in range(ISA.rows) for vector in range(ISA.vectors)]  # of a tile, row by row
VECTOR = 4 * ISA.lanes  # bytes
PANEL_ROW = 4 * ISA.width
BYTES = 1 if ISA.dot == "vpdpbusd" else 2  # of a quantised activation
RAISED = 128 if ISA.dot == "vpdpbusd" else 0  # what is added to it, so that it is not negative


def tile(
    code: Code,
    num_rows: int,
    start: Value,
    steps: Value,
    columns: Callable[[Value], list[Value]],
    factor: Callable[[int, Value], Value],
    add: Callable[[Value, Value, Value], Value],
    ahead: tuple[Value, Value] | None = None,
) -> list[Value]:
    """The sums of a tile, row by row: at each of the steps, add(factor of the row, vector of columns, sum so far).

    `ahead` is memory that will soon be needed, and how many bytes of it are fetched at each step, at most 128.
    """

    def step(index: Value, sums: list[Value]) -> list[Value]:
        if ahead is not None:
            offset = code.builder.mul(index, ahead[1])
            for line in range(2):
                code.prefetch(code.pointer(ahead[0]), code.builder.add(offset, I64(64 * line)))
        vectors = columns(index)
        factors = [factor(row, index) for row in range(num_rows)]
        return [add(factors[row], vectors[vector], sums[row * ISA.vectors + vector]) for row, vector in places]

    places = [place for place in PLACES if place[0] < num_rows]
    return code.loop(steps, [start] * len(places), step)


def _finish(
    code: Code,
    sums: list[Value],
    scale: Value,
    bias: Value,
    out: Value,
    out_stride: Value,
    add: Value,
    convert: Callable[[Value, Value], tuple[Value, Value]],
) -> None:
    """out = sum * scale + bias for each number of a tile, on top of what is there if `add` is not 0.

    `convert` makes floats of the sum and of what is there for the bias.
    """
    scales = [code.load(floats(), code.pointer(scale), vector * VECTOR) for vector in range(ISA.vectors)]
    adds = code.builder.icmp_signed("!=", add, I64(0))
    for (row, vector), total in zip(PLACES, sums, strict=False):
        place = code.pointer(out, row, out_stride)
        total, constant = convert(total, code.load(total.type, code.pointer(bias), vector * VECTOR))
        result = code.fma(total, scales[vector], constant)
        before = code.load(floats(), place, vector * VECTOR)
        before = code.builder.select(adds, before, same(floats(), 0.0))
        code.store(code.builder.fadd(before, result), place, vector * VECTOR)


class _Kind(NamedTuple):
    """How weights of a kind are multiplied. `zero` is what sums begin with; `columns` gives a reader of a panel's
    vectors at a step; `factor` is what a row has there in every lane; `add` adds their product to a sum; `convert`
    makes floats of a sum and of what is there for the bias.
    """

    zero: Value
    columns: Callable[[Code, Value, Value], Callable[[Value], list[Value]]]
    factor: Callable[[Code, Value, Value], Value]
    add: Callable[[Code, Value, Value, Value], Value]
    convert: Callable[[Code, Value, Value], tuple[Value, Value]]


def _multiplier(name: str, what: str, kind: _Kind) -> Any:
    """The kernel of this name. All are called alike; `offset` is looked at where weights have one."""

    def multiply(
        code: Code,
        rows: Value,
        x: Value,
        x_stride: Value,
        weight: Value,
        num: Value,
        offset: Value,
        scale: Value,
        bias: Value,
        out: Value,
        out_stride: Value,
        add: Value,
        ahead: Value,
        ahead_step: Value,
    ) -> None:
        def write(num_rows: int) -> None:
            inputs = [code.pointer(x, row, x_stride) for row in range(num_rows)]
            columns = kind.columns(code, code.pointer(weight), offset)

            def factor(row: int, index: Value) -> Value:
                return kind.factor(code, inputs[row], index)

            sums = tile(code, num_rows, kind.zero, num, columns, factor, partial(kind.add, code), (ahead, ahead_step))
            _finish(code, sums, scale, bias, out, out_stride, add, partial(kind.convert, code))

        code.by_rows(rows, write)

    multiply.__name__, multiply.__doc__ = name, what
    return kernel()(multiply)


def spread(code: Code, row: Value, index: Value) -> Value:
    """A float32 of a row in every lane."""
    return code.splat(code.load(F32, row, code.times(index, 4)))


def _float_columns(code: Code, panel: Value, _: Value) -> Callable[[Value], list[Value]]:
    def columns(index: Value) -> list[Value]:
        start = code.times(index, PANEL_ROW)
        places = [code.builder.add(start, I64(vector * VECTOR)) for vector in range(ISA.vectors)]
        return [code.load(floats(), panel, place) for place in places]

    return columns


def _narrow_columns(code: Code, panel: Value, offset: Value) -> Callable[[Value], list[Value]]:
    """int8 as floats, less the offset of each column."""
    builder = code.builder
    offsets = [code.load(floats(), code.pointer(offset), vector * VECTOR) for vector in range(ISA.vectors)]

    def columns(index: Value) -> list[Value]:
        start, found = code.times(index, ISA.width), []
        for vector, less in enumerate(offsets):
            small = code.load(ir.VectorType(I8, ISA.lanes), panel, builder.add(start, I64(vector * ISA.lanes)))
            found.append(builder.fsub(builder.sitofp(builder.sext(small, integers()), floats()), less))
        return found

    return columns


def _as_it_is(_: Code, total: Value, constant: Value) -> tuple[Value, Value]:
    return total, constant


multiply_float = _multiplier(
    "multiply_float",
    "A tile of x [rows, num] times a panel of weights, float32 [num, width].",
    _Kind(same(floats(), 0.0), _float_columns, spread, Code.fma, _as_it_is),
)
multiply_narrow = _multiplier(
    "multiply_narrow",
    "The same with weights int8 [num, width], less their offset float32 [width]: W8A16.",
    _Kind(same(floats(), 0.0), _narrow_columns, spread, Code.fma, _as_it_is),
)


@kernel()
def widen(code: Code, weight: Value, num: Value, offset: Value, out: Value) -> None:
    """A panel of int8 [num, width], less the offset of each column, as float32: for products of many rows."""
    columns, place = _narrow_columns(code, code.pointer(weight), offset), code.pointer(out)

    def row(index: Value, _: list[Value]) -> list[Value]:
        start = code.times(index, PANEL_ROW)
        for vector, wide in enumerate(columns(index)):
            code.store(wide, place, code.builder.add(start, I64(vector * VECTOR)))
        return []

    code.loop(num, [], row)


def _int8_columns(code: Code, panel: Value, _: Value) -> Callable[[Value], list[Value]]:
    """The weights of each column for one group of inputs, as _int8_dot wants them."""
    num = ISA.lanes * ISA.group
    wide = ir.VectorType(I16 if ISA.dot == "pmaddwd" else I32, num)

    def read(place: Value) -> Value:
        if ISA.dot == "vpdpbusd":
            return code.load(integers(), panel, place)
        return code.builder.sext(code.load(ir.VectorType(I8, num), panel, place), wide)

    def columns(index: Value) -> list[Value]:
        start = code.times(index, ISA.width * ISA.group)
        return [read(code.builder.add(start, I64(vector * num))) for vector in range(ISA.vectors)]

    return columns


def _int8_factor(code: Code, row: Value, index: Value) -> Value:
    """One group of activations in every lane."""
    if ISA.dot == "plain":
        return code.splat(code.builder.sext(code.load(I16, row, code.times(index, 2)), I32))
    group = code.splat(code.load(I32, row, code.times(index, 4)))  # 4 of 8 bits, or 2 of 16
    if ISA.dot == "vpdpbusd":
        return group
    return code.builder.bitcast(group, ir.VectorType(I16, 2 * ISA.lanes))


def _int8_dot(code: Code, activations: Value, weights: Value, total: Value) -> Value:
    """total + the product of each lane's group, int32, exact."""
    if ISA.dot == "plain":
        return code.builder.add(total, code.builder.mul(activations, weights))
    if ISA.dot == "vpdpbusd":
        return code.call("llvm.x86.avx512.vpdpbusd.512", integers(), total, activations, weights)
    name = "llvm.x86.avx512.pmaddw.d.512" if ISA.lanes == 16 else "llvm.x86.avx2.pmadd.wd"
    return code.builder.add(total, code.call(name, integers(), activations, weights))


def _int8_converted(code: Code, total: Value, constant: Value) -> tuple[Value, Value]:
    """The sum and the bias, added up in 32 bits, where what is more drops out again."""
    return code.builder.sitofp(code.builder.add(total, constant), floats()), same(floats(), 0.0)


multiply_integer = _multiplier(
    "multiply_integer",
    "The same with `num` groups of int8 inputs as `quantise` gives them, weights int8 [num, width, group], bias int32"
    " [width]: W8A8. All is added up exactly.",
    _Kind(same(integers(), 0), _int8_columns, _int8_factor, _int8_dot, _int8_converted),
)


@kernel("scale", "offset")
def quantise(code: Code, x: Value, num: Value, scale: Value, offset: Value, out: Value) -> None:
    """clamp(round(x / scale + offset), -128, 127) of float32 [num]: as u8 with 128 added for vpdpbusd, else as i16."""
    builder, size = code.builder, BYTES
    source, target = code.pointer(x), code.pointer(out)

    def some(lanes: int, place: Value) -> None:
        kind = floats(lanes)
        found = builder.fadd(
            builder.fdiv(code.load(kind, source, place), code.splat(scale, lanes)), code.splat(offset, lanes)
        )
        found = code.larger(code.smaller(found, same(kind, 127.0)), same(kind, -128.0))
        _, whole = code.rounded(found)
        whole = builder.add(whole, same(whole.type, RAISED))
        small = builder.trunc(whole, ir.VectorType(I8 if size == 1 else I16, lanes))
        code.store(small, target, builder.sdiv(place, I64(4 // size)))

    code.each(num, 4, some)


@kernel("epsilon")
def normalise(
    code: Code, x: Value, num: Value, width: Value, epsilon: Value, gain: Value, bias: Value, out: Value
) -> None:
    """x / sqrt(mean(x^2) + epsilon) * gain + bias of float32 [num], up to `width`, a multiple of a panel's."""
    builder, source, target = code.builder, code.pointer(x), code.pointer(out)
    steps = builder.sdiv(width, I64(ISA.lanes))
    gains, constants = code.pointer(gain), code.pointer(bias)

    def square(index: Value, sums: list[Value]) -> list[Value]:
        found = code.load(floats(), source, code.times(index, VECTOR))
        return [code.fma(found, found, sums[0])]

    [squares] = code.loop(steps, [same(floats(), 0.0)], square)
    mean = builder.fdiv(code.reduce(squares, builder.fadd), builder.sitofp(num, F32))
    root = code.call("llvm.sqrt.f32", F32, builder.fadd(mean, epsilon))
    factor = code.splat(builder.fdiv(F32(1.0), root))

    def scale(index: Value, _: list[Value]) -> list[Value]:
        place = code.times(index, VECTOR)
        found = builder.fmul(code.load(floats(), source, place), factor)
        found = code.fma(found, code.load(floats(), gains, place), code.load(floats(), constants, place))
        code.store(found, target, place)
        return []

    code.loop(steps, [], scale)


@kernel()
def gate(code: Code, gates: Value, ups: Value, width: Value, out: Value) -> None:
    """silu(gate) * up = gate / (1 + exp(-gate)) * up of float32 [width], a multiple of a panel's."""
    builder, target = code.builder, code.pointer(out)
    sources = code.pointer(gates), code.pointer(ups)

    def some(index: Value, _: list[Value]) -> list[Value]:
        place = code.times(index, VECTOR)
        opened, up = (code.load(floats(), source, place) for source in sources)
        below = builder.fadd(code.exp(builder.fneg(opened)), same(floats(), 1.0))
        code.store(builder.fmul(builder.fdiv(opened, below), up), target, place)
        return []

    code.loop(builder.sdiv(width, I64(ISA.lanes)), [], some)


@kernel("scale")
def turn(code: Code, x: Value, half: Value, cosines: Value, sines: Value, scale: Value) -> None:
    """RoPE of one head, float32 [2 * half], in place: its halves are turned into each other; times `scale`."""
    builder = code.builder
    size = code.times(half, 4)
    first, second = code.pointer(x), code.pointer(builder.add(x, size))
    tables = code.pointer(cosines), code.pointer(sines)

    def some(lanes: int, place: Value) -> None:
        kind = floats(lanes)
        factor = code.splat(scale, lanes)
        cosine, sine = (builder.fmul(code.load(kind, table, place), factor) for table in tables)
        one, other = code.load(kind, first, place), code.load(kind, second, place)
        code.store(builder.fsub(builder.fmul(one, cosine), builder.fmul(other, sine)), first, place)
        code.store(builder.fadd(builder.fmul(other, cosine), builder.fmul(one, sine)), second, place)

    code.each(half, 4, some)


@kernel()
def copy(code: Code, source: Value, target: Value, num: Value) -> None:
    """float32 [num] to another place."""
    start, end = code.pointer(source), code.pointer(target)

    def some(lanes: int, place: Value) -> None:
        code.store(code.load(floats(lanes), start, place), end, place)

    code.each(num, 4, some)


@kernel()
def scatter(code: Code, source: Value, target: Value, num: Value, stride: Value) -> None:
    """float32 [num] to places that are `stride` bytes apart."""
    start, end = code.pointer(source), code.pointer(target)

    def one(index: Value, _: list[Value]) -> list[Value]:
        code.store(code.load(F32, start, code.times(index, 4)), end, code.builder.mul(index, stride))
        return []

    code.loop(num, [], one)
