"""What `llmbench weights` does: open, write, say what came of it."""

import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import msgspec
from rich.console import Console
from rich.status import Status
from rich.table import Table

from llmbench import plugins
from llmbench.cli._progress import Line, in_bytes
from llmbench.errors import ConfigError, InputError
from llmbench.report import words
from llmbench.report.files import as_json
from llmbench.report.terminal import Terminal
from llmbench.weights import convert as converting
from llmbench.weights import export, inspection
from llmbench.weights.convert import DTYPES, MAX_SHARD_BYTES, Report, Target
from llmbench.weights.names import WRITABLE
from llmbench.weights.quantised import DEQ_FORMS
from llmbench.weights.sources import How, Opened, open_weights

_SHORT = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class Source(msgspec.Struct, frozen=True):
    """What is read, and what its files do not say."""

    model: str
    layout: str | None
    config: Path | None
    strategy: str | None
    drop: tuple[str, ...] = ()
    of_ranks: bool = False


def target(
    layout: str,
    container: str,
    dtype: str | None,
    max_shard_size: str | None,
    allow_nonfinite: bool,
    deq_scale: str | None = None,
) -> Target:
    """What is to be written. Raises ConfigError for a flag that is none of what can be."""
    containers = ("safetensors", "ckpt")
    dtype = dtype if dtype is None else _SHORT.get(dtype, dtype)
    for flag, kind, given, known in (
        ("--to", "layout", layout, WRITABLE),
        ("--format", "format", container, containers),
        ("--dtype", "dtype", dtype, DTYPES),
        ("--deq-scale", "form", deq_scale, DEQ_FORMS),
    ):
        if given is not None and given not in known:
            raise ConfigError(f"{flag}: {plugins.unknown(kind, given, list(known))}")
    return Target(
        layout=layout,
        container="ckpt" if container == "ckpt" else "safetensors",
        dtype=dtype,
        deq_scale=next((form for form in DEQ_FORMS if form == deq_scale), None),
        max_shard_bytes=MAX_SHARD_BYTES if max_shard_size is None else num_bytes(max_shard_size),
        allow_nonfinite=allow_nonfinite,
    )


def num_bytes(text: str) -> int:
    """`5GB`, `512MiB` or a plain number as bytes. Raises ConfigError."""
    found = re.fullmatch(r"([0-9]+)\s*([A-Za-z]*)", text.strip())
    if found is None or found[2].upper() not in _UNITS or int(found[1]) < 1:
        raise ConfigError(f"--max-shard-size: expected a size such as 5GB or 512MiB, got {text!r}")
    return int(found[1]) * _UNITS[found[2].upper()]


def inspect(source: Source, quick: bool, json: bool) -> None:
    """Look at weights and print what they are."""
    with _looking():
        found = inspection.inspect(source.model, _how(source, strict=False), with_fingerprint=not quick)
    if json:
        _print(as_json(found).decode())
    else:
        _show(Terminal(highlight=False, soft_wrap=True), found)


def convert(source: Source, out: Path, wanted: Target, json: bool) -> None:
    """Write a whole model."""
    opened = _open(source)
    with Line(in_bytes) as line:
        report = converting.convert(opened, out, wanted, line)
    _tell(report, out, json)


def shard(source: Source, out: Path, num_ranks: int, wanted: Target, vocabulary: str, json: bool) -> None:
    """Write a model cut into ranks. Raises ConfigError for another --vocabulary than cut or whole."""
    if vocabulary not in ("cut", "whole"):
        raise ConfigError(f"--vocabulary: {plugins.unknown('way', vocabulary, ['cut', 'whole'])}")
    opened = _open(source)
    with Line(in_bytes) as line:
        report = converting.cut(opened, out, num_ranks, wanted, line, vocabulary == "cut")
    _tell(report, out, json)


def shard_dictionaries(source: Source, out: Path, num_ranks: int, wanted: Target, json: bool) -> None:
    """Write the dictionaries of each rank. Raises ConfigError for a layout or dtype, of which they have no choice."""
    if wanted.layout != "hf" or wanted.dtype is not None:
        raise ConfigError(
            "--format npy: its names are Hugging Face's, and nothing in it is float; without --to, --dtype"
        )
    opened = _open(source)
    with Line(in_bytes) as line:
        export.cut(out, opened, num_ranks, wanted.deq_scale or "int64", line)
    linears = list(opened.config.quantised)
    text = f"{out}: the dictionaries of {len(linears)} linears, part_model/0 to {num_ranks - 1}\n"
    _print(as_json({"num_ranks": num_ranks, "linears": linears}).decode() if json else text)


