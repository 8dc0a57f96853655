"""The pass of `measure` over rows, as vector code of our own: values are read once, in the form that is stored.

A row is gone over in pieces that stay in the first cache. At first z and d = y - z are widened to float32, and what is
largest, smallest and the sums of squares are taken; then the sums that the divergence is made of, by the series where
all of a piece lies near. Each lane of a vector adds up float32 within a piece, which float64 then adds up.

What comes out is what the NumPy pass finds: the same largest differences and ids, the same sums but for the order of
additions and what that pass leaves out of its series.
"""

from collections.abc import Callable, Collection, Sequence

import llvmlite.ir as ir
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.measure import PASSED, Int64
from llmbench.logits.store import BF16, F16, F32, Pair
from llmbench.native.build import Native
from llmbench.native.code import F32 as FLOAT
from llmbench.native.code import F64, I16, I32, I64, Code, Value, floats, integers, same
from llmbench.native.isa import ISA

_PIECE = 1024  # values; z and d of so many take 8 KB
_NEAR = 0.25  # up to here exp(u) - 1 - u is taken from its series
_FACTORS = (1 / 2, 1 / 6, 1 / 24, 1 / 120, 1 / 720)  # of u^2, u^3, ...; what is left out is 4e-7 of it there
_NOWHERE = 1 << 30
_MAGNITUDE = {F16: 0x7FFF, BF16: 0x7FFF, F32: 0x7FFFFFFF}  # bits of a value but for the sign
_DTYPES = {F16: "float16", BF16: "bfloat16", F32: "float32"}
_FIELDS = {name: field[1] for name, field in (PASSED.fields or {}).items()}


class Fused:
    """measure.Pass for rows of some `kinds`, compiled here; with `ulp` also for distances in representable numbers.

    Raises OSError where no process may make code of its own.
    """

    name = ISA.name

    def __init__(self, kinds: Collection[int], *, ulp: bool = False) -> None:
        self._passes = {kind: Native(_passing(kind)) for kind in kinds}
        self._distances = {kind: Native(_measuring(kind)) for kind in kinds if ulp}

    def over(self, pair: Pair, passed: npt.NDArray[np.void]) -> bool:
        """Fill measure.PASSED [n], of which `scale` and `shift` are there; false for a kind that it is not made for."""
        found = self._passes.get(pair.kind)
        if found is not None:
            found(*_addresses(pair), passed.ctypes.data, *pair.base.shape)
        return found is not None

    def units(self, pair: Pair, dtype: str) -> Int64 | None:
        """The largest of measure.units of each row, int64 [n]; None where values are not stored in `dtype`."""
        found = self._distances.get(pair.kind)
        if found is None or _DTYPES[pair.kind] != dtype:
            return None
        largest = np.empty(len(pair.base), np.int64)
        found(*_addresses(pair), largest.ctypes.data, *pair.base.shape)
        return largest


def _addresses(pair: Pair) -> tuple[int, int]:
    sides = pair.bits or (pair.base, pair.new)
    assert all(side.flags.c_contiguous for side in sides), "rows lie behind each other"
    return sides[0].ctypes.data, sides[1].ctypes.data


def _size(kind: int) -> int:
    return 4 if kind == F32 else 2


def _bits(code: Code, kind: int, lanes: int, pointer: Value, at: Value) -> Value:
    """The values from the `at`-th on as they are stored, in 32 bits each: those of 16 as signed numbers."""
    offset = code.times(at, _size(kind))
    if kind == F32:
        return code.load(integers(lanes), pointer, offset)
    return code.builder.sext(code.load(ir.VectorType(I16, lanes), pointer, offset), integers(lanes))


def _values(code: Code, kind: int, lanes: int, pointer: Value, at: Value) -> Value:
    """The same as float32. Of float16 all are finite: see halves.from_finite_half."""
    builder, bits = code.builder, _bits(code, kind, lanes, pointer, at)
    if kind == BF16:
        bits = builder.shl(bits, same(bits.type, 16))
    elif kind == F16:
        bits = builder.and_(builder.shl(bits, same(bits.type, 13)), same(bits.type, -0x70000001))
    values = builder.bitcast(bits, floats(lanes))
    return builder.fmul(values, same(values.type, 2.0**112)) if kind == F16 else values


def _smaller(code: Code, a: Value, b: Value) -> Value:
    return code.builder.select(code.builder.icmp_signed("<", b, a), b, a)


def _larger(code: Code, a: Value, b: Value) -> Value:
    """Of numbers without a sign."""
    return code.builder.select(code.builder.icmp_unsigned(">", b, a), b, a)


