"""What layers give: each part of every engine that shows them is that of the architecture, and of transformers."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines
from llmbench.accuracy import lane
from llmbench.accuracy.lane import Lane
from llmbench.engines import EngineSettings, Intp, Watchable
from llmbench.errors import InputError, NotInstalled
from llmbench.weights.model import Model, open_model
from tests.engines.test_numpy_llama import LLAMA, QWEN2, random_ids, write

Float32 = npt.NDArray[np.float32]
TOLERANCE = 1e-4
NAMES = ["numpy_llama", "numba_llama", pytest.param("mindspore_llama", marks=pytest.mark.mindspore)]


class Parts:
    """What was shown, by part: rows by their places, all of which must be new ones."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[int, Float32]] = {}

    def keep(self, part: str, positions: Intp, x: Float32) -> None:
        assert x.dtype == np.float32
        rows = self.rows.setdefault(part, {})
        assert not rows.keys() & set(positions.tolist())
        rows |= dict(zip(positions.tolist(), x.copy(), strict=True))

    def array(self, part: str) -> Float32:
        return np.array([row for _, row in sorted(self.rows[part].items())])


def opened(model: Model, name: str, length: int) -> Lane:
    try:
        return Lane(model, name, length, threads=1)
    except NotInstalled as error:
        pytest.skip(str(error))


def hidden_states(folder: Path, ids: list[int]) -> dict[str, Float32]:
    """What transformers' modules give, by our names."""
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, about themselves
        transformers = pytest.importorskip("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: dict[str, Float32] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            found[name] = x.detach().numpy().reshape(len(ids), -1)

        return hook

    model.model.embed_tokens.register_forward_hook(keep("embedding"))
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_hook(keep(f"layers.{i}.added"))
        layer.register_forward_hook(keep(f"layers.{i}.mlp"))
    model.model.norm.register_forward_hook(keep("norm"))
    model.lm_head.register_forward_hook(keep("lm_head"))
    with torch.inference_mode():
        model(torch.tensor([ids]))
    before = found["embedding"]
    for i in range(len(model.model.layers)):
        found[f"layers.{i}.attention"] = before + found.pop(f"layers.{i}.added")
        before = found[f"layers.{i}.mlp"]
    return found


@pytest.mark.oracle
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        pytest.param("numpy_llama", LLAMA, id="numpy_llama-gqa"),
        pytest.param("numpy_llama", QWEN2, id="numpy_llama-qwen2"),
        pytest.param("numba_llama", LLAMA, id="numba_llama-gqa"),
        pytest.param("numba_llama", QWEN2, id="numba_llama-qwen2"),
        pytest.param("mindspore_llama", QWEN2, id="mindspore_llama-qwen2", marks=pytest.mark.mindspore),
    ],
)
def test_every_part_is_that_of_hugging_face(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    folder = write(tmp_path / "model", config | {"num_hidden_layers": 2})  # MindSpore compiles each part of each
    model = open_model(str(folder))
    ids = random_ids(model, 29)[0].tolist()
    expected = hidden_states(folder, ids)
    with opened(model, name, 29) as own:
        for lengths in (lane.served(20, 29), [17, 11, 1]):
            parts = Parts()
            own.run(ids, lengths, show=parts.keep)
            assert parts.rows.keys() == expected.keys()
            for part, x in expected.items():
                np.testing.assert_allclose(parts.array(part), x, rtol=0, atol=TOLERANCE, err_msg=f"{part}, {lengths}")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_being_watched_changes_nothing_and_what_is_written_into_a_part_is_gone_on_with(name: str) -> None:
    """The hidden states of one sequence, put into another one, give the logits of the first."""
    model = open_model("random:tiny")
    ids, others = (each.tolist() for each in random_ids(model, 12, 12))
    with opened(model, name, 12) as own:
        expected = own.run(ids, lane.served(5, 12))
        kept = Parts()
        watched = own.run(ids, lane.served(5, 12), show=kept.keep)
        np.testing.assert_allclose(watched, expected, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(kept.array("lm_head"), expected, rtol=0, atol=TOLERANCE)
        for part in kept.rows:

            def replace(shown: str, positions: Intp, x: Float32, part: str = part) -> None:
                if shown == part:
                    x[:] = kept.array(part)[positions]

            found = own.run(others, lane.served(5, 12), show=replace)
            np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=part)
        num = sum(map(len, kept.rows.values()))
        unseen = own.run(others, lane.served(5, 12))
        assert abs(unseen - expected).max() > 0.1
        assert sum(map(len, kept.rows.values())) == num, "nothing is shown any more"


def test_an_engine_that_shows_nothing_says_so() -> None:
    stub = engines.get("stub", open_model("random:tiny"), EngineSettings())
    assert not isinstance(stub, Watchable)
    with pytest.raises(InputError, match="engine stub: it does not show what its layers compute"):
        engines.watchable(stub)
