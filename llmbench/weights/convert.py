"""Weights written anew, whole or cut into ranks: in another layout, format or dtype. Tensors go through block by block.

What is written is a folder that is complete or not there: weights, config.json, the tokenizer's files, and a report of
what became of each tensor.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from llmbench.errors import ConfigError, InputError
from llmbench.weights import ckpt, files, names, quantised, shard, strategy
from llmbench.weights.config import NORM_BIAS, ModelConfig, expected_shapes, of_rank
from llmbench.weights.quantised import DeqForm
from llmbench.weights.sources import REPORT, Opened
from llmbench.weights.strategy import Strategy
from llmbench.weights.tensors import FLOATS, Tensor, cast, finite

Container = Literal["safetensors", "ckpt"]
Progress = Callable[[int, int, str], None]
"""Called before each tensor with the bytes that are written, those that will be, and its name."""

DTYPES = FLOATS
MAX_SHARD_BYTES = 5_000_000_000  # what transformers splits at

_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "LICENSE*",
)
Buffer = bytes | memoryview


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be written; a dtype of None keeps that of each tensor, a deq_scale of None the form of it.

    The dtype is that of what is float; quantised linears keep theirs.
    """

    layout: str
    container: Container = "safetensors"
    dtype: str | None = None
    deq_scale: DeqForm | None = None
    max_shard_bytes: int = MAX_SHARD_BYTES
    allow_nonfinite: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What was written, out of what. `mapped` has the names in the source of each tensor, `files` their sha256."""

    source: str
    source_layout: str
    source_container: str
    layout: str
    container: str
    dtypes: list[str]
    num_ranks: int | None
    num_tensors: int
    num_bytes: int
    mapped: dict[str, tuple[str, ...]]
    dropped: dict[str, str]
    files: dict[str, str]


def convert(opened: Opened, out: Path, target: Target, progress: Progress) -> Report:
    """Write a whole model into a new folder. Raises InputError, and then leaves nothing behind."""
    _check(target)
    names.check_mergeable(target.layout, opened.config)
    tensors, moved = names.to_layout(_prepared(opened, target), target.layout, opened.config)
    meter = Meter(progress, _num_bytes(tensors.values()))
    with new_folder(out, meter.total) as folder:
        written = _write_whole(folder, tensors, opened.config, target, meter)
        write_rest(folder, opened, opened.config, target.dtype)
        report = _report(opened, target, moved, tensors.values(), written, None)
        write_json(folder / REPORT, msgspec.to_builtins(report))
    return report


def cut(
    opened: Opened, out: Path, num_ranks: int, target: Target, progress: Progress, cut_vocabulary: bool = True
) -> Report:
    """Write a model into folders rank_0, rank_1, … of a new one, with their strategy. Raises as `convert`."""
    _check(target)
    config, own = opened.config, of_rank(opened.config, num_ranks)
    shard.check(opened.name, config, num_ranks)
    names.check_mergeable(target.layout, config)
    if cut_vocabulary and config.vocab_size % num_ranks and names.layout(target.layout).mindspore:
        raise ConfigError(
            f"ranks: the vocabulary of {config.vocab_size} cannot be cut into {num_ranks} equal parts, which MindSpore"
            " asks for; --vocabulary whole"
        )
    how = shard.cuts(config, num_ranks, cut_vocabulary)
    prepared = _prepared(opened, target)
    ranks = [
        names.to_layout(shard.pieces(prepared, how, rank, num_ranks), target.layout, own) for rank in range(num_ranks)
    ]
    everything = [tensor for tensors, _ in ranks for tensor in tensors.values()]
    meter = Meter(progress, _num_bytes(everything))
    written: dict[str, str] = {}
    with new_folder(out, meter.total) as folder:
        for rank, (tensors, _) in enumerate(ranks):
            name = f"rank_{rank}/" + (f"checkpoint_{rank}.ckpt" if target.container == "ckpt" else files.SINGLE)
            (folder / name).parent.mkdir()
            written[name] = _write_one(folder / name, tensors, target, meter)
        write_rest(folder, opened, opened.config, target.dtype)
        found = Strategy(
            format=strategy.FORMAT,
            world_size=num_ranks,
            architecture=config.architecture,
            layout=target.layout,
            params=how,
            files=written,
        )
        write_json(folder / strategy.FILE, msgspec.to_builtins(found))
        report = _report(opened, target, ranks[0][1], everything, written, num_ranks)
        write_json(folder / REPORT, msgspec.to_builtins(report))
    return report


def _check(target: Target) -> None:
    if target.layout not in names.WRITABLE:
        raise ConfigError(f"--to {target.layout}: can be read, not written; known: {', '.join(names.WRITABLE)}")
    if target.container == "ckpt" and not names.layout(target.layout).mindspore:
        raise ConfigError(f"--format ckpt: MindSpore's, which layout {target.layout} is not; --to legacy")


def _prepared(opened: Opened, target: Target) -> dict[str, Tensor]:
    """The tensors in the dtype that is wanted, looked at while they are read."""
    found = {}
    for name, tensor in opened.tensors.items():
        own = f"{opened.name}: {' '.join(opened.moved[name])}"
        looked_at = tensor if target.allow_nonfinite else finite(tensor, own)
        if name.rpartition(".")[0] in opened.config.quantised or "kv_cache_" in name:
            found[name] = quantised.in_form(name, looked_at, target.deq_scale)
        else:
            found[name] = looked_at if target.dtype is None else cast(looked_at, target.dtype, own)
    return found


class Meter:
    """How much of `total` bytes is done."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._done = 0
        self.total = total

    def begin(self, name: str, num_bytes: int) -> None:
        """To be called before the so many bytes of this name are worked on."""
        self._progress(self._done, self.total, name)
        self._done += num_bytes


