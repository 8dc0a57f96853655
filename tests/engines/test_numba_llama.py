"""The numba engine computes what the architecture says, with all instruction sets, and the same bits in any batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines
from llmbench.engines import EngineSettings
from llmbench.errors import InputError
from llmbench.tokenizer import embedded_path
from llmbench.weights.model import Model, open_model
from tests.engines import test_int8
from tests.engines.test_numpy_llama import (
    LLAMA,
    PLAIN,
    QWEN2,
    TOLERANCE,
    Ids,
    deviation,
    hugging_face,
    oracle_ids,
    random_ids,
    reference,
    reports_and_forgets,
    spoilt,
    step,
    write,
)
from tests.weights import eight_bits

pytest.importorskip("numba")

Float32 = npt.NDArray[np.float32]

NAME = "numba_llama"
ODD = LLAMA | {
    "hidden_size": 144,
    "intermediate_size": 304,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 16,
    "vocab_size": 977,
    "num_hidden_layers": 2,
}
GROUPED = PLAIN | {
    "hidden_size": 98,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 70,
}  # 7 queries for each key: more than a tile has rows
CONFIGS = [LLAMA, QWEN2, PLAIN, ODD, GROUPED]
IDS = ["llama-gqa", "qwen2-tied", "llama", "odd", "grouped"]


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_logits_are_those_of_the_architecture(tmp_path: Path, config: dict[str, Any]) -> None:
    model = open_model(str(write(tmp_path, config)))
    ids = random_ids(model, 4, 19, 36, 100, 640)  # the last one as long as the model can
    assert deviation(model, [reference(model, i) for i in ids], ids, num_decoded=3, name=NAME) < TOLERANCE


@pytest.mark.oracle
@pytest.mark.parametrize("config", [*CONFIGS, None], ids=[*IDS, "embedded"])
def test_logits_are_those_of_hugging_face(tmp_path: Path, config: dict[str, Any] | None) -> None:
    folder = embedded_path().parent if config is None else write(tmp_path, config)
    model = open_model("embedded" if config is None else str(folder))
    ids = oracle_ids(model)
    assert deviation(model, hugging_face(folder)(ids), ids, num_decoded=3, name=NAME) < TOLERANCE


def every_way(model: Model, ids: list[Ids], settings: EngineSettings) -> list[list[Float32]]:
    """The logits of the last token of each sequence: alone, in a batch, in pieces, decoded in a batch."""
    engine = engines.get(NAME, model, settings)
    width = -(-max(map(len, ids)) // settings.block_size)
    tables = np.random.default_rng(0).permutation(len(ids) * width).astype(np.int32).reshape(len(ids), width)
    alone = [step(engine, tables[i:], (sequence, len(sequence)))[0] for i, sequence in enumerate(ids)]
    together = list(step(engine, tables, *((sequence, len(sequence)) for sequence in ids)))
    step(engine, tables, *((sequence[:-5], len(sequence) - 5) for sequence in ids))
    pieces = list(step(engine, tables, *((sequence[-5:], len(sequence)) for sequence in ids)))
    step(engine, tables, *((sequence[:-1], len(sequence) - 1) for sequence in ids))
    decoded = list(step(engine, tables, *((sequence[-1:], len(sequence)) for sequence in ids)))
    engine.close()
    return [alone, together, pieces, decoded]


@pytest.mark.parametrize("block_size", [16, 8, 24, 64])
def test_logits_are_the_same_bits_in_any_batch_in_pieces_and_decoded(tmp_path: Path, block_size: int) -> None:
    model = open_model(str(write(tmp_path, ODD)))
    ids = random_ids(model, *range(6, 71))  # a batch of 65
    settings = EngineSettings(num_blocks=65 * -(-70 // block_size), block_size=block_size, threads=2)
    alone, *others = every_way(model, ids, settings)
    for other in others:
        for one, row in zip(alone, other, strict=True):
            assert (one == row).all()


@pytest.mark.parametrize("threads", [1, 7])
def test_the_number_of_threads_changes_no_bit(tmp_path: Path, threads: int) -> None:
    model = open_model(str(write(tmp_path, LLAMA)))
    ids = random_ids(model, 9, 30, 300)
    expected, found = (
        every_way(model, ids, EngineSettings(num_blocks=60, threads=number))[1] for number in (2, threads)
    )
    assert (np.array(expected) == np.array(found)).all()


def test_a_block_that_held_what_is_not_a_number_is_as_good_as_new(tmp_path: Path) -> None:
    model = spoilt(open_model(str(write(tmp_path, PLAIN))))
    reports_and_forgets(engines.get(NAME, model, EngineSettings(num_blocks=4, threads=1)))


def test_threads_that_do_not_come_hold_up_nobody() -> None:
    """The caller does every chunk that nobody else takes."""
    model = open_model("random:tiny")
    engine = engines.get(NAME, model, EngineSettings(num_blocks=64, threads=3))
    tables = np.arange(64, dtype=np.int32)[None]
    ids = random_ids(model, 200)[0]
    expected = step(engine, tables, (ids, 200))
    for thread in engine._crew._jobs:  # type: ignore[attr-defined]
        thread.put(None)  # they end, and what is put there later is taken by nobody
    assert (step(engine, tables, (ids, 200)) == expected).all()
    engine.close()


@pytest.mark.parametrize("norm_bias", [False, True])
def test_weights_of_8_bits_give_what_they_stand_for(tmp_path: Path, norm_bias: bool) -> None:
    folder = write(tmp_path / "float", QWEN2)
    kinds = eight_bits.every_linear(open_model(str(folder)).config, "W8A16")
    del kinds["model.layers.1.self_attn.k_proj"], kinds["model.layers.1.mlp.up_proj"]  # float beside its neighbours
    model = open_model(str(eight_bits.write(tmp_path / "small", str(folder), kinds, norm_bias=norm_bias)))
    ids = random_ids(model, 4, 19, 100)
    assert deviation(model, [reference(model, i) for i in ids], ids, num_decoded=3, name=NAME) < TOLERANCE


MIXED_FLOAT_CACHE = "mixed, norms with biases"


@pytest.mark.parametrize("case", ["w8a8", "w8a8, biases, tied", "w8a8, norms with biases", MIXED_FLOAT_CACHE])
def test_logits_of_quantised_models_are_those_of_the_formulas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Seldom the last bit of an activation makes it another int8 number; the other rows are the same."""
    monkeypatch.setitem(test_int8.CASES, MIXED_FLOAT_CACHE, (LLAMA, test_int8.MIXED, True, False))
    model = test_int8.made(tmp_path, case)
    ids = random_ids(model, *range(1, 61))
    engine = engines.get(NAME, model, EngineSettings(num_blocks=4 * 60, threads=2))
    found = step(engine, np.arange(4 * 60, dtype=np.int32).reshape(60, 4), *((each, len(each)) for each in ids))
    formulas = test_int8.ByTheFormulas(model)
    expected = [reference(model, each, np.float32, formulas)[-1] for each in ids]
    worst = np.array([abs(one - other).max() for one, other in zip(found, expected, strict=True)])
    assert np.mean(worst < TOLERANCE) > 0.7
    assert worst.max() < 0.1
    engine.close()


