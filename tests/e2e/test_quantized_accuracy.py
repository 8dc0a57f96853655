"""Whether quantised models are still right, served under load; with outliers left in them: test_eight_bits."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from llmbench.accuracy.lane import Lane
from llmbench.cli import app
from llmbench.weights.model import open_model
from tests.e2e.test_capture import acc
from tools.plant_outliers import plant

LOAD = ("-n", 24, "-c", 8, "--engine", "numpy_llama")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of the embedded model in float32."""
    out = tmp_path_factory.mktemp("base") / "rows"
    done = acc("dump", "-o", out, "--tier", "full32", "--every", 1, *LOAD)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planted") / "model"
    plant("embedded", out)
    return out


@pytest.mark.parametrize(
    ("which", "flags"),
    [("embedded", ["--anti", "m1"]), ("planted", ["--anti", "m2", "--kv", "int8"])],
    ids=["m1", "outliers moved by m2, cache of 8 bits"],
)
def test_8_bits_are_right_enough(base: Path, planted: Path, tmp_path: Path, which: str, flags: list[str]) -> None:
    """By the profile w8, every row: the model is fed the tokens of the base."""
    model = str(tmp_path / "w8a8")
    source = str(planted) if which == "planted" else which
    made = CliRunner().invoke(app(), ["quantize", source, "-o", model, *flags])
    assert made.exit_code == 0, made.output
    flagged = ("--base", base, "--force", "--model", model, "--profile", "w8", "--results", tmp_path / "results")
    done = acc(*flagged, *LOAD)
    assert done.returncode == 0, done.stdout + done.stderr


def test_planted_outliers_change_nothing_that_a_float_model_computes(planted: Path) -> None:
    ids = list(range(3, 43))
    found = []
    for spec in ("embedded", str(planted)):
        with Lane(open_model(spec), "numpy_llama", len(ids), threads=1) as lane:
            found.append(lane.run(ids, [len(ids)]))
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4)
