"""Compiles what writes LLVM instructions, in this process and by llvmlite alone.

That takes a tenth of a second or two and leaves no files; only to load numba takes longer. So it is for what a command
needs that has ended soon.
"""

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir

from llmbench.native.code import I64, function
from llmbench.native.isa import PROCESSOR


class Native:
    """The function whose instructions write(code, ...) writes. Its arguments are counts, and addresses of memory that
    the caller keeps; it gives nothing back, and runs without the GIL.

    Raises OSError where no process may make code of its own.
    """

    def __init__(self, write: Callable[..., None]) -> None:
        num_arguments = len(inspect.signature(write).parameters) - 1
        module = ir.Module(write.__name__)
        name = function(module, write, [I64] * num_arguments, ir.VoidType()).name
        self._engine = _compiled(module)  # it owns the memory that the code is in
        prototype = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * num_arguments)
        self._function = prototype(self._engine.get_function_address(name))

    def __call__(self, *arguments: int) -> None:
        self._function(*arguments)


def _compiled(module: Any) -> Any:
    """The execution engine of an ir.Module, for the processor that is here or asked for."""
    llvm.check_jit_execution()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module.triple = llvm.get_process_triple()
    features = "" if PROCESSOR else llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_triple(module.triple).create_target_machine(
        PROCESSOR or llvm.get_host_cpu_name(), features, jit=True
    )
    module.data_layout = str(machine.target_data)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    engine = llvm.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    return engine
