"""What `llmbench weights compress`, `decompress` and `sizes` do: files in, files out, and tables of what it gained."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from llmbench import plugins
from llmbench.cli._progress import Line, in_bytes
from llmbench.errors import ConfigError
from llmbench.report import words
from llmbench.report.files import as_json
from llmbench.report.terminal import Terminal
from llmbench.weights import cann, sizes
from llmbench.weights import compress as compressing
from llmbench.weights.compress import Compression, Linear, Wanted

_CODECS = ("auto", "llmbench", "cann")


def wanted(
    everything: bool, disabled: Sequence[str], pseudo_sparse: float | None, seed: int, parts: bool, tool: Path | None
) -> Wanted:
    """What is to be compressed. Raises ConfigError for a share that is none."""
    if pseudo_sparse is not None and not 0 <= pseudo_sparse <= 1:
        raise ConfigError(f"--pseudo-sparse: a share from 0 to 1, got {pseudo_sparse:g}")
    return Wanted(
        kinds=("W8A8S", "W8A8") if everything else ("W8A8S",),
        disabled=tuple(disabled),
        pseudo_sparse=pseudo_sparse,
        seed=seed,
        as_parts=parts,
        cann=tool,
    )


def compress(folder: Path, out: Path, wanted: Wanted, json: bool) -> None:
    """Compress a folder and print the ratios."""
    with Line(in_bytes) as line:
        found = compressing.compress(folder, out, wanted, line)
    if json:
        print(as_json(found).decode(), end="")
    else:
        _show(Terminal(highlight=False, soft_wrap=True), out, found)


def tool(codec: str, given: Path | None) -> Path | None:
    """CANN's compressor, where that is wanted and there. Raises ConfigError, InputError."""
    if codec not in _CODECS:
        raise ConfigError(f"--codec: {plugins.unknown('codec', codec, list(_CODECS))}")
    if codec == "llmbench":
        if given is not None:
            raise ConfigError("--codec llmbench: leave --cann out, or --codec")
        return None
    found = cann.find(given, os.environ)
    if codec == "cann" and found is None:
        raise ConfigError(
            f"--codec cann: {cann.NAMES[0]} was not found by ASCEND_TOOLKIT_HOME nor in the PATH; name it with --cann"
        )
    return found


def decompress(folder: Path, out: Path, json: bool) -> None:
    """Write what was compressed."""
    with Line(in_bytes) as line:
        found = compressing.decompress(folder, out, line)
    if json:
        print(as_json(found).decode(), end="")
        return
    num = sum(file.path_before is not None for file in found.files.values())
    as_it_was = "as they were" if found.pseudo_sparse is None else "as they were, but for the zeros of --pseudo-sparse"
    print(f"{out}: {num} files, {len(found.linears)} matrices, {as_it_was}")


def show_sizes(specs: Sequence[str], json: bool) -> None:
    """The sizes of several forms of a model, one below the other, each beside the first."""
    with Console(stderr=True).status("reading the weights"):
        found = [sizes.of(spec) for spec in specs]
    if json:
        print(as_json(found).decode(), end="")
        return
    table = Table(box=None, pad_edge=False)
    for name in ("model", "decoder linears", "linears", "others", "all", "linears x", "all x"):
        table.add_column(name, justify="left" if name in ("model", "decoder linears") else "right")
    for one in found:
        shares = (sizes.ratio(one.linears, found[0].linears), sizes.ratio(one.total, found[0].total))
        table.add_row(
            one.path,
            ", ".join(f"{number} {kind}" for kind, number in one.kinds.items()),
            *map(words.size, (one.linears, one.others, one.total)),
            *(f"{share:.3f}" for share in shares),
        )
    Terminal(highlight=False, soft_wrap=True).print(table)


def _show(terminal: Terminal, out: Path, found: Compression) -> None:
    terminal.print(f"{out}: {found.note}")
    if found.left_out:
        terminal.print(f"left out, as they are no folders of ranks: {', '.join(found.left_out)}")
    if found.pseudo_sparse is not None:
        terminal.print(
            f"{found.pseudo_sparse:.0%} of the values were kept at random (seed {found.seed}), the others are zeros:"
            " to see what the codec makes of it, not to be served"
        )
    table = Table(box=None, pad_edge=False)
    for name in ("linears", "number", "values", "zeros", "compressed", "ratio"):
        table.add_column(name, justify="left" if name == "linears" else "right")
    for kind, linears in _by_kind(found.linears).items():
        table.add_row(kind, *_cells(linears))
    table.add_row("all", *_cells(list(found.linears.values())))
    terminal.print(table)


def _by_kind(linears: Mapping[str, Linear]) -> dict[str, list[Linear]]:
    """By the last part of their names; those that were left as they are apart."""
    found: dict[str, list[Linear]] = {}
    for name, linear in linears.items():
        kind = name.rpartition(".")[2] + (" (left as it is)" if linear.disabled else "")
        found.setdefault(kind, []).append(linear)
    return dict(sorted(found.items()))


def _cells(linears: Sequence[Linear]) -> tuple[str, ...]:
    before, now = (
        sum(sizes) for sizes in zip(*((one.num_bytes_before, one.num_bytes) for one in linears), strict=True)
    )
    zeros = sum(one.zeros * one.num_bytes_before for one in linears) / before
    return str(len(linears)), f"{before:,}", f"{zeros:.1%}", words.size(now), f"{now / before:.3f}"
