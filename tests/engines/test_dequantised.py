"""Engines that know nothing of 8 bits compute what the weights of a quantised model stand for, and all its biases."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines
from llmbench.engines import EngineSettings
from llmbench.errors import InputError, NotInstalled
from llmbench.weights.model import Model, open_model
from llmbench.weights.quantised import Kind
from tests.engines.test_mindspore import _scored
from tests.engines.test_numpy_llama import LLAMA, QWEN2, random_ids, reference, write
from tests.together import Together
from tests.weights import eight_bits

TOLERANCE = 2e-4
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
    model = quantised(tmp_path, QWEN2, kind, norm_bias=True)
    (ids,) = random_ids(model, 40)
    found = logits("mindspore_llama", model, ids)
    np.testing.assert_allclose(found, reference(model, ids, np.float32), rtol=0, atol=TOLERANCE)


def test_two_ranks_of_mindspore_add_their_parts_of_the_biases_to_the_same(tmp_path: Path) -> None:
    model = quantised(tmp_path, QWEN2, "W8A8", norm_bias=True)
    (ids,) = random_ids(model, 40)
    found = logits("mindspore_llama", model, ids, 2)
    np.testing.assert_allclose(found, reference(model, ids, np.float32), rtol=0, atol=TOLERANCE)


def test_mindformers_computes_a_quantised_llama_and_refuses_biases_that_its_llama_has_not(tmp_path: Path) -> None:
    plain = quantised(tmp_path / "plain", LLAMA | {"head_dim": 16}, "W8A8", norm_bias=False)
    (ids,) = random_ids(plain, 40)
    found = logits("mindformers", plain, ids)
    np.testing.assert_allclose(found, reference(plain, ids, np.float32), rtol=0, atol=TOLERANCE)
    biased = quantised(tmp_path / "biased", LLAMA | {"head_dim": 16}, "W8A8", norm_bias=True)
    with pytest.raises(InputError, match=r"engine mindformers: its Llama has no .*bias; --engine mindspore_llama"):
        logits("mindformers", biased, ids)
