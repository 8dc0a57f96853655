"""The arrays of a step in memory that server and agent share.

The memory is a file in /dev/shm (or the folder for temporary files where there is none) that both map. Its name is
removed as soon as the agent has mapped it, so that nothing can be left behind however the processes end; what a server
left that was killed in between is swept by the next one.

Each running sequence has a slot, a row in `block_tables` and `sampling` that is written when something changes and
stays from step to step; a decode step of n sequences writes 3 n integers and nothing else.
"""

import contextlib
import mmap
import os
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import psutil

from llmbench.engines import SAMPLING, Batch, Float32, Int32, StepResult
from llmbench.types import Sampling

_PREFIX = "llmbench-"
_HOTTEST = float(np.finfo(np.float32).max)  # above it is infinity, and a banned id's -inf divided by that no number


class Dimensions(msgspec.Struct, frozen=True, kw_only=True):
    """Sequences in a step, new tokens of all of them together, blocks of one sequence."""

    max_batch: int
    max_tokens: int
    max_blocks: int


class Row(msgspec.Struct):
    """One sequence in a step: its slot, its new tokens, its length after the step, whether it gets a token."""

    slot: int
    token_ids: Sequence[int]
    context_len: int
    wants_token: bool


def _layout(size: Dimensions) -> list[tuple[str, np.dtype[np.generic], tuple[int, ...]]]:
    int32, float32 = np.dtype(np.int32), np.dtype(np.float32)
    batch = (size.max_batch,)
    return [
        ("sampling", SAMPLING, batch),  # first: its 8-byte seeds want an aligned start
        ("block_tables", int32, (size.max_batch, size.max_blocks)),
        ("slots", int32, batch),
        ("query_lens", int32, batch),
        ("context_lens", int32, batch),
        ("steps", int32, batch),
        ("token_ids", int32, (size.max_tokens,)),
        ("out_token_ids", int32, batch),
        ("out_logits", float32, batch),
        ("wants_token", np.dtype(np.bool_), batch),
    ]


def num_bytes(size: Dimensions) -> int:
    """How much memory the arrays of these dimensions take."""
    return sum(dtype.itemsize * int(np.prod(shape)) for _, dtype, shape in _layout(size))


class StepArrays:
    """The named arrays over one buffer; the server writes a step and reads its result, the agent does the reverse."""

    sampling: npt.NDArray[np.void]
    block_tables: Int32
    slots: Int32
    query_lens: Int32
    context_lens: Int32
    steps: Int32
    token_ids: Int32
    out_token_ids: Int32
    out_logits: Float32
    wants_token: npt.NDArray[np.bool_]

    def __init__(self, buffer: mmap.mmap | bytearray, size: Dimensions) -> None:
        self.size = size
        offset = 0
        for name, dtype, shape in _layout(size):
            count = int(np.prod(shape))
            setattr(self, name, np.frombuffer(buffer, dtype, count, offset).reshape(shape))
            offset += count * dtype.itemsize

    @classmethod
    def private(cls, size: Dimensions) -> "StepArrays":
        """Arrays in this process only, for an engine that runs in it."""
        return cls(bytearray(num_bytes(size)), size)

    def admit(self, slot: int, sampling: Sampling, seed: int) -> None:
        """Write how a sequence that takes this slot is sampled."""
        temperature = min(sampling.temperature, _HOTTEST)
        self.sampling[slot] = (temperature, sampling.top_p, sampling.top_k, 0, seed)

    def set_blocks(self, slot: int, first: int, blocks: Sequence[int]) -> None:
        """Write a sequence's block ids from position `first` of its table on."""
        self.block_tables[slot, first : first + len(blocks)] = blocks

    def write(self, rows: Sequence[Row], steps: Sequence[int]) -> int:
        """Write a step; `steps` are the tokens that each sequence has got so far. Returns the number of new tokens."""
        n = len(rows)
        tokens = [token for row in rows for token in row.token_ids]
        self.slots[:n] = [row.slot for row in rows]
        self.query_lens[:n] = [len(row.token_ids) for row in rows]
        self.context_lens[:n] = [row.context_len for row in rows]
        self.wants_token[:n] = [row.wants_token for row in rows]
        self.steps[:n] = steps
        self.token_ids[: len(tokens)] = tokens
        return len(tokens)

    def batch(self, num_sequences: int, num_tokens: int) -> Batch:
        """The step as the engine takes it."""
        slots = self.slots[:num_sequences]
        context_lens = self.context_lens[:num_sequences]
        sampling = self.sampling[slots]
        sampling["step"] = self.steps[:num_sequences]
        return Batch(
            token_ids=self.token_ids[:num_tokens],
            query_lens=self.query_lens[:num_sequences],
            context_lens=context_lens,
            block_tables=self.block_tables[slots],
            wants_token=self.wants_token[:num_sequences],
            sampling=sampling,
        )

    def store(self, result: StepResult) -> None:
        """Write what the engine computed."""
        n = len(result.token_ids)
        self.out_token_ids[:n] = result.token_ids
        self.out_logits[:n] = result.chosen_logits

    def result(self, num_sequences: int) -> tuple[list[int], list[float]]:
        """The token of each sequence (-1 where none was wanted) and its raw logit."""
        return self.out_token_ids[:num_sequences].tolist(), self.out_logits[:num_sequences].tolist()


class Arena:
    """A mapped file that holds StepArrays."""

    def __init__(self, path: Path, memory: mmap.mmap, size: Dimensions) -> None:
        self.path = path
        self._memory = memory
        self.arrays = StepArrays(memory, size)

    @classmethod
    def create(cls, size: Dimensions) -> "Arena":
        """Make the file, at the server. Raises OSError when there is no room."""
        path, memory = create_memory(num_bytes(size))
        return cls(path, memory, size)

    @classmethod
    def attach(cls, path: Path, size: Dimensions) -> "Arena":
        """Map the file that the server made."""
        return cls(path, map_memory(path, num_bytes(size)), size)

    def unlink(self) -> None:
        """Remove the name; both sides keep their memory."""
        self.path.unlink(missing_ok=True)


def create_memory(count: int) -> tuple[Path, mmap.mmap]:
    """A new file of so many bytes, zeros, and its memory. Raises OSError when there is no room."""
    path = _folder() / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        _reserve(descriptor, count)
        return path, mmap.mmap(descriptor, count)
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(descriptor)


def map_memory(path: Path, count: int) -> mmap.mmap:
    """The memory of a file that another process made."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, count)
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, count: int) -> None:
    """Make room now: a file that is only promised ends both processes with SIGBUS when there is none at a write."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, count)
    else:  # macOS
        os.truncate(descriptor, count)


def sweep() -> list[Path]:
    """Remove the files of servers that were killed between creating and attaching; gives back which."""
    dead = [path for path in _folder().glob(f"{_PREFIX}*-*") if not _owner_lives(path)]
    for path in dead:
        with contextlib.suppress(OSError):  # another user's, or another sweep was faster
            path.unlink()
    return dead


def _owner_lives(path: Path) -> bool:
    pid = path.name.removeprefix(_PREFIX).partition("-")[0]
    return not pid.isdecimal() or psutil.pid_exists(int(pid))


def _folder() -> Path:
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())