def _passing(kind: int) -> Callable[..., None]:
    def compare(code: Code, base: Value, new: Value, passed: Value, rows: Value, num: Value) -> None:
        """Fill PASSED [rows] of rows of `num` values, each row behind the one before it."""
        rooms = code.room(_PIECE), code.room(_PIECE)
        stride = code.times(num, _size(kind))

        def row(index: Value, _: list[Value]) -> list[Value]:
            start = code.builder.mul(index, stride)
            base_row, new_row = (code.pointer(code.builder.add(side, start)) for side in (base, new))
            record = code.pointer(code.builder.add(passed, code.times(index, PASSED.itemsize)))
            _Row(code, kind, base_row, new_row, record, *rooms).write(num)
            return []

        code.loop(rows, [], row)

    return compare


class _Row:
    """Writes the code for one row. A piece of it is `steps` vectors of `lanes` values from the `start`-th on."""

    def __init__(
        self, code: Code, kind: int, base: Value, new: Value, record: Value, z_room: Value, d_room: Value
    ) -> None:
        self._code, self._builder, self._kind = code, code.builder, kind
        self._base, self._new, self._record = base, new, record
        self._z_room, self._d_room = z_room, d_room
        self._scale, self._shift = (code.load(FLOAT, record, _FIELDS[name]) for name in ("scale", "shift"))

    def write(self, num: Value) -> None:
        """All of it: pieces of whole vectors, then what is left with vectors of one."""
        code, builder = self._code, self._builder
        whole = code.times(builder.sdiv(num, I64(ISA.lanes)), ISA.lanes)

        def piece(index: Value, found: list[Value]) -> list[Value]:
            start = code.times(index, _PIECE)
            size = code.clamp(builder.sub(whole, start), I64(0), I64(_PIECE))
            return self._piece(ISA.lanes, start, builder.sdiv(size, I64(ISA.lanes)), found)

        nothing = [FLOAT(-np.inf), I64(0), FLOAT(np.inf), I64(0), F64(0), F64(0), F64(0), F64(0)]
        num_pieces = builder.sdiv(builder.add(whole, I64(_PIECE - 1)), I64(_PIECE))
        found = self._piece(1, whole, builder.sub(num, whole), code.loop(num_pieces, nothing, piece))
        found[2] = builder.fmul(found[2], FLOAT(-1))
        names = ("up", "highest", "down", "lowest", "square", "mixed", "first", "rest")
        for name, value in zip(names, found, strict=True):
            code.store(value, self._record, _FIELDS[name])

    def _piece(self, lanes: int, start: Value, steps: Value, found: Sequence[Value]) -> list[Value]:
        """What is found when one more piece was gone over."""
        code, builder = self._code, self._builder
        up, highest, low, lowest, *sums = found
        own_up, own_low, *own_sums = self._differences(lanes, start, steps)
        up, highest = code.choose(
            builder.fcmp_ordered(">", own_up, up),
            lambda: [own_up, self._place(lanes, start, steps, own_up)],
            lambda: [up, highest],
        )
        low, lowest = code.choose(
            builder.fcmp_ordered("<", own_low, low),
            lambda: [own_low, self._place(lanes, start, steps, own_low)],
            lambda: [low, lowest],
        )
        reach = builder.fsub(own_up, self._shift), builder.fsub(self._shift, own_low)
        near = [builder.fcmp_ordered("<=", side, FLOAT(_NEAR)) for side in reach]
        own_sums += code.choose(
            builder.and_(*near),
            lambda: self._divergence(lanes, steps, near=True),
            lambda: self._divergence(lanes, steps, near=False),
        )
        added = [builder.fadd(total, own) for total, own in zip(sums, own_sums, strict=True)]
        return [up, highest, low, lowest, *added]

    def _differences(self, lanes: int, start: Value, steps: Value) -> list[Value]:
        """Keep z and d of a piece; the largest and the smallest d, the sums of d d and of z d."""
        code, builder, kind = self._code, self._builder, floats(lanes)

        def step(index: Value, found: list[Value]) -> list[Value]:
            up, low, square, mixed = found
            offset = code.times(index, lanes)
            at = builder.add(start, offset)
            z, y = (_values(code, self._kind, lanes, side, at) for side in (self._base, self._new))
            d = builder.fsub(y, z)
            for room, values in ((self._z_room, z), (self._d_room, d)):
                code.store(values, room, code.times(offset, 4))
            return [code.larger(up, d), code.smaller(low, d), code.fma(d, d, square), code.fma(z, d, mixed)]

        nothing = [same(kind, -np.inf), same(kind, np.inf), same(kind, 0.0), same(kind, 0.0)]
        up, low, *sums = code.loop(steps, nothing, step)
        return [code.reduce(up, code.larger), code.reduce(low, code.smaller), *map(self._total, sums)]

    def _place(self, lanes: int, start: Value, steps: Value, wanted: Value) -> Value:
        """The lowest id in a piece whose d is `wanted`."""
        code, builder, kind = self._code, self._builder, integers(lanes)
        target, nowhere = code.splat(wanted, lanes), same(kind, _NOWHERE)

        def step(index: Value, found: list[Value]) -> list[Value]:
            offset = code.times(index, lanes)
            first = code.splat(builder.trunc(offset, I32), lanes)
            ids = builder.add(first, ir.Constant(kind, list(range(lanes))))
            here = builder.fcmp_ordered("==", code.load(floats(lanes), self._d_room, code.times(offset, 4)), target)
            return [_smaller(code, found[0], builder.select(here, ids, nowhere))]

        (found,) = code.loop(steps, [nowhere], step)
        lowest = code.reduce(found, lambda a, b: _smaller(code, a, b))
        return builder.add(start, builder.sext(lowest, I64))

    def _divergence(self, lanes: int, steps: Value, *, near: bool) -> list[Value]:
        """The sums of w u and of w (exp u - 1 - u), w = exp(z - scale) and u = d - shift."""
        code, builder = self._code, self._builder
        scale, shift = code.splat(self._scale, lanes), code.splat(self._shift, lanes)

        def step(index: Value, found: list[Value]) -> list[Value]:
            offset = code.times(index, 4 * lanes)
            z, d = (code.load(floats(lanes), room, offset) for room in (self._z_room, self._d_room))
            w, u = code.exp(builder.fsub(z, scale)), builder.fsub(d, shift)
            return [code.fma(w, u, found[0]), code.fma(w, self._curve(u, near=near), found[1])]

        sums = code.loop(steps, [same(floats(lanes), 0.0)] * 2, step)
        return [*map(self._total, sums)]

    def _curve(self, u: Value, *, near: bool) -> Value:
        """exp u - 1 - u."""
        code, builder, kind = self._code, self._builder, u.type
        power, square = same(kind, _FACTORS[-1]), builder.fmul(u, u)
        for factor in reversed(_FACTORS[:-1]):
            power = code.fma(power, u, same(kind, factor))
        series = builder.fmul(power, square)
        if near:
            return series
        far = builder.fsub(builder.fsub(code.exp(u), same(kind, 1.0)), u)
        return builder.select(builder.fcmp_ordered("<=", square, same(kind, _NEAR**2)), series, far)

    def _total(self, vector: Value) -> Value:
        """The sum of a vector of float32, in float64."""
        wide = self._builder.fpext(vector, ir.VectorType(F64, vector.type.count))
        return self._code.reduce(wide, self._builder.fadd)


