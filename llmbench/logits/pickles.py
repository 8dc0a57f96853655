"""Contest folders whose .npy files hold pickled mindspore Tensors, made into folders of plain arrays.

Loading a pickle runs what is in it, so that is never done in this process: each file is read by a process of its own
that can do nothing else (see `_unpickle`), and what it answers is checked before it is written.
"""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.logits import _unpickle, contest

_TIMEOUT_S = 120
_MOST_BYTES = 64 << 20


def convert(source: Path, out: Path) -> tuple[int, int]:
    """Write each file of a folder as a plain array; gives how many were pickles, and how many were plain already.

    Raises InputError for a file that holds anything else, before anything of it is written.
    """
    dump = contest.read_dump(source)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: there is something in it already; choose a new folder")
    out.mkdir(parents=True, exist_ok=True)
    num_pickles = 0
    for name in dump.files:
        contest.parse_name(name)
        data = (source / name).read_bytes()
        if _is_pickle(data):
            values = unpickle(data, name)
            num_pickles += 1
        else:
            row = contest.read_row(source / name)
            values = row.reshape(1, 1, -1)
        aside = out.with_name(f"{out.name}.partial.npy")
        np.save(aside, values, allow_pickle=False)
        os.replace(aside, out / name)
    return num_pickles, len(dump.files) - num_pickles


def unpickle(data: bytes, name: str) -> contest.Float32:
    """The values in a pickled .npy file, float32 (1, V) or (1, 1, V). Raises InputError when there are none."""
    if len(data) > _MOST_BYTES:
        raise InputError(f"{name}: {len(data)} bytes are too many for a row")
    command = [sys.executable, "-I", _unpickle.__file__]
    try:
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=_TIMEOUT_S, env={})
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{name}: its pickle takes too long to read") from error
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise InputError(f"{name}: its pickle was not read: {reason or f'exit status {done.returncode}'}")
    head, _, body = done.stdout.partition(b"\n")
    try:
        shape: tuple[int, ...] = msgspec.json.decode(head, type=tuple[int, ...])
        values: contest.Float32 = np.frombuffer(body, "<f4").astype(np.float32).reshape(shape)
    except (msgspec.DecodeError, ValueError) as error:
        raise InputError(f"{name}: its pickle holds no array") from error
    if values.ndim not in (2, 3) or values.size != values.shape[-1] or values.size == 0:
        raise InputError(f"{name}: expected shape (1, V) or (1, 1, V), found {values.shape}")
    return values


def _is_pickle(data: bytes) -> bool:
    """Whether the header of a .npy file says that objects follow."""
    return data[:6] == b"\x93NUMPY" and b"'|O'" in data[:256]
