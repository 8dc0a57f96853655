"""Opening models by what users type."""

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file

from llmbench.errors import ConfigError, InputError, LlmbenchError
from llmbench.tokenizer import Tokenizer
from llmbench.weights.model import Model, open_model

# as transformers 4 writes it, and transformers 5
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500.0,
    "rope_scaling": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NEW_STYLE = {key: value for key, value in CONFIG.items() if not key.startswith("rope")} | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    "dtype": "float16",
}


def shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of CONFIG, written out by hand."""
    layer = {f"self_attn.{part}_proj.weight": (8, 8) for part in "qkvo"} | {
        "mlp.gate_proj.weight": (12, 8),
        "mlp.up_proj.weight": (12, 8),
        "mlp.down_proj.weight": (8, 12),
        "input_layernorm.weight": (8,),
        "post_attention_layernorm.weight": (8,),
    }
    return {f"model.layers.0.{name}": shape for name, shape in layer.items()} | {
        "model.embed_tokens.weight": (10, 8),
        "model.norm.weight": (8,),
        "lm_head.weight": (10, 8),
    }


def folder(path: Path, config: dict[str, Any], leave_out: str = "", **tensors: tuple[int, ...]) -> str:
    """A Hugging Face folder with float16 zeros; `tensors` are further or other ones, with __ for a dot."""
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    given = shapes() | {name.replace("__", "."): shape for name, shape in tensors.items()}
    zeros = {name: np.zeros(shape, np.float16) for name, shape in given.items() if name != leave_out}
    save_file(zeros, path / "model.safetensors")
    return str(path)


@pytest.mark.parametrize(
    ("spec", "num_parameters"),
    [
        ("random:110m", 134_105_856),
        ("random:llama2-7b", 6_738_415_616),  # as published
        ("random:llama2-13b", 13_015_864_320),
        ("random:qwen2-7b", 7_615_616_512),
        ("random:llama2-7b,layers=2", 6_738_415_616 - 30 * 202_383_360),
    ],
)
def test_presets_have_the_size_of_the_real_models(spec: str, num_parameters: int) -> None:
    assert open_model(spec).config.num_parameters == num_parameters


def test_the_embedded_model_fits_its_tokenizer_and_so_does_the_tiny_one() -> None:
    embedded, tiny = open_model("embedded"), open_model("random:tiny")
    assert embedded.tokenizer_path == tiny.tokenizer_path
    assert embedded.tokenizer_path is not None
    vocabulary = Tokenizer.from_file(embedded.tokenizer_path)
    assert embedded.config.vocab_size == tiny.config.vocab_size == vocabulary.vocab_size
    assert (embedded.config.bos_id, embedded.config.eos_ids) == (vocabulary.bos_id, (vocabulary.eos_id,))
    assert embedded.config.dtype == "float16"


def test_a_random_tensor_is_the_same_whatever_is_read_besides_it() -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    one, other = open_model("random:110m,layers=2"), open_model("random:110m,layers=7")
    other.tensor("model.norm.weight")
    whole = one.tensor(name)
    assert (whole == other.tensor(name)).all()
    assert (whole[1300:1700] == other.rows(name, 1300, 1700)).all()  # 1365 rows are generated at once
    assert (whole == np.concatenate([block for _, block in one.blocks(name)])).all()
    assert whole.dtype == np.float32


def test_the_seed_of_a_random_model_may_be_in_its_spec() -> None:
    def head(model: Model) -> float:
        return float(model.rows("lm_head.weight", 0, 1)[0, 0])

    assert head(open_model("random:tiny", seed=3)) == head(open_model("random:tiny,seed=3", seed=4))
    assert head(open_model("random:tiny")) != head(open_model("random:tiny", seed=3))


def test_random_weights_are_spread_as_declared() -> None:
    model = open_model("random:110m")
    assert (model.tensor("model.norm.weight") == 1).all()
    projection = model.tensor("model.layers.3.mlp.down_proj.weight")
    assert projection.std() * np.sqrt(2048) == pytest.approx(1, rel=0.01)
    assert abs(float(projection.mean())) < 1e-4
    different = {float(model.rows(name, 0, 1).ravel()[0]) for name in model.names() if "proj" in name}
    assert len(different) == 12 * 7


@pytest.mark.parametrize("config", [CONFIG, NEW_STYLE])
def test_a_hugging_face_folder_is_read(tmp_path: Path, config: dict[str, Any]) -> None:
    model = open_model(folder(tmp_path, config, model__layers__0__self_attn__rotary_emb__inv_freq=(2,)))
    assert {name: model.shape(name) for name in model.names()} == shapes()
    found = msgspec.structs.asdict(model.config)
    assert found == {
        "architecture": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_layers": 1,
        "num_heads": 2,
        "num_kv_heads": 2,
        "head_dim": 4,
        "vocab_size": 10,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500.0,
        "max_positions": 32,
        "tie_embeddings": False,
        "attention_bias": False,
        "bos_id": 1,
        "eos_ids": (2,),
        "dtype": "float16",
        "quantised": {},
        "norm_bias": False,
        "kv_cache": None,
    }
    assert model.tokenizer_path is None
    assert model.tensor("model.norm.weight").tolist() == [0] * 8


def test_qwen2_has_biases_and_may_have_no_head(tmp_path: Path) -> None:
    config = CONFIG | {"architectures": ["Qwen2ForCausalLM"], "tie_word_embeddings": True, "bos_token_id": None}
    biases = {f"model__layers__0__self_attn__{part}_proj__bias": (8,) for part in "qkv"}
    model = open_model(folder(tmp_path, config, "lm_head.weight", **biases))
    assert model.config.architecture == "qwen2"
    assert model.config.bos_id is None
    assert set(model.names()) - set(shapes()) == {name.replace("__", ".") for name in biases}
    assert set(shapes()) - set(model.names()) == {"lm_head.weight"}


def test_the_ids_that_end_an_answer_are_those_of_the_generation_config(tmp_path: Path) -> None:
    spec = folder(tmp_path, CONFIG | {"eos_token_id": None})
    assert open_model(spec).config.eos_ids == ()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert open_model(spec).config.eos_ids == (7, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "architectures: unknown architecture 'MistralForCausalLM'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling: 'llama3' is not supported"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling: 'linear' is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act: 'gelu' is not supported; only 'silu' is"),
        ({"attention_bias": True}, "attention_bias: True is not supported"),
        ({"mlp_bias": True}, "mlp_bias: True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config: .* is not supported"),
        ({"num_key_value_heads": 3}, "num_attention_heads must be a multiple of num_key_value_heads"),
        ({"vocab_size": "ten"}, "vocab_size: Expected `int`, got `str`"),
    ],
)
def test_what_the_engines_do_not_know_is_refused_by_its_key(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"config.json: {message}"):
        open_model(folder(tmp_path, CONFIG | change))


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "hidden_size"}
    with pytest.raises(ConfigError, match="hidden_size: this key is missing"):
        open_model(folder(tmp_path, config))


def test_a_tensor_that_is_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tensor model.norm.weight is missing"):
        open_model(folder(tmp_path / "a", CONFIG, leave_out="model.norm.weight"))
    with pytest.raises(InputError, match=r"lm_head.weight is \[9, 8\], but config.json asks for \[10, 8\]"):
        open_model(folder(tmp_path / "b", CONFIG, lm_head__weight=(9, 8)))
    with pytest.raises(InputError, match=r"no tensor 'model.norm.wait'; did you mean 'model.norm.weight'"):
        open_model("random:tiny").tensor("model.norm.wait")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("random:lama2-7b", "unknown random model 'lama2-7b'. Did you mean 'llama2-7b'"),
        ("random:tiny,layer=2", "unknown option 'layer'. Did you mean 'layers'"),
        ("random:tiny,layers=two", "layers must be a whole number, got 'two'"),
        ("random:tiny,layers=0", "layers must be at least 1"),
        ("embeded", "no such folder; expected embedded, random:<tiny|"),
        (__file__, "not a folder but a file"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_way_out(spec: str, message: str) -> None:
    with pytest.raises(LlmbenchError) as caught:
        open_model(spec)
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config.json: cannot read the settings"):
        open_model(str(tmp_path))


def test_the_fingerprint_is_of_names_shapes_and_values(tmp_path: Path) -> None:
    one = open_model("random:tiny").fingerprint()
    assert one == open_model("random:tiny,layers=2").fingerprint()
    assert one != open_model("random:tiny", seed=1).fingerprint()
    assert one != open_model("random:tiny,layers=1").fingerprint()
    spec = folder(tmp_path, CONFIG)
    before = open_model(spec).fingerprint()
    content = bytearray((tmp_path / "model.safetensors").read_bytes())
    content[-1] ^= 0x80  # the sign of the last value
    (tmp_path / "model.safetensors").write_bytes(content)
    assert open_model(spec).fingerprint() != before
