"""The MindSpore engines: the same numbers as the others, in the shapes that are compiled, and no litter."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from llmbench import engines
from llmbench.engines import SAMPLING, Batch, Engine, EngineSettings, mindformers
from llmbench.engines import _mindspore_home as home
from llmbench.engines.mindspore_llama import Shape, Sizes
from llmbench.errors import ConfigError, InputError, NotInstalled
from llmbench.weights.model import Model, open_model
from tests.conftest import Launch, need
from tests.engines.test_numpy_llama import (
    LLAMA,
    PLAIN,
    QWEN2,
    hugging_face,
    random_ids,
    reports_and_forgets,
    spoilt,
    step,
    write,
)

Ids = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

TOLERANCE = 2e-4  # between the logits of any two engines
NEAR_TIE = 1e-4  # how far the best logit may lead, to be overtaken in another engine
NUM_PROMPTS, NUM_NEW = 50, 12
BLOCKS = 4  # of one sequence

MODELS = {"llama": PLAIN, "llama-gqa": LLAMA | {"head_dim": 16}, "qwen2": QWEN2}
ENGINES = ["numpy_llama", "mindspore_llama", "mindformers"]

needs_mindspore = pytest.mark.mindspore


@needs_mindspore
@pytest.mark.oracle
def test_all_libraries_are_installed_together() -> None:
    """What `make venv-all` makes, so that none of the comparisons below is left out."""
    need("mindspore")
    found = {name: version(name) for name in ("mindspore", "mindformers", "torch", "transformers", "numpy")}
    exact = {"mindspore": "2.9.0", "mindformers": "1.9.0", "torch": "2.13.0", "transformers": "4.57.1"}
    assert {name: found[name].partition("+")[0] for name in exact} == exact
    assert found["numpy"].startswith("1.26.")


class Answers(NamedTuple):
    """What an engine says about fixed inputs: logits of each token of a prompt, of decoded tokens, and greedy text.

    `prefill` [T, vocab], `decode` [n, vocab]; `tokens` int [prompts, new], `margins` of each over the second best.
    """

    prefill: Float32
    decode: Float32
    tokens: Int32
    margins: Float32


Ask = Callable[[str, str], Answers]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp("models") / name, config) for name, config in MODELS.items()}


@pytest.fixture(scope="module")
def ask(folders: dict[str, Path]) -> Ask:
    """The answers of an engine, or of `hf`, about a model; each is asked once."""
    known: dict[tuple[str, str], Answers] = {}

    def answers(name: str, model: str) -> Answers:
        if (name, model) not in known:
            opened = open_model(str(folders[model]))
            known[name, model] = _hf(folders[model], opened) if name == "hf" else _ours(name, opened)
        return known[name, model]

    return answers


def _inputs(model: Model) -> tuple[Ids, list[Ids]]:
    """A prompt whose last 6 tokens are decoded one by one, and the prompts of the greedy texts."""
    (whole,) = random_ids(model, 54)
    return whole, random_ids(model, *range(1, NUM_PROMPTS + 1))


def _made(name: str, model: Model, num_sequences: int = NUM_PROMPTS) -> Engine:
    try:
        settings = EngineSettings(num_blocks=num_sequences * BLOCKS, max_batch=num_sequences, threads=2)
        return engines.get(name, model, settings)
    except NotInstalled as error:
        pytest.skip(str(error))


def _ours(name: str, model: Model) -> Answers:
    whole, prompts = _inputs(model)
    engine = _made(name, model)
    tables = np.random.default_rng(0).permutation(NUM_PROMPTS * BLOCKS).astype(np.int32).reshape(NUM_PROMPTS, BLOCKS)
    prefill = _scored(engine, tables, whole)
    step(engine, tables, (whole[:-6], len(whole) - 6))
    decode = [step(engine, tables, (whole[n - 1 : n], n))[0] for n in range(len(whole) - 5, len(whole) + 1)]
    texts, margins = [list(prompt) for prompt in prompts], []
    for i in range(NUM_NEW):
        parts = [(np.array(text[-1:] if i else text), len(text)) for text in texts]
        logits = step(engine, tables, *parts)
        for text, row in zip(texts, logits, strict=True):
            text.append(int(row.argmax()))
        margins.append(_margins(logits))
    engine.close()
    tokens = np.array([text[-NUM_NEW:] for text in texts], np.int32)
    return Answers(prefill, np.array(decode), tokens, np.array(margins).T)


def _scored(engine: Engine, tables: Int32, ids: Ids) -> Float32:
    batch = Batch(
        token_ids=ids.astype(np.int32),
        query_lens=np.array([len(ids)], np.int32),
        context_lens=np.array([len(ids)], np.int32),
        block_tables=tables[:1],
        wants_token=np.array([True]),
        sampling=np.zeros(1, SAMPLING),
        score_prompts=np.array([True]),
    )
    return engine.step(batch).prompt_logits[0]


def _hf(folder: Path, model: Model) -> Answers:
    logits = hugging_face(folder)
    whole, prompts = _inputs(model)
    every = logits([whole])[0].astype(np.float32)
    texts, margins = [list(prompt) for prompt in prompts], []
    for _ in range(NUM_NEW):
        rows = np.array([found[-1] for found in logits([np.array(text) for text in texts])], np.float32)
        for text, row in zip(texts, rows, strict=True):
            text.append(int(row.argmax()))
        margins.append(_margins(rows))
    tokens = np.array([text[-NUM_NEW:] for text in texts], np.int32)
    return Answers(every, every[-6:], tokens, np.array(margins).T)


def _margins(logits: Float32) -> Float32:
    best = np.sort(logits, axis=1)[:, -2:]
    margins: Float32 = best[:, 1] - best[:, 0]
    return margins


def pairs() -> Iterator[Any]:
    """Every two of the engines and the oracle; those with MindSpore, or with transformers, carry the marks for it."""
    for i, one in enumerate(ENGINES):
        for other in [*ENGINES[i + 1 :], "hf"]:
            marks = [pytest.mark.oracle] if other == "hf" else []
            if one != "numpy_llama" or other not in ("numpy_llama", "hf"):
                marks.append(needs_mindspore)
            yield pytest.param(one, other, marks=marks, id=f"{one}-{other}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("one", "other"), list(pairs()))
def test_two_engines_have_the_same_logits_and_the_same_greedy_text(ask: Ask, one: str, other: str, model: str) -> None:
    first, second = ask(one, model), ask(other, model)
    np.testing.assert_allclose(first.prefill, second.prefill, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(first.decode, second.decode, rtol=0, atol=TOLERANCE)
    different = first.tokens != second.tokens
    ties = 0
    for row in np.flatnonzero(different.any(axis=1)):
        at = int(different[row].argmax())  # what follows another token is another text
        assert first.margins[row, at] < NEAR_TIE, f"prompt {row}, token {at}: not the same, and no near tie"
        ties += 1
    assert ties <= 1, f"{ties} near ties in {NUM_PROMPTS} texts"


@needs_mindspore
def test_a_context_longer_than_the_usual_and_a_prompt_in_several_calls_are_right(folders: dict[str, Path]) -> None:
    model = open_model(str(folders["llama-gqa"]))
    (ids,) = random_ids(model, 600)
    tables = np.random.default_rng(1).permutation(200).astype(np.int32)[None, :40]
    found = []
    for name in ("numpy_llama", "mindspore_llama"):
        engine = _made(name, model)
        found.append([step(engine, tables, (ids[:599], 599)), step(engine, tables, (ids[599:], 600))])
        engine.close()
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=TOLERANCE)


@needs_mindspore
def test_sequences_whose_keys_are_gathered_in_groups_have_the_same_logits(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(folders["llama-gqa"]))
    lengths = [3, 40, 21, 64, 9, 33, 50]
    prompts = random_ids(model, *lengths)
    tables = np.random.default_rng(2).permutation(7 * BLOCKS).astype(np.int32).reshape(7, BLOCKS)
    found = []
    for name in ("numpy_llama", "mindspore_llama"):
        engine = _made(name, model, 7)
        if name == "mindspore_llama":
            from llmbench.engines import _mindspore_cells as cells

            monkeypatch.setattr(cells, "_GATHER_ELEMENTS", 1)
            assert [cells._few(num, 1 << 12) for num in (1, 7, 8, 64)] == [1, 1, 1, 8]
        step(engine, tables, *((ids[:-1], len(ids) - 1) for ids in prompts))
        found.append(step(engine, tables, *((ids[-1:], len(ids)) for ids in prompts)))
        engine.close()
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=TOLERANCE)


@needs_mindspore
def test_weights_that_are_not_numbers_are_reported_and_leave_nothing_behind(tmp_path: Path) -> None:
    model = spoilt(open_model(str(write(tmp_path, PLAIN))))
    reports_and_forgets(_made("mindspore_llama", model, 1))


def test_the_smallest_bucket_that_holds_a_step_is_taken() -> None:
    sizes = Sizes(max_batch=24, max_blocks=100, block_size=16)
    assert sizes.shape(1, 1, 5, every_row=False) == Shape(num=1, steps=1, width=4, rows=1)
    assert sizes.shape(5, 1, 129, every_row=False) == Shape(num=8, steps=1, width=16, rows=8)
    assert sizes.shape(20, 1, 1500, every_row=False) == Shape(num=24, steps=1, width=100, rows=24)
    assert sizes.shape(1, 9, 9, every_row=False) == Shape(num=1, steps=16, width=4, rows=1)
    assert sizes.shape(1, 200, 300, every_row=True) == Shape(num=1, steps=256, width=32, rows=256)


def test_the_usual_buckets_are_few_and_hold_every_batch() -> None:
    sizes = Sizes(max_batch=24, max_blocks=1000, block_size=16)
    warm = sizes.warm()
    assert len(warm) == len(set(warm)) == 4 * 6 + 6
    for num in range(1, 25):
        for context_len in (1, 65, 128, 200, 512):
            assert sizes.shape(num, 1, context_len, every_row=False) in warm
    for steps in (2, 16, 100, 512):
        assert sizes.shape(1, steps, steps, every_row=False) in warm


@needs_mindspore
def test_the_graphs_of_the_usual_buckets_are_compiled_at_start(caplog: pytest.LogCaptureFixture) -> None:
    need("mindspore")
    model = open_model("random:tiny")
    settings = EngineSettings(num_blocks=8, max_batch=1, threads=1, warm_up=True)
    with caplog.at_level("INFO"):
        engine = engines.get("mindspore_llama", model, settings)
    compiled = [record.message for record in caplog.records if record.message.startswith("compiled")]
    assert len(compiled) == 6  # two decoding ones, and prompts of 16 to 128 tokens, which is all that 8 blocks hold
    assert "warming up: graph 6 of 6, 1 x 128 new tokens, contexts up to 128" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        step(engine, np.arange(8, dtype=np.int32)[None], (np.arange(3, 23), 20))
    assert not caplog.records
    engine.close()


@needs_mindspore
def test_the_cpu_has_none_of_the_fused_operators_and_the_log_says_why(caplog: pytest.LogCaptureFixture) -> None:
    need("mindspore")
    home.start(1)
    from llmbench.engines import _mindspore_probe as probe

    if probe.device() != "CPU":
        pytest.skip(f"MindSpore runs on {probe.device()}")
    with caplog.at_level("INFO"):
        chosen = probe.choose(open_model("random:tiny").config)
    assert (chosen.fused_attention, chosen.fused_norm, chosen.dtype) == (False, False, "float32")
    assert "fused attention does not run on CPU: " in caplog.text
    assert "fused RMSNorm does not run on CPU: Unsupported op [RmsNorm] on CPU" in caplog.text


@needs_mindspore
def test_weights_of_16_bits_are_float32_on_the_cpu_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    need("mindspore")
    home.start(1)
    from llmbench.engines import _mindspore_probe as probe

    if probe.device() != "CPU":
        pytest.skip(f"MindSpore runs on {probe.device()}")
    config = msgspec.structs.replace(open_model("random:tiny").config, dtype="bfloat16")
    with caplog.at_level("INFO"):
        assert probe.choose(config).dtype == "float32"
    assert "the weights are bfloat16; on the CPU they are float32" in caplog.text


@needs_mindspore
@pytest.mark.parametrize(("steps", "operators"), [(1, "ReshapeAndCache|PagedAttention"), (16, "ReshapeAndCache")])
def test_the_fused_operators_are_called_as_they_are_declared(steps: int, operators: str) -> None:
    """On the CPU they end where a kernel is looked for: their arguments, dtypes and shapes were right until then."""
    need("mindspore")
    home.start(1)
    from llmbench.engines import _mindspore_probe as probe

    config = open_model("random:llama2-7b").config
    if probe.device() != "CPU":
        probe.try_attention(config, "float16", steps)
        return
    with pytest.raises(RuntimeError, match=rf"Unsupported op \[({operators})\] on CPU"):
        probe.try_attention(config, "float16", steps)


@needs_mindspore
def test_an_operator_runs_when_its_trial_does() -> None:
    need("mindspore")
    home.start(1)
    from llmbench.engines import _mindspore_probe as probe

    def broken() -> None:
        raise RuntimeError("---\n- Kernel select failed:\n---\nno such kernel\nmore")

    assert probe.runs("nothing", lambda: None)
    assert not probe.runs("broken", broken)


def outside(script: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run Python in a process and a working directory of its own."""
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=300
    )


