"""Quantised linears: the formulas against float64, and every form of file there and back, bit by bit."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from llmbench.errors import InputError, LlmbenchError
from llmbench.weights import export, quantised, sources
from llmbench.weights.export import Quantised
from llmbench.weights.model import Model, of_weights, open_model
from llmbench.weights.quantised import W8A8, W8A16, DeqForm, Kind, Linear
from tests.weights import eight_bits
from tests.weights.folders import QWEN2, write_folder
from tests.weights.test_convert import weights

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
MIXED: dict[str, Kind] = {
    Q: "W8A8",
    "model.layers.0.self_attn.k_proj": "W8A8",
    "model.layers.0.self_attn.v_proj": "W8A8",
    "model.layers.0.self_attn.o_proj": "W8A16",
    "model.layers.0.mlp.gate_proj": "W8A8S",
    "model.layers.0.mlp.up_proj": "W8A8S",
    DOWN: "W8A8",
}


def same(one: Linear | None, other: Linear | None) -> bool:
    """Whether two linears are of the same kind, and the same to the bit."""
    if type(one) is not type(other) or one is None:
        return False
    fields = [(vars_of(one)[name], vars_of(other)[name]) for name in vars_of(one)]  # type: ignore[arg-type]
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in fields)


def vars_of(linear: Linear) -> dict[str, Any]:
    return {name: getattr(linear, name) for name in linear.__struct_fields__}


def test_gaussian_data_comes_out_with_about_one_percent_of_error() -> None:
    """Ascend's own figure for one linear: 0.96 %."""
    rng = np.random.default_rng(0)
    weight, x, bias = rng.normal(size=(256, 512)), rng.normal(size=(64, 512)), rng.normal(size=256)
    linear = eight_bits.w8a8(weight, bias, x.min(), x.max())
    exact = x @ weight.T + bias
    error = np.linalg.norm(eight_bits.output(linear, x) - exact) / np.linalg.norm(exact)
    assert 0.008 < error < 0.014


