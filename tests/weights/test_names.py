"""The maps of names: as written out here by hand, as MindFormers has them, and each the inverse of itself."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmbench.errors import InputError
from llmbench.weights import names
from llmbench.weights.config import expected_shapes, from_hf
from llmbench.weights.tensors import Bits, Tensor
from tests.conftest import need
from tests.weights.folders import CONFIGS, LLAMA, QWEN2

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"

LEGACY = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.layers.10.self_attn.q_proj.weight": "model.layers.10.attention.wq.weight",
    "model.layers.10.self_attn.k_proj.bias": "model.layers.10.attention.wk.bias",
    "model.layers.10.self_attn.v_proj.weight": "model.layers.10.attention.wv.weight",
    "model.layers.10.self_attn.o_proj.weight": "model.layers.10.attention.wo.weight",
    "model.layers.10.mlp.gate_proj.weight": "model.layers.10.feed_forward.w1.weight",
    "model.layers.10.mlp.down_proj.weight": "model.layers.10.feed_forward.w2.weight",
    "model.layers.10.mlp.up_proj.weight": "model.layers.10.feed_forward.w3.weight",
    "model.layers.10.input_layernorm.weight": "model.layers.10.attention_norm.weight",
    "model.layers.10.post_attention_layernorm.weight": "model.layers.10.ffn_norm.weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}
MCORE = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.layers.0.self_attn.q_proj.bias": "decoder.layers.0.self_attention.linear_q.bias",
    "model.layers.0.self_attn.k_proj.weight": "decoder.layers.0.self_attention.linear_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "decoder.layers.0.self_attention.linear_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "decoder.layers.0.self_attention.linear_proj.weight",
    "model.layers.0.mlp.gate_proj.weight": "decoder.layers.0.mlp.gating.weight",
    "model.layers.0.mlp.up_proj.weight": "decoder.layers.0.mlp.hidden.weight",
    "model.layers.0.mlp.down_proj.weight": "decoder.layers.0.mlp.linear_fc2.weight",
    "model.layers.0.input_layernorm.weight": "decoder.layers.0.input_layernorm.weight",
    "model.layers.0.post_attention_layernorm.weight": "decoder.layers.0.pre_mlp_layernorm.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
OLD_MCORE = MCORE | {"model.layers.0.mlp.up_proj.weight": "decoder.layers.0.mlp.linear_fc1.weight"}
META = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.layers.3.self_attn.q_proj.weight": "layers.3.attention.wq.weight",
    "model.layers.3.mlp.up_proj.weight": "layers.3.feed_forward.w3.weight",
    "model.layers.3.input_layernorm.weight": "layers.3.attention_norm.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}


def model(config: dict[str, Any]) -> tuple[Any, dict[str, Tensor], dict[str, Bits]]:
    """A shape, its tensors, and their values: no two rows are the same."""
    shape = from_hf(config, (), "test")
    values = {
        name: np.random.default_rng(i).standard_normal(size).astype(np.float32)
        for i, (name, size) in enumerate(expected_shapes(shape).items())
    }
    return shape, {name: lazy(one) for name, one in values.items()}, values


def lazy(values: Bits) -> Tensor:
    return Tensor(shape=values.shape, dtype="float32", rows=lambda start, stop: values[start:stop])


def whole(tensor: Tensor) -> Bits:
    return tensor.rows(0, tensor.shape[0])


@pytest.mark.parametrize(
    ("layout", "expected"), [("legacy", LEGACY), ("mcore", MCORE), ("mcore-1.6", OLD_MCORE), ("meta", META)]
)
def test_a_layout_has_these_names(layout: str, expected: dict[str, str]) -> None:
    config = from_hf(LLAMA, (), "test")
    tensor = lazy(np.zeros((32, 32), np.float32))
    found = names.from_layout(dict.fromkeys(expected.values(), tensor), layout, config)
    assert {hf: own for hf, (own,) in found.moved.items()} == expected
    if layout != "meta":
        _, moved = names.to_layout(dict.fromkeys(expected, tensor), layout, config)
        assert {hf: own for own, (hf,) in moved.items()} == expected


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("layout", names.WRITABLE)
def test_there_and_back_is_the_same(layout: str, config: dict[str, Any]) -> None:
    shape, tensors, values = model(config)
    there, _ = names.to_layout(tensors, layout, shape)
    assert names.detect(there, "x") == layout if "concat" not in layout else len(there) < len(tensors)
    back = names.from_layout(there, layout, shape)
    assert not back.left
    assert {name: tensor.shape for name, tensor in back.tensors.items()} == expected_shapes(shape)
    assert all((whole(tensor) == values[name]).all() for name, tensor in back.tensors.items())


def test_a_name_is_never_taken_for_one_that_it_holds() -> None:
    config = from_hf(LLAMA, (), "test")
    strange = [
        "model.layers.0.norm.weight",
        "model.layers.0.input_layernorm.weight.extra",
        "prefix.model.norm.weight",
        "model.layers.01.input_layernorm.weight",
        "model.layers.-1.input_layernorm.weight",
        "modelXnorm.weight",
        "model.layers.0.self_attn.q_proj.weights",
        "model.layers.0.self_attn.q_norm.weight",
    ]
    found = names.from_layout(dict.fromkeys(strange, lazy(np.zeros(1, np.float32))), "hf", config)
    assert found.left == strange
    assert not found.tensors


def test_positions_that_are_computed_are_dropped() -> None:
    config = from_hf(LLAMA, (), "test")
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    found = names.from_layout({name: lazy(np.zeros(2, np.float32))}, "hf", config)
    assert (list(found.dropped), found.left) == ([name], [])


def test_plain_merging_puts_whole_matrices_one_behind_another() -> None:
    shape, tensors, values = model(QWEN2)
    there, moved = names.to_layout(tensors, "qkv-concat", shape)
    layer, own = "model.layers.1.", "model.layers.1.attention.w_qkv."
    for part in ("weight", "bias"):
        expected = np.concatenate([values[layer + f"self_attn.{x}_proj.{part}"] for x in "qkv"])
        assert (whole(there[own + part]) == expected).all()
    gate_up = np.concatenate([values[layer + f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
    assert (whole(there[layer + "feed_forward.w_gate_hidden.weight"]) == gate_up).all()
    assert moved[own + "bias"] == tuple(layer + f"self_attn.{x}_proj.bias" for x in "qkv")
    assert not any(".wq." in name or ".w1." in name for name in there)


def test_megatrons_merging_goes_by_key_value_heads_and_by_rows_with_the_biases() -> None:
    shape, tensors, values = model(QWEN2)  # 8 heads of 4, 2 of keys
    there, _ = names.to_layout(tensors, "qkv-concat-mg", shape)
    layer = "model.layers.0."
    for part in ("weight", "bias"):
        q, k, v = (values[layer + f"self_attn.{x}_proj.{part}"] for x in "qkv")
        expected = np.concatenate([q[:16], k[:4], v[:4], q[16:], k[4:], v[4:]])
        assert (whole(there[layer + f"attention.w_qkv.{part}"]) == expected).all()
    gate_up = whole(there[layer + "feed_forward.w_gate_hidden.weight"])
    assert (gate_up[0::2] == values[layer + "mlp.gate_proj.weight"]).all()
    assert (gate_up[1::2] == values[layer + "mlp.up_proj.weight"]).all()


def test_names_that_leave_the_order_of_rows_open_are_refused_until_somebody_says() -> None:
    with pytest.raises(
        InputError, match=r"qkv-concat and of qkv-concat-mg.* --from qkv-concat or --from qkv-concat-mg"
    ):
        names.detect(["model.layers.0.attention.w_qkv.weight", "model.norm_out.weight"], "x.ckpt")
    with pytest.raises(InputError, match=r"x.ckpt: no name here is one .* such as \['encoder.weight'\]"):
        names.detect(["encoder.weight"], "x.ckpt")
    assert names.detect(["lm_head.weight"], "x") == "hf"


def test_heads_that_mindformers_cannot_find_are_not_merged() -> None:
    config = from_hf(LLAMA | {"head_dim": 8}, (), "test")
    with pytest.raises(InputError, match=r"heads of hidden_size / num_heads = 4 rows, those of this model have 8"):
        names.check_mergeable("qkv-concat-mg", config)
    names.check_mergeable("legacy", config)


def test_the_page_has_the_names_of_every_layout() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for key, layout in names.LAYOUTS.items():
        assert f"| `{key}` | {layout.about} |" in text
        for hf, own in layout.names:
            assert f"| `{hf}` |" in text
            assert f"`{own}`" in text
        for merged in layout.merged:
            assert f"`{merged.own}`" in text


@pytest.fixture(scope="module")
def mindformers() -> Iterator[Any]:
    """MindFormers' own maps and regrouping."""
    need("mindformers")
    from llmbench.engines import _mindspore_home as home
    from llmbench.engines.mindformers import _silent

    home.start(1)
    with _silent():
        from mindformers.models.llama import LlamaForCausalLM
        from mindformers.models.qwen2.utils import Qwen2PreTrainedModel
        from mindformers.utils import convert_utils
    yield SimpleNamespace(llama=LlamaForCausalLM, qwen2=Qwen2PreTrainedModel, convert=convert_utils)
    assert "mindformers" in sys.modules


