"""Folders compressed and written again, bit by bit, and refused when a bit is another; CANN's tool, as documented."""

import hashlib
import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmbench.errors import InputError
from llmbench.weights import cann, compress, tiles
from llmbench.weights.compress import Wanted
from llmbench.weights.sources import COMPRESSED
from tests.weights.folders import Stored, Tensors, read_file, write_file
from tests.weights.test_convert import weights

LINEARS = {"model.layers.0.self_attn.q_proj": (40, 64), "model.layers.0.mlp.down_proj": (64, 140)}
NAME = "quant_model_weight_w8a8s.safetensors"


def nothing(*_: object) -> None:
    """No progress."""


def int8(shape: tuple[int, int], seed: int) -> Stored:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random(shape) < 0.4, rng.integers(-7, 8, shape), 0)
    return Stored("I8", shape, values.astype(np.int8).tobytes())


def quantised(folder: Path, linears: dict[str, tuple[int, int]] = LINEARS, kind: str = "W8A8S", seed: int = 0) -> Path:
    """A folder as msModelSlim writes it, as much of it as matters here."""
    tensors: Tensors = {"model.norm.weight": Stored("F32", (3,), bytes(range(12)))}
    kinds = {"model.norm.weight": "FLOAT", "model_quant_type": kind}
    for number, (name, shape) in enumerate(linears.items()):
        tensors[f"{name}.weight"] = int8(shape, seed + number)
        tensors[f"{name}.deq_scale"] = Stored("I64", (shape[0],), bytes(8 * shape[0]))
        kinds |= {f"{name}.weight": kind, f"{name}.deq_scale": kind}
    folder.mkdir(parents=True)
    write_file(folder / NAME, tensors)
    (folder / "quant_model_description_w8a8s.json").write_text(json.dumps(kinds))
    (folder / "config.json").write_text('{"hidden_size": 64}')
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_comes_back_bit_by_bit(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8s")
    said = weights("compress", source, "-o", tmp_path / "small", "--codec", "llmbench")
    assert "an Atlas 300I (310P) does not" in said
    assert "q_proj" in said
    assert said.splitlines()[-1].endswith("0.343"), "the ratio of all"
    small = content(tmp_path / "small")
    assert set(small) == {
        "compression.json",
        "config.json",
        "quant_model_description_w8a8s.json",
        "quant_model_description_w8a8sc.json",
        "quant_model_weight_w8a8sc.safetensors",
    }
    assert "2 matrices, as they were" in weights("decompress", tmp_path / "small", "-o", tmp_path / "back")
    assert content(tmp_path / "back") == content(source)


def test_what_is_no_folder_of_ranks_is_left_out_and_told(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8s")
    before = content(source)
    quantised(source / "anti_weight", kind="FLOAT")
    said = weights("compress", source, "-o", tmp_path / "small", "--codec", "llmbench")
    assert "left out, as they are no folders of ranks: anti_weight" in said
    weights("decompress", tmp_path / "small", "-o", tmp_path / "back")
    assert content(tmp_path / "back") == before


def test_the_triple_of_each_matrix_lies_beside_what_was_left_alone(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8s")
    weights("compress", source, "-o", tmp_path / "small", "--codec", "llmbench")
    before, now = read_file(source / NAME), read_file(tmp_path / "small" / compress.WEIGHTS)
    name = "model.layers.0.mlp.down_proj"
    info = np.frombuffer(now[f"{name}.info"].data, "<i8")
    assert info[4:7].tolist() == [140, 64, len(now[f"{name}.weight"].data)]
    assert now[f"{name}.index"].shape == (8,), "one tile"
    assert now["model.norm.weight"] == before["model.norm.weight"]
    assert now[f"{name}.deq_scale"] == before[f"{name}.deq_scale"]
    described = json.loads((tmp_path / "small" / compress.DESCRIPTION).read_text())
    assert described[f"{name}.weight"] == described["model_quant_type"] == "W8A8SC"
    assert described["model.norm.weight"] == "FLOAT"
    assert described["rank_0"][f"{name}.weight.shape"] == [len(now[f"{name}.weight"].data)]
    assert described["rank_0"][f"{name}.index.shape"] == [8]


def test_ranks_are_compressed_each_by_itself_and_may_have_the_names_of_mindie(tmp_path: Path) -> None:
    source = tmp_path / "cut"
    for rank in range(2):
        quantised(source / f"rank_{rank}", seed=10 * rank)
    (source / "strategy.json").write_text("{}")
    for flags, names in (((), ("rank_0", "rank_1")), (("--parts",), ("part0-of-2", "part1-of-2"))):
        small, back = tmp_path / f"small{len(flags)}", tmp_path / f"back{len(flags)}"
        weights("compress", source, "-o", small, "--codec", "llmbench", *flags)
        assert all((small / name / compress.WEIGHTS).is_file() for name in names)
        described = json.loads((small / names[1] / compress.DESCRIPTION).read_text())
        assert "rank_1" in described
        weights("decompress", small, "-o", back)
        assert content(back) == content(source)


def test_layers_can_be_left_as_they_are(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8s")
    said = weights(
        *("compress", source, "-o", tmp_path / "small", "--codec", "llmbench"), "--disable-layers", "*.q_proj", "--json"
    )
    linears = next(file["linears"] for file in json.loads(said)["files"].values() if file["linears"])
    assert linears["model.layers.0.self_attn.q_proj"]["disabled"]
    now = read_file(tmp_path / "small" / compress.WEIGHTS)
    assert now["model.layers.0.self_attn.q_proj.index"].shape == (0,)
    assert now["model.layers.0.self_attn.q_proj.weight"].shape == (48 * 64,), "whole blocks"
    weights("decompress", tmp_path / "small", "-o", tmp_path / "back")
    assert content(tmp_path / "back") == content(source)


def test_pseudo_sparse_weights_have_so_many_zeros_and_come_back_with_them(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    dense = Stored("I8", (400, 300), np.full((400, 300), 3, np.int8).tobytes())
    source = quantised(tmp_path / "w8a8s", {name: (400, 300)})
    write_file(source / NAME, {f"{name}.weight": dense})
    said = weights("compress", source, "-o", tmp_path / "small", "--codec", "llmbench", "--pseudo-sparse", "0.3")
    assert "30% of the values were kept at random (seed 0)" in said
    weights("decompress", tmp_path / "small", "-o", tmp_path / "back")
    values = np.frombuffer(read_file(tmp_path / "back" / NAME)[f"{name}.weight"].data, np.int8)
    assert set(np.unique(values).tolist()) == {0, 3}
    assert abs((values == 3).mean() - 0.3) < 0.01


def test_w8a8_is_compressed_only_when_that_is_asked_for(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8", kind="W8A8")
    assert "nothing to compress: no linear of W8A8S" in str(error_of(source, Wanted(), tmp_path))
    weights("compress", source, "-o", tmp_path / "small", "--codec", "llmbench", "--all")
    weights("decompress", tmp_path / "small", "-o", tmp_path / "back")
    assert content(tmp_path / "back") == content(source)


@pytest.mark.parametrize("step", [29, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_every_flipped_bit_and_every_missing_byte_of_every_file_is_refused(tmp_path: Path, step: int) -> None:
    source = quantised(tmp_path / "w8a8s", {"model.layers.0.mlp.up_proj": (3, 5)})
    small = tmp_path / "small"
    compress.compress(source, small, Wanted(), nothing)
    compress.read(small)
    num = 0
    for path in sorted(small.iterdir()):
        whole = path.read_bytes()
        for length in range(0, len(whole), step):
            path.write_bytes(whole[:length])
            assert is_refused(small), (path.name, length)
        for bit in range(0, 8 * len(whole), step):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert is_refused(small), (path.name, bit)
            num += 1
        path.write_bytes(whole)
    assert num > 25_000 // step
    compress.read(small)


def is_refused(folder: Path) -> bool:
    try:
        compress.read(folder)
    except InputError:
        return True
    return False


def test_a_file_that_is_missing_or_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    small = tmp_path / "small"
    compress.compress(quantised(tmp_path / "w8a8s"), small, Wanted(), nothing)
    (small / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: cannot read it \(No such file"):
        compress.decompress(small, tmp_path / "back", nothing)
    assert not (tmp_path / "back").exists()
    (tmp_path / "config.json").write_text("{}")
    found = json.loads((small / COMPRESSED).read_text())
    found["files"]["../config.json"] = found["files"].pop("config.json")
    rewrite(small, found)
    with pytest.raises(InputError, match="outside"):
        compress.read(small)


def rewrite(folder: Path, found: dict[str, Any]) -> None:
    """A compression.json that is in itself as it should be."""
    texts: list[bytes] = []
    for digest in ("", "x"):
        found["sha256"] = digest and hashlib.sha256(texts[0]).hexdigest()
        texts.append((json.dumps(found, indent=2) + "\n").encode())
    (folder / COMPRESSED).write_bytes(texts[1])


def error_of(source: Path, wanted: Wanted, tmp_path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        compress.compress(source, tmp_path / "never", wanted, nothing)
    assert not (tmp_path / "never").exists()
    return caught.value


def refused(*arguments: object) -> str:
    """What `llmbench weights …` says when it exits with 2."""
    with pytest.raises(InputError) as caught:
        weights(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_what_cannot_be_compressed_is_named(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8s")
    assert "no such folder" in str(error_of(tmp_path / "none", Wanted(), tmp_path))
    assert "--disable-layers o_proj: no linear of that name" in str(
        error_of(source, Wanted(disabled=("o_proj",)), tmp_path)
    )
    compress.compress(source, tmp_path / "small", Wanted(), nothing)
    assert "compressed already" in str(error_of(tmp_path / "small", Wanted(), tmp_path))
    assert "no compression.json" in refused("decompress", source, "-o", tmp_path / "never")
    write_file(source / NAME, {f"{name}.weight": Stored("F32", (1,), bytes(4)) for name in LINEARS})
    assert "F32 [1], but its description says W8A8S" in str(error_of(source, Wanted(), tmp_path))
    more = {f"{name}.weight": int8(shape, 0) for name, shape in LINEARS.items()}
    write_file(source / NAME, more | {"x": Stored("F64", (1,), bytes(8))})
    assert "x: stored as F64" in str(error_of(source, Wanted(), tmp_path))
    write_file(source / NAME, more)
    with (source / NAME).open("ab") as file:
        file.write(b"more")
    assert "it has bytes that are of no tensor" in str(error_of(source, Wanted(), tmp_path))
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide" / "quant_weight.npy").touch()
    assert "the dictionaries of the ATB guide" in str(error_of(tmp_path / "guide", Wanted(), tmp_path))
    for flags, what in (
        (("--pseudo-sparse", "1.5"), "--pseudo-sparse: a share from 0 to 1"),
        (("--codec", "zip"), "--codec"),
        (("--codec", "llmbench", "--cann", "x"), "leave --cann out"),
        (("--cann", tmp_path), "there is no compress_excutor in it"),
    ):
        assert what in refused("compress", source, "-o", tmp_path / "never", *flags)


# -- CANN's tool, which cannot be had here: a program that looks at what it is given and leaves files as documented ----

_TOOL = """#!{python}
import struct, sys
from pathlib import Path
assert len(sys.argv) == 12, sys.argv
k1, n1, *fixed = map(int, sys.argv[1:8])
assert fixed == [1, 1, 1, 0, 0], fixed
source, out, index, info = map(Path, sys.argv[8:])
blocks = source.read_bytes()
assert len(blocks) == k1 * n1 * 512, "whole blocks of 16 x 32"
{fault}
out.write_bytes(blocks[::2] + b"rest of a buffer")
index.write_bytes(bytes(8 * -(-k1 // 8) * -(-n1 // 8)))
info.write_bytes(struct.pack("<4I", 8, 8, len(blocks[::2]), 0))
"""


def tool(path: Path, fault: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_TOOL.format(python=sys.executable, fault=fault))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_canns_tool_is_called_as_documented_and_its_files_are_taken_over(tmp_path: Path) -> None:
    source = quantised(tmp_path / "w8a8s")
    own = tool(tmp_path / "toolkit/weight_compression/compress_graph/build/compress_excutor")
    said = weights("compress", source, "-o", tmp_path / "small", "--cann", tmp_path / "toolkit")
    assert "CANN's codec: for an Atlas 300I Duo (310P)" in said
    now = read_file(tmp_path / "small" / compress.WEIGHTS)
    name = "model.layers.0.mlp.down_proj"
    blocks = tiles.to_nz(np.frombuffer(read_file(source / NAME)[f"{name}.weight"].data, np.int8).reshape(64, 140))
    assert now[f"{name}.weight"].data == blocks.tobytes()[::2], "of so many bytes as info says"
    assert now[f"{name}.index"].shape == (8,)
    assert np.frombuffer(now[f"{name}.info"].data, "<i8").tolist() == [8, 8, 140, 64, 1]
    assert "keep the model" in refused("decompress", tmp_path / "small", "-o", tmp_path / "back")
    assert cann.find(own, {}) == own
    assert cann.find(None, {"ASCEND_TOOLKIT_HOME": str(tmp_path / "toolkit")}) == own
    assert cann.find(None, {"PATH": str(own.parent)}) == own
    assert cann.find(None, {"PATH": str(tmp_path)}) is None


@pytest.mark.parametrize(
    ("fault", "what"),
    [
        ("sys.exit('no 310P here')", "ended with 1: no 310P here"),
        ("sys.exit(0)", r"left no out\.bin"),
        ("n1 += 8", "left an index of 16 bytes"),
        ("struct.pack = lambda *_: b''", "left an info file of 0 bytes"),
    ],
)
def test_what_canns_tool_does_wrong_is_told(tmp_path: Path, fault: str, what: str) -> None:
    source = quantised(tmp_path / "w8a8s")
    own = tool(tmp_path / "compress_executor", fault)
    with pytest.raises(InputError, match=what):
        compress.compress(source, tmp_path / "small", Wanted(cann=own), nothing)
    assert not (tmp_path / "small").exists()


def test_a_tool_that_may_not_be_run_is_told(tmp_path: Path) -> None:
    own = tool(tmp_path / "compress_excutor")
    own.chmod(0o644)
    if os.access(own, os.X_OK):
        pytest.skip("whoever runs the tests may run everything")
    with pytest.raises(InputError, match="not a program that may be run"):
        cann.find(own, {})
