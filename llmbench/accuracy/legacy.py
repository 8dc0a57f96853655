"""What the contest's own script would say of two folders: its steps one by one, with all that they overlook.

Source: acc_allclose.py as the Armit team has it (contest-stack, section 6.6). It wants as many files on both sides,
splits each name at `_` into three, pairs the files of one (sequence, index) in the order of their times, and takes
`np.allclose(new, base, atol=5e-3, equal_nan=False)` of each pair: shapes are broadcast, infinities are equal, and
whatever comes out, its exit status is 0. One thing is not done as there: pickled arrays are not loaded.
"""

from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.measure import ATOL


class Legacy(msgspec.Struct, frozen=True, kw_only=True):
    """`says` is what a reader would take from the script, `passed` None when it would end with an error."""

    passed: bool | None
    num_close: int
    num_files: int
    says: str


def legacy(base: Path, new: Path) -> Legacy:
    """Run the contest's steps over two folders."""
    theirs, ours = _names(base), _names(new)
    if len(theirs) != len(ours):
        return _broken(len(theirs), f"ValueError: {len(theirs)} files in the base, {len(ours)} in the new folder")
    try:
        base_keys, new_keys = _by_key(theirs), _by_key(ours)
    except ValueError as error:
        return _broken(len(theirs), f"ValueError: {error}")
    num_close, unmatched = 0, 0
    for key, names in base_keys.items():
        if key not in new_keys:
            unmatched += 1
            continue
        left = list(new_keys[key])
        for name in names:
            if not left:
                return _broken(len(theirs), f"IndexError: fewer new files than base files are named {key}")
            try:
                close = _close(new / left.pop(0), base / name)
            except (ValueError, OSError) as error:
                return _broken(len(theirs), f"{type(error).__name__}: {' '.join(str(error).split())}")
            num_close += close
            unmatched += not close
    passed = not unmatched
    says = "model accuracy OK, test passed" if passed else f"{unmatched} keys or files do not match"
    return Legacy(passed=passed, num_close=num_close, num_files=len(theirs), says=says)


def allclose(new: npt.NDArray[np.generic], base: npt.NDArray[np.generic]) -> bool:
    """The script's rule for two arrays of any shapes."""
    return bool(np.allclose(new, base.astype(np.float32), atol=ATOL, equal_nan=False))


def _close(new: Path, base: Path) -> bool:
    return allclose(np.load(new, allow_pickle=False), np.load(base, allow_pickle=False))


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _by_key(names: list[str]) -> dict[str, list[str]]:
    """Sorted names by `sequence_index`; a name of another number of parts raises ValueError, as unpacking does."""
    keys: dict[str, list[str]] = defaultdict(list)
    for name in names:
        _, sequence, index = name.split("_")
        keys[f"{sequence}_{index}"].append(name)
    return keys


def _broken(num_files: int, message: str) -> Legacy:
    return Legacy(passed=None, num_close=0, num_files=num_files, says=message)
