"""MindSpore's .ckpt: as its protobuf definition says, in several values, with a CRC; refused when it is not whole."""

import binascii
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmbench.errors import InputError
from llmbench.weights import ckpt
from llmbench.weights.ckpt import Checkpoint
from llmbench.weights.tensors import Tensor, narrow
from tests.conftest import need

VALUES = np.arange(6, dtype=np.float32).reshape(3, 2)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field; here all are shorter than 128 bytes but for the largest."""
    length = len(content)
    encoded = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return bytes([number << 3 | 2]) + encoded + content


def value(name: str, dims: list[int], kind: str, content: bytes, packed: bool = False) -> bytes:
    """One value of a Checkpoint."""
    shape = field(1, bytes(dims)) if packed else b"".join(b"\x08" + bytes([dim]) for dim in dims)
    return field(1, field(1, name.encode()) + field(2, shape + field(2, kind.encode()) + field(3, content)))


def file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def tensor(values: npt.NDArray[Any], dtype: str) -> Tensor:
    return Tensor(shape=values.shape, dtype=dtype, rows=lambda start, stop: values[start:stop])


@pytest.mark.parametrize("packed", [False, True])
def test_tensors_are_read_by_rows(tmp_path: Path, packed: bool) -> None:
    bits = narrow(VALUES, "bfloat16")
    content = value("a", [3, 2], "Float32", VALUES.tobytes(), packed) + value("b", [6], "BFloat16", bits.tobytes())
    read = Checkpoint(file(tmp_path / "x.ckpt", content))
    assert (read.names(), read.shape("a"), read.dtype("a"), read.dtype("b")) == (
        ["a", "b"],
        (3, 2),
        "float32",
        "bfloat16",
    )
    assert (read.rows("a", 1, 3) == VALUES[1:]).all()
    assert (read.rows("b", 2, 5) == bits.ravel()[2:5]).all()
    assert read.rows("a", 2, 2).shape == (0, 2)


def test_a_tensor_in_several_values_is_one(tmp_path: Path) -> None:
    data = VALUES.tobytes()
    parts = [data[:10], data[10:11], data[11:]]  # MindSpore cuts bytes, not rows
    content = b"".join(value("a", [3, 2], "Float32", part) for part in parts)
    read = Checkpoint(file(tmp_path / "x.ckpt", content))
    assert (read.rows("a", 0, 3) == VALUES).all()
    assert (read.rows("a", 1, 2) == VALUES[1:2]).all()


def test_what_is_written_is_what_the_definition_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = value("some.weight", [3, 2], "Float32", VALUES.tobytes())
    assert b"".join(ckpt.values("some.weight", tensor(VALUES, "float32"))) == expected
    monkeypatch.setattr(ckpt, "_CHUNK_BYTES", 10)
    written = b"".join(ckpt.values("some.weight", tensor(VALUES, "float32")))
    parts = [VALUES.tobytes()[i : i + 10] for i in (0, 10, 20)]
    assert written == b"".join(value("some.weight", [3, 2], "Float32", part) for part in parts)
    assert (Checkpoint(file(tmp_path / "x.ckpt", written)).rows("some.weight", 0, 3) == VALUES).all()


def test_a_crc_is_looked_at(tmp_path: Path) -> None:
    content = value("a", [3, 2], "Float32", VALUES.tobytes())
    path = file(tmp_path / "x.ckpt", content + b"crc_num" + binascii.crc32(content).to_bytes(10, "big"))
    assert (Checkpoint(path).rows("a", 0, 3) == VALUES).all()
    damaged = bytearray(path.read_bytes())
    damaged[len(content) - 1] ^= 1
    with pytest.raises(InputError, match="its CRC is not that of its content"):
        Checkpoint(file(path, bytes(damaged)))


GOOD = value("a", [3, 2], "Float32", VALUES.tobytes())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this checkpoint is empty"),
        (GOOD[:-1], "not a MindSpore checkpoint, or cut off, or encrypted"),
        (GOOD[:3], "not a MindSpore checkpoint, or cut off"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "not a MindSpore checkpoint"),
        (b"PK\x03\x04rest", "a zip archive, such as PyTorch writes; save the model as safetensors"),
        (b"\x80\x04\x95rest", "a pickle, which can run code"),
        (value("a", [3, 3], "Float32", VALUES.tobytes()), r"a: 24 bytes do not hold \[3, 3\] of Float32"),
        (GOOD + GOOD, "a: this tensor is twice in the file"),
        (GOOD + value("b", [1], "Float32", b"1234") + GOOD, "a: this tensor is twice"),
        (field(1, field(1, b"m") + field(3, b"")), "m: a map parameter"),
        (field(1, field(2, b"")), "not a MindSpore checkpoint"),
        (field(1, field(1, b"a") + field(2, b"\x08\x03")), "not a MindSpore checkpoint"),
        (field(1, field(1, b"\xff") + field(2, b"")), "not a MindSpore checkpoint"),
        (b"\x0d1234", "not a MindSpore checkpoint"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=r"x\.ckpt: .*" + message):
        Checkpoint(file(tmp_path / "x.ckpt", content))


def test_other_dtypes_are_named_and_refused_when_they_are_read(tmp_path: Path) -> None:
    read = Checkpoint(file(tmp_path / "x.ckpt", value("epoch_num", [0], "Int16", b"\x01\0")))
    assert (read.shape("epoch_num"), read.dtype("epoch_num")) == ((), "int16")
    with pytest.raises(InputError, match="epoch_num: stored as Int16; readable: float32"):
        read.rows("epoch_num", 0, 1)


@pytest.mark.mindspore
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_mindspore_writes_the_same_bytes_and_reads_ours(tmp_path: Path, dtype: str) -> None:
    need("mindspore")
    from llmbench.engines import _mindspore_home as home

    home.start(1)
    import mindspore

    bits = narrow(VALUES, dtype)
    ours = file(tmp_path / "ours.ckpt", b"".join(ckpt.values("layer.weight", tensor(bits, dtype))))
    theirs = tmp_path / "theirs.ckpt"
    data = mindspore.Tensor(VALUES, getattr(mindspore, dtype))
    mindspore.save_checkpoint([{"name": "layer.weight", "data": data}], str(theirs))
    assert theirs.read_bytes() == ours.read_bytes()
    assert (Checkpoint(theirs).rows("layer.weight", 0, 3) == bits).all()
    loaded = mindspore.load_checkpoint(str(ours))["layer.weight"]
    assert str(loaded.dtype).lower() == dtype
    assert (loaded.astype(mindspore.float32).asnumpy() == VALUES).all()
    with_crc = tmp_path / "crc.ckpt"
    mindspore.save_checkpoint([{"name": "layer.weight", "data": data}], str(with_crc), crc_check=True)
    assert (Checkpoint(with_crc).rows("layer.weight", 0, 3) == bits).all()
