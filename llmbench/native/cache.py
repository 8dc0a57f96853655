"""Where the code that numba compiled is kept, so that only the first start of an installation pays for it."""

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba

from llmbench.native.isa import ISA, tell

_log = logging.getLogger(__name__)
tell(numba.config)


def _folder(source: Path) -> str | None:
    """One for each state of the sources of a room, its `_numba_*.py`, and of our own: numba itself looks at the file of
    the compiled function alone.

    None where it cannot be made; then the log says so.
    """
    parent = numba.config.CACHE_DIR or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "llmbench/numba"
    )
    digest = hashlib.sha256(ISA.name.encode())
    for path in (*sorted(source.parent.glob("_numba_*.py")), *sorted(Path(__file__).parent.glob("*.py"))):
        digest.update(path.read_bytes())
    folder = Path(parent, digest.hexdigest()[:16])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _log.warning("compiled code cannot be kept, so every start compiles it anew: %s", error)
        return None
    return str(folder)


def compiled(function: Callable[..., Any]) -> Any:
    """The function as numba compiles it, at its first call or in an earlier process; it runs without the GIL."""
    before, folder = numba.config.CACHE_DIR, _folder(Path(function.__code__.co_filename))
    try:
        numba.config.CACHE_DIR = folder or ""
        return numba.njit(nogil=True, error_model="numpy", cache=folder is not None)(function)
    finally:
        numba.config.CACHE_DIR = before