@pytest.mark.mindspore
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_mindformers_has_the_same_names_and_the_same_order_of_rows(mindformers: Any, config: dict[str, Any]) -> None:
    shape, tensors, values = model(config)
    _, legacy = names.to_layout(tensors, "legacy", shape)
    assert {hf: mindformers.llama.convert_name(hf) for hf in tensors} == {hf: own for own, (hf,) in legacy.items()}
    _, mcore = names.to_layout(tensors, "mcore", shape)
    theirs = {}
    for hf in tensors:
        own = hf
        for before, after in mindformers.qwen2.weight_mapping:
            own = own.replace(before, after)
        theirs[hf] = own
    assert theirs == {hf: own for own, (hf,) in mcore.items()}
    merged, _ = names.to_layout(tensors, "qkv-concat-mg", shape)
    layer = "model.layers.1."
    for part in ("weight", "bias") if shape.attention_bias else ("weight",):
        plain = np.concatenate([values[layer + f"self_attn.{x}_proj.{part}"] for x in "qkv"])
        regrouped = mindformers.convert.qkv_concat_hf2mg(plain, shape.num_heads, shape.num_kv_heads, shape.hidden_size)
        assert (whole(merged[layer + f"attention.w_qkv.{part}"]) == regrouped).all()
    plain = np.concatenate([values[layer + f"mlp.{x}_proj.weight"] for x in ("gate", "up")])
    regrouped = mindformers.convert.ffn_concat_hf2mg(plain, shape.intermediate_size)
    assert (whole(merged[layer + "feed_forward.w_gate_hidden.weight"]) == regrouped).all()
