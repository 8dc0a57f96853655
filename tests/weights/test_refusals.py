"""Input that is damaged, incomplete or contradicts itself: each refused with its place, its numbers and the way out."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmbench.errors import InputError, NotInstalled
from tests.weights.folders import (
    LLAMA,
    QWEN2,
    TIED,
    Stored,
    Tensors,
    random_tensors,
    read_file,
    write_file,
    write_folder,
)
from tests.weights.test_convert import weights

Arguments = tuple[object, ...]
NAME = "model.layers.1.mlp.up_proj.weight"


def folder(path: Path, config: dict[str, Any] = LLAMA, tensors: Tensors | None = None) -> Path:
    return write_folder(path / "in", config, tensors=tensors)


def convert(source: Path, *flags: object) -> Arguments:
    return ("convert", source, source.parent / "out", "--to", "legacy", *flags)


def changed(path: Path, config: dict[str, Any] = LLAMA, **tensors: Stored | None) -> Path:
    """A folder with other or further tensors, or without some: __ stands for a dot."""
    found: dict[str, Any] = dict(random_tensors(config, "float32"))
    for name, tensor in tensors.items():
        found[name.replace("__", ".")] = tensor
    return folder(path, config, {name: tensor for name, tensor in found.items() if tensor is not None})


def ranks(path: Path, config: dict[str, Any] = LLAMA, num: int = 4) -> Path:
    weights("shard", write_folder(path / "whole", config), path / "in", "--ranks", num)
    return path / "in"


def merge(source: Path, *flags: object) -> Arguments:
    return ("merge", source, source.parent / "out", *flags)


def edit_strategy(source: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    path = source / "strategy.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))
    return source


def edit_rank(source: Path, rank: int, edit: Callable[[Tensors], object], hashes: bool = False) -> Path:
    """Another content of a rank's file; without its hash, unless that is to be the fault."""
    path = source / f"rank_{rank}" / "model.safetensors"
    tensors = read_file(path)
    edit(tensors)
    write_file(path, tensors)
    return source if hashes else edit_strategy(source, lambda found: found.pop("files"))


# -- files ----------------------------------------------------------------------------------------------------------


def a_missing_shard(path: Path) -> Arguments:
    weights("convert", folder(path), path / "parts", "--to", "hf", "--max-shard-size", "20KB")
    next((path / "parts").glob("model-00002-*")).unlink()
    return ("convert", path / "parts", path / "out", "--to", "legacy")


def a_truncated_file(path: Path) -> Arguments:
    source = folder(path)
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:-100])
    return convert(source)


def a_truncated_header(path: Path) -> Arguments:
    source = folder(path)
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:50])
    return convert(source)


def overlapping_offsets(path: Path) -> Arguments:
    source = folder(path)
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["lm_head.weight"]["data_offsets"] = header["model.embed_tokens.weight"]["data_offsets"]
    text = json.dumps(header).encode()
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return convert(source)