@contextlib.contextmanager
def new_folder(out: Path, num_bytes: int) -> Iterator[Path]:
    """A folder beside `out`, which becomes it when all is written. Raises InputError when it cannot be made."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: there is something in it already; choose a new folder")
    aside = out.absolute().with_name(f".{out.absolute().name}.part")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)  # of one that was killed
        aside.mkdir()
        free = shutil.disk_usage(aside).free
        if free < num_bytes:
            aside.rmdir()
            raise InputError(f"{out}: {num_bytes} bytes are to be written, and {free} are free")
        yield aside
        os.replace(aside, out)
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot write ({error.strerror})") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write_whole(
    folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, target: Target, meter: Meter
) -> dict[str, str]:
    """All tensors in one file or several, with an index; the sha256 of each."""
    if target.container == "ckpt":
        return {"model.ckpt": _write_one(folder / "model.ckpt", tensors, target, meter)}
    parts = _parts(tensors, target.max_shard_bytes)
    stem = quantised.weights_stem(config.quantised)
    paths = [f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors" for i in range(1, len(parts) + 1)]
    if len(parts) == 1:
        paths = [f"{stem}.safetensors"]
    written = {name: _write_one(folder / name, part, target, meter) for name, part in zip(paths, parts, strict=True)}
    places = {tensor: name for name, part in zip(paths, parts, strict=True) for tensor in part}
    if names.layout(target.layout).mindspore:
        write_json(folder / files.NAME_MAP, places)
    elif len(parts) > 1:
        size = {"total_size": _num_bytes(tensors.values())}
        write_json(folder / f"{stem}{files.INDEX_END}", {"metadata": size, "weight_map": places})
    return written


def _parts(tensors: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    """Tensors in their order, in parts of at most so many bytes; one that is larger is a part of its own."""
    parts: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if parts[-1] and size + tensor.num_bytes > max_bytes:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.num_bytes
    return parts


def _write_one(path: Path, tensors: Mapping[str, Tensor], target: Target, meter: Meter) -> str:
    """Tensors in one file; its sha256."""
    if target.container == "ckpt":
        buffers = _checkpoint(tensors, meter)
    else:
        buffers = _safetensors(tensors, "ms" if names.layout(target.layout).mindspore else "pt", meter)
    return write(path, buffers)


def write(path: Path, buffers: Iterable[Buffer]) -> str:
    """Bytes into a new file; their sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for buffer in buffers:
            file.write(buffer)
            digest.update(buffer)
    return digest.hexdigest()


def _checkpoint(tensors: Mapping[str, Tensor], meter: Meter) -> Iterator[Buffer]:
    for name, tensor in tensors.items():
        meter.begin(name, tensor.num_bytes)
        yield from ckpt.values(name, tensor)


def _safetensors(tensors: Mapping[str, Tensor], framework: str, meter: Meter) -> Iterator[Buffer]:
    """The bytes of a safetensors file: its head, and the tensors."""
    head, starts = files.head({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}, framework)
    yield head
    for name in starts:
        meter.begin(name, tensors[name].num_bytes)
        for _, block in tensors[name].blocks():
            yield np.ascontiguousarray(block).data.cast("B")


def write_rest(folder: Path, opened: Opened, config: ModelConfig, dtype: str | None = None) -> None:
    """config.json, with the dtype that the weights have now, a description, and what the source has of a tokenizer.

    `config` is that of what is written, and need not be that of what is open.
    """
    raw = opened.raw
    if dtype is not None:
        raw = raw | {"dtype" if "dtype" in raw else "torch_dtype": dtype}
    if config.norm_bias:
        raw = raw | {NORM_BIAS: True}
    if config.quantised:
        raw = raw | {"quantize": quantised.model_kind(config.quantised).lower()}  # the key that MindIE asks for
    if config.quantised or config.kv_cache is not None:
        described = quantised.describe(list(expected_shapes(config)), config.quantised, config.kv_cache)
        write_json(folder / quantised.description_name(config.quantised), described)
    write_json(folder / "config.json", raw)
    sources = [] if opened.tokenizer_path is None else [opened.tokenizer_path]
    if opened.folder is not None:
        sources += [path for pattern in _COPIED for path in sorted(opened.folder.glob(pattern)) if path.is_file()]
    for path in dict.fromkeys(sources):
        shutil.copyfile(path, folder / path.name)


def _report(
    opened: Opened,
    target: Target,
    moved: Mapping[str, names.Moved],
    tensors: Iterable[Tensor],
    written: dict[str, str],
    num_ranks: int | None,
) -> Report:
    everything = list(tensors)
    return Report(
        source=opened.name,
        source_layout=opened.layout,
        source_container=opened.container,
        layout=target.layout,
        container=target.container,
        dtypes=sorted({tensor.dtype for tensor in everything}),
        num_ranks=num_ranks,
        num_tensors=len(everything),
        num_bytes=_num_bytes(everything),
        mapped={name: tuple(own for hf in hfs for own in opened.moved[hf]) for name, hfs in moved.items()},
        dropped=opened.dropped,
        files=written,
    )


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