def _measuring(kind: int) -> Callable[..., None]:
    def distance(code: Code, base: Value, new: Value, out: Value, rows: Value, num: Value) -> None:
        """Fill int64 [rows] with the largest distance in representable numbers between values of two rows."""
        builder = code.builder
        whole = code.times(builder.sdiv(num, I64(ISA.lanes)), ISA.lanes)
        stride = code.times(num, _size(kind))

        def ordinal(lanes: int, pointer: Value, at: Value) -> Value:
            """Sign and magnitude as one rising integer, as measure.units has it."""
            bits = _bits(code, kind, lanes, pointer, at)
            magnitude = builder.and_(bits, same(bits.type, _MAGNITUDE[kind]))
            negative = builder.icmp_signed("<", bits, same(bits.type, 0))
            return builder.select(negative, builder.sub(same(bits.type, 0), magnitude), magnitude)

        def row(index: Value, _: list[Value]) -> list[Value]:
            sides = [code.pointer(builder.add(side, builder.mul(index, stride))) for side in (base, new)]

            def largest(lanes: int, start: Value, steps: Value) -> Value:
                def step(place: Value, found: list[Value]) -> list[Value]:
                    at = builder.add(start, code.times(place, lanes))
                    a, b = (ordinal(lanes, side, at) for side in sides)
                    apart = builder.select(builder.icmp_signed(">", a, b), builder.sub(a, b), builder.sub(b, a))
                    return [_larger(code, found[0], apart)]

                (found,) = code.loop(steps, [same(integers(lanes), 0)], step)
                return code.reduce(found, lambda a, b: _larger(code, a, b))

            vectors = largest(ISA.lanes, I64(0), builder.sdiv(num, I64(ISA.lanes)))
            rest = largest(1, whole, builder.sub(num, whole))
            found = builder.zext(_larger(code, vectors, rest), I64)
            code.store(found, code.pointer(out), code.times(index, 8))
            return []

        code.loop(rows, [], row)

    return distance
