"""Reading safetensors: every float type, by rows, in shards; and refusing what is not safetensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from llmbench.errors import InputError
from llmbench.weights.files import Safetensors, open_folder
from llmbench.weights.tensors import widen


def write(path: Path, tensors: dict[str, tuple[str, npt.NDArray[Any]]]) -> Path:
    """A safetensors file by hand, since the library writes no bfloat16 from NumPy: of each the type, and its bits."""
    header, data = {}, b""
    for name, (dtype, bits) in tensors.items():
        raw = bits.tobytes()
        header[name] = {"dtype": dtype, "shape": list(bits.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_float32_and_float16_are_read_as_they_are(tmp_path: Path) -> None:
    full = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    save_file({"a": full, "b": full.astype(np.float16)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    weights = open_folder(tmp_path)
    assert sorted(weights.names()) == ["a", "b"]
    assert (weights.shape("a"), weights.dtype("a"), weights.dtype("b")) == ((5, 3), "float32", "float16")
    assert (weights.rows("a", 0, 5) == full).all()
    half = weights.rows("b", 0, 5)
    assert half.dtype == np.float16
    assert (half == full.astype(np.float16)).all()


def test_bfloat16_is_the_upper_half_of_float32(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC020, 0x0000, 0x7F80, 0x0001], np.uint16)
    weights = Safetensors([write(tmp_path / "x.safetensors", {"w": ("BF16", bits)})])
    assert weights.dtype("w") == "bfloat16"
    assert weights.rows("w", 0, 5).tolist() == bits.tolist()
    assert widen(weights.rows("w", 0, 5)).tolist() == [1.0, -2.5, 0.0, np.inf, 2.0**-133]


def test_rows_are_those_of_the_tensor(tmp_path: Path) -> None:
    values = np.arange(2 * 7 * 3 * 2, dtype=np.float32).reshape(14, 3, 2)
    save_file({"before": values, "w": values + 1000, "flat": values.ravel()}, tmp_path / "one.safetensors")
    weights = open_folder(tmp_path)
    assert (weights.rows("w", 4, 9) == values[4:9] + 1000).all()
    assert weights.rows("w", 3, 3).shape == (0, 3, 2)
    assert (weights.rows("flat", 5, 8) == [5, 6, 7]).all()


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        save_file({name: np.full((2, 2), i, np.float32)}, tmp_path / f"part-{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "part-0.safetensors", "b": "part-1.safetensors"}}))
    weights = open_folder(tmp_path)
    assert [float(weights.rows(name, 0, 2).max()) for name in "ab"] == [0, 1]
    index.write_text(json.dumps({"weight_map": {"c": "part-0.safetensors"}}))
    with pytest.raises(InputError, match=r"part-0.safetensors: no tensor 'c'"):
        open_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "part-9.safetensors"}}))
    with pytest.raises(InputError, match=r"part-9.safetensors: cannot read the weights"):
        open_folder(tmp_path)
    index.write_text("[]")
    with pytest.raises(InputError, match="cannot read its weight_map"):
        open_folder(tmp_path)


def test_several_files_need_an_index(tmp_path: Path) -> None:
    for name in ("x", "y"):
        save_file({"a": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match=r"2 safetensors files but no model.safetensors.index.json"):
        open_folder(tmp_path)


def test_a_file_that_was_cut_off_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.zeros((100, 10), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="w: lies outside the file; it is cut off"):
        open_folder(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"not a safetensors file, or cut off \(20 bytes\)"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 7, b"PK\x03\x04 and much more text", b"\x04" + b"\x00" * 7 + b"nope"]
)
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a safetensors file"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, r"w: 8 bytes do not hold \[3\] of F32"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}, "w: lies outside the file"),
        ({"dtype": "F32", "shape": [2]}, "w: broken header entry"),
    ],
)
def test_a_broken_header_entry_is_named(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    text = json.dumps({"w": fields}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x00" * 8)
    with pytest.raises(InputError, match=message):
        open_folder(tmp_path)


def test_other_types_are_refused_when_they_are_read(tmp_path: Path) -> None:
    weights = Safetensors([write(tmp_path / "x.safetensors", {"w": ("I16", np.zeros(2, np.int16))})])
    with pytest.raises(InputError, match="w: stored as I16; readable: float32, float16, bfloat16, int8"):
        weights.rows("w", 0, 1)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    weights = Safetensors([write(tmp_path / "x.safetensors", {"w": ("F32", np.zeros(2, np.float32))})])
    with pytest.raises(InputError, match="no tensor 'v' among its 1"):
        weights.shape("v")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_files_are_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=f"{name}: a pickle file is not opened.*save the model as safetensors"):
        open_folder(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \*.safetensors in this folder"):
        open_folder(tmp_path)
