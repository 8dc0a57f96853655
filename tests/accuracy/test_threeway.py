"""`acc threeway`: an engine is as good as its dtype allows, or it is not."""

import math
from pathlib import Path

import numpy as np
import pytest

from llmbench.accuracy import threeway as judging
from llmbench.accuracy.sides import StoreSide
from llmbench.accuracy.threeway import Found, Target, Text, overlap, ratio, threeway
from llmbench.errors import InputError
from llmbench.logits.store import Store, Tier
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.weights.model import Model, open_model
from llmbench.workload.plan import Turn
from tests.accuracy.models import captured, embedded, perturbed
from tests.conftest import need
from tests.engines.test_numpy_llama import QWEN2, hugging_face, write

ENGINE = "numpy_llama"


def texts(num: int = 3) -> list[Text]:
    samples = [Turn(prompt=f"Name {i} red things", output="an apple and a rose, but no sky") for i in range(num)]
    return judging.of_samples(samples, Tokenizer.from_file(embedded_path()), num)


def judged(model: Model, target: Model, engine: str = ENGINE) -> Found:
    return threeway(judging.computed(target, engine, texts(), threads=1), model, texts(), threads=1)


def of_store(folder: Path, model: Model, num_requests: int = 16) -> Found:
    side = StoreSide(Store(folder))
    chosen, num_left_out = judging.of_store(side.store, num_requests)
    return threeway(judging.captured(side, chosen), model, chosen, num_left_out=num_left_out, threads=1)


def test_the_trusted_engine_passes_against_itself() -> None:
    model = open_model("embedded")
    found = judged(model, model)
    assert (found.verdict, found.sigma_ratio) == ("passed", 1.0)
    assert found.overlap == pytest.approx(1.0)
    assert 1e-8 < found.target_errors.sd < 1e-5, "float32 rounds"
    assert found.target_errors == found.trusted_errors
    assert found.num_values == found.num_rows * model.config.vocab_size


@pytest.mark.parametrize("tensor", ["model.layers.2.mlp.down_proj.weight", "model.layers.0.self_attn.q_proj.weight"])
def test_a_copy_whose_weights_are_off_by_a_thousandth_fails(tmp_path: Path, tensor: str) -> None:
    found = judged(open_model("embedded"), perturbed(tmp_path / "copy", embedded(), tensor))
    assert (found.verdict, found.overlap < 0.5) == ("failed", True)
    assert found.sigma_ratio > 20


@pytest.mark.mindspore
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["embedded", "random:tiny"])
def test_mindspore_is_no_worse_than_float32(name: str) -> None:
    need("mindspore")
    model = open_model(name)
    found = judged(model, model, "mindspore_llama")
    assert found.verdict == "passed", found
    assert 0 < found.target_errors.sd < 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_is_no_worse_than_its_dtype_and_worse_than_a_wider_one(tmp_path: Path, dtype: str) -> None:
    folder = write(tmp_path / "model", QWEN2 | {"vocab_size": 2048})
    model = open_model(str(folder))
    logits = hugging_face(folder, dtype)
    chosen = texts(2)
    rows = [logits([np.array(text.ids)])[0][text.num_prompt - 1 :].astype(np.float32) for text in chosen]
    target = Target("transformers", dtype, [(each, None) for each in rows])
    found = threeway(target, model, chosen, threads=1)
    assert found.verdict == "passed", found
    assert found.sigma_limit == (4.0 if dtype == "float32" else 1.0)
    if dtype != "float32":
        assert found.trusted_errors.sd > 1e-4
        assert threeway(target._replace(dtype="float32"), model, chosen, threads=1).verdict == "failed"


