"""How a model lies on several ranks: `strategy.json` beside the folders rank_0, rank_1, ….

    {"format": "llmbench-strategy-1", "world_size": 2, "architecture": "qwen2", "layout": "hf",
     "params": {"lm_head.weight": {"shape": [1000, 64], "axis": 0, "mode": "split", "parts": 2}, …},
     "files": {"rank_0/model.safetensors": "<sha256>", …}}

Parameters have their Hugging Face names and whole shapes, whatever the layout of the files is. `files` may be empty,
for strategies that are written by hand.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from llmbench import config as settings
from llmbench.errors import ConfigError, InputError
from llmbench.weights.tensors import Tensor, absent, agreeing, joined

FILE = "strategy.json"
FORMAT = "llmbench-strategy-1"
Mode = Literal["split", "replicate", "head_replicate", "rank0_only"]

ADDED_ONCE = tuple(f"{linear}_proj.{part}" for linear in ("o", "down") for part in ("bias", "quant_bias"))
"""The ends of the names of biases behind a sum over the ranks."""


class Part(msgspec.Struct, frozen=True):
    """What one rank has of a tensor: `start` to `stop` along `axis`, or all of it where that is None."""

    axis: int | None
    start: int
    stop: int


class Cut(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a tensor of this whole shape lies on the ranks: in `parts` parts along `axis`, or (None) undivided.

    split: each rank has a part of its own; head_replicate: neighbours share one; replicate: each has all of it;
    rank0_only: a bias that is added once, zeros elsewhere.
    """

    shape: tuple[int, ...]
    axis: int | None
    mode: Mode
    parts: int = 1

    def part(self, rank: int, world_size: int) -> Part:
        """What a rank has of it."""
        if self.axis is None:
            return Part(None, 0, 0)
        return part(self.axis, self.shape[self.axis], self.parts, rank, world_size)

    def piece(self, rank: int, world_size: int) -> tuple[int, ...]:
        """The shape of what a rank has of it."""
        own = self.part(rank, world_size)
        if own.axis is None:
            return self.shape
        return (*self.shape[: own.axis], own.stop - own.start, *self.shape[own.axis + 1 :])


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a whole model lies on `world_size` ranks; `files` has the sha256 of the ranks' files by their paths."""

    format: str
    world_size: int
    architecture: str
    layout: str
    params: dict[str, Cut]
    files: dict[str, str] = {}