@given(st.integers(0, 2**32 - 1), st.floats(-8, 0), st.floats(0.01, 9))
def test_dequantised_weights_and_bias_give_what_the_integers_give(seed: int, low: float, high: float) -> None:
    """On activations that are quantised without rounding, in float64."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(6, 20)), rng.normal(size=6)
    linear = eight_bits.w8a8(weight, bias, low, high)
    x = (rng.integers(-128, 128, (5, 20)) - linear.input_offset).astype(np.float64) * linear.input_scale
    expected = eight_bits.output(linear, x)
    found = x @ linear.dequantised().astype(np.float64).T + linear.bias().astype(np.float64)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6 * (1 + np.abs(x) @ np.abs(weight).T).max())
    scale = linear.deq_scale.astype(np.float64) / linear.input_scale
    np.testing.assert_allclose(linear.dequantised(), linear.weight * scale[:, None], rtol=3e-7)
    assert (np.abs(linear.bias() - bias) <= 0.51 * linear.deq_scale + 1e-6 * np.abs(bias)).all()


def test_a_linear_without_a_bias_has_none_after_quantisation() -> None:
    weight = np.random.default_rng(1).normal(size=(64, 1024))
    linear = eight_bits.w8a8(weight, np.zeros(64), -3, 5)
    assert not linear.bias().any()
    assert np.abs(linear.quant_bias).min() > 0, "the offset is corrected"


def test_w8a16_stands_for_its_weights() -> None:
    weight = np.random.default_rng(2).normal(1, 0.2, size=(8, 64))  # far from symmetric
    linear = eight_bits.w8a16(weight, None)
    exact = (linear.weight.astype(np.float64) - linear.weight_offset) * linear.weight_scale
    np.testing.assert_allclose(linear.dequantised(), exact, rtol=1e-6)
    assert (np.abs(linear.dequantised() - weight) <= 0.51 * linear.weight_scale).all()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20))
def test_a_packed_scale_comes_back_with_every_bit(bits: list[int]) -> None:
    scale = np.array(bits, np.uint32).view(np.float32)
    stored = quantised.packed(scale)
    assert stored.dtype == np.int64
    assert (stored & 0xFFFFFFFF).tolist() == bits
    assert quantised.unpacked(stored).tobytes() == scale.tobytes()
    assert quantised.unpacked(scale) is scale


def source(spec: str = "random:tiny") -> Model:
    return open_model(spec)


@pytest.mark.parametrize("form", export.FORMS)
@pytest.mark.parametrize("deq_scale", quantised.DEQ_FORMS)
def test_a_written_model_is_read_back_bit_by_bit(tmp_path: Path, form: export.Form, deq_scale: DeqForm) -> None:
    folder = eight_bits.write(tmp_path / "q", kinds=MIXED, form=form, deq_scale=deq_scale, kv=True)
    model, plain = open_model(str(folder)), source()
    unknown = "W8A8S" if form == "npy" else None  # what dictionaries do not tell from W8A8
    assert model.config.quantised == {name: "W8A8" if kind == unknown else kind for name, kind in MIXED.items()}
    assert model.config.kv_cache == "int8"
    for name, linear in eight_bits.linears(plain, MIXED):
        found = model.linear(name)
        assert same(found, linear), name
        assert (model.tensor(f"{name}.weight") == linear.dequantised()).all()
        assert name in MIXED
    assert model.linear("model.layers.1.self_attn.q_proj") is None
    for name in plain.names():
        if name.rpartition(".")[0] not in MIXED:
            assert (model.tensor(name) == plain.tensor(name)).all(), name
    for layer, scales in eight_bits.kv_scales(plain.config).items():
        found_scales = model.kv_scales(layer)
        assert found_scales is not None
        for part in scales.__struct_fields__:
            assert (getattr(found_scales, part) == getattr(scales, part)).all()
    assert model.tokenizer_path is not None
    assert model.config.num_parameters == plain.config.num_parameters


def test_dequantised_tensors_are_the_same_whatever_rows_are_read(tmp_path: Path) -> None:
    model = open_model(str(eight_bits.write(tmp_path / "q", kinds=MIXED, norm_bias=True)))
    for name in (f"{Q}.weight", f"{Q}.bias", f"{DOWN}.weight", "model.layers.0.self_attn.o_proj.weight"):
        whole = model.tensor(name)
        assert whole.dtype == np.float32
        assert (model.rows(name, 3, 17) == whole[3:17]).all()
        assert (np.concatenate([block for _, block in model.blocks(name)]) == whole).all()
        assert model.shape(name) == whole.shape
    assert set(model.names()) >= {f"{Q}.bias", f"{DOWN}.bias", "model.layers.1.mlp.up_proj.bias"}
    with pytest.raises(InputError, match=r"no tensor 'model.layers.0.self_attn.q_proj.input_scale'"):
        model.tensor(f"{Q}.input_scale")


@pytest.mark.parametrize("form", export.FORMS)
def test_norms_with_biases_are_read_back(tmp_path: Path, form: export.Form) -> None:
    model = open_model(str(eight_bits.write(tmp_path / "q", kinds=MIXED, form=form, norm_bias=True)))
    expected = eight_bits.norms_with_biases(source())
    assert model.config.norm_bias
    name = "model.layers.1.post_attention_layernorm.bias"
    assert (model.tensor(name) == expected[name]).all()
    name = "model.layers.1.mlp.gate_proj.bias"  # of a linear that is float
    assert (model.tensor(name) == expected[name]).all()
    linear = model.linear(Q)
    assert isinstance(linear, W8A8)
    assert (np.abs(model.tensor(f"{Q}.bias") - expected[f"{Q}.bias"]) <= 0.51 * linear.deq_scale).all()


def test_biases_of_qwen2_go_into_quant_bias(tmp_path: Path) -> None:
    write_folder(tmp_path / "hf", QWEN2)
    folder = eight_bits.write(tmp_path / "q", str(tmp_path / "hf"))
    plain, model = open_model(str(tmp_path / "hf")), open_model(str(folder))
    assert f"{Q}.bias" not in load_file(folder / "quant_model_weight_w8a8.safetensors")
    linear = model.linear(Q)
    assert isinstance(linear, W8A8)
    assert (np.abs(model.tensor(f"{Q}.bias") - plain.tensor(f"{Q}.bias")) <= 0.51 * linear.deq_scale).all()
    kinds = eight_bits.every_linear(plain.config, "W8A16")
    model = open_model(str(eight_bits.write(tmp_path / "16", str(tmp_path / "hf"), kinds)))
    assert (model.tensor(f"{Q}.bias") == plain.tensor(f"{Q}.bias")).all()


def test_modelslims_files_are_as_its_readers_ask_for_them(tmp_path: Path) -> None:
    folder = eight_bits.write(tmp_path / "q", kinds=MIXED | {DOWN: "W8A8"}, kv=True)
    described = json.loads((folder / "quant_model_description_w8a8s.json").read_text())
    assert (described["model_quant_type"], described["kv_cache_type"]) == ("W8A8S", "C8")
    stored = load_file(folder / "quant_model_weight_w8a8s.safetensors")
    assert set(stored) == {name for name in described if "." in name and name != "version"}
    assert described[f"{Q}.deq_scale"] == described[f"{Q}.weight"] == "W8A8"
    assert described["model.norm.weight"] == described["model.layers.1.mlp.up_proj.weight"] == "FLOAT"
    shapes = {part: (str(stored[f"{Q}.{part}"].dtype), stored[f"{Q}.{part}"].shape) for part in quantised.PARTS[:4]}
    assert shapes == {
        "input_scale": ("float32", (1,)),
        "input_offset": ("int8", (1,)),
        "quant_bias": ("int32", (64,)),
        "deq_scale": ("int64", (64,)),
    }
    assert json.loads((folder / "config.json").read_text())["quantize"] == "w8a8s"


@pytest.mark.parametrize(
    "name", ["quant_model_description_w8a8.json", "quant_model_description.json", "quantization_description.json"]
)
def test_the_description_may_have_any_of_its_names(tmp_path: Path, name: str) -> None:
    folder = eight_bits.write(tmp_path / "q")
    (folder / "quant_model_description_w8a8.json").rename(folder / name)
    assert set(open_model(str(folder)).config.quantised.values()) == {"W8A8"}


def edited(folder: Path, edit: dict[str, str]) -> Path:
    path = folder / "quant_model_description_w8a8.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | edit))
    return folder


def changed(folder: Path, **tensors: Any) -> Path:
    """With other tensors of the first q_proj."""
    path = folder / "quant_model_weight_w8a8.safetensors"
    save_file(load_file(path) | {f"{Q}.{part}": values for part, values in tensors.items()}, path)
    return folder


def test_what_cannot_be_is_refused_with_its_name(tmp_path: Path) -> None:
    def refused(folder: Path) -> str:
        with pytest.raises(LlmbenchError) as caught:
            open_model(str(folder))
        assert caught.value.exit_code == 2
        return str(caught.value)

    def fresh(name: str) -> Path:
        return eight_bits.write(tmp_path / name)

    folder = edited(fresh("a"), {f"{Q}.weight": "W4A16"})
    assert f"description_w8a8.json: {Q}.weight: 'W4A16' is not supported; only W8A8, W8A16" in refused(folder)
    folder = edited(fresh("b"), {"model.embed_tokens.weight": "W8A8"})
    assert "model.embed_tokens.weight: W8A8 of another tensor than the linears" in refused(folder)
    folder = edited(fresh("b2"), {"model.layers.7.mlp.up_proj.weight": "W8A8"})
    assert "model.layers.7.mlp.up_proj is said to be W8A8, but is no linear of its decoder layers" in refused(folder)
    folder = fresh("c")
    (folder / "quantization_description.json").write_text("{}")
    assert "quant_model_description_w8a8.json and quantization_description.json: leave the one" in refused(folder)
    folder = fresh("d")
    (folder / "quant_model_description_w8a8.json").unlink()
    assert "stored as int8; readable: float32, float16, bfloat16; of a quantised model" in refused(folder)
    with pytest.raises(InputError, match="stored as int8"):
        weights("convert", folder, tmp_path / "o", "--to", "hf")
    folder = edited(fresh("e"), {f"{Q}.weight": "FLOAT"})
    assert "q_proj.weight: stored as int8" in refused(folder)
    zero, half = np.zeros(1, np.float32), np.full(1, 0.5, np.float32)
    assert f"{Q}.input_scale: 0 is no scale; it must be above 0" in refused(changed(fresh("f"), input_scale=zero))
    assert f"{Q}.input_offset: 0.5 is no whole number" in refused(changed(fresh("g"), input_offset=half))
    folder = changed(fresh("h"), input_scale=half)
    assert "k_proj: its input_scale and input_offset are " in refused(folder)
    assert "both multiply the same activations, so that they must be the same" in refused(folder)
    folder = changed(fresh("i"), quant_bias=np.zeros(64, np.float32))
    assert "q_proj.quant_bias: stored as float32; readable: int32" in refused(folder)
    folder = changed(fresh("j"), deq_scale=np.zeros(63, np.float32))
    assert "q_proj.deq_scale is [63], but config.json asks for [64]" in refused(folder)


def test_a_float_bias_beside_quant_bias_is_left_out_by_name(tmp_path: Path) -> None:
    folder = changed(eight_bits.write(tmp_path / "q"), bias=np.zeros(64, np.float32))
    report = json.loads(weights("convert", folder, tmp_path / "o", "--to", "hf", "--json"))
    assert report["dropped"] == {f"{Q}.bias": "in its quant_bias"}


def test_norm_biases_of_others_are_seen_by_their_names(tmp_path: Path) -> None:
    """Whose config.json says nothing of them."""
    folder = eight_bits.write(tmp_path / "q", norm_bias=True)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("norm_bias")
    (folder / "config.json").write_text(json.dumps(config))
    assert open_model(str(folder)).config.norm_bias


def test_only_what_was_announced_is_written(tmp_path: Path) -> None:
    opened = sources.open_weights("random:tiny", sources.How())
    model = of_weights(opened)
    kinds: dict[str, Kind] = {Q: "W8A8"}
    (one,) = [linear for _, linear in eight_bits.linears(model, kinds)]

    def write(linears: list[tuple[str, Linear]], **fields: Any) -> str:
        with pytest.raises(InputError) as caught:
            export.write(tmp_path / "q", opened, Quantised(kinds=kinds, linears=linears, **fields))
        assert not list(tmp_path.iterdir())
        return str(caught.value)

    assert "q_proj: this linear was announced, but there is none" in write([])
    assert "is there twice" in write([(Q, one), (Q, one)])
    assert "k_proj: this linear was announced as float" in write([("model.layers.0.self_attn.k_proj", one)])
    sixteen = eight_bits.w8a16(model.tensor(f"{Q}.weight").astype(np.float64), None)
    assert "announced as W8A8" in write([(Q, sixteen)])
    assert isinstance(one, W8A8)
    shorter = msgspec.structs.replace(one, quant_bias=one.quant_bias[:-1])
    assert "but the model has" in write([(Q, shorter)])
    assert "layer 1: no scales" in write([(Q, one)], kv={0: eight_bits.kv_scales(model.config)[0]})
    kinds["model.layers.0.self_attn.k_proj"] = "W8A8"
    key = dict(eight_bits.linears(model, kinds))["model.layers.0.self_attn.k_proj"]
    assert isinstance(key, W8A8)
    other = msgspec.structs.replace(key, input_offset=key.input_offset + 1)
    assert "both multiply the same activations" in write([(Q, one), ("model.layers.0.self_attn.k_proj", other)])


def test_the_fingerprint_is_of_what_the_integers_mean(tmp_path: Path) -> None:
    one = open_model(str(eight_bits.write(tmp_path / "a")))
    assert one.fingerprint() == open_model(str(eight_bits.write(tmp_path / "b", deq_scale="float32"))).fingerprint()
    weights("convert", tmp_path / "a", tmp_path / "c", "--to", "mcore")
    assert one.fingerprint() == open_model(str(tmp_path / "c")).fingerprint()
    path = tmp_path / "a" / "quant_model_weight_w8a8.safetensors"
    tensors = load_file(path)
    tensors[f"{Q}.quant_bias"][5] += 1
    save_file(tensors, path)
    assert one.fingerprint() != open_model(str(tmp_path / "a")).fingerprint()


def test_inspect_shows_what_is_quantised(tmp_path: Path) -> None:
    folder = eight_bits.write(tmp_path / "q", kinds=MIXED, kv=True, norm_bias=True)
    text = weights("inspect", folder)
    for line in (
        r"W8A8 +1 q_proj, 1 k_proj, 1 v_proj, 1 down_proj",
        r"W8A8S +1 gate_proj, 1 up_proj",
        r"W8A16 +1 o_proj",
        r"float +1 down_proj, 1 q_proj",
        r"FLOAT_LAYERS 0, 1",
        r"KV cache +int8",
        r"norms +with biases",
    ):
        assert re.search(line, text), line
    found = json.loads(weights("inspect", folder, "--json", "--quick"))
    assert found["quantisation"]["kinds"] == MIXED
    assert found["quantisation"]["float_layers"] == [0, 1]
    assert found["dtypes"]["int8"] > 0
    assert json.loads(weights("inspect", "random:tiny", "--json", "--quick"))["quantisation"] is None


def test_what_is_of_8_bits_is_said_in_a_word() -> None:
    config = open_model("random:tiny").config
    some: dict[str, Kind] = {"model.layers.0.mlp.up_proj": "W8A8", "model.layers.1.mlp.up_proj": "W8A16"}
    kinds = [msgspec.structs.replace(config, quantised=each) for each in ({}, eight_bits.every_linear(config), some)]
    assert [each.quantisation for each in kinds] == ["", "w8a8", "w8a16+w8a8"]
    with_cache = [msgspec.structs.replace(each, kv_cache="int8").quantisation for each in kinds]
    assert with_cache == ["kv8", "w8a8+kv8", "w8a16+w8a8+kv8"]


def test_float_layers_are_those_with_a_linear_that_is_float() -> None:
    kinds = {name: kind for name, kind in eight_bits.every_linear(source().config).items() if name != DOWN}
    assert quantised.float_linears(kinds, 2) == [DOWN]
    assert quantised.float_layers(kinds, 2) == [1]


def test_w8a16_is_a_linear_of_its_own_kind(tmp_path: Path) -> None:
    kinds = eight_bits.every_linear(source().config, "W8A16")
    model = open_model(str(eight_bits.write(tmp_path / "q", kinds=kinds)))
    assert (tmp_path / "q" / "quant_model_description_w8a16.json").exists()
    assert isinstance(model.linear(Q), W8A16)
    assert f"{Q}.bias" not in model.names()


def test_norms_that_others_have_apart_for_quantised_linears_are_taken_where_they_are_quantised(tmp_path: Path) -> None:
    """As MindIE reads them: `….module` for quantised linears, the plain one for float ones, which have no biases."""
    layer = "model.layers.0."
    kinds: dict[str, Kind] = {name: "W8A8" for name in MIXED if name.startswith(layer + "self_attn")}
    folder = eight_bits.write(tmp_path / "q", kinds=kinds, norm_bias=True)
    expected = open_model(str(eight_bits.write(tmp_path / "expected", kinds=kinds, norm_bias=True)))
    path = folder / "quant_model_weight_w8a8.safetensors"
    tensors = load_file(path)
    norm = f"{layer}input_layernorm"
    for part in ("weight", "bias"):
        tensors[f"{norm}.module.{part}"] = tensors.pop(f"{norm}.{part}")
    tensors[f"{norm}.weight"] = np.full(64, 7, np.float32)  # for float linears, of which there are none
    for name in [name for name in tensors if name.endswith(".bias") and ".module." not in name]:
        del tensors[name]
    save_file(tensors, path)
    model = open_model(str(folder))
    assert model.config.norm_bias
    for part in ("weight", "bias"):
        assert (model.tensor(f"{norm}.{part}") == expected.tensor(f"{norm}.{part}")).all()
    assert same(model.linear(Q), expected.linear(Q))
    for name in (f"{layer}post_attention_layernorm", "model.layers.1.input_layernorm", f"{layer}mlp.gate_proj"):
        assert not model.tensor(f"{name}.bias").any()
    assert (model.tensor(f"{layer}post_attention_layernorm.weight") == 1).all()
    report = json.loads(weights("convert", folder, tmp_path / "one", "--to", "hf", "--json"))
    assert not report["dropped"]
    assert open_model(str(tmp_path / "one")).fingerprint() == model.fingerprint()
    float_q = {f"{Q}.weight": np.zeros((64, 64), np.float32)} | {
        name: values for name, values in tensors.items() if not name.startswith(Q)
    }
    save_file(float_q, path)
    edited(folder, {f"{Q}.weight": "FLOAT"})
    with pytest.raises(InputError, match=r"input_layernorm: there are two, and the linears behind it are both"):
        open_model(str(folder))
