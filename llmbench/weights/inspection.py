"""What weights are, without reading them: shape, dtypes, sizes, and how they lie on ranks."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llmbench.errors import InputError
from llmbench.weights import config as shapes
from llmbench.weights import files, names, quantised, strategy
from llmbench.weights.config import ModelConfig
from llmbench.weights.model import of_weights
from llmbench.weights.sources import How, Opened, check_dtypes, open_weights, shape_of
from llmbench.weights.tensors import Tensor, of

_GROUPS = (
    ("embeddings", r"model\.embed_tokens\..*"),
    ("attention", r".*\.self_attn\..*"),
    ("mlp", r".*\.mlp\..*"),
    ("norms", r".*norm\.(weight|bias)"),
    ("head", r"lm_head\..*"),
)


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The tensors of one kind."""

    name: str
    num_tensors: int
    num_parameters: int
    num_bytes: int


class Ranks(msgspec.Struct, frozen=True, kw_only=True):
    """How the model lies on ranks: how many tensors in each mode; `rank` is that of a single rank's folder."""

    world_size: int
    rank: int | None
    modes: dict[str, int]


class Quantisation(msgspec.Struct, frozen=True, kw_only=True):
    """What of a model has 8 bits: the kind of each quantised linear, and the linears and whole layers that are float.

    A layer is float, as the ATB guide counts, when one of its linears is.
    """

    kinds: dict[str, str]
    float_linears: list[str]
    float_layers: list[int]
    norm_bias: bool
    kv_cache: str | None


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of weights. Of a single rank's folder, the sizes are those of its part; `fingerprint` as a Model's.

    `dropped` are tensors that are not of the architecture, and what they are.
    """

    path: str
    container: str
    layout: str
    architecture: str
    dtypes: dict[str, int]
    num_parameters: int
    num_bytes: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    tied: bool
    groups: list[Group]
    quantisation: Quantisation | None
    ranks: Ranks | None
    dropped: dict[str, str]
    fingerprint: str | None


def inspect(spec: str, how: How, with_fingerprint: bool) -> Inspection:
    """Look at what a user types, or at a folder rank_N with a strategy beside it. Raises InputError."""
    path = Path(spec)
    rank = re.fullmatch(r"rank_(\d+)", path.absolute().name)
    if rank and path.is_dir() and (path.absolute().parent / strategy.FILE).exists():
        return _of_rank(path, int(rank[1]), how)
    opened = open_weights(spec, how)
    fingerprint = of_weights(opened).fingerprint() if with_fingerprint else None
    ranks = None if opened.strategy is None else _ranks(opened.strategy, None)
    return _inspection(opened.config, opened.tensors, opened, ranks, fingerprint)


def _of_rank(folder: Path, rank: int, how: How) -> Inspection:
    """A single rank's folder: its own sizes, in the whole model's shape."""
    home = folder.absolute().parent
    cut = strategy.read(home / strategy.FILE)
    if rank >= cut.world_size:
        raise InputError(f"{folder}: {home / strategy.FILE} is of {cut.world_size} ranks; is it that of another cut?")
    config = shape_of(home, how).config
    weights = files.open_folder(folder)
    found = names.from_layout(of(weights), cut.layout, shapes.of_rank(config, cut.world_size))
    check_dtypes(weights.source, found.tensors, found.moved, config)
    opened = Opened(
        name=str(folder),
        folder=home,
        raw={},
        config=config,
        tokenizer_path=None,
        container=weights.container,
        layout=cut.layout,
        tensors=found.tensors,
        moved=found.moved,
        dropped=found.dropped | dict.fromkeys(found.left, f"not in layout {cut.layout}"),
        strategy=cut,
    )
    return _inspection(config, found.tensors, opened, _ranks(cut, rank), None)


def _ranks(cut: strategy.Strategy, rank: int | None) -> Ranks:
    modes = Counter(str(one.mode) for one in cut.params.values())
    return Ranks(world_size=cut.world_size, rank=rank, modes=dict(modes))


def _inspection(
    config: ModelConfig, tensors: Mapping[str, Tensor], opened: Opened, ranks: Ranks | None, fingerprint: str | None
) -> Inspection:
    dtypes: Counter[str] = Counter()
    for tensor in tensors.values():
        dtypes[tensor.dtype] += tensor.num_bytes
    return Inspection(
        path=opened.name,
        container=opened.container,
        layout=opened.layout,
        architecture=config.architecture,
        dtypes=dict(dtypes),
        num_parameters=_num_parameters(tensors),
        num_bytes=sum(tensor.num_bytes for tensor in tensors.values()),
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        tied=config.tie_embeddings,
        groups=[_group(name, pattern, tensors) for name, pattern in _GROUPS],
        quantisation=_quantisation(config),
        ranks=ranks,
        dropped=opened.dropped,
        fingerprint=fingerprint,
    )


def _quantisation(config: ModelConfig) -> Quantisation | None:
    if not config.quantised and config.kv_cache is None:
        return None
    return Quantisation(
        kinds=dict(config.quantised),
        float_linears=quantised.float_linears(config.quantised, config.num_layers),
        float_layers=quantised.float_layers(config.quantised, config.num_layers),
        norm_bias=config.norm_bias,
        kv_cache=config.kv_cache,
    )


def _group(name: str, pattern: str, tensors: Mapping[str, Tensor]) -> Group:
    own = {there: tensor for there, tensor in tensors.items() if re.fullmatch(pattern, there)}
    return Group(
        name=name,
        num_tensors=len(own),
        num_parameters=_num_parameters(own),
        num_bytes=sum(tensor.num_bytes for tensor in own.values()),
    )


def _num_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Weights and biases; the scales and offsets of what is quantised are none."""
    return sum(tensor.num_elements for name, tensor in tensors.items() if name.rpartition(".")[2] in ("weight", "bias"))