def _open(source: Source) -> Opened:
    how = _how(source, strict=True)
    with _looking():
        opened = open_weights(source.model, how)
    if source.of_ranks and opened.strategy is None:
        raise InputError(
            f"{source.model}: a whole model, not the folders rank_0, rank_1, … of one with their strategy.json;"
            " `llmbench weights shard` cuts it, `convert` writes it anew"
        )
    return opened


def _looking() -> Status:
    """A sign of life, where somebody looks on, while hashes and fingerprints are computed."""
    return Console(stderr=True).status("reading the weights")


def _how(source: Source, strict: bool) -> How:
    """What its files do not say; whoever writes looks at everything."""
    infer = source.strategy == "auto"
    return How(
        config=source.config,
        layout=source.layout,
        strategy=None if infer or source.strategy is None else Path(source.strategy),
        infer=infer,
        drop=source.drop,
        strict=strict,
        verify=strict,
    )


def _tell(report: Report, out: Path, json: bool) -> None:
    if json:
        _print(as_json(report).decode())
        return
    ranks = "" if report.num_ranks is None else f" on {report.num_ranks} ranks"
    _print(
        f"{out}: {report.num_tensors} tensors{ranks}, {words.size(report.num_bytes)} of {', '.join(report.dtypes)},"
        f" {report.source_layout} ({report.source_container}) to {report.layout} ({report.container})\n"
    )
    for name, why in report.dropped.items():
        _print(f"left out: {name} ({why})\n")


def _show(terminal: Terminal, found: inspection.Inspection) -> None:
    rank = found.ranks
    facts = {
        "weights": f"{found.container}, layout {found.layout}",
        "family": found.architecture,
        "parameters": f"{found.num_parameters:,}",
        "dtypes": ", ".join(f"{dtype} ({words.size(size)})" for dtype, size in found.dtypes.items()),
        "layers": str(found.num_layers),
        "heads": f"{found.num_heads} of {found.head_dim}, {found.num_kv_heads} for keys and values",
        "width": f"{found.hidden_size}, MLP {found.intermediate_size}, vocabulary {found.vocab_size}",
        "embeddings": "tied: they are the head, too" if found.tied else "apart from the head",
    }
    if found.quantisation is not None:
        facts |= _quantisation(found.quantisation)
    if rank is not None:
        which = "all" if rank.rank is None else f"rank {rank.rank}"
        modes = ", ".join(f"{number} {mode}" for mode, number in rank.modes.items())
        facts["ranks"] = f"{which} of {rank.world_size}: {modes}"
    facts |= {f"besides: {name}": why for name, why in found.dropped.items()}
    if found.fingerprint is not None:
        facts["fingerprint"] = found.fingerprint
    terminal.print(found.path)
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, fact in facts.items():
        table.add_row(name, fact)
    terminal.print(table)
    sizes = Table("part", "tensors", "parameters", "bytes", box=None, pad_edge=False)
    for column in sizes.columns[1:]:
        column.justify = "right"
    for group in found.groups:
        sizes.add_row(group.name, str(group.num_tensors), f"{group.num_parameters:,}", words.size(group.num_bytes))
    terminal.print()
    terminal.print(sizes)


def _quantisation(found: inspection.Quantisation) -> dict[str, str]:
    """The kinds, each with the linears of it by their last names and how many there are, and what is float."""
    facts = {}
    for kind in sorted(set(found.kinds.values())):
        facts[kind] = _by_last_name(name for name, own in found.kinds.items() if own == kind)
    facts["float"] = _by_last_name(found.float_linears) or "no linear"
    if found.float_layers and found.kinds:
        facts["float"] += f"; FLOAT_LAYERS {', '.join(map(str, found.float_layers))}"
    if found.norm_bias:
        facts["norms"] = "with biases (anti-outlier with a shift)"
    if found.kv_cache is not None:
        facts["KV cache"] = found.kv_cache
    return facts


def _by_last_name(linears: Iterable[str]) -> str:
    """Such as `2 q_proj, 1 down_proj`."""
    numbers = Counter(linear.rpartition(".")[2] for linear in linears)
    return ", ".join(f"{number} {name}" for name, number in numbers.items())


def _print(text: str) -> None:
    sys.stdout.write(text)
