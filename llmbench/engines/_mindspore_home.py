"""Where MindSpore and MindFormers write what nobody asked for: a cache folder, not the working directory."""

import os
import tempfile
from pathlib import Path


def start(threads: int | None) -> Path:
    """Import MindSpore in graph mode, with its files in the folder that is returned, and its logs quiet.

    To be called before either is imported elsewhere, since they read the environment then; what the user has set there
    stays as it is. `threads` of a kernel, None for all cores. Raises ModuleNotFoundError.
    """
    home = _folder()
    defaults = {
        "LOCAL_DEFAULT_PATH": str(home / "output"),  # MindFormers: ./output
        "MS_OM_PATH": str(home),  # MindSpore: ./rank_0 with the graph of a failed compilation
        "MS_COMPILER_CACHE_PATH": str(home),  # MindSpore: ./kernel_meta on Ascend
        "ASCEND_WORK_PATH": str(home),
        "GLOG_v": "4",  # what ends the process; errors are raised too, and warnings are about MindSpore itself
    }
    if threads is not None:
        defaults["OMP_NUM_THREADS"] = str(threads)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import mindspore

    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    if threads is not None:
        mindspore.set_context(runtime_num_threads=threads)
    return home


def _folder() -> Path:
    """`$XDG_CACHE_HOME/llmbench/mindspore`; a temporary one where that cannot be made."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = base / "llmbench" / "mindspore"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError:
        home = Path(tempfile.mkdtemp(prefix="llmbench-mindspore-"))
    return home


def reason(error: Exception) -> str:
    """The line of a MindSpore error that says what it is: the others are rules and headings."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("-")), type(error).__name__)
