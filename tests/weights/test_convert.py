"""Conversions: bit by bit there and back, in every layout, format and dtype, with little in memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from llmbench.cli import app
from llmbench.weights import convert as converting
from llmbench.weights import tensors as lazy
from llmbench.weights.convert import Target
from llmbench.weights.files import Safetensors
from llmbench.weights.model import open_model
from llmbench.weights.names import WRITABLE
from llmbench.weights.sources import How, open_weights
from tests.weights.folders import (
    CONFIGS,
    LLAMA,
    QWEN2,
    TIED,
    Stored,
    random_tensors,
    read_file,
    read_folder,
    write_file,
    write_folder,
)

DTYPES = ("float32", "float16", "bfloat16")


def weights(*arguments: object, code: int = 0) -> str:
    """What `llmbench weights …` prints; its exit code is looked at."""
    done = CliRunner().invoke(app(), ["weights", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_there_and_back_is_bit_exact_in_every_layout(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    source = write_folder(tmp_path / "hf", config, dtype)
    for layout in WRITABLE:
        for form in ("safetensors", "ckpt"):
            if form == "ckpt" and layout not in ("legacy", "qkv-concat-mg"):
                continue  # the format knows nothing of names
            there, back = tmp_path / f"{layout}-{form}", tmp_path / f"{layout}-{form}-back"
            weights("convert", source, there, "--to", layout, "--format", form)
            weights("convert", there, back, "--to", "hf")
            assert read_folder(back) == read_file(source / "model.safetensors"), (layout, form)
            fingerprint = open_model(str(source)).fingerprint()
            assert open_model(str(there)).fingerprint() == fingerprint, "our engines open it as it is"


def test_the_folder_is_complete_and_the_report_says_what_became_of_each_tensor(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, "float16")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = Stored("F32", (2,), bytes(8))
    source = write_folder(tmp_path / "hf", LLAMA, "float16", tensors)
    out = weights("convert", source, tmp_path / "ms", "--to", "qkv-concat-mg", "--format", "ckpt")
    assert "15 tensors, " in out
    assert "of float16, hf (safetensors) to qkv-concat-mg (ckpt)" in out
    assert "left out: model.layers.0.self_attn.rotary_emb.inv_freq (computed from config.json)" in out
    there = {path.name for path in (tmp_path / "ms").iterdir()}
    assert there == {
        "model.ckpt",
        "config.json",
        "generation_config.json",
        "tokenizer_config.json",
        "conversion.json",
    }
    report = json.loads((tmp_path / "ms" / "conversion.json").read_text())
    attention = "model.layers.0.self_attn."
    assert report["mapped"]["model.layers.0.attention.w_qkv.weight"] == [attention + f"{x}_proj.weight" for x in "qkv"]
    sources = [name for names in report["mapped"].values() for name in names]
    assert sorted([*sources, *report["dropped"]]) == sorted(tensors)
    assert json.loads(weights("convert", source, tmp_path / "b", "--to", "legacy", "--json"))["layout"] == "legacy"


def test_a_dtype_is_that_of_every_tensor_and_of_config_json(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", QWEN2, "float32")
    weights("convert", source, tmp_path / "out", "--to", "hf", "--dtype", "bfloat16")
    found, before = read_folder(tmp_path / "out"), read_folder(source)
    assert {tensor.dtype for tensor in found.values()} == {"BF16"}
    for name, tensor in found.items():
        values = np.frombuffer(before[name].data, np.float32)
        rounded = lazy.widen(np.frombuffer(tensor.data, np.uint16))
        assert (np.abs(rounded - values) <= np.abs(values) * 2.0**-8).all()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    again = tmp_path / "again"
    weights("convert", tmp_path / "out", again, "--to", "hf", "--dtype", "float32")
    weights("convert", again, tmp_path / "back", "--to", "hf", "--dtype", "bf16")
    assert read_folder(tmp_path / "back") == found


def test_large_models_are_written_in_several_files_with_an_index(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", LLAMA)
    weights("convert", source, tmp_path / "out", "--to", "hf", "--max-shard-size", "20KB")
    names = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert names == [f"model-{i:05d}-of-{len(names):05d}.safetensors" for i in range(1, len(names) + 1)]
    assert len(names) > 2
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = read_file(source / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(len(tensor.data) for tensor in tensors.values())
    for name, place in index["weight_map"].items():
        assert read_file(tmp_path / "out" / place)[name] == tensors[name]
    assert set(index["weight_map"]) == set(tensors)
    assert open_model(str(tmp_path / "out")).fingerprint() == open_model(str(source)).fingerprint()
    weights("convert", tmp_path / "out", tmp_path / "ms", "--to", "legacy", "--max-shard-size", "20KB")
    places = json.loads((tmp_path / "ms" / "param_name_map.json").read_text())
    assert places["model.norm_out.weight"] in names
    weights("convert", tmp_path / "ms", tmp_path / "back", "--to", "hf")
    assert read_folder(tmp_path / "back") == tensors


def test_a_single_file_and_a_config_elsewhere_are_enough(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", LLAMA)
    weights("convert", source, tmp_path / "ms", "--to", "legacy", "--format", "ckpt")
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "ms" / "model.ckpt").rename(alone / "llama.ckpt")
    weights("convert", alone / "llama.ckpt", tmp_path / "back", "--to", "hf", "--config", source)
    assert read_folder(tmp_path / "back") == read_folder(source)
    assert (tmp_path / "back" / "tokenizer_config.json").exists()


def test_what_training_left_in_a_file_can_be_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, "float32") | {
        "adam_m.model.norm.weight": Stored("F32", (32,), bytes(128)),
        "epoch_num": Stored("I32", (1,), bytes(4)),
    }
    source = write_folder(tmp_path / "hf", LLAMA, tensors=tensors)
    out = weights("convert", source, tmp_path / "o", "--to", "hf", "--drop", "^adam_", "--drop", "epoch_num")
    assert "left out: epoch_num (--drop epoch_num)" in out
    assert set(read_folder(tmp_path / "o")) == set(random_tensors(LLAMA, "float32"))


def test_a_head_that_is_the_embeddings_once_more_is_left_out(tmp_path: Path) -> None:
    tensors = random_tensors(TIED, "bfloat16")
    source = write_folder(
        tmp_path / "hf", TIED, tensors=tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    )
    assert "left out: lm_head.weight (the embeddings" in weights("convert", source, tmp_path / "o", "--to", "hf")
    assert read_folder(tmp_path / "o") == tensors


def test_numbers_that_are_none_can_be_taken_over(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, "bfloat16")
    tensors["model.norm.weight"] = Stored("BF16", (32,), np.full(32, 0x7FC1, np.uint16).tobytes())
    source = write_folder(tmp_path / "hf", LLAMA, tensors=tensors)
    weights("convert", source, tmp_path / "o", "--to", "hf", "--allow-nonfinite")
    assert read_folder(tmp_path / "o") == tensors, "the bits of a NaN, too"


def test_random_and_embedded_models_become_folders(tmp_path: Path) -> None:
    for spec in ("random:tiny,seed=3", "embedded"):
        out = tmp_path / spec[:3]
        weights("convert", spec, out, "--to", "hf")
        assert open_model(str(out)).fingerprint() == open_model(spec).fingerprint()
        assert (out / "tokenizer.model").exists()


@pytest.mark.parametrize(("layout", "form"), [("legacy", "ckpt"), ("qkv-concat-mg", "safetensors")])
def test_no_more_than_two_tensors_are_ever_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, form: str
) -> None:
    config = LLAMA | {"hidden_size": 256, "num_attention_heads": 64, "intermediate_size": 512, "vocab_size": 256}
    source = write_folder(tmp_path / "hf", config)
    largest = (1024 if "concat" in layout else 512) * 256 * 4  # gate and up, merged or not
    assert (source / "model.safetensors").stat().st_size > 4 * largest
    for elements, allowed in ((1 << 22, 2 * largest), (1 << 12, largest // 2)):
        monkeypatch.setattr(lazy, "_BLOCK_ELEMENTS", elements)
        opened = open_weights(str(source), How())
        target = Target(layout=layout, container="ckpt" if form == "ckpt" else "safetensors", dtype="float32")
        converting.convert(opened, tmp_path / "warm", target, lambda *_: None)
        (tmp_path / "warm").rename(tmp_path / f"warm-{elements}")
        tracemalloc.start()
        converting.convert(opened, tmp_path / f"out-{elements}", target, lambda *_: None)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < allowed + 200_000, f"{peak} bytes with blocks of {elements} values"


def test_progress_is_of_each_tensor(tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    opened = open_weights(str(write_folder(tmp_path / "hf", LLAMA)), How())
    converting.convert(opened, tmp_path / "o", Target(layout="legacy"), lambda *what: seen.append(what))
    assert len(seen) == len(opened.tensors)
    assert (seen[0][0], seen[0][2]) == (0, "model.tok_embeddings.embedding_weight")
    assert all(done < total for done, total, _ in seen)
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, "float32")
    tensors["lm_head.weight"] = Stored("F32", (45, 32), np.full(45 * 32, np.inf, np.float32).tobytes())
    source = write_folder(tmp_path / "hf", LLAMA, tensors=tensors)
    with pytest.raises(Exception, match=r"lm_head.weight: NaN or infinity at \[0, 0\]"):
        weights("convert", source, tmp_path / "o", "--to", "legacy")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_safetensors_library_reads_what_is_written(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    tensors = random_tensors(LLAMA, "float32")
    half = random_tensors(LLAMA, "float16")
    mixed = {name: half[name] if "mlp" in name else tensor for name, tensor in tensors.items()}
    mixed["model.norm.weight"] = Stored("F16", (32,), half["model.norm.weight"].data)
    source = write_folder(tmp_path / "hf", LLAMA, tensors=mixed)
    weights("convert", source, tmp_path / "o", "--to", "hf")
    loaded = load_file(tmp_path / "o" / "model.safetensors")
    assert {name: array.tobytes() for name, array in loaded.items()} == {n: t.data for n, t in mixed.items()}
    assert Safetensors([tmp_path / "o" / "model.safetensors"]).names()[0] == "model.embed_tokens.weight"


@pytest.mark.parametrize("name", CONFIGS)
def test_inspect_says_what_it_is_and_the_fingerprint_is_the_same_in_every_layout(tmp_path: Path, name: str) -> None:
    source = write_folder(tmp_path / "hf", CONFIGS[name], "bfloat16")
    weights("convert", source, tmp_path / "ms", "--to", "mcore", "--format", "ckpt")
    one, other = (json.loads(weights("inspect", path, "--json")) for path in (source, tmp_path / "ms"))
    assert (one["container"], one["layout"], other["container"], other["layout"]) == (
        "safetensors",
        "hf",
        "ckpt",
        "mcore",
    )
    assert one["fingerprint"] == other["fingerprint"]
    assert one["dtypes"] == {"bfloat16": one["num_bytes"]}
    assert one["num_parameters"] == open_model(str(source)).config.num_parameters
    assert sum(group["num_parameters"] for group in one["groups"]) == one["num_parameters"]
    assert (one["num_layers"], one["num_heads"], one["tied"]) == (2, 8, name == "tied")
    text = weights("inspect", source, "--quick")
    assert "family" in text
    assert "bfloat16" in text
    assert "fingerprint" not in text


def test_inspect_names_what_is_besides(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, "float32") | {"epoch_num": Stored("I32", (1,), bytes(4))}
    found = json.loads(weights("inspect", write_folder(tmp_path / "hf", LLAMA, tensors=tensors), "--json"))
    assert found["dropped"] == {"epoch_num": "not in layout hf"}


# -- Meta's files ---------------------------------------------------------------------------------------------------


def write_meta(folder: Path, num_files: int, dtype: str = "float32", by_rows: bool = False) -> Path:
    """consolidated.*.pth of LLAMA in Meta's order of rows, cut as Meta cuts; the tensors are random_tensors'."""
    torch = pytest.importorskip("torch")
    heads = {"wq": 8, "wk": 2}
    names = {
        "q_proj": "attention.wq",
        "k_proj": "attention.wk",
        "v_proj": "attention.wv",
        "o_proj": "attention.wo",
        "gate_proj": "feed_forward.w1",
        "down_proj": "feed_forward.w2",
        "up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "embed_tokens": "tok_embeddings",
        "norm": "norm",
        "lm_head": "output",
    }
    axes = {"wo": 1, "w2": 1, "tok_embeddings": 0 if by_rows else 1, "norm": None, "attention_norm": None}
    parts: list[dict[str, Any]] = [{} for _ in range(num_files)]
    for name, tensor in random_tensors(LLAMA | {"vocab_size": 48}, dtype).items():
        *before, layer, _ = name.split(".")
        stored = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[tensor.dtype]
        values = torch.frombuffer(bytearray(tensor.data), dtype=stored).reshape(tensor.shape)
        own = names[layer]
        last = own.rpartition(".")[2]
        if last in heads:  # the inverse of view(heads, 2, dim/2, in).transpose(1, 2)
            values = values.view(heads[last], 2, 2, 32).transpose(1, 2).reshape(values.shape)
        where = f"layers.{before[2]}.{own}.weight" if len(before) > 2 else f"{own}.weight"
        axis = axes.get(last, None if last == "ffn_norm" else 0)
        for part, piece in zip(
            parts, [values] * num_files if axis is None else values.chunk(num_files, axis), strict=True
        ):
            part[where] = piece.clone()
    folder.mkdir()
    for i, part in enumerate(parts):
        torch.save(part | {"rope.freqs": torch.zeros(2)}, folder / f"consolidated.{i:02d}.pth")
    params = {"dim": 32, "n_layers": 2, "n_heads": 8, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params))
    return folder


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("num_files", "dtype", "by_rows"), [(1, "float32", False), (2, "bfloat16", False), (2, "float16", True)]
)
def test_metas_files_become_a_hugging_face_folder(tmp_path: Path, num_files: int, dtype: str, by_rows: bool) -> None:
    source = write_meta(tmp_path / "meta", num_files, dtype, by_rows)
    out = weights("convert", source, tmp_path / "hf", "--to", "hf")
    assert "left out: rope.freqs" in out
    assert read_folder(tmp_path / "hf") == random_tensors(LLAMA | {"vocab_size": 48}, dtype)
    config = open_model(str(tmp_path / "hf")).config
    assert (config.num_kv_heads, config.intermediate_size, config.vocab_size) == (2, 24, 48)


@pytest.mark.oracle
def test_a_pickle_that_holds_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = write_meta(tmp_path / "meta", 1)
    torch.save({"x": Path("/tmp")}, source / "consolidated.00.pth")
    with pytest.raises(Exception, match=r"consolidated.00.pth: it holds more than tensors, and was not opened"):
        weights("convert", source, tmp_path / "hf", "--to", "hf")
    (source / "consolidated.00.pth").write_bytes(b"no archive")
    with pytest.raises(Exception, match=r"consolidated.00.pth: "):
        weights("convert", source, tmp_path / "hf", "--to", "hf")


# -- other people's readers -----------------------------------------------------------------------------------------


@pytest.mark.oracle
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_computes_the_same_logits_with_what_came_back(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = write_folder(tmp_path / "hf", CONFIGS[name])
    weights("convert", source, tmp_path / "ms", "--to", "qkv-concat-mg", "--format", "ckpt")
    weights("convert", tmp_path / "ms", tmp_path / "back", "--to", "hf", "--max-shard-size", "20KB")
    ids = torch.arange(1, 21)[None]
    found = []
    for folder in (source, tmp_path / "back"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            found.append(model(ids).logits.numpy())
    assert (found[0] == found[1]).all()
    assert np.isfinite(found[0]).all()


def test_write_file_and_read_file_of_these_tests_agree(tmp_path: Path) -> None:
    tensors = random_tensors(LLAMA, "bfloat16")
    assert read_file(write_file(tmp_path / "x.safetensors", tensors)) == tensors
