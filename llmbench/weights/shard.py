"""Which rank holds which part of a tensor, and a model of which only one rank's part is read.

Column-parallel matrices are cut along their outputs, row-parallel ones along their inputs, so that a layer needs one
sum over the ranks behind attention and one behind its MLP. Heads stay whole; where there are fewer key-value heads than
ranks, each is held by several ranks, as MindIE does.
"""

from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.errors import ConfigError
from llmbench.weights.model import Model, ModelConfig, expected_shapes

Float32 = npt.NDArray[np.float32]
Unit = Literal["heads", "kv_heads", "ffn", "vocabulary"]


class Rule(msgspec.Struct, frozen=True):
    """A tensor [out, in] is cut along `axis`, between units of this kind."""

    axis: int
    unit: Unit


RULES: dict[str, Rule] = {
    "q_proj": Rule(0, "heads"),
    "k_proj": Rule(0, "kv_heads"),
    "v_proj": Rule(0, "kv_heads"),
    "o_proj": Rule(1, "heads"),
    "gate_proj": Rule(0, "ffn"),
    "up_proj": Rule(0, "ffn"),
    "down_proj": Rule(1, "ffn"),
    "embed_tokens": Rule(0, "vocabulary"),
    "lm_head": Rule(0, "vocabulary"),
}
"""By the second to last part of a tensor's name, biases as their weights; every rank has the others whole."""


class Part(msgspec.Struct, frozen=True):
    """What one rank has of a tensor: `start` to `stop` along `axis`, or all of it where that is None."""

    axis: int | None
    start: int
    stop: int


def part(name: str, config: ModelConfig, rank: int, num_ranks: int) -> Part:
    """The part of the tensor of this name in a model cut by `num_ranks`, which `check` found possible.

    The last part of a vocabulary may be shorter than the others, or empty.
    """
    layer, kind = name.split(".")[-2:]
    rule = RULES.get(layer)
    if rule is None or (rule.axis == 1 and kind == "bias"):  # a sum over the ranks has its bias added once
        return Part(None, 0, 0)
    size, unit, index = _unit(rule.unit, config, rank, num_ranks)
    width = size // num_ranks if unit is None else unit
    return Part(rule.axis, min(index * width, size), min((index + 1) * width, size))


def _unit(unit: Unit, config: ModelConfig, rank: int, num_ranks: int) -> tuple[int, int | None, int]:
    """The length of an axis, the length of a part where that is not one of `num_ranks` equal ones, and which it is."""
    if unit == "vocabulary":
        return config.vocab_size, -(-config.vocab_size // num_ranks), rank
    if unit == "ffn":
        return config.intermediate_size, None, rank
    if unit == "heads":
        return config.num_heads * config.head_dim, None, rank
    size = config.num_kv_heads * config.head_dim
    if config.num_kv_heads >= num_ranks:
        return size, None, rank
    return size, config.head_dim, rank // (num_ranks // config.num_kv_heads)


def check(model: Model, num_ranks: int) -> None:
    """Raise ConfigError when a model cannot be cut by so many ranks; it names the numbers and what is possible."""
    wrong = _obstacle(model.config, num_ranks)
    if wrong is not None:
        possible = [n for n in range(1, model.config.num_heads + 1) if _obstacle(model.config, n) is None]
        raise ConfigError(
            f"ranks: {num_ranks} ranks do not fit {wrong} of model {model.name}; "
            f"possible: {', '.join(map(str, possible))}"
        )


def _obstacle(config: ModelConfig, num_ranks: int) -> str | None:
    """What cannot be cut by so many ranks; None when everything can."""
    if config.num_heads % num_ranks:
        return f"the {config.num_heads} attention heads"
    if config.num_kv_heads % num_ranks and num_ranks % config.num_kv_heads:
        return f"the {config.num_kv_heads} key-value heads"
    if config.intermediate_size % num_ranks:
        return f"the MLP width of {config.intermediate_size}"
    return None


def cut(model: Model, rank: int, num_ranks: int) -> Model:
    """The model as one rank holds it; its config has the rank's own numbers of heads, MLP width and vocabulary.

    Zeros fill up the last part of a vocabulary that cannot be cut evenly. Nothing is read yet; what is read later is
    the rank's rows, and of row-parallel matrices whole rows, block by block. Raises ConfigError as `check` does.
    """
    check(model, num_ranks)
    config = msgspec.structs.replace(
        model.config,
        num_heads=model.config.num_heads // num_ranks,
        num_kv_heads=max(1, model.config.num_kv_heads // num_ranks),
        intermediate_size=model.config.intermediate_size // num_ranks,
        vocab_size=-(-model.config.vocab_size // num_ranks),
    )
    return Model(model.name, config, model.tokenizer_path, _Shard(model, config, rank, num_ranks))


class _Shard:
    """The tensors of one rank, out of the whole model."""

    def __init__(self, model: Model, config: ModelConfig, rank: int, num_ranks: int) -> None:
        self._model = model
        self._shapes = expected_shapes(config)
        self._parts = {name: part(name, model.config, rank, num_ranks) for name in self._shapes}

    def names(self) -> list[str]:
        """The names of all tensors: those of the whole model."""
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the part."""
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        """What the model's tensors are stored as."""
        return self._model.config.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """float32 [stop - start, ...]: some rows of the part."""
        own = self._parts[name]
        if own.axis is None:
            return self._model.rows(name, start, stop)
        if own.axis == 1:
            return self._model.rows(name, start, stop)[:, own.start : own.stop]
        first, last = min(own.start + start, own.stop), min(own.start + stop, own.stop)
        found = self._model.rows(name, first, last)
        if len(found) == stop - start:
            return found
        missing = np.zeros((stop - start - len(found), *found.shape[1:]), np.float32)
        return np.concatenate([found, missing])