@pytest.mark.parametrize("tier", ["full32", "topk"])
def test_a_capture_is_computed_again_from_the_store_alone(tmp_path: Path, tier: Tier) -> None:
    model = open_model("embedded")
    found = of_store(captured(tmp_path / "rows", model, tier), model)
    assert (found.verdict, found.sigma_ratio, found.num_rows, found.num_left_out) == ("passed", 1.0, 18, 0)
    assert found.num_values == 18 * (model.config.vocab_size if tier == "full32" else 64 + 32)
    copy = perturbed(tmp_path / "copy", embedded(), "model.layers.1.self_attn.v_proj.weight")
    found = of_store(captured(tmp_path / "off", copy, tier), model, 2)
    assert (found.verdict, found.num_rows) == ("failed", 12)


def test_rows_behind_an_unknown_token_are_left_out_and_counted(tmp_path: Path) -> None:
    model = open_model("random:tiny")
    folder = captured(tmp_path / "rows", model)
    side = StoreSide(Store(folder))
    side.store.table["token"][2] = -1  # r0, step 2
    chosen, num_left_out = judging.of_store(side.store, 16)
    assert (num_left_out, chosen[0].steps.tolist(), len(chosen[1].steps)) == (3, [0, 1, 2], 6)
    found = threeway(judging.captured(side, chosen), model, chosen, num_left_out=num_left_out, threads=1)
    assert (found.verdict, found.num_rows, found.num_left_out) == ("passed", 15, 3)
    side.close()


def test_what_a_capture_lacks_is_said(tmp_path: Path) -> None:
    folder = captured(tmp_path / "rows", open_model("random:tiny"), "fp")
    with pytest.raises(InputError, match="tier fp keeps too little of a row"):
        judging.of_store(Store(folder), 16)
    other = captured(tmp_path / "other", open_model("random:tiny"))
    requests = other / "part-0000.requests.jsonl"
    requests.write_text("".join(line.split(',"ids"')[0] + "}\n" for line in requests.read_text().splitlines()))
    with pytest.raises(InputError, match="does not know the prompts"):
        judging.of_store(Store(other), 16)


def test_a_value_that_is_no_number_fails() -> None:
    model, chosen = open_model("random:tiny"), texts(1)
    target = judging.computed(model, ENGINE, chosen, threads=1)
    target.rows[0][0][1, 7] = np.nan
    found = threeway(target, model, chosen, threads=1)
    assert (found.verdict, found.sigma_ratio, found.overlap) == ("failed", math.inf, 0.0)
    assert found.worst == ("sample 0", 1)


def test_a_dtype_that_nobody_trusted_computes_in_is_refused() -> None:
    model, chosen = open_model("random:tiny"), texts(1)
    target = judging.computed(model, ENGINE, chosen, threads=1)._replace(dtype="int8")
    with pytest.raises(InputError, match="engine numpy_llama: dtype 'int8': on one rank it has float32, float64"):
        threeway(target, model, chosen, threads=1)


@pytest.mark.parametrize("wider", [1.0, 1.2, 1.25, 2.0, 30.0])
def test_the_overlap_of_two_normal_distributions_is_the_known_one(wider: float) -> None:
    """sqrt(2 r / (1 + r²)) for standard deviations in a ratio of r around the same mean (Bhattacharyya 1943)."""
    rng = np.random.default_rng(0)
    one, other = (rng.normal(0, 1e-6 * scale, 400_000).astype(np.float32) for scale in (1.0, wider))
    assert ratio(other, one) == pytest.approx(wider, rel=0.01)
    assert overlap(other, one) == pytest.approx(math.sqrt(2 * wider / (1 + wider**2)), abs=0.01)
    assert (overlap(other, one) >= judging.OVERLAP) == (wider < 1.22)


def test_errors_of_nothing_are_alike_and_those_of_something_are_not() -> None:
    nothing, something = np.zeros(10, np.float32), np.array([0.0, 1e-3] * 5, np.float32)
    assert (ratio(nothing, nothing), overlap(nothing, nothing)) == (1.0, 1.0)
    assert (ratio(something, nothing), ratio(nothing, something)) == (math.inf, 0.0)
    assert overlap(something, nothing) < judging.OVERLAP
