"""Which rank holds which part of a tensor, and a model of which only one rank's part is read.

Column-parallel matrices are cut along their outputs, row-parallel ones along their inputs, so that a layer needs one
sum over the ranks behind attention and one behind its MLP. Heads stay whole; where there are fewer key-value heads than
ranks, each is held by several ranks, as MindIE does. What belongs to the outputs of a quantised linear is cut as they
are; what is of its inputs as a whole, every rank has, and a bias that is added to a sum over the ranks, rank 0 alone.
"""

from typing import Literal

import msgspec

from llmbench.errors import ConfigError
from llmbench.weights import strategy
from llmbench.weights.config import ModelConfig, expected_shapes, of_rank
from llmbench.weights.model import Model
from llmbench.weights.strategy import Cut, Part
from llmbench.weights.tensors import Tensor, Tensors, padded, piece, zeros

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
"""By the second to last part of a tensor's name; every rank has the others whole."""

_OF_THE_WHOLE = ("input_scale", "input_offset")  # of a linear's parts, what is not of each output


def part(name: str, config: ModelConfig, rank: int, num_ranks: int) -> Part:
    """The part of the tensor of this name in a model cut by `num_ranks`, which `check` found possible.

    The last part of a vocabulary may be shorter than the others, or empty.
    """
    rule = _rule(name)
    if rule is None:
        return Part(None, 0, 0)
    size, num_parts = _parts(rule.unit, config, num_ranks)
    return strategy.part(rule.axis, size, num_parts, rank, num_ranks)


def cuts(config: ModelConfig, num_ranks: int, cut_vocabulary: bool = True) -> dict[str, Cut]:
    """How each tensor of a model lies on so many ranks; embeddings and head may be whole on each."""
    found = {}
    for name, shape in expected_shapes(config).items():
        rule = _rule(name)
        if rule is None or (rule.unit == "vocabulary" and not cut_vocabulary):
            found[name] = Cut(shape, None, "rank0_only" if name.endswith(strategy.ADDED_ONCE) else "replicate")
        else:
            _, num_parts = _parts(rule.unit, config, num_ranks)
            found[name] = Cut(shape, rule.axis, "split" if num_parts == num_ranks else "head_replicate", num_parts)
    return found


def _rule(name: str) -> Rule | None:
    layer, kind = name.split(".")[-2:]
    rule = RULES.get(layer)
    if rule is None or kind in _OF_THE_WHOLE or (rule.axis == 1 and kind != "weight"):
        return None
    return rule


def _parts(unit: Unit, config: ModelConfig, num_ranks: int) -> tuple[int, int]:
    """The length of an axis, and in how many parts it is cut."""
    if unit == "vocabulary":
        return config.vocab_size, num_ranks
    if unit == "ffn":
        return config.intermediate_size, num_ranks
    if unit == "heads":
        return config.num_heads * config.head_dim, num_ranks
    return config.num_kv_heads * config.head_dim, min(config.num_kv_heads, num_ranks)


def check(name: str, config: ModelConfig, num_ranks: int) -> None:
    """Raise ConfigError when a model cannot be cut by so many ranks; it names the numbers and what is possible."""
    wrong = _obstacle(config, num_ranks)
    if wrong is not None:
        possible = [n for n in range(1, config.num_heads + 1) if _obstacle(config, n) is None]
        raise ConfigError(
            f"ranks: {num_ranks} ranks do not fit {wrong} of model {name}; possible: {', '.join(map(str, possible))}"
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
    check(model.name, model.config, num_ranks)
    config = of_rank(model.config, num_ranks)
    shapes = expected_shapes(config)
    own = {
        name: padded(tensor, shapes[name][0])
        for name, tensor in pieces(model.stored(), cuts(model.config, num_ranks), rank, num_ranks).items()
    }
    return Model(model.name, config, model.tokenizer_path, Tensors(own))


def pieces(tensors: dict[str, Tensor], how: dict[str, Cut], rank: int, num_ranks: int) -> dict[str, Tensor]:
    """What a rank has of each tensor."""
    found = {}
    for name, tensor in tensors.items():
        own = how[name].part(rank, num_ranks)
        absent = how[name].mode == "rank0_only" and rank > 0
        found[name] = zeros(tensor) if absent else piece(tensor, own.axis, own.start, own.stop)
    return found
