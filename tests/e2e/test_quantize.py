"""`llmbench quantize` as a user runs it: killed and gone on with, read back, refused, and what is left of accuracy."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner

from llmbench.cli import app
from llmbench.errors import InputError
from llmbench.quantize import sparse
from llmbench.weights import compress, sizes
from llmbench.weights.model import open_model
from llmbench.weights.quantised import W8A8, W8A16
from tests.conftest import ROOT, poll

FEW = ("--num-samples", 8, "--max-tokens", 64)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "llmbench", "quantize", *map(str, words)]


def run(*words: object) -> str:
    """In this process; what it printed."""
    done = CliRunner().invoke(app(), ["quantize", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "w8a8"
    run("embedded", "-o", out, *FEW, "--no-rollback-down", "--disable-level", "L2", "--kv", "int8")
    return out


def test_a_quantised_model_is_a_model(made: Path) -> None:
    model = open_model(str(made))
    assert set(model.config.quantised.values()) == {"W8A8"}
    assert model.config.kv_cache == "int8"
    before = open_model("embedded")
    for name in model.config.quantised:
        linear = model.linear(name)
        assert isinstance(linear, W8A8)
        assert linear.weight.shape == before.shape(f"{name}.weight")
    scales = model.kv_scales(0)
    assert scales is not None
    assert (scales.key_scale > 0).all()


def test_linears_of_one_input_share_its_scale(made: Path) -> None:
    model = open_model(str(made))
    for layer in range(model.config.num_layers):
        for group in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            found = [model.linear(f"model.layers.{layer}.{name}") for name in group]
            pairs = {(one.input_scale, one.input_offset) for one in found if isinstance(one, W8A8)}
            assert len(pairs) <= 1
            assert len({type(one) for one in found}) == 1


def test_the_report_says_what_became_of_each_linear(made: Path) -> None:
    told: dict[str, Any] = json.loads((made / "quantisation.json").read_text())
    assert len(told["linears"]) == 35
    floats = [row for row in told["linears"] if row["kind"] == "FLOAT"]
    assert floats
    assert all("--disable-level L2: score" in row["why"] for row in floats)
    model = open_model(str(made))
    assert {row["name"] for row in told["linears"] if row["kind"] == "W8A8"} == set(model.config.quantised)
    assert told["float_layers"] == sorted({int(row["name"].split(".")[2]) for row in floats})
    assert all(0 < row["relative_error"] < 0.1 for row in told["linears"] if row["kind"] == "W8A8")
    assert told["bytes_after"] < told["bytes_before"]
    assert told["model_sha256"] == open_model("embedded").identity()
    assert {"llmbench", "numpy"} <= told["versions"].keys()
    assert (told["seed"], told["num_samples"]) == (0, 8)


def test_matrices_that_stay_float_keep_their_dtype_and_norms_that_were_moved_their_bits(made: Path) -> None:
    model = open_model(str(made))
    dtypes = {name: tensor.dtype for name, tensor in model.stored().items()}
    floats = [
        name for name in model.names() if name.endswith("proj.weight") and name[:-7] not in model.config.quantised
    ]
    assert floats
    assert {dtypes[name] for name in [*floats, "lm_head.weight"]} == {"float16"}
    assert dtypes["model.layers.0.input_layernorm.weight"] == "float32"


def test_the_smoothed_float_model_lies_beside_it(made: Path) -> None:
    anti, before = open_model(str(made / "anti_weight")), open_model("embedded")
    name = "model.layers.0.input_layernorm.weight"
    assert anti.config == before.config.__class__(**{**_fields(before.config), "dtype": "float32"})
    assert not np.array_equal(anti.tensor(name), before.tensor(name))


def _fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


def test_the_table_shows_it_and_json_has_it(tmp_path: Path) -> None:
    printed = run("embedded", "-o", tmp_path / "a", *FEW, "--kind", "w8a16", "--anti", "none")
    assert "4.mlp.down_proj" in printed
    assert "35 of 35 linears of 8 bits" in printed
    assert not (tmp_path / "a" / "anti_weight").exists()
    assert isinstance(open_model(str(tmp_path / "a")).linear("model.layers.0.mlp.up_proj"), W8A16)
    told = json.loads(run("embedded", "-o", tmp_path / "b", *FEW, "--kind", "w8a16", "--anti", "none", "--json"))
    assert told == json.loads((tmp_path / "b" / "quantisation.json").read_text())
    assert (tmp_path / "a" / "quantisation.json").read_bytes() == (tmp_path / "b" / "quantisation.json").read_bytes()


def test_killed_and_given_again_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    words = ("embedded", "--num-samples", 48, "--anti", "m4")
    broken, whole = tmp_path / "broken" / "out", tmp_path / "whole" / "out"
    process = subprocess.Popen(command(*words, "-o", broken), cwd=ROOT, stdout=subprocess.DEVNULL)
    work = broken.parent / ".out.calibration"
    assert poll((work / "layer-001.json").exists, 60)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL
    assert not broken.exists()
    begun = sorted(path.name for path in work.glob("layer-*.json"))
    assert len(begun) < 5, "it was killed before its end"
    for out in (broken, whole):
        subprocess.run(command(*words, "-o", out), cwd=ROOT, check=True, capture_output=True)
    assert contents(broken) == contents(whole)
    assert not work.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "no such folder"),
        (["embedded", "--calib", "alpaka"], "unknown dataset"),
        (["embedded", "--anti", "m5"], "--anti m5: CBQ"),
        (["embedded", "--anti", "m7"], "--anti: unknown method"),
        (["embedded", "--anti", "m3", "--alpha", "0.3"], "--alpha: m3 has none"),
        (["embedded", "--act", "4"], "--act: unknown observer"),
        (["embedded", "--kind", "w4a8"], "--kind: unknown kind"),
        (["embedded", "--kv", "fp8"], "--kv: unknown cache"),
        (["embedded", "--form", "gguf"], "--form: unknown form"),
        (["embedded", "--dtype", "int8"], "--dtype: unknown dtype"),
        (["embedded", "--disable-level", "6"], "--disable-level 6: write L and a number"),
        (["embedded", "--disable-level", "L99"], "the model has 15 inputs of linears that are not float already"),
        (["embedded", "--disable-level", "L15"], "every linear would stay float"),
        (["embedded", "--float-layers", "5"], "the model has layers 0 to 4"),
        (["embedded", "--float-layers", "a"], "write numbers of layers"),
        (["embedded", "--float-linears", "["], "not a regular expression"),
        (["embedded", "--float-linears", "lm_head"], "no linear matches"),
        (["embedded", "--asymmetric"], "--asymmetric: of the weights of W8A16"),
        (["random:110m"], "brings no tokenizer.model"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        run(*words, *FEW, "-o", tmp_path / "out")
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(InputError, match="there is something in it already"):
        run("embedded", "-o", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_quantised_model_is_not_quantised_again(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is quantised already"):
        run(made, "-o", tmp_path / "out")


def test_a_calibration_of_other_settings_is_not_taken_up_unless_begun_anew(tmp_path: Path) -> None:
    work = tmp_path / ".out.calibration"
    work.mkdir()
    (work / "calibration.json").write_text('{"model": "another"}')
    with pytest.raises(InputError, match="--restart begins anew"):
        run("embedded", "-o", tmp_path / "out", *FEW)
    run("embedded", "-o", tmp_path / "out", *FEW, "--restart")
    assert (tmp_path / "out" / "quantisation.json").exists()


def test_a_sparse_model_is_a_w8a8_model_on_a_grid_and_comes_back_from_its_compressed_form(
    tmp_path: Path,
) -> None:
    out = tmp_path / "sparse"
    said = run("embedded", "-o", out, *FEW, "--sparse", "--fraction", 0.05, "--nonuniform", "--no-compensate")
    assert "outliers" in said
    model = open_model(str(out))
    assert set(model.config.quantised.values()) == {"W8A8S"}
    name = "model.layers.0.mlp.up_proj"
    linear = model.linear(name)
    assert isinstance(linear, W8A8)
    weight = open_model(str(out / "anti_weight")).tensor(f"{name}.weight")
    expected = sparse.quantised(weight, sparse.Knobs(fraction=0.05, nonuniform=True, compensate=False))
    assert np.array_equal(linear.weight, expected.values)
    assert np.allclose(linear.deq_scale, linear.input_scale * expected.scale, rtol=1e-6)
    report = json.loads((out / "quantisation.json").read_text())
    row = next(row for row in report["linears"] if row["name"] == name)
    assert row["sparse"] == msgspec.to_builtins(sparse.figures(weight, expected))
    assert 0.1 > row["sparse"]["error"] > 0.05
    compress.compress(out, tmp_path / "small", compress.Wanted(), lambda *_: None)
    assert sizes.of(str(tmp_path / "small")).linears < sizes.of(str(out)).linears - 600_000
    compress.decompress(tmp_path / "small", tmp_path / "back", lambda *_: None)
    there = {path: data for path, data in contents(out).items() if not path.startswith("anti_weight")}
    assert contents(tmp_path / "back") == there
    with pytest.raises(InputError, match="its weights are compressed"):
        open_model(str(tmp_path / "small"))


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (("--fraction", 0.1), "--fraction, --sigma-factor, --nonuniform, --no-compensate: of W8A8S, not W8A8"),
        (("--sparse", "--fraction", 0.7), "--fraction: must be from 0 to 0.5, got 0.7"),
        (("--sparse", "--sigma-factor", 0), "--sigma-factor: must be above 0"),
        (("--sparse", "--kind", "w8a16"), "--sparse is W8A8S: leave --kind w8a16 out"),
    ],
)
def test_knobs_of_sparse_weights_that_cannot_be_are_refused(tmp_path: Path, flags: tuple[Any, ...], what: str) -> None:
    with pytest.raises(InputError, match=what):
        run("embedded", "-o", tmp_path / "out", *FEW, *flags)
    assert not any(tmp_path.iterdir())
