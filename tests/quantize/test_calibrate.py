"""Calibration: the float forward is that of the engines, and what was broken off goes on as if it had not been."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmbench import engines
from llmbench.accuracy.lane import Lane
from llmbench.errors import InputError
from llmbench.quantize import calibrate, forward, samples, smooth
from llmbench.quantize.calibrate import Settings
from llmbench.quantize.forward import POINTS, Layer
from llmbench.quantize.samples import Samples, Wanted
from llmbench.tokenizer import Tokenizer
from llmbench.weights.config import expected_shapes
from llmbench.weights.model import of_weights, open_model
from llmbench.weights.tensors import widen
from tests.engines.test_numpy_llama import LLAMA, QWEN2, random_ids, write
from tests.quantize.models import Float32, calibrated, logits, opened
from tests.weights import folders


@pytest.mark.parametrize("config", [LLAMA, QWEN2, None], ids=["gqa", "qwen2-tied", "embedded"])
def test_the_float_forward_gives_the_logits_of_the_engine(tmp_path: Path, config: dict[str, Any] | None) -> None:
    model = open_model("embedded" if config is None else str(write(tmp_path, config)))
    ids = random_ids(model, 40)[0].tolist()
    with Lane(model, "numpy_llama", 40, threads=1) as lane:
        np.testing.assert_allclose(logits(model, ids), lane.run(ids, [40]), rtol=0, atol=1e-4)


def drawn(folder: Path, seed: int = 0, dataset: str = "random") -> Samples:
    wanted = Wanted(dataset=dataset, num_samples=6, max_tokens=20, seed=seed)
    return samples.load(wanted, open_model(str(folder)))


@pytest.mark.parametrize("method", ["none", "m4"])
def test_what_is_observed_is_what_goes_into_the_linears_of_the_smoothed_model(
    tmp_path: Path, method: smooth.Method
) -> None:
    found = drawn(write(tmp_path / "model", QWEN2))
    told = calibrate.calibrate(
        opened(tmp_path / "model"), found, Settings(method=method), tmp_path / "work", lambda *_: None
    )
    model = of_weights(told.opened)
    turns = engines.rotations(model.config, 20)
    ends: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for ids in found.ids:
        x = model.tensor("model.embed_tokens.weight")[list(ids)]
        for layer in range(model.config.num_layers):

            def see(point: str, x: Float32, layer: int = layer) -> None:
                ends.setdefault((layer, point), []).append((float(x.min()), float(x.max())))

            x = Layer(model.config, forward.tensors(model, layer), turns)(x, see)
    for layer, record in enumerate(told.records):
        for point, seen in record.points.items():
            expected = np.mean(ends[layer, point], axis=0)
            np.testing.assert_allclose([seen.low, seen.high], expected, rtol=1e-4, err_msg=f"{layer} {point}")


class Killed(Exception):
    """Stands for the end of the process."""


def killing(after: int) -> calibrate.Progress:
    """Progress that ends the process when it is told for the so-manieth time."""
    left = [after]

    def progress(done: int, total: int, what: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    return progress


@pytest.mark.parametrize("after", [3, 13, 20, 35])
def test_what_was_broken_off_goes_on_bit_by_bit(tmp_path: Path, after: int) -> None:
    source = opened(write(tmp_path / "model", QWEN2))
    found = drawn(tmp_path / "model")
    whole = calibrate.calibrate(source, found, Settings(method="m4"), tmp_path / "whole", lambda *_: None)
    with pytest.raises(Killed):
        calibrate.calibrate(source, found, Settings(method="m4"), tmp_path / "part", killing(after))
    told: list[int] = []
    part = calibrate.calibrate(
        source, found, Settings(method="m4"), tmp_path / "part", lambda done, total, what: told.append(done)
    )
    assert told[0] == after // 12 * 12, "layers that were done are not computed again"
    assert part.records == whole.records
    assert expected_shapes(part.opened.config) == {name: x.shape for name, x in part.opened.tensors.items()}
    for name, tensor in whole.opened.tensors.items():
        rows = (0, tensor.shape[0])
        assert part.opened.tensors[name].rows(*rows).tobytes() == tensor.rows(*rows).tobytes(), name
    for layer in range(3):
        for point in POINTS:
            np.testing.assert_array_equal(part.rows(layer, point), whole.rows(layer, point))
    assert sorted(path.name for path in (tmp_path / "part").iterdir()) == sorted(
        path.name for path in (tmp_path / "whole").iterdir()
    )


def test_a_damaged_state_is_not_gone_on_with(tmp_path: Path) -> None:
    source, found = opened(write(tmp_path / "model", LLAMA)), drawn(tmp_path / "model")
    with pytest.raises(Killed):
        calibrate.calibrate(source, found, Settings(), tmp_path / "work", killing(15))
    path = tmp_path / "work" / "hidden-000.npy"
    path.write_bytes(path.read_bytes().replace(b"'fortran", b"(fortran"))
    with pytest.raises(InputError, match=r"hidden-000.npy: cannot read it .*--restart begins the calibration anew"):
        calibrate.calibrate(source, found, Settings(), tmp_path / "work", lambda *_: None)


@pytest.mark.parametrize("what", ["samples", "settings", "model"])
def test_what_was_broken_off_is_not_gone_on_with_otherwise(tmp_path: Path, what: str) -> None:
    write(tmp_path / "model", LLAMA)
    source, found, settings = opened(tmp_path / "model"), drawn(tmp_path / "model"), Settings()
    with pytest.raises(Killed):
        calibrate.calibrate(source, found, settings, tmp_path / "work", killing(15))
    if what == "samples":
        found = drawn(tmp_path / "model", seed=1)
    elif what == "settings":
        settings = Settings(alpha=0.6)
    else:
        source = opened("random:tiny,seed=1")
    with pytest.raises(InputError, match=f"broken off, with {what} .*--restart begins anew"):
        calibrate.calibrate(source, found, settings, tmp_path / "work", lambda *_: None)


def test_the_same_seed_gives_the_same_and_another_other_samples(tmp_path: Path) -> None:
    model = open_model("embedded")
    one, same, other = (samples.load(Wanted(num_samples=4, seed=seed), model) for seed in (1, 1, 2))
    assert one == same
    assert one.sha256 != other.sha256
    assert one.num_tokens == sum(map(len, one.ids))


def test_a_sample_is_a_prompt_and_its_answer_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "calib.json"
    path.write_text(json.dumps([{"instruction": "Name three colors", "input": "", "output": "Red, green and blue."}]))
    model = open_model("embedded")
    (ids,) = samples.load(Wanted(dataset=str(path)), model).ids
    assert model.tokenizer_path is not None
    text = Tokenizer.from_file(model.tokenizer_path).decode(list(ids))
    assert "Name three colors" in text
    assert "blue" in text
    assert samples.load(Wanted(dataset=str(path), max_tokens=5), model).ids == (ids[:5],)


def test_the_calibration_files_of_mindie_are_read(tmp_path: Path) -> None:
    path = tmp_path / "teacher_qualification.jsonl"
    lines = [{"id": i, "inputs_pretokenized": f"Question {i}", "choices_pretokenized": []} for i in range(3)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = samples.load(Wanted(dataset=str(path), num_samples=9), open_model("embedded"))
    assert len(found.ids) == 3
    assert "3 samples" in found.description


@pytest.mark.parametrize(
    ("dataset", "content", "message"),
    [
        ("nothing.jsonl", None, "no such dataset file"),
        ("empty.jsonl", "", "no record in it"),
        ("broken.jsonl", "{", "line 1: not JSON"),
        ("other.jsonl", '{"text": "a"}', "prompt is missing"),
        ("alpaka", None, "did you mean|Did you mean"),
        ("synthetic:prompts=3", None, "--calib synthetic: prompts: unknown key"),
        ("ceval:nowhere", None, "no file SUBJECT_val.csv"),
    ],
)
def test_a_dataset_that_is_none_is_refused(tmp_path: Path, dataset: str, content: str | None, message: str) -> None:
    path = tmp_path / dataset
    if content is not None:
        path.write_text(content)
    name = str(path) if dataset.endswith(".jsonl") else dataset
    with pytest.raises(InputError, match=message):
        samples.load(Wanted(dataset=name), open_model("embedded"))


def test_ceval_and_mmlu_can_be_what_flows() -> None:
    golden = Path(__file__).parents[1] / "golden" / "evals"
    model = open_model("embedded")
    assert samples.load(Wanted(dataset=f"ceval:{golden / 'ceval'}", num_samples=2), model).num_tokens > 50
    assert len(samples.load(Wanted(dataset="mmlu", num_samples=2), model).ids) == 2


def test_a_model_without_a_vocabulary_says_what_there_is_instead(tmp_path: Path) -> None:
    model = open_model(str(write(tmp_path, LLAMA)))
    with pytest.raises(InputError, match=r"brings no tokenizer.model: give one with --tokenizer, or .*--calib random"):
        samples.load(Wanted(), model)
    embedded = open_model("embedded").tokenizer_path
    with pytest.raises(InputError, match=r"outside the vocabulary of 301; is .*tokenizer.model the vocabulary of"):
        samples.load(Wanted(tokenizer=embedded), model)


def test_weights_that_are_not_numbers_are_found(tmp_path: Path) -> None:
    tensors = folders.random_tensors(folders.LLAMA, "float32")
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = np.frombuffer(tensors[name].data, np.float32).copy()
    damaged[7] = np.nan
    tensors[name] = tensors[name]._replace(data=damaged.tobytes())
    folders.write_folder(tmp_path / "model", folders.LLAMA, tensors=tensors)
    with pytest.raises(InputError, match="NaN or infinity at down of layer 1"):
        calibrate.calibrate(
            opened(tmp_path / "model"), drawn(tmp_path / "model"), Settings(), tmp_path / "work", lambda *_: None
        )


def test_what_smoothing_does_not_touch_stays_as_it_was_stored(tmp_path: Path) -> None:
    before = opened("embedded")
    after = calibrated(before, tmp_path / "work", "m1").opened
    assert after.tensors["lm_head.weight"] is before.tensors["lm_head.weight"]
    assert after.tensors["model.layers.0.mlp.down_proj.weight"] is before.tensors["model.layers.0.mlp.down_proj.weight"]
    moved = after.tensors["model.layers.0.mlp.up_proj.weight"]
    assert moved.dtype == "float32"
    assert widen(moved.rows(0, 2)).shape == (2, 192)
    assert of_weights(after).config == before.config
