"""vLLM's own `vllm bench serve`, unmodified, from the .py files of its wheel: what is native has empty stand-ins.

python vllm_bench.py FOLDER-OF-THE-WHEEL'S-FILES FLAGS
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

STAND_INS = ("vllm._C", "vllm._moe_C", "vllm._version", "xgrammar")


class StandIn(types.ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> Any:
        if name in ("__version__", "__version_tuple__"):
            return {"__version__": "0.33.0", "__version_tuple__": (0, 33, 0)}[name]
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins, and modules inside them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        wanted = name in STAND_INS or name.partition(".")[0] in STAND_INS
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """There is nothing in it."""


def main() -> None:
    """Run its command."""
    sys.path.insert(0, sys.argv.pop(1))
    sys.meta_path.insert(0, Finder())
    serve = importlib.import_module("vllm.benchmarks.serve")
    parser = importlib.import_module("vllm.utils.argparse_utils").FlexibleArgumentParser()
    serve.add_cli_args(parser)
    serve.main(parser.parse_args())


if __name__ == "__main__":
    main()
