"""Models cut into ranks and put together again: bit by bit, through every number of ranks, layout and format."""

import hashlib
import json
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmbench.errors import ConfigError
from llmbench.weights import strategy
from llmbench.weights.config import from_hf
from llmbench.weights.model import open_model
from llmbench.weights.names import WRITABLE
from llmbench.weights.shard import cuts
from llmbench.weights.strategy import Cut
from tests.conftest import Launch
from tests.weights.folders import CONFIGS, LLAMA, QWEN2, Stored, read_file, read_folder, write_file, write_folder
from tests.weights.test_convert import weights

LAYER = "model.layers.1."


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_shard_reshard_merge_is_bit_exact(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    source = write_folder(tmp_path / "hf", config, dtype)
    tensors = read_folder(source)
    weights("shard", source, tmp_path / "2", "--ranks", 2)
    weights("shard", source, tmp_path / "4", "--ranks", 4)
    weights("reshard", tmp_path / "4", tmp_path / "42", "--ranks", 2)
    weights("reshard", tmp_path / "2", tmp_path / "28", "--ranks", 8)
    weights("reshard", tmp_path / "28", tmp_path / "281", "--ranks", 1)
    for rank in range(2):
        name = f"rank_{rank}/model.safetensors"
        assert read_file(tmp_path / "42" / name) == read_file(tmp_path / "2" / name)
    for cut in ("2", "4", "42", "28", "281"):
        weights("merge", tmp_path / cut, tmp_path / f"{cut}-merged")
        assert read_folder(tmp_path / f"{cut}-merged") == tensors, cut
        assert (tmp_path / f"{cut}-merged" / "tokenizer_config.json").exists()


@pytest.mark.parametrize("layout", WRITABLE)
@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
def test_ranks_may_be_of_any_layout(tmp_path: Path, layout: str, form: str) -> None:
    if (layout, form) == ("hf", "ckpt"):
        return
    source = write_folder(tmp_path / "hf", QWEN2, "bfloat16")
    flags = ("--to", layout, "--format", form)
    weights("shard", source, tmp_path / "4", "--ranks", 4, *flags)
    weights("reshard", tmp_path / "4", tmp_path / "2", "--ranks", 2, *flags)
    weights("merge", tmp_path / "2", tmp_path / "back")
    assert read_folder(tmp_path / "back") == read_folder(source)
    names = {path.name for path in (tmp_path / "4" / "rank_3").iterdir()}
    assert names == {"checkpoint_3.ckpt" if form == "ckpt" else "model.safetensors"}


def test_each_rank_has_what_the_rules_say(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", QWEN2, "float32")  # 8 heads of 4, 2 of keys, MLP of 24, 32 wide
    whole = read_folder(source)
    weights("shard", source, tmp_path / "4", "--ranks", 4)
    third = read_file(tmp_path / "4" / "rank_2" / "model.safetensors")
    rows = {name: tensor.shape for name, tensor in third.items()}
    assert rows[LAYER + "self_attn.q_proj.weight"] == (8, 32)
    assert rows[LAYER + "self_attn.o_proj.weight"] == (32, 8)
    assert rows[LAYER + "mlp.down_proj.weight"] == (32, 6)
    assert rows["lm_head.weight"] == (12, 32)
    head = whole[LAYER + "self_attn.k_proj.bias"].data
    assert third[LAYER + "self_attn.k_proj.bias"].data == head[16:], "ranks 2 and 3 have the second key-value head"
    assert third["model.norm.weight"] == whole["model.norm.weight"]
    found = strategy.read(tmp_path / "4" / "strategy.json")
    assert found.params[LAYER + "self_attn.k_proj.bias"] == Cut((8,), 0, "head_replicate", 2)
    assert found.params[LAYER + "self_attn.o_proj.weight"] == Cut((32, 32), 1, "split", 4)
    assert found.params["model.norm.weight"] == Cut((32,), None, "replicate")
    for name, expected in found.files.items():
        assert hashlib.sha256((tmp_path / "4" / name).read_bytes()).hexdigest() == expected


def test_merged_tensors_of_a_rank_are_its_own_parts_one_behind_another(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", QWEN2, "float32")
    weights("shard", source, tmp_path / "plain", "--ranks", 2, "--to", "qkv-concat")
    weights("shard", source, tmp_path / "apart", "--ranks", 2)
    for rank in range(2):
        merged = read_file(tmp_path / "plain" / f"rank_{rank}" / "model.safetensors")
        apart = read_file(tmp_path / "apart" / f"rank_{rank}" / "model.safetensors")
        expected = b"".join(apart[LAYER + f"self_attn.{x}_proj.weight"].data for x in "qkv")
        assert merged[LAYER + "attention.w_qkv.weight"].data == expected


def test_embeddings_and_head_may_be_whole_on_each_rank(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", LLAMA)
    weights("shard", source, tmp_path / "2", "--ranks", 2, "--vocabulary", "whole", "--to", "legacy")
    own = read_file(tmp_path / "2" / "rank_1" / "model.safetensors")
    assert own["lm_head.weight"] == read_folder(source)["lm_head.weight"]
    assert own["model.tok_embeddings.embedding_weight"].shape == (45, 32)
    weights("merge", tmp_path / "2", tmp_path / "back")
    assert read_folder(tmp_path / "back") == read_folder(source)


def test_a_cut_model_is_opened_as_a_whole_one_for_any_number_of_ranks(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", LLAMA, "float16")
    weights("shard", source, tmp_path / "4", "--ranks", 4, "--to", "qkv-concat-mg", "--vocabulary", "whole")
    assert open_model(str(tmp_path / "4")).fingerprint() == open_model(str(source)).fingerprint()
    assert open_model(str(tmp_path / "4")).config == open_model(str(source)).config


def test_ranks_that_are_written_by_others_need_a_strategy_by_hand(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", LLAMA)
    weights("shard", source, tmp_path / "2", "--ranks", 2)
    found = json.loads((tmp_path / "2" / "strategy.json").read_text())
    (tmp_path / "2" / "strategy.json").unlink()
    del found["files"]
    (tmp_path / "by-hand.json").write_text(json.dumps(found))
    weights("merge", tmp_path / "2", tmp_path / "o", "--strategy", tmp_path / "by-hand.json", "--config", source)
    assert read_folder(tmp_path / "o") == read_folder(source)


@pytest.mark.parametrize("flags", [(), ("--vocabulary", "whole")], ids=["cut", "whole"])
@pytest.mark.parametrize("layout", ["legacy", "qkv-concat-mg"])
def test_the_strategy_of_ranks_that_others_have_cut_is_seen_in_their_shapes(
    tmp_path: Path, layout: str, flags: tuple[str, ...]
) -> None:
    source = write_folder(tmp_path / "hf", QWEN2, "bfloat16")
    cut = tmp_path / "4"
    weights("shard", source, cut, "--ranks", 4, "--to", layout, "--format", "ckpt", *flags)
    expected = strategy.read(cut / "strategy.json")
    for name in ("strategy.json", "conversion.json", "config.json"):
        (cut / name).unlink()
    way = ("--strategy", "auto", "--config", source, *(("--from", layout) if "concat" in layout else ()))
    weights("merge", cut, tmp_path / "back", *way)
    assert read_folder(tmp_path / "back") == read_folder(source)
    weights("reshard", cut, tmp_path / "again", "--ranks", 4, "--to", layout, "--format", "ckpt", *flags, *way)
    assert strategy.read(tmp_path / "again" / "strategy.json") == expected
    assert json.loads(weights("inspect", cut, *way, "--json"))["ranks"]["world_size"] == 4


def test_embeddings_may_be_cut_along_their_width(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", LLAMA)
    weights("shard", source, tmp_path / "2", "--ranks", 2)
    (tmp_path / "2" / "strategy.json").unlink()
    name = "model.embed_tokens.weight"
    whole = np.frombuffer(read_folder(source)[name].data, np.float32).reshape(45, 32)
    for rank in range(2):
        path = tmp_path / "2" / f"rank_{rank}" / "model.safetensors"
        half = Stored("F32", (45, 16), whole[:, 16 * rank : 16 * rank + 16].tobytes())
        write_file(path, read_file(path) | {name: half})
    weights("merge", tmp_path / "2", tmp_path / "back", "--strategy", "auto")
    assert read_folder(tmp_path / "back") == read_folder(source)


def test_a_bias_that_rank_0_alone_has_is_that_of_the_model(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", QWEN2)
    weights("shard", source, tmp_path / "1", "--ranks", 1)
    path, name = tmp_path / "1" / "strategy.json", LAYER + "self_attn.q_proj.bias"
    found = json.loads(path.read_text()) | {"world_size": 2, "files": {}}
    for cut in found["params"].values():
        cut |= {"axis": None, "mode": "replicate", "parts": 1}
    found["params"][name]["mode"] = "rank0_only"
    path.write_text(json.dumps(found))
    own = tmp_path / "1" / "rank_0" / "model.safetensors"
    content = own.read_bytes()
    (tmp_path / "1" / "rank_1").mkdir()
    zeros = content.replace(read_file(own)[name].data, bytes(128))
    (tmp_path / "1" / "rank_1" / "model.safetensors").write_bytes(zeros)
    weights("merge", tmp_path / "1", tmp_path / "o")
    assert read_folder(tmp_path / "o") == read_folder(source)
    (tmp_path / "1" / "rank_1" / "model.safetensors").write_bytes(content)
    with pytest.raises(Exception, match=r"rank_1: .*q_proj.bias: not zeros, though .* only rank 0"):
        weights("merge", tmp_path / "1", tmp_path / "p")


def test_inspect_shows_the_ranks_and_one_of_them(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "hf", QWEN2, "float16")
    weights("shard", source, tmp_path / "4", "--ranks", 4)
    whole = json.loads(weights("inspect", tmp_path / "4", "--json"))
    assert whole["ranks"] == {
        "world_size": 4,
        "rank": None,
        "modes": {"split": 14, "replicate": 5, "head_replicate": 8},
    }
    assert whole["fingerprint"] == open_model(str(source)).fingerprint()
    one = json.loads(weights("inspect", tmp_path / "4" / "rank_1", "--json"))
    assert (one["ranks"]["rank"], one["fingerprint"]) == (1, None)
    stored = read_file(tmp_path / "4" / "rank_1" / "model.safetensors")
    assert one["num_bytes"] == sum(len(tensor.data) for tensor in stored.values())
    assert "rank 1 of 4: " in weights("inspect", tmp_path / "4" / "rank_1")


def test_parts_by_the_rules_cover_every_tensor_once() -> None:
    for config in CONFIGS.values():
        for num_ranks in (1, 2, 4, 8):
            for cut in cuts(from_hf(config, (), "test"), num_ranks).values():
                if cut.axis is None:
                    continue
                parts = {(p.start, p.stop) for p in (cut.part(rank, num_ranks) for rank in range(num_ranks))}
                covered = sorted(row for start, stop in parts for row in range(start, stop))
                assert covered == list(range(cut.shape[cut.axis]))


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({"axis": None, "mode": "split", "parts": 2}, "mode split with axis None"),
        ({"axis": 0, "mode": "replicate", "parts": 1}, "mode replicate with axis 0"),
        ({"axis": 1, "mode": "split", "parts": 2}, "axis 1 of a tensor with 1 axes"),
        ({"axis": 0, "mode": "split", "parts": 3}, "split into 3 parts for 2 ranks"),
        ({"axis": 0, "mode": "head_replicate", "parts": 3}, "32 rows in 3 parts for 2 ranks"),
        ({"axis": 0, "mode": "halve", "parts": 2}, "Invalid enum value 'halve'"),
    ],
)
def test_a_strategy_that_contradicts_itself_is_refused(tmp_path: Path, cut: dict[str, Any], message: str) -> None:
    path = tmp_path / "strategy.json"
    content = {
        "format": strategy.FORMAT,
        "world_size": 2,
        "architecture": "llama",
        "layout": "hf",
        "params": {"model.norm.weight": {"shape": [32], **cut}},
    }
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        strategy.read(path)


def answer(launch: Launch, folder: Path, *flags: str) -> str:
    """What a server of a model goes on with after a fixed prompt."""
    server = launch("--model", str(folder), "--threads", "1", *flags)
    body = {"prompt": [1, 5, 9, 400], "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    request = urllib.request.Request(
        server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        text: str = json.load(response)["choices"][0]["text"]
    server.stop()
    return text


def test_served_ranks_answer_as_the_whole_model_does(tmp_path: Path, launch: Launch) -> None:
    """Cut into 4 for MindSpore, served by 2 ranks, and by one from what was merged."""
    weights("convert", "random:tiny,seed=5", tmp_path / "whole", "--to", "hf")
    weights("shard", tmp_path / "whole", tmp_path / "4", "--ranks", 4, "--to", "legacy")
    weights("merge", tmp_path / "4", tmp_path / "merged")
    cut = answer(launch, tmp_path / "4", "--ranks", "2")
    assert cut == answer(launch, tmp_path / "merged")
    assert cut
