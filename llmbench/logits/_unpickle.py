"""The process that reads one pickled .npy file: from stdin, and writes plain float32 values to stdout.

Run as a file of its own by `pickles`, isolated (`python -I`): it imports nothing of llmbench. Unpickling calls what a
file names; here only NumPy's own reconstruction is called, and whatever a file says is of mindspore becomes an inert
box. Should that be got round, the process has no network where the system allows that, may start no other, open or
write no file, and has little memory and time.
"""

import ctypes
import json
import os
import pickle
import resource
import sys
from contextlib import suppress
from io import BytesIO
from typing import Any, ClassVar

import numpy as np

_MEMORY_BYTES = 2 << 30
_CPU_S = 60
_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000
_FORBIDDEN = ("socket.", "subprocess.", "os.", "open", "exec", "import", "ctypes.", "shutil.", "mmap.", "pty.")


class Box:
    """Stands for an object of mindspore: keeps what it was built from, does nothing."""

    held: list[Any]

    def __new__(cls, *args: Any) -> "Box":
        made = super().__new__(cls)  # unpickling calls this alone
        made.held = list(args)
        return made

    def __setstate__(self, state: Any) -> None:
        self.held.append(state)


def box(*args: Any) -> Box:
    """A function of mindspore that rebuilds an object."""
    return Box(*args)


def encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as old pickles use it for bytes: latin1 and nothing else."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding}")
    return text.encode("latin1")


def _numpy_parts() -> dict[tuple[str, str], Any]:
    core: Any = np.core if np.lib.NumpyVersion(np.__version__) < "2.0.0" else np._core  # type: ignore[attr-defined]
    rebuild = {"multiarray._reconstruct": core.multiarray._reconstruct, "multiarray.scalar": core.multiarray.scalar}
    rebuild["numeric._frombuffer"] = core.numeric._frombuffer
    parts: dict[tuple[str, str], Any] = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
    for package in ("numpy.core", "numpy._core"):
        for path, function in rebuild.items():
            module, _, name = path.partition(".")
            parts[f"{package}.{module}", name] = function
    return parts


class Unpickler(pickle.Unpickler):
    """Knows NumPy's arrays and boxes for mindspore; any other name is refused."""

    allowed: ClassVar[dict[tuple[str, str], Any]] = {**_numpy_parts(), ("_codecs", "encode"): encode}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.allowed:
            return self.allowed[module, name]
        if module.split(".")[0] == "mindspore":
            return Box if name[:1].isupper() else box
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is neither NumPy's nor mindspore's")


def values(found: Any) -> Any:
    """The array in an object: in a box, the largest of what it holds."""
    if isinstance(found, np.ndarray) and found.dtype == object:
        parts = [values(part) for part in found.reshape(-1)]
        if len(parts) == 1:
            return parts[0]
        return np.array([np.asarray(part, np.float32).reshape(()) for part in parts], np.float32).reshape(found.shape)
    if isinstance(found, Box):
        return max((values(part) for part in found.held), key=np.size)
    if isinstance(found, tuple | list):
        return max((values(part) for part in found), key=np.size)
    if isinstance(found, np.ndarray | np.generic | float | int):
        return np.asarray(found)
    return np.zeros(0, np.float32)


def restrict() -> None:
    """Give up what reading a pickle does not need."""
    with suppress(OSError, AttributeError):  # Linux; not where containers forbid it
        ctypes.CDLL(None).unshare(_NEW_USER | _NEW_NETWORK)
    for limit, most in (
        (resource.RLIMIT_AS, _MEMORY_BYTES),
        (resource.RLIMIT_CPU, _CPU_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        with suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))

    def forbid(event: str, _: Any) -> None:
        if event.startswith(_FORBIDDEN):
            os._exit(77)

    sys.addaudithook(forbid)


def main() -> None:
    data = BytesIO(sys.stdin.buffer.read())
    npy: Any = np.lib.format
    read_header = npy.read_array_header_1_0 if npy.read_magic(data) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(data)
    if dtype.kind != "O":
        raise ValueError("it holds no pickle")
    unpickler = Unpickler(data, encoding="latin1")
    restrict()
    array = values(unpickler.load())
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f" or array.size == 0:
        raise ValueError("there are no floating-point values in it")
    array = array.astype("<f4").reshape(shape if array.size == np.prod(shape) else array.shape)
    sys.stdout.buffer.write(json.dumps(array.shape).encode() + b"\n" + array.tobytes())
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing that the pickle left behind is ever finalised


if __name__ == "__main__":
    try:
        main()
    except Exception as error:  # noqa: BLE001 - whatever a file provokes is one line
        sys.stderr.write(f"{type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
        os._exit(1)
