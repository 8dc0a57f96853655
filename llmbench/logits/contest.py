"""The contest's dump of logits: a `.npy` file for each checked row, float32, (1, V) in prefill and (1, 1, V) in decode.

A row is checked when the index of its last input token (prompt with bos, from 0) divides by `every`, which was 100.
The file is `{time}_{sequence}_{index}.npy`, where `sequence` is the first 20 characters of the ids of the whole
sequence joined: integers in prefill, floats in decode, because the original's decode inputs were concatenated with
float zeros. `time` is when the request arrived, so that sorting by name keeps the rows of one key in request order at
any batch size; the original, which ran one request at a time, wrote when the row was computed.

Names are not unique keys: beside the folder, never in it (the contest's own script reads every file there), lies
`{folder}.manifest.jsonl` with a header line and one line for each file.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import IO

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import InputError

EVERY = 100
_KEY_LENGTH = 20
_NAME = re.compile(r"(?P<time>[0-9]+(\.[0-9]+)?(e\+[0-9]+)?)_(?P<sequence>[0-9.]*)_(?P<index>[0-9]+)\.npy")

Float32 = npt.NDArray[np.float32]


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What produced the rows; `quantisation` as in store.Manifest."""

    format: str = "llmbench-contest-logits-1"
    every: int
    model: str
    fingerprint: str
    engine: str
    dtype: str
    quantisation: str = ""
    vocab_size: int


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One checked row: whose, where in its sequence, and in how large a batch it was computed."""

    file: str
    request_id: str
    index: int
    prefill: bool
    token_id: int
    batch_size: int


class FileName(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A parsed file name. `key` is what the contest matches on; rows of one key are told apart by their order."""

    time: float
    sequence: str
    index: int

    @property
    def key(self) -> tuple[str, int]:
        """`1.020355.0915.0278.0` and `1203559152780…` are two spellings; both stay as they are."""
        return self.sequence, self.index


def file_name(arrival_s: float, head: Sequence[int], index: int, *, prefill: bool) -> str:
    """The name of a row; `head` are the first ids of the sequence, 20 of them suffice."""
    # as many decimals as wall time has, always: the contest's script sorts the names as text
    return f"{arrival_s:.7f}_{sequence_of(head, prefill=prefill)}_{index}.npy"


def sequence_of(head: Sequence[int], *, prefill: bool) -> str:
    """The middle of a name."""
    ids = map(str, head) if prefill else (str(float(token)) for token in head)
    return "".join(ids)[:_KEY_LENGTH]


def parse_name(name: str) -> FileName:
    """The parts of a file name. Raises InputError for a name that is not the contest's."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise InputError(f"{name}: not a contest logits file; expected time_sequence_index.npy")
    return FileName(time=float(found["time"]), sequence=found["sequence"], index=int(found["index"]))


def manifest_path(folder: Path) -> Path:
    """The manifest beside a folder."""
    return folder.with_name(folder.name + ".manifest.jsonl")


class Writer:
    """Writes rows as they are computed; what was written is whole if the process dies."""

    def __init__(self, folder: Path, header: Header) -> None:
        self.folder = folder
        self.every = header.every
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._manifest: IO[bytes] = manifest_path(folder).open("a+b")
        except OSError as error:
            raise InputError(f"{folder}: cannot write logits there ({error.strerror})") from error
        if _drop_torn_line(self._manifest) == 0:  # a restarted agent goes on with the same files
            self._append(header)

    def wants(self, index: int) -> bool:
        """Whether the row whose last input token has this index is checked."""
        return index % self.every == 0

    def write(
        self, row: Float32, *, head: Sequence[int], arrival_s: float, request_id: str, index: int, prefill: bool,
        token_id: int, batch_size: int,
    ) -> None:  # fmt: skip
        """Write one row, float32 [V]."""
        name = file_name(arrival_s, head, index, prefill=prefill)
        shaped = row.reshape((1, -1) if prefill else (1, 1, -1))
        partial = self.folder.with_name(f"{self.folder.name}.partial.npy")
        np.save(partial, shaped, allow_pickle=False)
        os.replace(partial, self.folder / name)
        self._append(
            Row(
                file=name, request_id=request_id, index=index, prefill=prefill, token_id=token_id, batch_size=batch_size
            )
        )

    def close(self) -> None:
        self._manifest.close()

    def _append(self, line: Header | Row) -> None:
        self._manifest.write(msgspec.json.encode(line) + b"\n")
        self._manifest.flush()


def _drop_torn_line(file: IO[bytes]) -> int:
    """Cut off what stands behind the last newline; gives the size that is left."""
    file.seek(0)
    return file.truncate(file.read().rfind(b"\n") + 1)


class Dump(msgspec.Struct, frozen=True, kw_only=True):
    """A folder as found. `rows` None means that it has no manifest, as a folder of the contest has none."""

    folder: Path
    files: tuple[str, ...]
    header: Header | None = None
    rows: tuple[Row, ...] | None = None


def read_dump(folder: Path) -> Dump:
    """List a folder and read its manifest. Raises InputError when it is no folder, or the manifest cannot be read."""
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of logits; make one with `llmbench acc dump -o {folder}`")
    files = tuple(sorted(entry.name for entry in folder.iterdir()))
    manifest = manifest_path(folder)
    if not manifest.exists():
        return Dump(folder=folder, files=files)
    lines = manifest.read_bytes().split(b"\n")[:-1]  # what stands behind the last newline was torn by a crash
    if not lines:
        raise InputError(f"{manifest}: the manifest is empty; dump again, or delete it to match by file name only")
    try:
        header = msgspec.json.decode(lines[0], type=Header)
        rows = tuple(msgspec.json.decode(line, type=Row) for line in lines[1:])
    except msgspec.DecodeError as error:
        raise InputError(f"{manifest}: not a manifest of logits ({error})") from error
    return Dump(folder=folder, files=files, header=header, rows=rows)


def read_row(path: Path) -> Float32:
    """One row as float32 [V]; the prefill and decode shapes both. Raises InputError naming what is wrong."""
    try:
        with path.open("rb") as file:
            if file.read(6) != b"\x93NUMPY":  # np.load takes archives too
                raise ValueError("it is not in the .npy format")
            file.seek(0)
            values: npt.NDArray[np.generic] = np.load(file, allow_pickle=False)
    except (OSError, ValueError, MemoryError, SyntaxError, TokenError) as error:  # the last two: a damaged header
        raise InputError(f"{path.name}: cannot be read as an array ({_reason(error)})") from error
    if values.ndim not in (2, 3) or values.size != values.shape[-1] or values.size == 0:
        raise InputError(f"{path.name}: expected shape (1, V) or (1, 1, V), found {values.shape}")
    if values.dtype.kind != "f":
        raise InputError(f"{path.name}: expected floating-point values, found {values.dtype}")
    return values.astype(np.float32).reshape(-1)


def _reason(error: Exception) -> str:
    if "pickle" in str(error):
        return "it holds pickled objects, which are never loaded: they can run code"
    return " ".join(str(error).split())
