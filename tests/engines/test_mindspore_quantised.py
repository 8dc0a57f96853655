"""Quantised models in the MindSpore engines: what the weights stand for; stand-ins for Ascend's operators."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines
from llmbench.engines import EngineSettings
from llmbench.errors import InputError, NotInstalled
from llmbench.weights.model import Model, open_model
from llmbench.weights.quantised import Kind
from tests.conftest import need
from tests.engines.test_mindspore import _scored
from tests.engines.test_numpy_llama import LLAMA, QWEN2, random_ids, reference, write
from tests.together import Together
from tests.weights import eight_bits

TOLERANCE = 2e-4
SMALL = QWEN2 | {"num_hidden_layers": 1}  # a graph takes its time to compile
SMALL_LLAMA = LLAMA | {"num_hidden_layers": 1, "head_dim": 16}
SETTINGS = EngineSettings(num_blocks=16, max_batch=4, threads=1)
TABLES = np.random.default_rng(0).permutation(16).astype(np.int32)[None]

pytestmark = pytest.mark.mindspore


def quantised(path: Path, config: dict[str, object], kind: Kind, *, norm_bias: bool) -> Model:
    """A model of a kind, written and opened."""
    path.mkdir(exist_ok=True)
    write(path / "float", config)
    kinds = eight_bits.every_linear(open_model(str(path / "float")).config, kind)
    return open_model(str(eight_bits.write(path / "q", str(path / "float"), kinds, norm_bias=norm_bias)))


def logits(name: str, model: Model, ids: npt.NDArray[np.int64], num_ranks: int = 1) -> npt.NDArray[np.float32]:
    """float32 [T, vocab]."""
    try:
        engine = engines.get(name, model, SETTINGS) if num_ranks == 1 else Together(name, model, SETTINGS, num_ranks)
    except NotInstalled as error:
        pytest.skip(str(error))
    found = _scored(engine, TABLES, ids)
    engine.close()
    return found


@pytest.mark.parametrize("kind", ["W8A8", "W8A16"])
def test_mindspore_computes_what_the_dequantised_weights_and_biases_say(tmp_path: Path, kind: Kind) -> None:
    model = quantised(tmp_path, SMALL, kind, norm_bias=True)
    (ids,) = random_ids(model, 40)
    found = logits("mindspore_llama", model, ids)
    np.testing.assert_allclose(found, reference(model, ids, np.float32), rtol=0, atol=TOLERANCE)


def test_two_ranks_of_mindspore_add_their_parts_of_the_biases_to_the_same(tmp_path: Path) -> None:
    model = quantised(tmp_path, SMALL, "W8A8", norm_bias=True)
    (ids,) = random_ids(model, 40)
    found = logits("mindspore_llama", model, ids, 2)
    np.testing.assert_allclose(found, reference(model, ids, np.float32), rtol=0, atol=TOLERANCE)


def test_mindformers_computes_a_quantised_llama_and_refuses_biases_that_its_llama_has_not(tmp_path: Path) -> None:
    plain = quantised(tmp_path / "plain", SMALL_LLAMA, "W8A8", norm_bias=False)
    (ids,) = random_ids(plain, 40)
    found = logits("mindformers", plain, ids)
    np.testing.assert_allclose(found, reference(plain, ids, np.float32), rtol=0, atol=TOLERANCE)
    biased = quantised(tmp_path / "biased", SMALL_LLAMA, "W8A8", norm_bias=True)
    with pytest.raises(InputError, match=r"engine mindformers: its Llama has no .*bias; --engine mindspore_llama"):
        logits("mindformers", biased, ids)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Stand-ins for Ascend's operators, from plain ones and as documented; `wrong` makes them leave out the bias."""
    need("mindspore")
    from llmbench.engines import _mindspore_home as home

    home.start(1)
    import mindspore as ms
    from mindspore import nn, ops
    from mindspore.ops import auto_generate

    flags = {"wrong": False}

    class Quant(nn.Cell):  # type: ignore[misc]
        def construct(self, x: Any, scale: Any, offset: Any, sqrt: bool, mode: str, kind: Any) -> Any:
            rounded = ops.round(x.astype(ms.float32) * scale.astype(ms.float32) + offset.astype(ms.float32))
            return ops.clamp(rounded, -128, 127).astype(kind)

    class Product(nn.Cell):  # type: ignore[misc]
        def __init__(self, transpose_x1: bool, transpose_x2: bool, dtype: Any) -> None:
            super().__init__()
            assert (transpose_x1, transpose_x2) == (False, True)
            self.dtype, self.share = dtype, 0.0 if flags["wrong"] else 1.0

        def construct(self, x1: Any, x2: Any, scale: Any, offset: Any, bias: Any, per_token: Any) -> Any:
            if scale.dtype != ms.float32:
                raise TypeError("this stand-in takes scales of float32")
            sums = ops.matmul(x1.astype(ms.float32), x2.astype(ms.float32).T) + self.share * bias.astype(ms.float32)
            return (sums * scale).astype(self.dtype)

    class WeightProduct(nn.Cell):  # type: ignore[misc]
        def __init__(self, transpose_x: bool, transpose_weight: bool) -> None:
            super().__init__()
            assert (transpose_x, transpose_weight) == (False, True)
            self.sign = -1.0 if flags["wrong"] else 1.0

        def construct(
            self, x: Any, weight: Any, scale: Any, offset: Any, q_scale: Any, q_offset: Any, bias: Any
        ) -> Any:
            shifted = weight.astype(x.dtype) + self.sign * ops.reshape(offset, (-1, 1))
            return ops.matmul(x, (shifted * ops.reshape(scale, (-1, 1))).T)

    monkeypatch.setattr(auto_generate, "QuantV2", Quant)
    monkeypatch.setattr(auto_generate, "QuantBatchMatmul", Product)
    monkeypatch.setattr(auto_generate, "WeightQuantBatchMatmul", WeightProduct)
    return flags


