"""The rooms and who may import whom (architecture, section 3): held over the syntax tree of every module."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1] / "llmbench"

GROUND = {"errors", "types", "clock", "plugins", "config", "tokenizer", "processes", "chain", "jsonlines", "memory"}

# What each room may import besides itself and the ground. `cli` may import everything and nobody imports it; the
# package itself (`llmbench`) is the doorway for `LLM` and `__version__`.
MAY_IMPORT: dict[str, set[str]] = {
    "protocols": set(),
    "workload": set(),
    "metrics": set(),
    "weights": set(),
    "native": set(),
    "logits": {"native"},
    "engines": {"weights", "native"},
    "loadgen": {"protocols", "workload", "metrics"},  # metrics: calibration computes the instrument's own error
    "link": {"engines", "logits", "weights"},  # weights: the agent opens the model
    "serving": {"link", "protocols", "weights", "engines"},  # engines: offline runs one in its own process
    # exam and metrics: their statistics; weights: models that are computed in this process
    "accuracy": {"loadgen", "logits", "engines", "native", "weights", "workload", "protocols", "exam", "metrics"},
    "evals": set(),
    "exam": {"evals", "loadgen", "protocols", "workload"},
    # an engine in this process or a server, as cases of a sweep; metrics has what a case is and what comes of it
    "sweep": {"engines", "loadgen", "metrics", "protocols", "weights", "workload"},
    "report": {"metrics"},
    # evals: their questions as calibration samples
    "quantize": {"weights", "workload", "evals", "metrics", "engines"},
}
SERVERS_STAIR = {"serving", "link"}
MEASURERS_STAIR = {"loadgen", "accuracy", "evals", "exam", "metrics", "quantize", "report", "sweep", "workload"}

GROUND_LIBRARIES = {"numpy", "msgspec", "yaml", "sentencepiece"}
# library -> where it may be imported: rooms, or single modules
ONLY_IN: dict[str, set[str]] = {
    "rich": {"report", "cli"},
    "pandas": {"report", "cli"},
    "openpyxl": {"report"},
    "pyarrow": {"report"},
    "jinja2": {"serving"},
    "matplotlib": {"report", "cli"},
    "numba": {"engines", "native", "logits._numba_digest"},
    "llvmlite": {"engines", "native", "accuracy.fused"},
    "mindspore": {"engines", "weights.files"},
    "mindformers": {"engines", "weights.files"},
    "torch": {"weights.meta"},  # opens pickles without running what is in them
    "transformers": set(),
    "click": set(),  # typer brings its own
}
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "enums", "misc"}
HEAVY = {
    "pandas",
    "openpyxl",
    "pyarrow",
    "aiohttp",
    "scipy",
    "numpy",
    "sentencepiece",
    "numba",
    "llvmlite",
    "mindspore",
    "torch",
    "matplotlib",
    "psutil",
}


class Import(NamedTuple):
    """One imported module, absolute, and where it stands."""

    module: str
    place: str
    level: int


@cache
def modules() -> dict[str, Path]:
    """Every module of the package: `llmbench.link.agent` and its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("llmbench", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    """What a module imports, at its top and inside functions; what only a type checker sees is left out."""
    path = modules()[module]
    found = []
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{path.relative_to(ROOT.parent)}:{node.lineno}"
        if isinstance(node, ast.Import):
            found += [Import(alias.name, place, 0) for alias in node.names]
        else:
            for alias in node.names:
                base = node.module or ""
                submodule = f"{base}.{alias.name}"
                found.append(Import(submodule if submodule in modules() else base, place, node.level))
    return tuple(found)


def _statements(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        else:
            yield from _statements(child)


def room(module: str) -> str:
    """`llmbench.link.agent` is in `link`; `llmbench.errors` is `errors`; the package itself is `llmbench`."""
    return [*module.split("."), "llmbench"][1] if module != "llmbench" else "llmbench"


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "llmbench"


@cache
def reachable(module: str) -> frozenset[str]:
    """Every module of ours that importing this one can lead to, itself included."""
    seen: set[str] = set()
    ahead = [module]
    while ahead:
        here = ahead.pop()
        if here in seen or here not in modules() or here == "llmbench":  # the doorway is not a way through
            continue
        seen.add(here)
        ahead += [imported.module for imported in imports(here) if is_ours(imported.module)]
    return frozenset(seen)


ROOMS = sorted({room(module) for module in modules()} - {"llmbench", "__main__", "cli"})


def test_every_room_is_in_the_table() -> None:
    assert set(ROOMS) - GROUND <= set(MAY_IMPORT), "say in MAY_IMPORT what the new room may import"


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_imports_only_what_lies_below_it(name: str) -> None:
    allowed = GROUND | {name} | MAY_IMPORT.get(name, set())
    wrong = [
        f"{imported.place} imports {imported.module}"
        for module in modules()
        if room(module) == name
        for imported in imports(module)
        if is_ours(imported.module) and imported.module != "llmbench" and room(imported.module) not in allowed
    ]
    assert not wrong


def test_the_ground_stands_on_few_libraries() -> None:
    wrong = [
        f"{imported.place} imports {imported.module}"
        for name in GROUND
        for imported in imports(f"llmbench.{name}")
        if imported.module.partition(".")[0] not in sys.stdlib_module_names | GROUND_LIBRARIES | {"llmbench"}
    ]
    assert not wrong


def test_the_two_stairs_do_not_meet_even_through_a_third_room() -> None:
    wrong = []
    for module in modules():
        for own, other in ((SERVERS_STAIR, MEASURERS_STAIR), (MEASURERS_STAIR, SERVERS_STAIR)):
            if room(module) in own:
                wrong += [f"{module} reaches {far}" for far in sorted(reachable(module)) if room(far) in other]
    assert not wrong


def test_nobody_imports_the_command_line() -> None:
    wrong = [
        imported.place
        for module in modules()
        if room(module) not in ("cli", "__main__")
        for imported in imports(module)
        if is_ours(imported.module) and room(imported.module) == "cli"
    ]
    assert not wrong


@pytest.mark.parametrize("library", sorted(ONLY_IN))
def test_a_heavy_library_stays_where_it_belongs(library: str) -> None:
    wrong = [
        f"{imported.place} imports {imported.module}"
        for module in modules()
        if not {room(module), module.removeprefix("llmbench.")} & ONLY_IN[library]
        for imported in imports(module)
        if imported.module.partition(".")[0] == library
    ]
    assert not wrong


def test_no_import_is_relative() -> None:
    assert not [imported.place for module in modules() for imported in imports(module) if imported.level]


def test_no_module_is_an_attic() -> None:
    assert not [module for module in modules() if set(module.split(".")) & FORBIDDEN_NAMES]


def test_there_are_no_import_cycles() -> None:
    cycles = [
        f"{module} and {far}"
        for module in modules()
        for far in reachable(module) - {module}
        if module < far and module in reachable(far)
    ]
    assert not cycles


def test_help_loads_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "llmbench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "typer" in loaded, "the list of loaded modules was read"
    assert not {name.partition(".")[0] for name in loaded} & HEAVY
    assert "serve" in done.stdout


def test_import_llmbench_loads_nothing_but_itself() -> None:
    script = "import sys, llmbench; print(*(name for name in sys.modules if name.startswith('llmbench')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["llmbench"]
