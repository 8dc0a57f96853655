"""Code that is compiled for this very processor: which instructions it has, how code for it is written and compiled.

For what takes NumPy many passes over memory, or what it cannot do. It needs the extra `fast`: numba, or llvmlite, which
numba brings, which is enough for what is written instruction by instruction. Nothing else in here may be imported
where that is not installed.
"""

import importlib
import importlib.util
import os

VARIABLE = "LLMBENCH_ISA"
"""Takes less than the processor has: the name of an instruction set, or `none`, and NumPy does everything."""
NONE = "none"


def why_not(library: str = "numba") -> str:
    """What is in the way of code that numba compiles, or llvmlite alone, "" for nothing. Loads that library."""
    if os.environ.get(VARIABLE) == NONE:
        return f"{VARIABLE} is {NONE}"
    if importlib.util.find_spec(library) is None:
        return "numba is not installed; pip install 'llmbench[fast]'"
    try:
        importlib.import_module(library)
    except ImportError as error:  # as for a NumPy that this numba does not know yet
        return f"{library} cannot be imported: {error}"
    return ""
