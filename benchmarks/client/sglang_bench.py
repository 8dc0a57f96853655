"""SGLang's own `bench_serving`, unmodified, from the .py files of its wheel: without what its packages import for the
server, of which one name has a stand-in.

python sglang_bench.py FOLDER-OF-THE-WHEEL'S-FILES FLAGS
"""

import importlib
import os
import sys
import types
from pathlib import Path
from typing import Any

BARE = ("sglang", "sglang.srt", "sglang.srt.utils")
STAND_INS = ("sglang.srt.disaggregation", "sglang.srt.disaggregation.utils")


class StandIn(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def main() -> None:
    """Run its command; its model is on no hub, and waiting for one is not to count."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder = Path(sys.argv.pop(1))
    sys.path.insert(0, str(folder))
    for name in BARE:
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = module
    for name in STAND_INS:
        sys.modules[name] = StandIn(name)
    importlib.import_module("sglang.benchmark.serving").cli_main()


if __name__ == "__main__":
    main()
