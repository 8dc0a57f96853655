"""Functions that write LLVM instructions, one after the other, with vectors of a fixed width; see isa.

What takes most of the time is written by them: loops that a compiler is given are not vectorised well, since it cannot
know that arrays do not overlap, nor in which order floats may be added.
"""

from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.ir as ir

from llmbench.native.isa import ISA

Value = Any
"""An ir.Value: the result of an instruction, a constant or an argument."""

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()

_MAGIC = 1.5 * 2**23  # added to a float32 of at most 2^22, leaves it rounded to the nearest integer, ties to even
_MAGIC_BITS = 0x4B400000


class Code:
    """Writes instructions at the end of a function. Counts, offsets and addresses are i64, in bytes.

    What works on vectors takes its width from them, so that the same code also does the last few numbers one by one.
    """

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def pointer(self, address: Value, row: int = 0, stride: Value = None) -> Value:
        """Where row `row` begins, of rows that are `stride` bytes apart."""
        if row:
            address = self.builder.add(address, self.builder.mul(stride, I64(row)))
        return self.builder.inttoptr(address, I8.as_pointer())

    def load(self, kind: Any, pointer: Value, offset: Value | int = 0) -> Value:
        """What lies there, of whatever alignment."""
        return self.builder.load(self._place(kind, pointer, offset), align=1)

    def store(self, value: Value, pointer: Value, offset: Value | int = 0) -> None:
        """Put it there."""
        self.builder.store(value, self._place(value.type, pointer, offset), align=1)

    def _place(self, kind: Any, pointer: Value, offset: Value | int) -> Value:
        place = self.builder.gep(pointer, [I64(offset) if isinstance(offset, int) else offset])
        return self.builder.bitcast(place, kind.as_pointer())

    def prefetch(self, pointer: Value, offset: Value) -> None:
        """Begin to bring the cache line there nearer; nothing happens where there is no memory."""
        place = self.builder.gep(pointer, [offset])
        self.call("llvm.prefetch.p0", ir.VoidType(), place, I32(0), I32(2), I32(1))

    def times(self, count: Value, factor: int) -> Value:
        """count * factor."""
        return self.builder.mul(count, I64(factor))

    def loop(
        self, count: Value, carried: Sequence[Value], body: Callable[[Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """What body(index, values) has made of the carried values, done for every index below count."""
        builder = self.builder
        before = builder.block
        head, inside, behind = (builder.append_basic_block(name) for name in ("head", "inside", "behind"))
        builder.branch(head)
        builder.position_at_end(head)
        index, values = builder.phi(I64), [builder.phi(value.type) for value in carried]
        for phi, value in zip([index, *values], [I64(0), *carried], strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", index, count), inside, behind)
        builder.position_at_end(inside)
        after = [builder.add(index, I64(1)), *body(index, values)]
        for phi, value in zip([index, *values], after, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(behind)
        return values

    def each(self, num: Value, size: int, body: Callable[[int, Value], None]) -> None:
        """body(lanes, offset) over `num` numbers of `size` bytes: whole vectors, then the rest with vectors of one."""
        builder = self.builder
        whole = builder.sdiv(num, I64(ISA.lanes))
        covered = self.times(whole, ISA.lanes)

        def vectors(index: Value, _: list[Value]) -> list[Value]:
            body(ISA.lanes, self.times(index, ISA.lanes * size))
            return []

        def rest(index: Value, _: list[Value]) -> list[Value]:
            body(1, self.times(builder.add(covered, index), size))
            return []

        self.loop(whole, [], vectors)
        self.loop(builder.sub(num, covered), [], rest)

    def by_rows(self, rows: Value, body: Callable[[int], None]) -> None:
        """body(rows), which is from 1 to ISA.rows: each number has code of its own."""
        builder = self.builder
        done = builder.append_basic_block("done")
        switch = builder.switch(rows, done)
        for num in range(1, ISA.rows + 1):
            block = builder.append_basic_block(f"rows{num}")
            switch.add_case(I64(num), block)
            builder.position_at_end(block)
            body(num)
            builder.branch(done)
        builder.position_at_end(done)

    def choose(
        self, condition: Value, yes: Callable[[], Sequence[Value]], no: Callable[[], Sequence[Value]]
    ) -> list[Value]:
        """What yes() has made where the condition, an i1, holds, else what no() has: values of the same types."""
        builder = self.builder
        branches = [builder.append_basic_block(name) for name in ("yes", "no")]
        done = builder.append_basic_block("done")
        builder.cbranch(condition, *branches)
        ends = []
        for block, make in zip(branches, (yes, no), strict=True):
            builder.position_at_end(block)
            ends.append((make(), builder.block))
            builder.branch(done)
        builder.position_at_end(done)
        found = [builder.phi(value.type) for value in ends[0][0]]
        for values, block in ends:
            for phi, value in zip(found, values, strict=True):
                phi.add_incoming(value, block)
        return found

    def room(self, num: int) -> Value:
        """Where so many float32 may be kept until the function returns; to be asked for before any loop."""
        place = self.builder.alloca(ir.ArrayType(F32, num))
        place.align = 64
        return self.builder.bitcast(place, I8.as_pointer())

    def splat(self, number: Value, lanes: int = ISA.lanes) -> Value:
        """A vector of one number."""
        kind = ir.VectorType(number.type, lanes)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), number, I32(0))
        same = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), same)

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, rounded once where the processor can."""
        return self.call(f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, c)

    def call(self, name: str, returns: Any, *args: Value) -> Value:
        """A function of the processor, of LLVM or of the C library."""
        found = self.builder.module.globals.get(name)
        if found is None:
            kind = ir.FunctionType(returns, [arg.type for arg in args])
            found = ir.Function(self.builder.module, kind, name)
        return self.builder.call(found, args)

    def smaller(self, a: Value, b: Value) -> Value:
        """The smaller one of floats; a where it is not a number."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), b, a)

    def larger(self, a: Value, b: Value) -> Value:
        """The larger one of floats; a where it is not a number."""
        return self.builder.select(self.builder.fcmp_ordered("<", a, b), b, a)

    def clamp(self, number: Value, low: Value, high: Value) -> Value:
        """An integer, kept from low to high."""
        builder = self.builder
        number = builder.select(builder.icmp_signed("<", number, low), low, number)
        return builder.select(builder.icmp_signed(">", number, high), high, number)

    def reduce(self, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
        """One number of a whole vector: halves are combined until one lane is left."""
        count = vector.type.count
        while count > 1:
            count //= 2
            halves = [ir.Constant(ir.VectorType(I32, count), list(range(start, start + count))) for start in (0, count)]
            low, high = (self.builder.shuffle_vector(vector, vector, half) for half in halves)
            vector = combine(low, high)
        return self.builder.extract_element(vector, I32(0))

    def rounded(self, x: Value) -> tuple[Value, Value]:
        """Floats of at most 2^22 to the nearest integer, ties to even: as floats and as i32."""
        builder, magic = self.builder, same(x.type, _MAGIC)
        moved = builder.fadd(x, magic)
        kind = ir.VectorType(I32, x.type.count)
        return builder.fsub(moved, magic), builder.sub(builder.bitcast(moved, kind), same(kind, _MAGIC_BITS))

    def exp(self, x: Value) -> Value:
        """e^x within 2 units in the last place; 0 below -87.3, as for 88 above 88.

        Cephes' expf: x = n ln 2 + r, and a polynomial of degree 6 for e^r.
        """
        builder, kind = self.builder, x.type
        inside = self.larger(self.smaller(x, same(kind, 88.0)), same(kind, -87.3))
        n, bits = self.rounded(builder.fmul(inside, same(kind, 1.4426950408889634)))
        r = self.fma(n, same(kind, -0.693359375), inside)
        r = self.fma(n, same(kind, 2.12194440e-4), r)
        power = same(kind, 1.9875691500e-4)
        for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
            power = self.fma(power, r, same(kind, factor))
        power = builder.fadd(self.fma(power, builder.fmul(r, r), r), same(kind, 1.0))
        exponent = builder.shl(builder.add(bits, same(bits.type, 127)), same(bits.type, 23))
        power = builder.fmul(power, builder.bitcast(exponent, kind))
        return builder.select(builder.fcmp_ordered("<", x, same(kind, -87.3)), same(kind, 0.0), power)


def floats(lanes: int = ISA.lanes) -> Any:
    """A vector of float32."""
    return ir.VectorType(F32, lanes)


def integers(lanes: int = ISA.lanes) -> Any:
    """A vector of int32."""
    return ir.VectorType(I32, lanes)


def same(kind: Any, number: float) -> Value:
    """A constant vector of one number."""
    return ir.Constant(kind, [number] * kind.count)


def function(module: Any, write: Callable[..., Value], kinds: Sequence[Any], returns: Any) -> Any:
    """The function of a module whose instructions write(code, ...) writes, of arguments of these kinds.

    What `write` gives is returned, unless the type `returns` is void.
    """
    found = ir.Function(module, ir.FunctionType(returns, kinds), f"llmbench_{write.__name__}")
    builder = ir.IRBuilder(found.append_basic_block())
    value = write(Code(builder), *found.args)
    if isinstance(returns, ir.VoidType):
        builder.ret_void()
    else:
        builder.ret(value)
    return found
