"""Quantised models on several ranks: cut, put together and computed, to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llmbench.errors import LlmbenchError
from llmbench.weights import shard, strategy
from llmbench.weights.config import from_hf
from llmbench.weights.model import open_model
from llmbench.weights.quantised import W8A8, W8A16
from llmbench.weights.strategy import Cut
from tests.conftest import Launch
from tests.weights import eight_bits
from tests.weights.folders import LLAMA, QWEN2, write_folder
from tests.weights.test_convert import weights
from tests.weights.test_cut import answer
from tests.weights.test_quantised import MIXED

LAYER = "model.layers.1."


def stored(folder: Path) -> dict[str, Any]:
    """The tensors in the one safetensors file of a folder, with their dtypes."""
    (path,) = folder.glob("*.safetensors")
    return {name: (values.dtype, values.tobytes()) for name, values in load_file(path).items()}


def quantised(path: Path, config: dict[str, Any] = LLAMA, kind: str = "W8A8", **flags: Any) -> Path:
    write_folder(path / "hf", config)
    shape = from_hf(config, (), "test")
    kinds = eight_bits.every_linear(shape, kind)  # type: ignore[arg-type]
    return eight_bits.write(path / "q", str(path / "hf"), kinds, **flags)


@pytest.mark.parametrize("kind", ["W8A8", "W8A16"])
@pytest.mark.parametrize("config", [LLAMA, QWEN2], ids=["llama", "qwen2"])
def test_shard_reshard_merge_is_bit_exact(tmp_path: Path, config: dict[str, Any], kind: str) -> None:
    source = quantised(tmp_path, config, kind, kv=True, norm_bias=True)
    weights("shard", source, tmp_path / "4", "--ranks", 4)
    weights("reshard", tmp_path / "4", tmp_path / "42", "--ranks", 2)
    weights("shard", source, tmp_path / "2", "--ranks", 2)
    for rank in range(2):
        assert stored(tmp_path / "42" / f"rank_{rank}") == stored(tmp_path / "2" / f"rank_{rank}")
    for cut in ("4", "42"):
        weights("merge", tmp_path / cut, tmp_path / f"{cut}-merged")
        assert stored(tmp_path / f"{cut}-merged") == stored(source)
        assert open_model(str(tmp_path / cut)).fingerprint() == open_model(str(source)).fingerprint()


@pytest.mark.parametrize(("layout", "form"), [("legacy", "safetensors"), ("legacy", "ckpt"), ("mcore", "ckpt")])
def test_ranks_may_be_of_mindspores_layouts(tmp_path: Path, layout: str, form: str) -> None:
    source = quantised(tmp_path, QWEN2, kv=True)
    weights("shard", source, tmp_path / "2", "--ranks", 2, "--to", layout, "--format", form)
    weights("merge", tmp_path / "2", tmp_path / "back")
    assert stored(tmp_path / "back") == stored(source)
    weights("convert", source, tmp_path / "whole", "--to", layout, "--format", form)
    assert open_model(str(tmp_path / "whole")).fingerprint() == open_model(str(source)).fingerprint()


def test_each_rank_has_what_the_rules_say(tmp_path: Path) -> None:
    source = quantised(tmp_path, LLAMA, kv=True)  # 8 heads of 4, 2 of keys, MLP of 24, 32 wide
    (path,) = source.glob("*.safetensors")
    whole = load_file(path)
    weights("shard", source, tmp_path / "2", "--ranks", 2)
    for rank in range(2):
        own = load_file(tmp_path / "2" / f"rank_{rank}" / "model.safetensors")

        def same(name: str, expected: Any, own: dict[str, Any] = own) -> bool:
            return own[LAYER + name].dtype == expected.dtype and bool((own[LAYER + name] == expected).all())

        rows = slice(16 * rank, 16 * rank + 16)
        for part in ("weight", "quant_bias", "deq_scale"):
            assert same(f"self_attn.q_proj.{part}", whole[LAYER + f"self_attn.q_proj.{part}"][rows])
        for part in ("input_scale", "input_offset", "deq_scale"):
            assert same(f"self_attn.o_proj.{part}", whole[LAYER + f"self_attn.o_proj.{part}"])
        assert same("self_attn.o_proj.weight", whole[LAYER + "self_attn.o_proj.weight"][:, rows])
        bias = whole[LAYER + "self_attn.o_proj.quant_bias"]
        assert bias.any()
        assert same("self_attn.o_proj.quant_bias", bias if rank == 0 else np.zeros_like(bias))
        keys = slice(4 * rank, 4 * rank + 4)
        scale = "self_attn.k_proj.kv_cache_scale"
        assert same(scale, whole[LAYER + scale][keys])
        assert same("self_attn.k_proj.quant_bias", whole[LAYER + "self_attn.k_proj.quant_bias"][keys])
    found = strategy.read(tmp_path / "2" / "strategy.json").params
    assert found[LAYER + "mlp.down_proj.quant_bias"] == Cut((32,), None, "rank0_only")
    assert found[LAYER + "mlp.down_proj.deq_scale"] == Cut((32,), None, "replicate")
    assert found[LAYER + "mlp.up_proj.deq_scale"] == Cut((24,), 0, "split", 2)


def test_w8a16_scales_go_with_the_outputs(tmp_path: Path) -> None:
    model = open_model(str(quantised(tmp_path, LLAMA, "W8A16")))
    for rank in range(2):
        own = shard.cut(model, rank, 2)
        gate, down = (LAYER + f"mlp.{part}_proj" for part in ("gate", "down"))
        whole, part = model.linear(gate), own.linear(gate)
        assert isinstance(whole, W8A16)
        assert isinstance(part, W8A16)
        assert (part.weight_scale == whole.weight_scale[12 * rank : 12 * rank + 12]).all()
        assert (part.dequantised() == whole.dequantised()[12 * rank : 12 * rank + 12]).all()
        whole, part = model.linear(down), own.linear(down)
        assert isinstance(whole, W8A16)
        assert isinstance(part, W8A16)
        assert (part.weight_offset == whole.weight_offset).all()
        assert (part.dequantised() == whole.dequantised()[:, 12 * rank : 12 * rank + 12]).all()


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_what_the_ranks_compute_adds_up_to_the_whole_linear_exactly(tmp_path: Path, num_ranks: int) -> None:
    """In integers, so that the sum is exact; a bias that is divided, or that every rank adds, would be seen."""
    model = open_model(str(quantised(tmp_path, QWEN2, norm_bias=True)))
    parts = [shard.cut(model, rank, num_ranks) for rank in range(num_ranks)]
    x = np.random.default_rng(0).normal(size=(7, 32))
    for name, axis in ((LAYER + "self_attn.o_proj", 1), (LAYER + "self_attn.q_proj", 0), (LAYER + "mlp.up_proj", 0)):
        whole = model.linear(name)
        linears = [part.linear(name) for part in parts]
        assert isinstance(whole, W8A8)
        width = 32 // num_ranks
        if axis == 1:
            own = [
                eight_bits.output(linear, x[:, rank * width : (rank + 1) * width]) / whole.deq_scale
                for rank, linear in enumerate(linears)
                if isinstance(linear, W8A8)
            ]
            found = np.rint(np.stack(own)).sum(axis=0)
        else:
            own = [eight_bits.output(linear, x) for linear in linears if isinstance(linear, W8A8)]
            found = np.rint(np.concatenate(own, axis=1) / whole.deq_scale)
        assert len(own) == num_ranks
        assert (found == np.rint(eight_bits.output(whole, x) / whole.deq_scale)).all()


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_dequantised_parts_with_their_biases_add_up_to_the_whole(tmp_path: Path, num_ranks: int) -> None:
    model = open_model(str(quantised(tmp_path, QWEN2, norm_bias=True)))
    parts = [shard.cut(model, rank, num_ranks) for rank in range(num_ranks)]
    name = LAYER + "self_attn.o_proj"
    weight = np.concatenate([part.tensor(f"{name}.weight") for part in parts], axis=1)
    assert (weight == model.tensor(f"{name}.weight")).all()
    bias = np.sum([part.tensor(f"{name}.bias").astype(np.float64) for part in parts], axis=0)
    np.testing.assert_allclose(bias, model.tensor(f"{name}.bias"), atol=1e-5)
    name = LAYER + "mlp.gate_proj"
    bias = np.concatenate([part.tensor(f"{name}.bias") for part in parts])
    assert (bias == model.tensor(f"{name}.bias")).all()


def test_ranks_that_others_have_cut_show_their_strategy_in_shapes(tmp_path: Path) -> None:
    source = quantised(tmp_path, QWEN2)
    weights("shard", source, tmp_path / "4", "--ranks", 4)
    expected = strategy.read(tmp_path / "4" / "strategy.json")
    for name in ("strategy.json", "conversion.json"):
        (tmp_path / "4" / name).unlink()
    weights("merge", tmp_path / "4", tmp_path / "back", "--strategy", "auto")
    assert stored(tmp_path / "back") == stored(source)
    weights("reshard", tmp_path / "4", tmp_path / "again", "--ranks", 4, "--strategy", "auto")
    assert strategy.read(tmp_path / "again" / "strategy.json") == expected


def test_a_rank_with_a_bias_of_its_own_is_refused(tmp_path: Path) -> None:
    """As tools left it that divided the bias among the ranks."""
    source = quantised(tmp_path)
    weights("shard", source, tmp_path / "2", "--ranks", 2)
    path = tmp_path / "2" / "rank_1" / "model.safetensors"
    tensors = load_file(path)
    tensors[LAYER + "self_attn.o_proj.quant_bias"][3] = 1
    save_file(tensors, path)
    (tmp_path / "2" / "strategy.json").write_text(
        json.dumps(json.loads((tmp_path / "2" / "strategy.json").read_text()) | {"files": {}})
    )
    with pytest.raises(LlmbenchError, match=r"rank_1: .*o_proj.quant_bias: not zeros, though .* only rank 0 has it"):
        weights("merge", tmp_path / "2", tmp_path / "back")


def test_merged_layouts_are_refused_with_the_way_out(tmp_path: Path) -> None:
    source = quantised(tmp_path)
    for command in (("convert",), ("shard", "--ranks", 2)):
        with pytest.raises(LlmbenchError, match="layout qkv-concat: the tensors of a quantised model are not merged"):
            weights(command[0], source, tmp_path / "o", "--to", "qkv-concat", *command[1:])


def test_a_dtype_is_that_of_what_is_float(tmp_path: Path) -> None:
    source = eight_bits.write(tmp_path / "q", kinds=MIXED, kv=True)
    weights("convert", source, tmp_path / "o", "--to", "hf", "--dtype", "float16", "--deq-scale", "float32")
    (path,) = (tmp_path / "o").glob("*.safetensors")
    found = {name: str(values.dtype) for name, values in load_file(path).items()}
    layer = "model.layers.0."
    assert found["model.norm.weight"] == found[LAYER + "mlp.up_proj.weight"] == "float16"
    assert found[layer + "self_attn.q_proj.weight"] == "int8"
    assert found[layer + "self_attn.q_proj.deq_scale"] == found[layer + "self_attn.o_proj.weight_scale"] == "float32"
    assert found[layer + "self_attn.k_proj.kv_cache_scale"] == "float32"
    one, other = open_model(str(source)).linear(layer + "mlp.up_proj"), open_model(str(tmp_path / "o"))
    again = other.linear(layer + "mlp.up_proj")
    assert isinstance(one, W8A8)
    assert isinstance(again, W8A8)
    assert (one.deq_scale == again.deq_scale).all()


def test_large_models_are_split_with_an_index(tmp_path: Path) -> None:
    source = quantised(tmp_path)
    weights("convert", source, tmp_path / "o", "--to", "hf", "--max-shard-size", "10KB")
    assert (tmp_path / "o" / "quant_model_weight_w8a8.safetensors.index.json").exists()
    assert len(list((tmp_path / "o").glob("quant_model_weight_w8a8-*.safetensors"))) > 1
    assert open_model(str(tmp_path / "o")).fingerprint() == open_model(str(source)).fingerprint()


@pytest.mark.parametrize("kv", [False, True], ids=["float-kv", "int8-kv"])
def test_two_ranks_serve_a_quantised_model_with_the_tokens_of_one(tmp_path: Path, launch: Launch, kv: bool) -> None:
    """The two from a model that was cut for four."""
    whole = eight_bits.write(tmp_path / "q", "random:tiny,seed=5", norm_bias=True, kv=kv)
    weights("shard", whole, tmp_path / "4", "--ranks", 4)
    cut = answer(launch, tmp_path / "4", "--ranks", "2")
    assert cut == answer(launch, whole)
    assert cut


def test_the_guides_cut_has_dictionaries_of_each_ranks_part(tmp_path: Path) -> None:
    source = quantised(tmp_path, QWEN2, kv=True)
    said = weights("shard", source, tmp_path / "cut", "--ranks", 2, "--format", "npy", "--deq-scale", "float32")
    assert "the dictionaries of 14 linears, part_model/0 to 1" in said
    model = open_model(str(source))
    for rank in range(2):
        own = shard.cut(model, rank, 2)
        found = {
            path.stem: np.load(path, allow_pickle=True).item()
            for path in (tmp_path / "cut" / "part_model" / str(rank)).iterdir()
        }
        for name in model.config.quantised:
            linear = own.linear(name)
            assert isinstance(linear, W8A8)
            assert (found["quant_weight"][name] == linear.weight).all()
            assert (found["quant_bias"][name] == linear.quant_bias).all()
            assert (found["deq_scale"][name] == linear.deq_scale).all()
            # the correction that the guide's tool makes of fp_bias, on the rank's own part
            exact = found["fp_bias"][name] / linear.deq_scale.astype(np.float64)
            corrected = np.rint(exact - linear.weight.astype(int).sum(axis=1) * found["input_offset"][name])
            assert (corrected == linear.quant_bias).all()
        scales = own.kv_scales(1)
        assert scales is not None
        assert (found["kv_cache_scale"]["model.layers.1.self_attn.k_proj"] == scales.key_scale).all()


def test_the_guides_cut_is_of_quantised_models_alone(tmp_path: Path) -> None:
    with pytest.raises(LlmbenchError, match="nothing of it is quantised; --format safetensors"):
        weights("shard", "random:tiny", tmp_path / "cut", "--ranks", 2, "--format", "npy")
    with pytest.raises(LlmbenchError, match=r"--format npy: its names are .* without --to, --dtype"):
        weights("shard", "random:tiny", tmp_path / "cut", "--ranks", 2, "--format", "npy", "--dtype", "float16")
    assert not (tmp_path / "cut").exists()