def part(axis: int, size: int, num_parts: int, rank: int, num_ranks: int) -> Part:
    """What a rank has of an axis that is cut into equal parts; the last may be shorter than the others, or empty.

    Where there are fewer parts than ranks, neighbouring ranks have the same one.
    """
    width, index = -(-size // num_parts), rank * num_parts // num_ranks
    return Part(axis, min(index * width, size), min((index + 1) * width, size))


def read(path: Path) -> Strategy:
    """A strategy file. Raises ConfigError when it is something else or contradicts itself."""
    found = settings.build(settings.read(path), Strategy, str(path))
    if found.format != FORMAT:
        raise ConfigError(f"{path}: format: {found.format!r} is not {FORMAT!r}")
    if found.world_size < 1:
        raise ConfigError(f"{path}: world_size: must be at least 1, got {found.world_size}")
    for name, cut in found.params.items():
        wrong = _contradiction(cut, found.world_size)
        if wrong is not None:
            raise ConfigError(f"{path}: params.{name}: {wrong}")
    return found


def infer(
    shapes: Mapping[str, tuple[int, ...]],
    ranks: Sequence[Mapping[str, Tensor]],
    sources: Sequence[str],
    architecture: str,
    layout: str,
) -> Strategy:
    """The strategy that the shapes of the parts show, of ranks that others have cut.

    A part is shorter than the whole along one axis, so that there is one answer. Which ranks hold copies is not seen in
    shapes: neighbours are taken for it, and `join` finds out when they are not the same. A bias behind a sum over
    the ranks is taken to be on rank 0 alone. Raises InputError for a tensor that a rank has not, and for parts that do
    not make the whole.
    """
    params = {}
    for name, shape in shapes.items():
        for tensors, source in zip(ranks, sources, strict=True):
            if name not in tensors:
                raise InputError(f"{source}: tensor {name} is missing")
        there = [tensors[name].shape for tensors in ranks]
        cut = next((cut for cut in _possible(name, shape, len(ranks)) if _shows(cut, there)), None)
        if cut is None:
            parts = ", ".join(str(list(part)) for part in there)
            raise InputError(f"{sources[0]}: tensor {name}: parts of {parts} do not make {list(shape)}")
        params[name] = cut
    return Strategy(format=FORMAT, world_size=len(ranks), architecture=architecture, layout=layout, params=params)


def _possible(name: str, shape: tuple[int, ...], world_size: int) -> Iterator[Cut]:
    yield Cut(shape, None, "rank0_only" if name.endswith(ADDED_ONCE) else "replicate")
    for axis in range(len(shape)):
        yield Cut(shape, axis, "split", world_size)
    for parts in range(world_size - 1, 1, -1):
        if world_size % parts == 0 and shape[0] % parts == 0:
            yield Cut(shape, 0, "head_replicate", parts)


def _shows(cut: Cut, pieces: Sequence[tuple[int, ...]]) -> bool:
    return all(cut.piece(rank, len(pieces)) == piece for rank, piece in enumerate(pieces))


def check_model(path: Path, strategy: Strategy, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ConfigError when a strategy is not of the model that has these tensors."""
    for name, shape in shapes.items():
        if name not in strategy.params:
            raise ConfigError(f"{path}: params: {name} is missing, which config.json asks for; is it of another model?")
        there = strategy.params[name].shape
        if there != shape:
            raise ConfigError(
                f"{path}: params.{name}.shape: {list(there)}, but config.json asks for {list(shape)};"
                " is it of another model?"
            )
    more = next((name for name in strategy.params if name not in shapes), None)
    if more is not None:
        raise ConfigError(f"{path}: params.{more}: config.json asks for no such tensor; is it of another model?")


def join(
    strategy: Strategy, ranks: Sequence[Mapping[str, Tensor]], sources: Sequence[str], verify: bool
) -> dict[str, Tensor]:
    """The whole tensors, by their Hugging Face names, out of those of all ranks; `sources` are named in errors.

    With `verify` their rows raise InputError when copies are not the same. Raises InputError for a tensor that a rank
    has not, or in another shape.
    """
    found = {}
    for name, cut in strategy.params.items():
        pieces = []
        for rank, (tensors, source) in enumerate(zip(ranks, sources, strict=True)):
            expected = cut.piece(rank, strategy.world_size)
            if name not in tensors:
                raise InputError(f"{source}: tensor {name} is missing, of which {FILE} asks for {list(expected)}")
            if tensors[name].shape != expected:
                raise InputError(
                    f"{source}: tensor {name} is {list(tensors[name].shape)}, but {FILE} asks for {list(expected)}"
                )
            pieces.append(tensors[name])
        found[name] = _whole(name, cut, pieces, sources, verify)
    return found


def _whole(name: str, cut: Cut, pieces: Sequence[Tensor], sources: Sequence[str], verify: bool) -> Tensor:
    num_ranks = len(pieces)
    if cut.mode == "rank0_only":
        return absent(pieces[0], pieces[1:], name, sources[1:]) if verify else pieces[0]
    num_parts = 1 if cut.axis is None else cut.parts
    parts = []
    for index in range(num_parts):
        holders = [rank for rank in range(num_ranks) if rank * num_parts // num_ranks == index]
        copies = [pieces[rank] for rank in (holders if verify else holders[:1])]
        if len({copy.dtype for copy in copies}) > 1:
            raise InputError(f"{name}: {', '.join(sources[rank] for rank in holders)} hold it in different dtypes")
        parts.append(agreeing(copies, name, [sources[rank] for rank in holders]))
    return parts[0] if cut.axis is None else joined(parts, cut.axis, name)


def _contradiction(cut: Cut, world_size: int) -> str | None:
    """What is wrong with a cut; None when nothing is."""
    undivided = cut.mode in ("replicate", "rank0_only")
    if undivided != (cut.axis is None):
        return f"mode {cut.mode} with axis {cut.axis}"
    if cut.axis is None:
        return None
    if not 0 <= cut.axis < min(2, len(cut.shape)):
        return f"axis {cut.axis} of a tensor with {len(cut.shape)} axes"
    if cut.mode == "split" and cut.parts != world_size:
        return f"split into {cut.parts} parts for {world_size} ranks"
    if cut.mode == "head_replicate" and (cut.parts < 1 or world_size % cut.parts or cut.shape[cut.axis] % cut.parts):
        return f"{cut.shape[cut.axis]} rows in {cut.parts} parts for {world_size} ranks; one does not divide the other"
    return None