def a_tensor_twice_in_a_header(path: Path) -> Arguments:
    source = folder(path)
    content = (source / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].replace(b'"lm_head.weight"', b'"model.norm.weight"')
    (source / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return convert(source)


def a_tensor_in_two_files(path: Path) -> Arguments:
    weights("convert", folder(path), path / "parts", "--to", "hf", "--max-shard-size", "20KB")
    index = json.loads((path / "parts" / "model.safetensors.index.json").read_text())
    first = path / "parts" / index["weight_map"]["model.embed_tokens.weight"]
    last = path / "parts" / index["weight_map"]["lm_head.weight"]
    write_file(last, read_file(last) | {"model.embed_tokens.weight": read_file(first)["model.embed_tokens.weight"]})
    return ("convert", path / "parts", path / "out", "--to", "legacy")


def a_truncated_checkpoint(path: Path) -> Arguments:
    weights("convert", folder(path), path / "ms", "--to", "legacy", "--format", "ckpt")
    content = (path / "ms" / "model.ckpt").read_bytes()
    (path / "ms" / "model.ckpt").write_bytes(content[:-5])
    return ("convert", path / "ms", path / "out", "--to", "hf")


def a_pickle(path: Path) -> Arguments:
    source = folder(path)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    return convert(source)


def a_zip_named_ckpt(path: Path) -> Arguments:
    source = folder(path)
    (source / "model.safetensors").unlink()
    (source / "last.ckpt").write_bytes(b"PK\x03\x04")
    return convert(source)


def no_config(path: Path) -> Arguments:
    source = folder(path)
    (source / "config.json").unlink()
    return convert(source)


def a_file_that_is_full(path: Path) -> Arguments:
    (path / "out").mkdir()
    (path / "out" / "thesis.tex").touch()
    return convert(folder(path))


# -- tensors --------------------------------------------------------------------------------------------------------


def a_missing_tensor(path: Path) -> Arguments:
    return convert(changed(path, model__layers__1__mlp__up_proj__weight=None))


def an_unknown_tensor(path: Path) -> Arguments:
    return convert(changed(path, model__vision__weight=Stored("F32", (1,), bytes(4))))


def a_layer_too_many(path: Path) -> Arguments:
    return convert(changed(path, model__layers__2__input_layernorm__weight=Stored("F32", (32,), bytes(128))))


def a_bias_of_a_llama(path: Path) -> Arguments:
    return convert(changed(path, model__layers__0__self_attn__q_proj__bias=Stored("F32", (32,), bytes(128))))


def another_shape(path: Path) -> Arguments:
    return convert(changed(path, lm_head__weight=Stored("F32", (44, 32), bytes(44 * 128))))


def another_dtype(path: Path) -> Arguments:
    return convert(changed(path, lm_head__weight=Stored("I8", (45, 32), bytes(45 * 32))))


def a_number_that_is_none(path: Path) -> Arguments:
    return convert(changed(path, model__norm__weight=Stored("F32", (32,), b"\0\0\xc0\x7f" * 32)))


def a_number_too_large(path: Path) -> Arguments:
    source = changed(path, model__norm__weight=Stored("F32", (32,), b"\0\0\x80\x60" * 32))
    return convert(source, "--dtype", "float16")


def a_head_that_is_not_the_tied_embeddings(path: Path) -> Arguments:
    return convert(changed(path, TIED, lm_head__weight=Stored("F32", (48, 32), bytes(48 * 128))))


def no_head_though_not_tied(path: Path) -> Arguments:
    return convert(changed(path, QWEN2, lm_head__weight=None))


def merged_rows_that_do_not_fit(path: Path) -> Arguments:
    weights("convert", folder(path), path / "ms", "--to", "qkv-concat-mg")
    config = json.loads((path / "ms" / "config.json").read_text()) | {"num_key_value_heads": 4}
    (path / "ms" / "config.json").write_text(json.dumps(config))
    return ("convert", path / "ms", path / "out", "--to", "hf")


def merged_in_an_unknown_order(path: Path) -> Arguments:
    weights("convert", folder(path), path / "ms", "--to", "qkv-concat-mg")
    (path / "ms" / "conversion.json").unlink()
    return ("convert", path / "ms", path / "out", "--to", "hf")


def names_of_no_layout(path: Path) -> Arguments:
    return convert(folder(path, tensors={"transformer.wte.weight": Stored("F32", (1,), bytes(4))}))


def a_pattern_that_is_none(path: Path) -> Arguments:
    source = changed(path, epoch_num=Stored("F32", (1,), bytes(4)))
    return convert(source, "--drop", "(")


# -- what is asked for ----------------------------------------------------------------------------------------------


def heads_that_cannot_be_cut(path: Path) -> Arguments:
    return ("shard", folder(path), path / "out", "--ranks", 3)


def key_value_heads_that_cannot_be_cut(path: Path) -> Arguments:
    source = folder(path, LLAMA | {"num_attention_heads": 12, "num_key_value_heads": 4})
    return ("shard", source, path / "out", "--ranks", 6)


def an_mlp_that_cannot_be_cut(path: Path) -> Arguments:
    return ("shard", folder(path, LLAMA | {"intermediate_size": 25}), path / "out", "--ranks", 2)


def a_vocabulary_that_mindspore_cannot_cut(path: Path) -> Arguments:
    return ("shard", folder(path), path / "out", "--ranks", 2, "--to", "legacy")


def a_layout_that_is_none(path: Path) -> Arguments:
    return ("convert", folder(path), path / "out", "--to", "legacyy")


def a_checkpoint_of_hugging_face(path: Path) -> Arguments:
    return ("convert", folder(path), path / "out", "--to", "hf", "--format", "ckpt")


def a_whole_model_to_merge(path: Path) -> Arguments:
    return merge(folder(path))


# -- ranks ----------------------------------------------------------------------------------------------------------


def no_strategy(path: Path) -> Arguments:
    source = ranks(path)
    (source / "strategy.json").unlink()
    return merge(source)


def a_missing_rank(path: Path) -> Arguments:
    source = ranks(path)
    (source / "rank_2").rename(source / "rank_7")
    return merge(source)


def a_rank_too_many(path: Path) -> Arguments:
    source = ranks(path)
    (source / "rank_4").mkdir()
    return merge(source)


def the_strategy_of_another_world(path: Path) -> Arguments:
    ranks(path / "two", num=2)
    return merge(ranks(path), "--strategy", path / "two" / "in" / "strategy.json")


def the_strategy_of_another_model(path: Path) -> Arguments:
    ranks(path / "other", LLAMA | {"intermediate_size": 32})
    return merge(ranks(path), "--strategy", path / "other" / "in" / "strategy.json")


def the_strategy_of_another_family(path: Path) -> Arguments:
    ranks(path / "other", QWEN2 | {"vocab_size": 45})
    return merge(ranks(path), "--strategy", path / "other" / "in" / "strategy.json")


def another_sha256(path: Path) -> Arguments:
    def flip(tensors: Tensors) -> None:
        before = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = before._replace(data=before.data[:-1] + bytes([before.data[-1] ^ 1]))

    return merge(edit_rank(ranks(path), 3, flip, hashes=True))


def copies_that_differ(path: Path) -> Arguments:
    def flip(tensors: Tensors) -> None:
        before = tensors["model.norm.weight"]
        tensors["model.norm.weight"] = before._replace(data=bytes(128))

    return merge(edit_rank(ranks(path), 1, flip))


def key_value_heads_that_differ(path: Path) -> Arguments:
    def flip(tensors: Tensors) -> None:
        name = "model.layers.0.self_attn.k_proj.weight"
        tensors[name] = tensors[name]._replace(data=bytes(len(tensors[name].data)))

    return merge(edit_rank(ranks(path), 3, flip))


def a_tensor_missing_in_a_rank(path: Path) -> Arguments:
    return merge(edit_rank(ranks(path), 2, lambda tensors: tensors.pop(NAME)))


def a_part_of_another_shape(path: Path) -> Arguments:
    def shorten(tensors: Tensors) -> None:
        tensors[NAME] = Stored("F32", (5, 32), bytes(5 * 128))

    return merge(edit_rank(ranks(path), 2, shorten))


def a_part_of_another_dtype(path: Path) -> Arguments:
    def halve(tensors: Tensors) -> None:
        tensors[NAME] = Stored("F16", (6, 32), bytes(6 * 64))

    return merge(edit_rank(ranks(path), 2, halve))


def an_unknown_tensor_in_a_rank(path: Path) -> Arguments:
    def add(tensors: Tensors) -> None:
        tensors["adam_m.model.norm.weight"] = Stored("F32", (1,), bytes(4))

    return merge(edit_rank(ranks(path), 0, add))


def two_files_in_a_rank(path: Path) -> Arguments:
    source = ranks(path)
    original = source / "rank_1" / "model.safetensors"
    for name in ("a", "b"):
        (source / "rank_1" / f"{name}.safetensors").write_bytes(original.read_bytes())
    original.unlink()
    return merge(edit_strategy(source, lambda found: found.pop("files")))


def a_strategy_with_an_unknown_key(path: Path) -> Arguments:
    return merge(edit_strategy(ranks(path), lambda found: found.update(worldsize=4)))


def a_hash_of_a_file_elsewhere(path: Path) -> Arguments:
    return merge(edit_strategy(ranks(path), lambda found: found["files"].update({"../../etc/passwd": "0"})))


def parts_that_do_not_make_the_whole(path: Path) -> Arguments:
    a_part_of_another_shape(path)
    (path / "in" / "strategy.json").unlink()
    return merge(path / "in", "--strategy", "auto")


def a_gap_between_ranks(path: Path) -> Arguments:
    source = ranks(path)
    (source / "rank_1").rename(source / "rank_9")
    return merge(source, "--strategy", "auto")


CASES: list[tuple[Callable[[Path], Arguments], str]] = [
    (a_missing_shard, r"model-00002-of-\d+.safetensors: cannot read the weights \(No such file"),
    (a_truncated_file, r"model.safetensors: lm_head.weight: lies outside the file; it is cut off"),
    (a_truncated_header, r"model.safetensors: not a safetensors file, or cut off \(50 bytes\)"),
    (overlapping_offsets, r"model.safetensors: lm_head.weight: its bytes overlap those of model.embed_tokens.weight"),
    (a_tensor_twice_in_a_header, r"model.safetensors: model.norm.weight: twice in the header"),
    (a_tensor_in_two_files, r"model-\d+-of-\d+.safetensors: model.embed_tokens.weight: this tensor is in model-00001"),
    (a_truncated_checkpoint, r"model.ckpt: not a MindSpore checkpoint, or cut off, or encrypted"),
    (a_pickle, r"pytorch_model.bin: a pickle file is not opened.* save the model as safetensors"),
    (a_zip_named_ckpt, r"last.ckpt: not a MindSpore checkpoint but a zip archive.*save the model as safetensors"),
    (no_config, r"config.json: cannot read the settings"),
    (a_file_that_is_full, r"out: there is something in it already; choose a new folder"),
    (a_missing_tensor, rf"tensor {NAME} is missing; the files do not fit their config.json"),
    (an_unknown_tensor, r"tensor model.vision.weight: layout hf of a llama model has no such name; --from .*--drop"),
    (a_layer_too_many, r"model.layers.2.input_layernorm.weight: config.json has num_hidden_layers: 2"),
    (a_bias_of_a_llama, r"q_proj.bias: a Llama has no biases; is it a Qwen2 \(config.json: architectures\)\?"),
    (another_shape, r"lm_head.weight is \[44, 32\], but config.json asks for \[45, 32\]"),
    (another_dtype, r"lm_head.weight: stored as int8; readable: float32, float16, bfloat16"),
    (a_number_that_is_none, r"model.norm.weight: NaN or infinity at \[0\].*--allow-nonfinite"),
    (a_number_too_large, r"model.norm.weight: its 7.37\d+e\+19 is too large for float16; .*--dtype bfloat16"),
    (a_head_that_is_not_the_tied_embeddings, r"lm_head.weight is not the embeddings, .* set it to false"),
    (no_head_though_not_tied, r"tensor lm_head.weight is missing.* lacks tie_word_embeddings: true"),
    (merged_rows_that_do_not_fit, r"w_qkv.weight: 48 rows, but config.json asks for 32 \+ 16 \+ 16 = 64"),
    (merged_in_an_unknown_order, r"qkv-concat and of qkv-concat-mg.*say which with --from"),
    (names_of_no_layout, r"no name here is one .*such as \['transformer.wte.weight'\]"),
    (a_pattern_that_is_none, r"--drop '\(': not a regular expression"),
    (heads_that_cannot_be_cut, r"ranks: 3 ranks do not fit the 8 attention heads .*possible: 1, 2, 4, 8"),
    (key_value_heads_that_cannot_be_cut, r"ranks: 6 ranks do not fit the 4 key-value heads .*possible: 1, 2, 4, 12"),
    (an_mlp_that_cannot_be_cut, r"ranks: 2 ranks do not fit the MLP width of 25 .*possible: 1"),
    (a_vocabulary_that_mindspore_cannot_cut, r"ranks: the vocabulary of 45 .* 2 equal parts.*--vocabulary whole"),
    (a_layout_that_is_none, r"--to: unknown layout 'legacyy'. Did you mean 'legacy'"),
    (a_checkpoint_of_hugging_face, r"--format ckpt: MindSpore's, which layout hf is not; --to legacy"),
    (a_whole_model_to_merge, r"a whole model, not the folders rank_0.*llmbench weights shard"),
    (no_strategy, r"there is rank_0, but no strategy.json .* --strategy FILE, .*--strategy auto"),
    (a_missing_rank, r"rank_2: no such folder, but .*strategy.json is of 4 ranks"),
    (a_rank_too_many, r"rank_4: .*strategy.json is of 4 ranks; is it that of another cut\?"),
    (the_strategy_of_another_world, r"rank_2: .*strategy.json is of 2 ranks"),
    (the_strategy_of_another_model, r"mlp.gate_proj.weight.shape: \[32, 32\], but config.json asks for \[24, 32\]"),
    (the_strategy_of_another_family, r"q_proj.bias: config.json asks for no such tensor; is it of another model\?"),
    (another_sha256, r"rank_3/model.safetensors: its sha256 is [0-9a-f]{64}, strategy.json has [0-9a-f]{64}"),
    (copies_that_differ, r"rank_1: model.norm.weight: other values than in .*rank_0"),
    (key_value_heads_that_differ, r"rank_3: .*layers.0.self_attn.k_proj.weight: other values than in .*rank_2"),
    (a_tensor_missing_in_a_rank, rf"rank_2: tensor {NAME} is missing, of which strategy.json asks for \[6, 32\]"),
    (a_part_of_another_shape, rf"rank_2: tensor {NAME} is \[5, 32\], but strategy.json asks for \[6, 32\]"),
    (a_part_of_another_dtype, rf"{NAME}: its parts are float16 and float32"),
    (an_unknown_tensor_in_a_rank, r"rank_0/model.safetensors: tensor adam_m.model.norm.weight: .*--drop"),
    (two_files_in_a_rank, r"rank_1: 2 safetensors files but no model.safetensors.index.json"),
    (a_strategy_with_an_unknown_key, r"strategy.json: worldsize: unknown key; did you mean 'world_size'"),
    (parts_that_do_not_make_the_whole, rf"rank_0: tensor {NAME}: parts of .*\[5, 32\].* do not make \[24, 32\]"),
    (a_gap_between_ranks, r"rank_1: no such folder; ranks are counted from 0, without a gap"),
    (a_hash_of_a_file_elsewhere, r"strategy.json: files: ../../etc/passwd is outside of this folder"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[make.__name__ for make, _ in CASES])
def test_it_is_refused_with_its_name_and_leaves_nothing(
    tmp_path: Path, make: Callable[[Path], Arguments], message: str
) -> None:
    arguments = make(tmp_path)
    out = Path(str(arguments[2]))
    before = list(out.iterdir()) if out.exists() else None
    with pytest.raises(InputError, match=message) as caught:
        weights(*arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert (list(out.iterdir()) if out.exists() else None) == before
    assert not out.with_name(f".{out.name}.part").exists()


def test_without_torch_metas_files_are_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    (tmp_path / "params.json").write_text('{"dim": 8}')
    with pytest.raises(NotInstalled, match=r"consolidated.00.pth: torch .* is not installed: pip install torch"):
        weights(*convert(tmp_path))


def test_a_gap_between_metas_files_is_named(tmp_path: Path) -> None:
    for name in ("consolidated.00.pth", "consolidated.02.pth"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"consolidated.01.pth: missing, though there is consolidated.02.pth"):
        weights(*convert(tmp_path))
