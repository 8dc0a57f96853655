"""Smoothing: the scales are those of the formulas, and a float model computes what it computed before."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmbench import engines
from llmbench.accuracy.lane import Lane
from llmbench.errors import ConfigError
from llmbench.quantize import forward, smooth
from llmbench.quantize.forward import POINTS, Layer, Tensors
from llmbench.quantize.observers import Channels, ChannelWatch
from llmbench.weights.convert import Target, convert
from llmbench.weights.model import of_weights, open_model
from tests.engines.test_numpy_llama import LLAMA, QWEN2, hugging_face, random_ids, write
from tests.quantize.models import Float32, Float64, calibrated, logits, opened

METHODS: list[smooth.Method] = ["m1", "m2", "m3", "m4", "m6"]
UNCHANGED = 1e-4


def source(tmp_path: Path, config: dict[str, Any] | None) -> str:
    return "embedded" if config is None else str(write(tmp_path / "model", config))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("config", [LLAMA, QWEN2, None], ids=["gqa", "qwen2", "embedded"])
def test_a_smoothed_model_gives_the_same_logits(
    tmp_path: Path, config: dict[str, Any] | None, method: smooth.Method
) -> None:
    before = opened(source(tmp_path, config))
    after = calibrated(before, tmp_path / "work", method).opened
    ids = random_ids(of_weights(before), 40)[0].tolist()
    expected, found = logits(of_weights(before), ids), logits(of_weights(after), ids)
    np.testing.assert_allclose(found, expected, rtol=0, atol=UNCHANGED)
    changed = [name for name in before.tensors if after.tensors[name] is not before.tensors[name]]
    assert changed, "something was moved"


@pytest.mark.parametrize("method", ["m2", "m4"])
def test_an_engine_computes_it_too(tmp_path: Path, method: smooth.Method) -> None:
    before = opened(source(tmp_path, QWEN2))
    after = calibrated(before, tmp_path / "work", method).opened
    convert(after, tmp_path / "anti", Target(layout="hf", dtype="float32"), lambda *_: None)
    ids = random_ids(of_weights(before), 40)[0].tolist()
    with Lane(open_model(str(tmp_path / "anti")), "numpy_llama", 40, threads=1) as lane:
        np.testing.assert_allclose(lane.run(ids, [40]), logits(of_weights(before), ids), rtol=0, atol=UNCHANGED)


@pytest.mark.oracle
@pytest.mark.parametrize("method", ["m1", "m3", "m4"])
def test_transformers_loads_it_and_computes_the_same(tmp_path: Path, method: smooth.Method) -> None:
    folder = source(tmp_path, QWEN2)
    after = calibrated(opened(folder), tmp_path / "work", method).opened
    convert(after, tmp_path / "anti", Target(layout="hf", dtype="float32"), lambda *_: None)
    ids = random_ids(open_model(folder), 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = (hugging_face(Path(one))(ids)[0] for one in (folder, tmp_path / "anti"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=UNCHANGED)


class Case:
    """One layer of a GQA model, what flowed into it, and its channels."""

    def __init__(self, tmp_path: Path, config: dict[str, Any] = QWEN2) -> None:
        model = open_model(str(write(tmp_path, config)))
        self.config, self.own = model.config, forward.tensors(model, 0)
        rng = np.random.default_rng(7)
        self.x = rng.standard_normal((30, model.config.hidden_size)).astype(np.float32)
        self.x[:, 3] *= 20
        self.x[:, 5] += 9
        self.turns = engines.rotations(model.config, 30)
        self.inputs = self.inputs_of(self.own)
        self.seen = {point: channels(self.inputs[point]) for point in POINTS}

    def inputs_of(self, own: Tensors) -> dict[str, Float32]:
        """What goes into the linears of each point."""
        found: dict[str, Float32] = {}
        Layer(self.config, own, self.turns)(self.x, lambda point, x: found.__setitem__(point, x.copy()))
        return found

    def smoothed(self, method: smooth.Method, alpha: float | None = None) -> Tensors:
        own = dict(self.own)
        smooth.smooth(method, alpha, own, self.seen, self.config)
        return own


def channels(x: Float32) -> Channels:
    watch = ChannelWatch(x.shape[1])
    watch.see(x, np.arange(len(x)))
    return watch.channels()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def largest_columns(own: Tensors, *names: str) -> Float64:
    stacked = np.concatenate([own[f"{name}.weight"] for name in names]).astype(np.float64)
    return np.asarray(np.abs(stacked).max(axis=0))


@pytest.mark.parametrize("alpha", [None, 0.8])
def test_m1_divides_a_norm_by_the_scales_of_the_formula(case: Case, alpha: float | None) -> None:
    own, share, names = case.smoothed("m1", alpha), alpha or 0.5, POINTS["qkv"].linears
    a = np.abs(case.inputs["qkv"].astype(np.float64)).max(axis=0)
    s = a**share / largest_columns(case.own, *names) ** (1 - share)
    norm = case.own["input_layernorm.weight"] / s
    np.testing.assert_allclose(own["input_layernorm.weight"], norm, rtol=1e-5)
    for name in names:
        np.testing.assert_allclose(own[f"{name}.weight"], case.own[f"{name}.weight"] * s, rtol=1e-5)


def test_m4_scales_up_against_down_and_v_against_o_by_group(case: Case) -> None:
    own, config = case.smoothed("m4"), case.config
    a = np.abs(case.inputs["down"].astype(np.float64)).max(axis=0)
    s = a**0.9 / largest_columns(case.own, "mlp.down_proj") ** 0.1
    np.testing.assert_allclose(own["mlp.down_proj.weight"], case.own["mlp.down_proj.weight"] * s, rtol=1e-5)
    a = np.abs(case.inputs["o"].astype(np.float64)).max(axis=0)
    s = a**0.9 / largest_columns(case.own, "self_attn.o_proj") ** 0.1
    heads = s.reshape(config.num_kv_heads, config.num_heads // config.num_kv_heads, config.head_dim)
    of_values = heads.mean(axis=1)
    v = case.own["self_attn.v_proj.bias"] / of_values.reshape(-1)
    np.testing.assert_allclose(own["self_attn.v_proj.bias"], v, rtol=1e-5)
    o = case.own["self_attn.o_proj.weight"] * np.repeat(of_values[:, None], heads.shape[1], axis=1).reshape(-1)
    np.testing.assert_allclose(own["self_attn.o_proj.weight"], o, rtol=1e-5)


def test_m2_takes_the_middle_of_each_channel_first(case: Case) -> None:
    own, x = case.smoothed("m2"), case.inputs["qkv"].astype(np.float64)
    z = (x.max(axis=0) + x.min(axis=0)) / 2
    s = np.abs(x - z).max(axis=0) ** 0.5 / largest_columns(case.own, *POINTS["qkv"].linears) ** 0.5
    np.testing.assert_allclose(own["input_layernorm.bias"], -z / s, rtol=1e-4, atol=1e-6)
    for name in POINTS["qkv"].linears:
        bias = case.own[f"{name}.bias"] + case.own[f"{name}.weight"].astype(np.float64) @ z
        np.testing.assert_allclose(own[f"{name}.bias"], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(case.inputs_of(own)["qkv"], (x - z) / s, rtol=1e-3, atol=1e-4)
    assert {"mlp.gate_proj.bias", "mlp.up_proj.bias", "post_attention_layernorm.bias"} <= own.keys()


def test_m3_takes_the_power_with_the_least_error_of_int8_weights(case: Case) -> None:
    case.own["post_attention_layernorm.weight"][2] = 1e-6  # a channel whose scales are all but 0
    case.inputs = case.inputs_of(case.own)
    case.seen = {point: channels(case.inputs[point]) for point in POINTS}
    own, x = case.smoothed("m3"), case.inputs["gate_up"].astype(np.float64)
    weights = [case.own[f"{name}.weight"].astype(np.float64) for name in POINTS["gate_up"].linears]
    losses, found = [], []
    for k in range(20):
        s = np.maximum(np.abs(x).mean(axis=0) ** (k / 20), 1e-4)
        s /= np.sqrt(s.max() * s.min())
        loss = 0.0
        for weight in weights:
            scale = np.abs(weight * s).max(axis=1, keepdims=True) / 127
            loss += np.square((x / s) @ (np.rint(weight * s / scale) * scale).T - x @ weight.T).sum()
        losses.append(loss)
        found.append(s)
    s = found[int(np.argmin(losses))]
    norm = case.own["post_attention_layernorm.weight"] / s
    np.testing.assert_allclose(own["post_attention_layernorm.weight"], norm, rtol=1e-5)


@pytest.mark.parametrize("method", ["m1", "m2", "m4", "m6"])
def test_the_input_of_a_smoothed_layer_has_fewer_outliers(case: Case, method: smooth.Method) -> None:
    def peak(x: Float32) -> float:
        return float(np.abs(x).max() / x.std())

    assert peak(case.inputs_of(case.smoothed(method))["qkv"]) < 0.8 * peak(case.inputs["qkv"])


def test_channels_that_are_always_0_or_unused_are_left_alone() -> None:
    found = smooth.scales(np.array([0.0, 2.0, 1e-30]), np.array([3.0, 0.0, 1.0]), 0.5)
    np.testing.assert_array_equal(found, [1.0, 1.0, 1e-5])


def test_a_method_that_is_closed_says_why_and_what_else_there_is() -> None:
    with pytest.raises(ConfigError, match=r"--anti m5: CBQ .* m4 or m6"):
        smooth.check("m5", None)
    with pytest.raises(ConfigError, match=r"unknown method 'm9'"):
        smooth.check("m9", None)
    with pytest.raises(ConfigError, match=r"--alpha: m3 has none; methods with one: m1, m2, m4"):
        smooth.check("m3", 0.5)
