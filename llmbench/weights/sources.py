"""Weights of any kind, opened: their shape, and their tensors under Hugging Face names, none of them read.

What is read: `embedded`, `random:<preset>`, a Hugging Face folder, a folder or file for MindSpore (.ckpt or
safetensors, in any layout of `names`), Meta's folder, the ATB guide's dictionaries of a quantised model, and a folder
of ranks with its strategy. A description beside the weights says which of them are quantised.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmbench import config as settings
from llmbench import tokenizer
from llmbench.errors import ConfigError, InputError
from llmbench.weights import _presets as presets
from llmbench.weights import _random as random
from llmbench.weights import config as shapes
from llmbench.weights import files, guide, meta, names, quantised, strategy
from llmbench.weights.config import ModelConfig, check_shapes, expected_shapes
from llmbench.weights.strategy import Strategy
from llmbench.weights.tensors import Tensor, equal, of

COMPRESSED = "compression.json"
"""What `weights compress` leaves beside weights that can only be opened when they are decompressed."""

REPORT = "conversion.json"
"""What a conversion leaves beside its weights; its `layout` is that of the folder."""

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """Weights that are open and not read. `tensors` are exactly those of the architecture, under Hugging Face names.

    `moved` are the names in the files of each, `dropped` what is there besides and why it is left out; `raw` is
    config.json, `folder` where it lies, None for random weights.
    """

    name: str
    folder: Path | None
    raw: dict[str, Any]
    config: ModelConfig
    tokenizer_path: Path | None
    container: str
    layout: str
    tensors: dict[str, Tensor]
    moved: dict[str, names.Moved]
    dropped: dict[str, str]
    strategy: Strategy | None = None


class How(msgspec.Struct, frozen=True, kw_only=True):
    """What is not in the files: config.json elsewhere, their layout, their strategy, and names not to be missed.

    `infer` takes the strategy that the shapes of the parts show; `strict` refuses tensors that the architecture has
    not; `verify` holds ranks against each other, and their files against their hashes.
    """

    config: Path | None = None
    layout: str | None = None
    strategy: Path | None = None
    infer: bool = False
    drop: tuple[str, ...] = ()
    strict: bool = True
    verify: bool = False


def open_weights(spec: str, how: How, seed: int = 0) -> Opened:
    """Open what a user types; `seed` is for random weights without one.

    Raises InputError or ConfigError that names the file, key or tensor.
    """
    if spec == "embedded":
        return _open_folder(spec, tokenizer.embedded_path().parent, how)
    kind, colon, rest = spec.partition(":")
    if colon and kind == "random":
        return _open_random(spec, rest, seed)
    path = Path(spec)
    if path.is_file() and path.suffix in (".ckpt", ".safetensors"):
        return _named(spec, path, how, files.open_file)
    if not path.is_dir():
        what = "not a folder but a file" if path.exists() else "no such folder"
        raise InputError(
            f"model {spec!r}: {what}; expected embedded, random:<{'|'.join(presets.names())}>,"
            " or a folder with config.json and *.safetensors, or *.ckpt"
        )
    return _open_folder(spec, path, how)


def _open_random(spec: str, preset: str, seed: int) -> Opened:
    config, source = random.open_random(preset, seed)
    tensors = of(source)
    return Opened(
        name=spec,
        folder=None,
        raw=shapes.to_hf(config),
        config=config,
        tokenizer_path=tokenizer.embedded_path() if preset.partition(",")[0] == "tiny" else None,
        container="random",
        layout="hf",
        tensors=tensors,
        moved={name: (name,) for name in tensors},
        dropped={},
    )


def _open_folder(name: str, folder: Path, how: How) -> Opened:
    if (folder / COMPRESSED).exists():
        raise InputError(
            f"{folder}: its weights are compressed, which nothing computes with;"
            " `llmbench weights decompress` writes those that they are of"
        )
    if how.infer or how.strategy is not None or (folder / strategy.FILE).exists():
        return _open_ranks(name, folder, how)
    if (folder / "rank_0").is_dir():
        raise InputError(
            f"{folder}: there is rank_0, but no {strategy.FILE} that says how the model lies on the ranks;"
            " give one with --strategy FILE, or take what the shapes show with --strategy auto"
        )
    if guide.is_there(folder):
        return _open_guide(name, folder, how)
    if meta.paths(folder):
        return _open_meta(name, folder, how)
    return _named(name, folder, how, files.open_folder)


def _open_guide(name: str, folder: Path, how: How) -> Opened:
    """A quantised model of which the dictionaries have the linears, and anti_weight all that is float."""
    home = folder / guide.FLOAT_FOLDER
    if not home.is_dir():
        raise InputError(f"{home}: no such folder; beside {guide.WEIGHTS} it has the model as it is in float")
    plain = _open_folder(name, home, how)
    found = guide.read(folder)
    config = msgspec.structs.replace(plain.config, quantised=found.kinds, kv_cache=found.kv_cache)
    replaced = {
        f"{linear}.{part}" for linear, kind in found.kinds.items() if kind == "W8A8" for part in ("weight", "bias")
    }
    floats = {own: tensor for own, tensor in plain.tensors.items() if own not in replaced}
    opened = msgspec.structs.replace(
        plain,
        config=config,
        container="npy",
        tensors=floats | found.tensors,
        moved=plain.moved | found.moved,
    )
    return _checked(opened, how.strict)


class _Files(NamedTuple):
    """What one set of files holds, under its own names; `source` is how errors call it."""

    tensors: dict[str, Tensor]
    layout: str
    container: str
    source: str


class Shape(NamedTuple):
    """config.json, what it says, and the folder where it lies, in which the tokenizer is, too."""

    raw: dict[str, Any]
    config: ModelConfig
    home: Path


def _named(name: str, path: Path, how: How, opener: Callable[[Path], files.Weights]) -> Opened:
    """Weights in one set of files, in a layout that they show."""
    folder = path if path.is_dir() else path.parent
    shape = shape_of(folder, how)  # first: every other message would be about a symptom
    weights = opener(path)
    layout = how.layout or _recorded(folder) or names.detect(weights.names(), weights.source)
    tensors = quantised.with_own_norms(weights.source, of(weights), shape.config.quantised)
    return _whole(name, shape, _Files(tensors, layout, weights.container, weights.source), how)


def _open_meta(name: str, folder: Path, how: How) -> Opened:
    raw, config, tensors = meta.read(folder)
    given = how.config is not None or (folder / "config.json").exists()
    shape = shape_of(folder, how) if given else Shape(raw, config, folder)
    return _whole(name, shape, _Files(tensors, "meta", "pth", str(folder)), how)


def _whole(name: str, shape: Shape, found: _Files, how: How) -> Opened:
    named = names.from_layout(found.tensors, found.layout, shape.config)
    has_norm_bias = any(own.endswith("layernorm.bias") for own in named.tensors)  # of others, whose config is silent
    opened = Opened(
        name=name,
        folder=shape.home,
        raw=shape.raw,
        config=msgspec.structs.replace(shape.config, norm_bias=shape.config.norm_bias or has_norm_bias),
        tokenizer_path=_vocabulary(shape.home),
        container=found.container,
        layout=found.layout,
        tensors=named.tensors,
        moved=named.moved,
        dropped=named.dropped | _left_out(found.source, named.left, found.layout, shape.config, how),
    )
    return _checked(opened, how.strict)


def _open_ranks(name: str, folder: Path, how: How) -> Opened:
    """The whole model out of folders rank_0, rank_1, …, as a strategy says or as the shapes of the parts do."""
    shape = shape_of(folder, how)
    expected = expected_shapes(shape.config)
    if how.infer:
        ranks = _ranks(_all_ranks(folder), None, shape.config, how)
        cut = strategy.infer(expected, ranks.tensors, ranks.sources, shape.config.architecture, ranks.layout)
    else:
        path = how.strategy or folder / strategy.FILE
        cut = strategy.read(path)
        strategy.check_model(path, cut, expected)
        folders = _ranks_of(folder, cut, path)
        if how.verify:
            files.check(folder, cut.files, strategy.FILE)
        ranks = _ranks(folders, cut.layout, shape.config, how)
    opened = Opened(
        name=name,
        folder=shape.home,
        raw=shape.raw,
        config=shape.config,
        tokenizer_path=_vocabulary(shape.home),
        container=ranks.container,
        layout=cut.layout,
        tensors=strategy.join(cut, ranks.tensors, ranks.sources, how.verify),
        moved=ranks.moved,
        dropped=ranks.dropped,
        strategy=cut,
    )
    return _checked(opened, how.strict)


class _Ranks(NamedTuple):
    """What the folders of the ranks hold, under Hugging Face names; `sources` is how errors call them."""

    tensors: list[dict[str, Tensor]]
    sources: list[str]
    layout: str
    container: str
    moved: dict[str, names.Moved]
    dropped: dict[str, str]


def _ranks(folders: Sequence[Path], layout: str | None, config: ModelConfig, how: How) -> _Ranks:
    """The parts of a model; a layout of None is found out from their names. If strict, raises InputError for others."""
    opened = [files.open_folder(folder) for folder in folders]
    used = layout or how.layout or names.detect(opened[0].names(), opened[0].source)
    own, expected = shapes.of_rank(config, len(folders)), expected_shapes(config)
    tensors: list[dict[str, Tensor]] = []
    moved: dict[str, names.Moved] = {}
    dropped: dict[str, str] = {}
    for weights in opened:
        found = names.from_layout(of(weights), used, own)
        left = found.left + [there for there in found.tensors if there not in expected]
        dropped |= found.dropped | _left_out(weights.source, left, used, config, how)
        moved |= found.moved
        tensors.append(found.tensors)
    return _Ranks(tensors, [str(folder) for folder in folders], used, opened[0].container, moved, dropped)


def _ranks_of(folder: Path, cut: Strategy, path: Path) -> list[Path]:
    """The folder of each rank. Raises InputError when one is missing, or when there are more than the strategy has."""
    folders = [folder / f"rank_{rank}" for rank in range(cut.world_size)]
    for rank_folder in folders:
        if not rank_folder.is_dir():
            raise InputError(f"{rank_folder}: no such folder, but {path} is of {cut.world_size} ranks")
    more = sorted(set(folder.glob("rank_*")) - set(folders))
    if more:
        raise InputError(f"{more[0]}: {path} is of {cut.world_size} ranks; is it that of another cut?")
    return folders


def _all_ranks(folder: Path) -> list[Path]:
    """The folders rank_0, rank_1, … that there are. Raises InputError when one between is missing."""
    found = set(folder.glob("rank_*"))
    folders = [folder / f"rank_{rank}" for rank in range(len(found))]
    missing = next((rank_folder for rank_folder in folders if rank_folder not in found), None)
    if missing is not None or not folders:
        raise InputError(f"{missing or folder / 'rank_0'}: no such folder; ranks are counted from 0, without a gap")
    return folders


def shape_of(folder: Path, how: How) -> Shape:
    """What config.json says, and the description of a quantised model beside the weights."""
    path = folder / "config.json" if how.config is None else how.config
    if path.is_dir():
        path /= "config.json"
    if how.config is None and not path.exists():
        raise ConfigError(
            f"{path}: cannot read the settings, there is none: the config.json of the Hugging Face model says"
            " what shape it has; put it there, or say where it is (llmbench weights: --config)"
        )
    raw, config = shapes.from_file(path)
    found = quantised.read_description(folder)
    if found is not None:
        config = msgspec.structs.replace(config, quantised=found.kinds, kv_cache=found.kv_cache)
    return Shape(raw, config, path.parent)


def _vocabulary(folder: Path) -> Path | None:
    path = folder / "tokenizer.model"
    return path if path.exists() else None


def _recorded(folder: Path) -> str | None:
    """The layout that a conversion left in the report beside its weights."""
    path = folder / REPORT
    if not path.exists():
        return None
    found = settings.read(path).get("layout")
    if found not in names.LAYOUTS:
        raise ConfigError(f"{path}: layout: {found!r} is none of {', '.join(names.LAYOUTS)}")
    return str(found)


def _left_out(source: str, left: Sequence[str], layout: str, config: ModelConfig, how: How) -> dict[str, str]:
    """The names that a user wants to be left out, and by which pattern. If strict, raises InputError for the others.

    Otherwise those are left out as well.
    """
    try:
        patterns = {text: re.compile(text) for text in how.drop}
    except re.error as error:
        raise ConfigError(f"--drop {error.pattern!r}: not a regular expression ({error.msg})") from error
    dropped = {}
    for name in left:
        by = next((text for text, one in patterns.items() if one.search(name)), None)
        if by is not None:
            dropped[name] = f"--drop {by}"
        elif how.strict:
            raise InputError(
                f"{source}: tensor {name}: layout {layout} of a {config.architecture} model has no such name;"
                " --from LAYOUT reads another layout, --drop REGEX leaves tensors out"
            )
        else:
            dropped[name] = f"not in layout {layout}"
    return dropped


def _checked(opened: Opened, strict: bool) -> Opened:
    """The same with the tensors that the architecture has, in its order, and the dtype of the embeddings.

    Raises InputError for a missing one and one of another shape; if strict, also for one that is not of it.
    """
    config, expected = opened.config, expected_shapes(opened.config)
    for linear, kind in config.quantised.items():
        if f"{linear}.weight" not in expected or linear.rpartition(".")[2] not in quantised.LINEARS:
            raise InputError(
                f"model {opened.name}: {linear} is said to be {kind}, but is no linear of its decoder layers"
            )
    check_shapes(opened.name, expected, {name: tensor.shape for name, tensor in opened.tensors.items()})
    found = {name: opened.tensors[name] for name in expected}
    check_dtypes(f"model {opened.name}", found, opened.moved, config)
    kinds = config.quantised
    ranges = {name: quantised.input_range(found, name) for name, kind in kinds.items() if kind != "W8A16"}
    quantised.check_shared(f"model {opened.name}", ranges)
    dropped = dict(opened.dropped)
    for name, tensor in opened.tensors.items() if strict else ():
        own = " ".join(opened.moved.get(name, (name,)))
        if name == HEAD and config.tie_embeddings:
            if not equal(tensor, found[EMBEDDING]):
                raise InputError(
                    f"model {opened.name}: tensor {own} is not the embeddings, but config.json has"
                    " tie_word_embeddings: true; set it to false if the model has a head of its own"
                )
            dropped[own] = "the embeddings once more: tie_word_embeddings"
        elif name.endswith(".bias") and name.removesuffix(".bias") in ranges:
            dropped[own] = "in its quant_bias"
        elif name not in expected:
            raise InputError(f"model {opened.name}: tensor {own}: {_why_not(name, config)}")
    config = msgspec.structs.replace(config, dtype=found[EMBEDDING].dtype)
    return msgspec.structs.replace(opened, config=config, tensors=found, dropped=dropped)


def check_dtypes(
    source: str, tensors: Mapping[str, Tensor], moved: Mapping[str, names.Moved], config: ModelConfig
) -> None:
    """Raise InputError for a tensor of a dtype that cannot be read, or that its kind of tensor has not."""
    for name, tensor in tensors.items():
        readable = quantised.dtypes(name, config.quantised)
        if tensor.dtype not in readable:
            own = " ".join(moved[name])
            known = ", ".join(readable)
            hint = (
                "; of a quantised model a quant_model_description_w8a8.json says so" if tensor.dtype == "int8" else ""
            )
            raise InputError(f"{source}: tensor {own}: stored as {tensor.dtype}; readable: {known}{hint}")


def _why_not(name: str, config: ModelConfig) -> str:
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    if layer and int(layer[1]) >= config.num_layers:
        return f"config.json has num_hidden_layers: {config.num_layers}"
    if name.rpartition(".")[2] in quantised.PARTS:
        return "of a quantised model, but no description beside it (quant_model_description_w8a8.json) says that it is"
    if name.endswith(".bias") and config.architecture == "llama":
        return "a Llama has no biases; is it a Qwen2 (config.json: architectures)?"
    return f"a {config.architecture} model has no such tensor"
