"""Which engine those get who name none."""

import logging
import subprocess
import sys

import pytest

from llmbench import engines
from llmbench.engines import EngineSettings
from llmbench.errors import InputError
from llmbench.weights.model import open_model


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv(engines.VARIABLE, raising=False)
    caplog.set_level(logging.INFO, "llmbench.engines")


def test_it_is_numba_where_that_is_installed_and_quick(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("numba")
    from llmbench.native.isa import ISA

    if not ISA.quick:
        pytest.skip(f"not with {ISA.name}")
    engine = engines.get(None, open_model("random:tiny"), EngineSettings(num_blocks=4, threads=1))
    assert engine.name == "numba_llama"
    assert caplog.messages == ["engine numba_llama: numba is installed, and this processor has the instructions for it"]
    engine.close()


def test_without_numba_it_is_numpy_and_the_way_out_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    assert engines.choose() == "numpy_llama"
    assert caplog.messages == ["engine numpy_llama: numba is not installed; pip install 'llmbench[fast]'"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"num_ranks": 2}, "of 2 ranks, and numba_llama runs on one"),
        ({"dtype": "float16"}, "numba_llama has no float16"),
        ({"kv_cache": "int8"}, "numba_llama has no int8 cache"),
    ],
)
def test_what_numba_cannot_do_numpy_does(
    given: dict[str, int | str], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert engines.choose(**given) == "numpy_llama"  # type: ignore[arg-type]
    assert caplog.messages == [f"engine numpy_llama: {reason}"]


def test_the_environment_may_name_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(engines.VARIABLE, "stub")
    assert engines.get(None, open_model("random:tiny"), EngineSettings()).name == "stub"
    monkeypatch.setenv(engines.VARIABLE, "stab")
    with pytest.raises(InputError, match=r"unknown engine 'stab'\. Did you mean 'stub'"):
        engines.get(None, open_model("random:tiny"), EngineSettings())


@pytest.mark.parametrize("missing", ["numba", "llvmlite"])
def test_an_engine_that_is_named_and_not_installed_says_what_to_install(missing: str) -> None:
    """In a process of its own, which has not imported it yet."""
    code = (
        f"import sys; sys.modules[{missing!r}] = None; from llmbench.cli import main; "
        "sys.argv = ['llmbench', 'generate', 'hello', '--engine', 'numba_llama']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    said = f"llmbench: engine numba_llama: {missing} is not installed; pip install 'llmbench[fast]'\n"
    assert done.stderr == said
