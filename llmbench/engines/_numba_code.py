"""Makes functions that write LLVM instructions callable from what numba compiles."""

import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numba
from numba import types
from numba.extending import intrinsic

from llmbench.native.code import F32, I64, Value, function
from llmbench.native.isa import tell

tell(numba.config)


def kernel(*floating: str, returns: bool = False) -> Callable[[Callable[..., Value]], Any]:
    """Makes `write(code, ...)` a function that compiled code calls: arguments are i64, those named here float32.

    It returns nothing, or an i64. Its code is written once for each module that calls it.
    """

    def made(write: Callable[..., Value]) -> Any:
        parameters = list(inspect.signature(write).parameters.values())
        names = [parameter.name for parameter in parameters[1:]]
        sorts = [(types.float32, F32) if name in floating else (types.int64, I64) for name in names]
        result = (types.int64, I64) if returns else (types.void, ir.VoidType())

        def written(module: Any) -> Any:
            there = module.globals.get(f"llmbench_{write.__name__}")
            if there is not None:
                return there
            found = function(module, write, [sort[1] for sort in sorts], result[1])
            found.linkage = "internal"
            found.attributes.add("noinline")
            return found

        def call(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.call(written(builder.module), args)
            return value if returns else context.get_dummy_value()

        def definition(context: Any, *args: Any) -> Any:
            return result[0](*(sort[0] for sort in sorts)), call

        definition.__name__ = write.__name__
        definition.__doc__ = write.__doc__
        definition.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return intrinsic(definition)

    return made