def test_operators_are_taken_where_their_numbers_are_right_and_never_where_they_are_not(
    operators: dict[str, bool], tmp_path: Path
) -> None:
    from llmbench.engines import _mindspore_probe as probe

    config = quantised(tmp_path, SMALL, "W8A8", norm_bias=False).config
    assert probe.choose(config).w8a8 == "float32", "which is tried after int64"
    kinds: dict[str, Kind] = dict.fromkeys(config.quantised, "W8A16")
    sixteen = msgspec.structs.replace(config, quantised=kinds)
    assert (probe.choose(sixteen).w8a8, probe.choose(sixteen).w8a16) == (None, True)
    operators["wrong"] = True
    assert probe.choose(config).w8a8 is None
    assert not probe.choose(sixteen).w8a16
    plain = msgspec.structs.replace(config, quantised={})
    assert probe.choose(plain) == probe.choose(config), "nothing is tried that is not needed"


def test_there_are_no_such_operators_on_the_cpu() -> None:
    need("mindspore")
    from llmbench.engines import _mindspore_home as home

    home.start(1)
    from llmbench.engines import _mindspore_probe as probe

    if probe.device() != "CPU":
        pytest.skip(f"MindSpore runs on {probe.device()}")
    config = open_model("random:tiny").config
    for kind in ("W8A8", "W8A16"):
        chosen = probe.choose(msgspec.structs.replace(config, quantised={"model.layers.0.mlp.up_proj": kind}))
        assert (chosen.w8a8, chosen.w8a16) == (None, False)


@pytest.mark.parametrize("kind", ["W8A8", "W8A16"])
def test_a_model_by_the_operators_is_near_the_dequantised_one(
    operators: dict[str, bool], tmp_path: Path, kind: Kind
) -> None:
    model = quantised(tmp_path, SMALL, kind, norm_bias=True)
    (ids,) = random_ids(model, 40)
    found, exact = logits("mindspore_llama", model, ids), reference(model, ids, np.float32)
    error = np.sqrt(np.mean((found - exact) ** 2)) / exact.std()
    if kind == "W8A16":
        assert error < 1e-4, "only the weights are quantised"
    else:
        assert 1e-3 < error < 0.1, "activations are, too"