@needs_mindspore
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["mindspore_llama", "mindformers"])
def test_nothing_is_left_in_the_working_directory_and_nothing_printed(tmp_path: Path, engine: str) -> None:
    need(engine.removesuffix("_llama"))
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    done = outside(
        f"""
        from llmbench import LLM
        with LLM("random:tiny", "{engine}", batch_size=1, threads=1) as llm:
            print(len(llm.logits([5, 6, 7])))
        """,
        here,
        XDG_CACHE_HOME=str(cache),
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert not list(here.iterdir())
    assert list(cache.iterdir())


@pytest.mark.parametrize("flags", [("mindspore_llama",), ("mindspore_llama", "--ranks", "2"), ("mindformers",)])
def test_a_server_without_mindspore_ends_with_status_2_and_what_to_install(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    absent = "No module named 'mindspore'"
    (tmp_path / "mindspore.py").write_text(f"raise ModuleNotFoundError({absent!r}, name='mindspore')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = launch("--model", "random:tiny", "--engine", *flags)
    assert server.process.wait(30) == 2
    errors = [line for line in server.log.splitlines() if line.startswith("llmbench: ")]
    told = "mindspore is not installed; pip install 'llmbench[mindspore]'"
    assert errors == [f"llmbench: engine {flags[0]}: {told}"]
    assert "Traceback" not in server.log


@pytest.mark.parametrize("engine", ["mindspore_llama", "mindformers"])
def test_without_mindspore_the_error_says_what_to_install(tmp_path: Path, engine: str) -> None:
    done = outside(
        f"""
        import sys
        sys.modules["mindspore"] = None
        from llmbench import LLM
        LLM("random:tiny", "{engine}")
        """,
        tmp_path,
    )
    assert f"engine {engine}: mindspore is not installed; pip install 'llmbench[mindspore]'" in done.stderr


YAML = """
run_mode: predict
context: {mode: 0, device_target: Ascend}
model:
  arch: {type: LlamaForCausalLM}
  model_config:
    type: LlamaConfig
    hidden_size: 64
    num_layers: 2
    num_heads: 4
    n_kv_heads: 2
    seq_length: 1000
    use_past: True
    compute_dtype: float16
    block_size: 16
    num_blocks: 1024
    top_k: 3
    checkpoint_name_or_path: nowhere.ckpt
"""


def test_a_predict_yaml_gives_the_settings_and_the_model_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "predict.yaml"
    path.write_text(YAML)
    fields = mindformers.model_fields(open_model("random:tiny").config, str(path))
    expected = {"seq_length": 1000, "compute_dtype": "float16", "top_k": 3, "vocab_size": 2048, "theta": 10000.0}
    assert fields.items() >= expected.items()
    assert fields.items() >= {"use_past": False, "checkpoint_name_or_path": "", "pad_token_id": -1}.items()
    assert "type" not in fields


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("num_heads: 4", "num_heads: 8"), r"num_heads: 8, but the model has 4"),
        (("LlamaConfig", "GPT2Config"), r"type: only LlamaConfig works here, got 'GPT2Config'"),
        (("model_config", "other"), r"model_config: this block .* is missing"),
        (("1000", "long"), r"seq_length: must be a whole number above 0"),
    ],
)
def test_a_predict_yaml_that_does_not_fit_is_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "predict.yaml"
    path.write_text(YAML.replace(*change))
    with pytest.raises(ConfigError, match=message):
        mindformers.model_fields(open_model("random:tiny").config, str(path))


def test_heads_that_mindformers_cannot_express_are_refused() -> None:
    config = msgspec.structs.replace(open_model("random:tiny").config, head_dim=20)
    with pytest.raises(InputError, match="elements, those of this model 20"):
        mindformers.model_fields(config, None)


@needs_mindspore
def test_mindformers_runs_from_a_predict_yaml(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    need("mindformers")
    path = tmp_path / "predict.yaml"
    path.write_text(YAML)
    settings = EngineSettings(num_blocks=80, threads=1, model_cfg_path=str(path))
    with caplog.at_level("INFO"):
        engine = engines.get("mindformers", open_model("random:tiny"), settings)
    assert (engine.capacity().max_model_len, engine.dtype) == (1000, "float32")
    assert "on the CPU MindFormers runs with fused_rms_norm: False, use_rope_slice: True" in caplog.text
    engine.close()
