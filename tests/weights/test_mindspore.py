"""MindFormers with what was converted: its own loader takes the files, and it computes what our engine does."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines
from llmbench.engines import Engine, EngineSettings
from llmbench.weights.model import open_model
from tests.conftest import need
from tests.engines.test_numpy_llama import LLAMA, QWEN2, step, write
from tests.weights.test_convert import weights

pytestmark = pytest.mark.mindspore

MODELS = {"llama": LLAMA | {"head_dim": 16}, "qwen2": QWEN2}
PROMPT = np.arange(3, 40)
TABLES = np.arange(4, dtype=np.int32)[None]
NUM_NEW = 8


@pytest.fixture(params=MODELS, ids=list(MODELS))
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    need("mindformers")
    return write(tmp_path / "hf", MODELS[request.param])


def made(name: str, folder: Path) -> Engine:
    return engines.get(name, open_model(str(folder)), EngineSettings(num_blocks=4, max_batch=1, threads=1))


def greedy(engine: Engine) -> tuple[npt.NDArray[np.float32], list[int]]:
    """The logits behind a prompt, and the text that follows."""
    first = step(engine, TABLES, (PROMPT, len(PROMPT)))
    tokens = [int(first[0].argmax())]
    while len(tokens) < NUM_NEW:
        row = step(engine, TABLES, (np.array(tokens[-1:]), len(PROMPT) + len(tokens)))
        tokens.append(int(row[0].argmax()))
    return first, tokens


@pytest.mark.parametrize(("layout", "form"), [("legacy", "ckpt"), ("legacy", "safetensors")])
def test_mindspores_own_loader_takes_every_parameter(tmp_path: Path, source: Path, layout: str, form: str) -> None:
    expected, text = greedy(made("numpy_llama", source))
    weights("convert", source, tmp_path / "ms", "--to", layout, "--format", form)
    engine: Any = made("mindformers", tmp_path / "ms")
    import mindspore

    for parameter in engine._network.get_parameters():
        parameter.set_data(mindspore.ops.zeros_like(parameter))
    loaded = mindspore.load_checkpoint(str(tmp_path / "ms" / f"model.{form}"), format=form)
    missing, unused = mindspore.load_param_into_net(engine._network, loaded, strict_load=True)
    assert (list(missing), list(unused)) == ([], [])
    found, tokens = greedy(engine)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert tokens == text
    engine.close()


@pytest.mark.parametrize(("layout", "form"), [("qkv-concat-mg", "ckpt"), ("mcore", "safetensors")])
def test_the_mindformers_engine_serves_what_was_converted(tmp_path: Path, source: Path, layout: str, form: str) -> None:
    weights("convert", source, tmp_path / "ms", "--to", layout, "--format", form)
    expected, text = greedy(made("numpy_llama", source))
    engine = made("mindformers", tmp_path / "ms")
    found, tokens = greedy(engine)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    assert tokens == text
    engine.close()
