"""Which vector instructions code is written with on this processor, and the tile that fits its registers.

A tile is what a kernel of the numba engine keeps in registers while it goes along the inputs of a matrix: `rows` rows
of activations by `vectors` vectors of `lanes` columns each. With AVX-512, 6 rows by 4 vectors of 16 float32:

            columns    0..15   16..31   32..47   48..63
    row 0              acc 0   acc 1    acc 2    acc 3        24 of the 32 registers add up,
    ...                                                       4 hold the weights of one input,
    row 5              acc 20  acc 21   acc 22   acc 23       1 the activation that they are multiplied with

Every number of the product is added up by one lane, in the order of the inputs, whatever the number of rows: so a row
has the same bits in every batch.
"""

import os
import platform
from typing import Any, Literal, NamedTuple

import llvmlite.binding as llvm

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.native import VARIABLE as VARIABLE


class Isa(NamedTuple):
    """`dot` is how int8 numbers are multiplied and added up exactly: `group` of them at once into 32 bits, by
    vpdpbusd (u8 by s8), by pmaddwd (16 bits by 16 bits), or one by one in 32 bits.
    """

    name: str
    lanes: int
    vectors: int
    rows: int
    dot: Literal["vpdpbusd", "pmaddwd", "plain"]
    group: int

    @property
    def width(self) -> int:
        """Columns of a tile, and of a panel of weights."""
        return self.lanes * self.vectors

    @property
    def quick(self) -> bool:
        """Whether products are quicker than those of NumPy's BLAS, as far as measured."""
        return self.name != "portable"


class _Known(NamedTuple):
    """An instruction set, the features that it needs, and a processor that has no more than that."""

    isa: Isa
    needs: tuple[str, ...]
    processor: str


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
_X86 = {
    "avx512vnni": _Known(Isa("avx512vnni", 16, 4, 6, "vpdpbusd", 4), (*_AVX512, "avx512vnni"), "cascadelake"),
    "avx512": _Known(Isa("avx512", 16, 4, 6, "pmaddwd", 2), _AVX512, "skylake-avx512"),
    "avx2": _Known(Isa("avx2", 8, 2, 6, "pmaddwd", 2), ("avx2", "fma"), "haswell"),
    "portable": _Known(Isa("portable", 4, 2, 4, "plain", 1), (), "x86-64"),
}
# vectors of 4 are what NEON has, with as many registers as AVX-512
_OTHERS = {"portable": _Known(Isa("portable", 4, 4, 6, "plain", 1), (), "generic")}


def _choose() -> tuple[Isa, str]:
    """The best that this processor has, or what the environment asks for; that one's code must not go beyond it."""
    known = _X86 if platform.machine().lower() in ("x86_64", "amd64") else _OTHERS
    asked = os.environ.get(VARIABLE)
    features = llvm.get_host_cpu_features()
    fit = [name for name, each in known.items() if all(features.get(need) for need in each.needs)]
    if not asked:
        return known[fit[0]].isa, ""
    if asked not in fit:
        raise InputError(f"{VARIABLE}: {plugins.unknown('instruction set of this processor', asked, fit)}")
    return known[asked].isa, known[asked].processor


ISA, PROCESSOR = _choose()
"""`PROCESSOR` is the one that code is compiled for, as LLVM calls it; "" for the one that is here, with all it has."""


def tell(config: Any) -> None:
    """Have numba, whose config this is, compile for the same processor."""
    if PROCESSOR:
        config.CPU_NAME, config.CPU_FEATURES = PROCESSOR, ""
