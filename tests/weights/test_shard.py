"""Which rank holds what of a model, and that it reads no more than that."""

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from llmbench.errors import ConfigError
from llmbench.weights import shard
from llmbench.weights.config import ModelConfig, expected_shapes
from llmbench.weights.model import Model, open_model

TINY = open_model("random:tiny")  # 4 heads of 16, 2 kv heads, MLP of 160, 64 wide
LAYER = "model.layers.1."
QWEN2 = {"architecture": "qwen2", "attention_bias": True}


class Numbered:
    """Tensors whose values are their places, and the rows that were asked for."""

    def __init__(self, config: ModelConfig) -> None:
        self._shapes = expected_shapes(config)
        self.asked: dict[str, set[int]] = {}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        return "float32"

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
        self.asked.setdefault(name, set()).update(range(start, stop))
        shape = self._shapes[name]
        return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)[start:stop]


def numbered(**changes: object) -> tuple[Model, Numbered]:
    config = msgspec.structs.replace(TINY.config, **changes)
    source = Numbered(config)
    return Model("numbered", config, None, source), source


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_the_parts_of_all_ranks_put_together_are_the_model(num_ranks: int) -> None:
    model, _ = numbered(**QWEN2, num_kv_heads=4, vocab_size=61)
    parts = [shard.cut(model, rank, num_ranks) for rank in range(num_ranks)]
    for name in model.names():
        whole = model.tensor(name)
        rule = shard.RULES.get(name.split(".")[-2])
        if rule is None:
            assert all((part.tensor(name) == whole).all() for part in parts)
        else:
            joined = np.concatenate([part.tensor(name) for part in parts], axis=rule.axis)
            assert (joined[: len(whole)] == whole).all()
            assert not joined[len(whole) :].any(), "what fills up the vocabulary is zeros"


def test_column_parallel_matrices_are_cut_by_rows_and_row_parallel_ones_by_columns() -> None:
    model, _ = numbered(**QWEN2)
    second = shard.cut(model, 1, 2)
    whole, own = model.tensor, second.tensor
    assert (own(LAYER + "self_attn.q_proj.weight") == whole(LAYER + "self_attn.q_proj.weight")[32:]).all()
    assert (own(LAYER + "self_attn.k_proj.bias") == whole(LAYER + "self_attn.k_proj.bias")[16:]).all()
    assert (own(LAYER + "self_attn.o_proj.weight") == whole(LAYER + "self_attn.o_proj.weight")[:, 32:]).all()
    assert (own(LAYER + "mlp.up_proj.weight") == whole(LAYER + "mlp.up_proj.weight")[80:]).all()
    assert (own(LAYER + "mlp.down_proj.weight") == whole(LAYER + "mlp.down_proj.weight")[:, 80:]).all()
    assert (second.config.num_heads, second.config.num_kv_heads, second.config.intermediate_size) == (2, 1, 80)


def test_where_there_are_fewer_kv_heads_than_ranks_each_is_held_by_several() -> None:
    model, _ = numbered(num_heads=8)
    name = LAYER + "self_attn.v_proj.weight"
    starts = [int(shard.cut(model, rank, 8).tensor(name)[0, 0]) // 64 for rank in range(8)]
    assert starts == [0, 0, 0, 0, 16, 16, 16, 16]
    assert shard.cut(model, 5, 8).config.num_kv_heads == 1


def test_a_rank_reads_its_own_rows_and_no_others() -> None:
    model, source = numbered()
    part = shard.cut(model, 1, 2)
    assert not source.asked
    for name in part.names():
        for _ in part.blocks(name):
            pass
    assert source.asked["lm_head.weight"] == set(range(1024, 2048))
    assert source.asked[LAYER + "self_attn.q_proj.weight"] == set(range(32, 64))
    assert source.asked[LAYER + "mlp.gate_proj.weight"] == set(range(80, 160))


def test_a_bias_behind_a_sum_over_the_ranks_is_not_cut() -> None:
    assert shard.part(LAYER + "self_attn.o_proj.bias", TINY.config, 1, 2).axis is None


def test_rows_of_a_part_that_is_filled_up_can_be_read_in_any_pieces() -> None:
    model, _ = numbered(vocab_size=61)
    last = shard.cut(model, 3, 4)
    whole = last.tensor("lm_head.weight")
    assert whole.shape == (16, 64)
    for start in range(16):
        for stop in range(start + 1, 17):
            assert (last.rows("lm_head.weight", start, stop) == whole[start:stop]).all()


@pytest.mark.parametrize(
    ("changes", "num_ranks", "message"),
    [
        ({}, 3, "ranks: 3 ranks do not fit the 4 attention heads of model numbered; possible: 1, 2, 4"),
        ({}, 8, "ranks: 8 ranks do not fit the 4 attention heads of model numbered; possible: 1, 2, 4"),
        (
            {"num_heads": 6},
            3,
            "ranks: 3 ranks do not fit the 2 key-value heads of model numbered; possible: 1, 2",
        ),
        (
            {"intermediate_size": 81},
            2,
            "ranks: 2 ranks do not fit the MLP width of 81 of model numbered; possible: 1",
        ),
    ],
)
def test_ranks_that_do_not_fit_are_refused_with_the_numbers(
    changes: dict[str, int], num_ranks: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        shard.cut(numbered(**changes)[0], 0, num_ranks)
    assert str(caught.value) == message
