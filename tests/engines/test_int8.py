"""Quantised models in the NumPy engine: sums of whole numbers are exact, and logits are those of the formulas."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from llmbench import engines
from llmbench.engines import Engine, EngineSettings
from llmbench.engines._linear import Int8Linear, exact
from llmbench.engines._matrix import PANELS, WHOLE, Layout, Matrix, Workers
from llmbench.engines._scratch import Scratch
from llmbench.weights.model import Model, open_model
from llmbench.weights.quantised import W8A16, Kind, float_linears
from tests.engines.test_numpy_llama import (
    LLAMA,
    QWEN2,
    Float32,
    Float64,
    Instead,
    random_ids,
    reference,
    reports_and_forgets,
    spoilt,
    step,
    write,
)
from tests.together import Together
from tests.weights import eight_bits

TABLES = np.arange(8, dtype=np.int32)[None]


@pytest.mark.parametrize("layout", [PANELS, WHOLE, Layout(16, 4096)])
@pytest.mark.parametrize("num_in", [1, 1024, 1025, 5000])
@pytest.mark.parametrize("values", ["random", -128, 127])
def test_sums_of_whole_numbers_are_exact(layout: Layout, num_in: int, values: int | str) -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-128, 127, (40, num_in), np.int8, endpoint=True)
    x = rng.integers(-128, 127, (9, num_in), np.int8, endpoint=True)
    if isinstance(values, int):  # sums of 127 * 127 are odd, which float32 has no room for above 2^24
        weight[:], x[:] = values, values
    bias = rng.integers(-(2**31), 2**31, 40)
    workers = Workers(1)
    matrix = Matrix(num_in, 40, exact(layout), workers)
    matrix.fill(0, [(0, weight)])
    linear = Int8Linear(matrix, None, 1.0, 0, bias.astype(np.float64), np.ones(40))
    found = linear.multiply(x.astype(np.float32), Scratch(), "found")
    whole = x.astype(np.int64) @ weight.T.astype(np.int64) + bias
    assert (found == whole.astype(np.float32)).all()
    rest = linear.multiply(x.astype(np.float32), Scratch(np.float64), "found")
    assert (rest == whole).all()


def test_what_lies_outside_int8_is_clamped_and_what_lies_between_goes_to_the_even_one() -> None:
    matrix = Matrix(1, 1, exact(PANELS), Workers(1))
    matrix.fill(0, [(0, np.ones((1, 1), np.int8))])
    linear = Int8Linear(matrix, None, 0.5, 3, np.zeros(1), np.ones(1))
    x = np.array([[-1e9], [-np.inf], [0.25], [0.75], [-0.25], [62.0], [62.5], [np.inf], [np.nan]], np.float32)
    found = linear.multiply(x, Scratch(), "found")[:, 0]
    np.testing.assert_array_equal(found, [-128, -128, 4, 4, 2, 127, 127, 127, np.nan])


class ByTheFormulas(Instead):
    """The formulas of weights.quantised in float64, whole numbers added up in int64."""

    def __init__(self, model: Model) -> None:
        self._linears = {name: model.linear(name) for name in model.config.quantised}
        self._kv = [model.kv_scales(i) for i in range(model.config.num_layers)]

    def linear(self, name: str, x: Float64) -> Float64 | None:
        own = self._linears.get(name)
        if own is None:
            return None
        if isinstance(own, W8A16):
            weight = (own.weight.astype(np.float64) - own.weight_offset) * own.weight_scale
            return np.asarray(x @ weight.T + own.bias())
        xq = np.clip(np.rint(x / own.input_scale + own.input_offset), -128, 127).astype(np.int64)
        sums = xq @ own.weight.T.astype(np.int64) + own.quant_bias
        return np.asarray(sums * own.deq_scale.astype(np.float64))

    def kept(self, layer: int, keys: Float64, values: Float64) -> tuple[Float64, Float64]:
        own = self._kv[layer]
        if own is None:
            return keys, values
        keys = _there_and_back(keys, own.key_scale, own.key_offset)
        return keys, _there_and_back(values, own.value_scale, own.value_offset)


def _there_and_back(x: Float64, scale: Float32, offset: Float32) -> Float64:
    scale, offset = scale.reshape(x.shape[1:]), offset.reshape(x.shape[1:])
    return np.asarray((np.clip(np.rint(x / scale + offset), -128, 127) - offset) * np.float64(scale))


MIXED: dict[str, Kind] = {
    "self_attn.q_proj": "W8A8",
    "self_attn.k_proj": "W8A16",
    "self_attn.o_proj": "W8A8S",
    "mlp.up_proj": "W8A8",
    "mlp.down_proj": "W8A16",
}


def made(folder: Path, case: str) -> Model:
    """A quantised model, of the shape and with the linears of this case."""
    config, kinds, norm_bias, int8_cache = CASES[case]
    spec = str(write(folder / "float", config))
    linears = float_linears({}, config["num_hidden_layers"])
    if isinstance(kinds, str):
        found = dict.fromkeys(linears, kinds)
    else:  # and layer 1 all of floats
        own = {name: kinds.get(name.split(".", 3)[3]) for name in linears if ".1." not in name}
        found = {name: kind for name, kind in own.items() if kind is not None}
    return open_model(str(eight_bits.write(folder / "made", spec, found, kv=int8_cache, norm_bias=norm_bias)))


CASES: dict[str, tuple[dict[str, Any], Kind | dict[str, Kind], bool, bool]] = {
    "w8a8": (LLAMA, "W8A8", False, False),
    "w8a8, biases, tied": (QWEN2, "W8A8", False, False),
    "w8a8, norms with biases": (LLAMA, "W8A8", True, False),
    "w8a16, norms with biases": (QWEN2, "W8A16", True, False),
    "mixed, norms with biases, int8 cache": (LLAMA, MIXED, True, True),
    "one float linear fewer, norms with biases": (LLAMA, {"mlp.gate_proj": "W8A16"}, True, False),
    "floats, int8 cache": (QWEN2, {}, False, True),
}


def pieces(engine: Engine, ids: npt.NDArray[np.int64]) -> list[tuple[int, Float32]]:
    """The logits after the prompt whole, after its second piece, and after each of two tokens more."""
    num = len(ids)
    found = [(num - 2, step(engine, TABLES, (ids[: num - 2], num - 2))[0])]
    step(engine, TABLES, (ids[:40], 40))
    for start, end in ((40, num - 2), (num - 2, num - 1), (num - 1, num)):
        found.append((end, step(engine, TABLES, (ids[start:end], end))[0]))
    return found


@pytest.mark.parametrize("case", CASES)
def test_in_float64_the_logits_are_those_of_the_formulas_to_the_last_digits(tmp_path: Path, case: str) -> None:
    model = made(tmp_path, case)
    (ids,) = random_ids(model, 90)
    expected = reference(model, ids, np.float32, ByTheFormulas(model))
    engine = engines.get("numpy_llama", model, EngineSettings(num_blocks=8, threads=2, dtype="float64"))
    as_floats = any(isinstance(linear, W8A16) for linear in map(model.linear, model.config.quantised))  # of float32
    for end, found in pieces(engine, ids):
        assert abs(found - expected[end - 1]).max() < (1e-6 if as_floats else 1e-10)
    engine.close()


@pytest.mark.parametrize("case", ["w8a8, norms with biases", "mixed, norms with biases, int8 cache"])
def test_in_float32_they_are_off_by_no_more_than_some_rounding(tmp_path: Path, case: str) -> None:
    """A difference in the last bit of an activation may make it another int8 number; most are the same."""
    model = made(tmp_path, case)
    (ids,) = random_ids(model, 90)
    expected = reference(model, ids, np.float32, ByTheFormulas(model))
    engine = engines.get("numpy_llama", model, EngineSettings(num_blocks=8, threads=1))
    assert engine.dtype == "float32"
    for end, found in pieces(engine, ids):
        assert abs(found - expected[end - 1]).max() < 0.02 * expected[end - 1].std()
    engine.close()


@pytest.mark.parametrize("case", ["w8a8, biases, tied", "mixed, norms with biases, int8 cache"])
def test_two_ranks_give_the_tokens_of_one(tmp_path: Path, case: str) -> None:
    """A bias that is added to a sum over the ranks is there once, and the zero of the inputs is subtracted by all."""
    model = made(tmp_path, case)
    settings = EngineSettings(num_blocks=8, threads=1)
    one: Engine = engines.get("numpy_llama", model, settings)
    two = Together("numpy_llama", model, settings, 2)
    (ids,) = random_ids(model, 40)
    new = ids
    for end in range(40, 60):
        here, there = (step(engine, TABLES, (new, end))[0] for engine in (one, two))
        assert abs(here - there).max() < 0.02 * here.std()
        assert here.argmax() == there.argmax()
        new = here.argmax(keepdims=True)
    two.close()


def test_numbers_of_16_bits_beside_int8_ones_are_kept_as_such(tmp_path: Path) -> None:
    model = made(tmp_path, "w8a8, norms with biases")
    (ids,) = random_ids(model, 50)
    engine = engines.get("numpy_llama", model, EngineSettings(num_blocks=8, threads=1, dtype="bfloat16"))
    shown: dict[str, Float32] = {}
    engines.watchable(engine).watch(lambda part, tokens, x: shown.update({part: x.copy()}))
    found = step(engine, TABLES, (ids, 50))[0]
    for x in shown.values():
        assert not (np.ascontiguousarray(x).view(np.uint32) & 0xFFFF).any()
    error = abs(found - reference(model, ids, np.float32, ByTheFormulas(model))[-1]).max()
    assert 2**-10 < error < 2**-3


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_is_no_number_is_reported_and_leaves_nothing_behind(tmp_path: Path, num_ranks: int) -> None:
    model = spoilt(made(tmp_path, "mixed, norms with biases, int8 cache"))
    settings = EngineSettings(num_blocks=8, threads=1)
    engine: Engine = engines.get("numpy_llama", model, settings)
    if num_ranks > 1:
        engine = Together("numpy_llama", model, settings, num_ranks)
    reports_and_forgets(engine)


def test_an_int8_cache_has_room_for_four_times_as_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1 << 28))
    settings = EngineSettings(max_batch=1 << 20, threads=1)
    blocks = [
        engines.get("numpy_llama", model, settings).capacity().num_blocks
        for model in (
            open_model("random:tiny"),
            open_model(str(eight_bits.write(tmp_path / "int8", kinds={}, kv=True))),
        )
    ]
    assert blocks == [1 << 13, 1 << 15]
