"""The folder of a calibration while it goes on: a header, and of each layer that is done its record and its arrays.

A layer counts once its record is there, which is written last; whoever takes up a calibration that was killed computes
from that layer on exactly what would have been computed without the kill.
"""

import os
import shutil
from pathlib import Path
from tokenize import TokenError
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from llmbench.errors import InputError
from llmbench.weights.files import Safetensors

Float32 = npt.NDArray[np.float32]
Arrays = dict[str, Float32]

_HEADER = "calibration.json"


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What went into the linears of a point: the range that int8 is to stand for, and the score of its outliers."""

    low: float
    high: float
    score: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A layer: what was observed at each point, and of keys and values the ends of each channel."""

    points: dict[str, Observed]
    channels: dict[str, tuple[list[float], list[float]]]
    changed: list[str]
    """The names in its arrays that are weights."""


class Journal:
    """A folder that is begun, or taken up. Raises InputError when it is of another calibration."""

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self.folder = folder
        data = msgspec.json.format(msgspec.json.encode(header), indent=2)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / _HEADER).exists():
                self._compare(msgspec.json.decode((folder / _HEADER).read_bytes()), header)
            else:
                self._write(_HEADER, data)
        except OSError as error:
            raise InputError(f"{error.filename or folder}: cannot write ({error.strerror})") from error
        except msgspec.DecodeError as error:
            raise InputError(f"{folder / _HEADER}: not JSON ({error}); --restart begins anew") from error
        self.records = self._read()

    def arrays(self, layer: int) -> Safetensors:
        """The arrays of a layer that is done."""
        return Safetensors([self.folder / f"layer-{layer:03d}.safetensors"])

    def hidden(self) -> Float32 | None:
        """float32 [tokens, hidden] behind the last layer that is done."""
        if not self.records:
            return None
        path = self.folder / f"hidden-{len(self.records) - 1:03d}.npy"
        try:
            found: Float32 = np.load(path, allow_pickle=False)
        except (OSError, ValueError, SyntaxError, TokenError) as error:  # the last two: a damaged header
            raise InputError(f"{path}: cannot read it ({error}); --restart begins the calibration anew") from error
        return found

    def append(self, record: Record, arrays: Arrays, hidden: Float32) -> None:
        """Keep a layer."""
        name = f"{len(self.records):03d}"
        try:
            aside = self.folder / ".part"
            save_file({key: np.ascontiguousarray(values) for key, values in arrays.items()}, aside)
            os.replace(aside, self.folder / f"layer-{name}.safetensors")
            with aside.open("wb") as file:
                np.save(file, hidden, allow_pickle=False)
            os.replace(aside, self.folder / f"hidden-{name}.npy")
            self._write(f"layer-{name}.json", msgspec.json.encode(record))
            if self.records:
                (self.folder / f"hidden-{len(self.records) - 1:03d}.npy").unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{error.filename or self.folder}: cannot write ({error.strerror})") from error
        self.records.append(record)

    def remove(self) -> None:
        """It is no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> list[Record]:
        found: list[Record] = []
        while (path := self.folder / f"layer-{len(found):03d}.json").exists():
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Record))
            except (OSError, msgspec.DecodeError) as error:
                raise InputError(f"{path}: not a layer's record ({error}); --restart begins anew") from error
        return found

    def _compare(self, there: Any, header: dict[str, Any]) -> None:
        other = there if isinstance(there, dict) else {}
        for key, value in header.items():
            if other.get(key) != value:
                raise InputError(
                    f"{self.folder}: a calibration that was broken off, with {key} {other.get(key)}, not {value};"
                    " the same settings take it up, --restart begins anew"
                )

    def _write(self, name: str, data: bytes) -> None:
        aside = self.folder / ".part"
        aside.write_bytes(data)
        os.replace(aside, self.folder / name)
