"""CANN's own weight compressor, where it is installed: found, called with its documented arguments, its files read.

msModelSlim builds it of CANN (weight_compression/compress_graph/build.sh). It takes one matrix at a time,

    compress_excutor K1 N1 isTight k_value n_value compressType isTiling IN OUT INDEX INFO

where IN has the int8 blocks of FRACTAL_NZ; K1 N1 1 1 1 0 0 is the low sparsity of W8A8S (ascend-formats, 4.6). OUT is
the compressed stream, INDEX has 8 bytes for each tile of 8 x 8 blocks, INFO begins with u32 tiling_n, tiling_k, and
the length of the stream. Only an Atlas 300I Duo unzips that stream; nothing here can.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from llmbench.errors import InputError
from llmbench.weights.tiles import TILING, Int8, Triple, to_nz

NAMES = ("compress_excutor", "compress_executor")
"""The first is what the build makes, the second what the guide of ATB calls it."""
_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_HOME_DIR")
_BELOW = (
    ".",
    "build",
    "compress_graph/build",
    "weight_compression/compress_graph/build",
    "tools/weight_compression/compress_graph/build",
)
_LOW_SPARSE = ("1", "1", "1", "0", "0")  # isTight, k_value, n_value, compressType, isTiling
_TIMEOUT_S = 600.0


def find(given: Path | None, environment: Mapping[str, str]) -> Path | None:
    """The compressor: at `given`, a file or a folder that has it; else below CANN's home, or in the PATH.

    None when nothing was given and it is not installed. Raises InputError when it is not where `given` says.
    """
    if given is not None and given.is_file():
        return _runnable(given)
    homes = [given] if given is not None else [Path(environment[name]) for name in _HOMES if environment.get(name)]
    found = next((path for home in homes for path in _candidates(home) if path.is_file()), None)
    if found is not None:
        return _runnable(found)
    if given is not None:
        raise InputError(
            f"--cann {given}: there is no {NAMES[0]} in it; build it with msModelSlim's"
            " weight_compression/compress_graph/build.sh, or leave the flag out for llmbench's own codec"
        )
    there = next(
        (path for name in NAMES if (path := shutil.which(name, path=environment.get("PATH"))) is not None), None
    )
    return None if there is None else Path(there)


def pack(tool: Path, weight: Int8, name: str) -> Triple:
    """Compress int8 [n, k] with CANN's tool; `info` is int64 [tiling_k, tiling_n, k, n, 1], as msModelSlim saves it.

    Raises InputError, with the name, when the tool fails or leaves files that are not those documented.
    """
    n, k = weight.shape
    blocks = to_nz(weight)
    num_k, num_n = blocks.shape[:2]
    with tempfile.TemporaryDirectory(prefix="llmbench-cann-") as scratch:
        paths = [Path(scratch, part) for part in ("in.bin", "out.bin", "index.bin", "info.bin")]
        blocks.tofile(paths[0])
        _run([str(tool), str(num_k), str(num_n), *_LOW_SPARSE, *map(str, paths)], name)
        stream, index, info = (_read(path, tool, name) for path in paths[1:])
    if len(info) < 12 or len(info) % 4:
        raise InputError(f"{name}: {tool.name} left an info file of {len(info)} bytes; at least three u32 were due")
    tiling_n, tiling_k, length = np.frombuffer(info, "<u4")[:3].tolist()
    wanted = 8 * -(-num_k // TILING) * -(-num_n // TILING)
    if len(index) != wanted or not 0 < length <= len(stream):
        raise InputError(
            f"{name}: {tool.name} left an index of {len(index)} bytes and a stream of {len(stream)};"
            f" {wanted} and at least {length} were due"
        )
    words = np.array([tiling_k, tiling_n, k, n, 1], np.int64)
    return Triple(np.frombuffer(stream[:length], np.int8), np.frombuffer(index, np.int8), words)


def plain(weight: Int8) -> Triple:
    """The blocks of int8 [n, k] as they are, with an empty index, as msModelSlim saves a layer that it leaves out."""
    n, k = weight.shape
    words = np.array([TILING, TILING, k, n, 1], np.int64)
    return Triple(to_nz(weight).reshape(-1), np.empty(0, np.int8), words)


def _candidates(home: Path) -> Iterator[Path]:
    return (home / below / name for below in _BELOW for name in NAMES)


def _runnable(path: Path) -> Path:
    if not os.access(path, os.X_OK):
        raise InputError(f"{path}: not a program that may be run; is it {NAMES[0]}? chmod +x it then")
    return path


def _run(command: list[str], name: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{name}: {command[0]} took longer than {_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise InputError(f"{name}: cannot run {command[0]} ({error.strerror})") from error
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise InputError(f"{name}: {command[0]} ended with {done.returncode}" + (f": {said[-1]}" if said else ""))


def _read(path: Path, tool: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: {tool.name} left no {path.name}") from error