def test_a_cache_of_8_bits_is_refused_with_the_engine_that_has_one(tmp_path: Path) -> None:
    model = open_model(str(eight_bits.write(tmp_path, kv=True)))
    with pytest.raises(InputError, match="numba_llama has no int8 cache; numpy_llama does"):
        engines.get(NAME, model, EngineSettings(num_blocks=4))


def run(code: str, **environment: str) -> str:
    """What a process prints that has these variables as well."""
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert not found.returncode, found.stderr
    return found.stdout


WORST = """
import sys
from pathlib import Path
from llmbench.weights.model import open_model
from tests.engines import test_numba_llama as ours
from llmbench.native.isa import ISA
worst = 0.0
for i, config in enumerate((ours.LLAMA, ours.ODD)):
    folder = Path({folder!r}, str(i))
    model = open_model(str(ours.write(folder, config)))
    ids = ours.random_ids(model, 4, 19, 300)
    expected = [ours.reference(model, each) for each in ids]
    worst = max(worst, ours.deviation(model, expected, ids, num_decoded=3, name=ours.NAME))
print(ISA.name, worst)
"""


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_other_instructions_give_the_same_logits(tmp_path: Path, isa: str) -> None:
    name, worst = run(WORST.format(folder=str(tmp_path)), LLMBENCH_ISA=isa).split()
    assert name == isa
    assert float(worst) < TOLERANCE


def test_instructions_that_the_processor_does_not_have_are_refused() -> None:
    with pytest.raises(AssertionError, match="LLMBENCH_ISA: unknown instruction set of this processor 'avx9'"):
        run("from llmbench.native import isa", LLMBENCH_ISA="avx9")


def test_without_a_folder_for_compiled_code_it_is_compiled_and_said(tmp_path: Path) -> None:
    nowhere = tmp_path / "file"
    nowhere.touch()
    assert "cannot be kept" in run(
        "import logging, sys; logging.basicConfig(stream=sys.stdout)\nfrom llmbench.engines import _numba_program",
        NUMBA_CACHE_DIR=str(nowhere),
        XDG_CACHE_HOME=str(nowhere),
    )
