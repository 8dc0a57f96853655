"""The ATB guide's dictionaries: read without running what is in them, written so that its scripts can load them."""

import io
import json
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from llmbench.errors import InputError
from llmbench.weights import _pickles, dictionaries, guide
from llmbench.weights.model import open_model
from llmbench.weights.quantised import W8A8
from tests.weights import eight_bits
from tests.weights.test_convert import weights
from tests.weights.test_quantised import DOWN, MIXED, Q, same

_npy: Any = np.lib.format  # which has no types
FIVE = {"deq_scale.npy", "fp_bias.npy", "quant_weight.npy", "input_offset.npy", "input_scale.npy"}


def header() -> bytes:
    """What a .npy file of one object begins with."""
    file = io.BytesIO()
    _npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
    return file.getvalue()


def boxed(value: Any) -> Any:
    array = np.empty((), object)
    array[()] = value
    return array


def pickled(path: Path, value: Any, protocol: int = 3) -> Path:
    path.write_bytes(header() + pickle.dumps(boxed(value), protocol))
    return path


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.text(max_size=300),
        arrays.arrays(
            st.sampled_from(["i1", "i4", "i8", "f2", "f4", "f8"]),
            arrays.array_shapes(min_dims=0, max_dims=3, max_side=9),
        ),
        max_size=5,
    )
)
def test_numpy_reads_what_is_written_and_what_numpy_writes_is_read(values: dict[str, Any]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        with dictionaries.Writer(path) as writer:
            for name, array in values.items():
                writer.put(name, array)
        loaded = np.load(path, allow_pickle=True).item()
        assert list(loaded) == list(values)
        assert all(loaded[name].tobytes() == array.tobytes() for name, array in values.items())
        assert all(loaded[name].dtype == array.dtype for name, array in values.items())
        np.save(path, boxed(values))
        found = dictionaries.read(path)
        assert list(found) == list(values)
        for name, array in values.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
            assert found[name].whole().tobytes() == array.tobytes()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_and_order_of_bytes_is_read(tmp_path: Path, protocol: int) -> None:
    rng = np.random.default_rng(0)
    values: dict[str, Any] = {
        "long": rng.integers(-128, 128, (40, 50)).astype(np.int8),
        "fortran": np.asfortranarray(rng.normal(size=(30, 20))),
        "big": rng.normal(size=100).astype(">f4"),
        "short": np.arange(3, dtype=np.int64),
        "scalar": np.float32(0.25),
        "number": 7,
        "again": rng.normal(size=200),
    }
    values["same"] = values["again"]  # remembered by the pickle
    found = dictionaries.read(pickled(tmp_path / "x.npy", values, protocol))
    assert set(found) == set(values)
    for name, value in values.items():
        assert (found[name].whole() == value).all(), name
    for name in ("long", "fortran", "big"):
        assert (found[name].rows(3, 17) == values[name][3:17]).all(), name


class Evil:
    """What runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    flag = tmp_path / "ran"
    path = pickled(tmp_path / "quant_weight.npy", {"a": Evil(f"touch {flag}")}, protocol)
    with pytest.raises(InputError, match=r"quant_weight.npy: not read: its pickle (names posix.system|has )"):
        dictionaries.read(path)
    with pytest.raises(InputError):
        open_model(str(tmp_path))
    assert not flag.exists()
    np.load(path, allow_pickle=True)
    assert flag.exists(), "numpy itself would have run it"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": print}, "names builtins.print"),
        ({"a": object()}, "names "),
        ({"a": "text"}, "a value in its dictionary is no array"),
        ({"a": [1, 2]}, "a value in its dictionary is no array"),
        ({"a": np.array(["x"])}, "which are no numbers"),
        ({"a": np.array([None])}, "which are no numbers"),
        ({"a": np.zeros(2, bool)}, "which are no numbers"),
        ({"a": np.zeros(2, [("x", "f4")])}, "which are no numbers"),
        ({1: np.zeros(2)}, "not all names in its dictionary are texts"),
        ([1], "holds no dictionary"),
    ],
)
def test_what_is_no_dictionary_of_arrays_is_refused(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dictionaries.read(pickled(tmp_path / "x.npy", value))


def test_a_plain_array_and_another_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(InputError, match="an array of float64, not a dictionary of arrays"):
        dictionaries.read(path)
    path.write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(InputError, match=r"not a dictionary of arrays as np.save writes it, or damaged"):
        dictionaries.read(path)


@given(st.data())
def test_a_damaged_file_is_refused_or_read_as_arrays(data: st.DataObject) -> None:
    """Whatever byte is changed, and wherever it is cut off: never another error, nothing run."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        content = bytearray(header() + pickle.dumps(boxed({"a": np.arange(100), "b": np.zeros((2, 3), np.int8)}), 4))
        if data.draw(st.booleans()):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        path.write_bytes(content)
        try:
            for array in dictionaries.read(path).values():
                array.whole()
        except InputError as error:
            assert "x.npy" in str(error)  # noqa: PT017


def test_a_header_that_is_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.npy", {"a": np.arange(3)})
    content = path.read_bytes()
    for place in range(8, 128):
        for byte in b'("\n[':
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            try:
                dictionaries.read(path)
            except InputError as error:
                assert "x.npy" in str(error)  # noqa: PT017


def test_an_opcode_that_no_array_needs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(header() + b"\x80\x04(cos\nsystem\nX\x02\x00\x00\x00lso.")  # OBJ
    with pytest.raises(InputError, match=r"names os.system, which is nothing that arrays are made of"):
        dictionaries.read(path)
    path.write_bytes(header() + b"\x80\x02Pid\n.")  # PERSID
    with pytest.raises(InputError, match=r"its pickle has PERSID, which no array needs"):
        dictionaries.read(path)


def test_long_arrays_stay_in_the_file(tmp_path: Path) -> None:
    path = pickled(tmp_path / "x.npy", {"a": np.arange(1000), "b": np.arange(5)})
    found = dictionaries.read(path)
    assert not isinstance(found["a"].data, bytes)
    assert isinstance(found["b"].data, bytes)
    content = path.read_bytes()
    path.write_bytes(content[:500])
    with pytest.raises(InputError, match="the file became shorter while it was read"):
        found["a"].rows(900, 1000)


def test_the_guides_scripts_find_their_five_dictionaries_and_the_float_model(tmp_path: Path) -> None:
    kinds = {name: kind for name, kind in MIXED.items() if kind != "W8A16"}
    folder = eight_bits.write(tmp_path / "q", kinds=kinds, form="npy")
    there = {path.name for path in folder.iterdir()}
    assert there == FIVE | {"quant_bias.npy", "anti_weight", "float_layers.json"}
    loaded = {name.removesuffix(".npy"): np.load(folder / name, allow_pickle=True).item() for name in FIVE}
    assert {tuple(sorted(found)) for found in loaded.values()} == {tuple(sorted(kinds))}
    linear = open_model(str(folder)).linear(Q)
    assert isinstance(linear, W8A8)
    assert (loaded["quant_weight"][Q] == linear.weight).all()
    assert (loaded["deq_scale"][Q].astype(np.uint32).view(np.float32) == linear.deq_scale).all()
    assert json.loads((folder / "float_layers.json").read_text())["FLOAT_LAYERS"] == [0, 1]
    assert open_model(str(folder / "anti_weight")).fingerprint() == open_model("random:tiny").fingerprint()


def test_quant_bias_follows_from_fp_bias_where_a_tool_wrote_none(tmp_path: Path) -> None:
    folder = eight_bits.write(tmp_path / "q", form="npy", norm_bias=True)
    model = open_model(str(folder))
    expected = {name: model.linear(name) for name in model.config.quantised}
    (folder / "quant_bias.npy").unlink()
    again = open_model(str(folder))
    assert all(same(again.linear(name), linear) for name, linear in expected.items())


def test_a_guides_model_becomes_one_for_mindie(tmp_path: Path) -> None:
    kinds = {name: kind for name, kind in MIXED.items() if kind != "W8A8S"}
    folder = eight_bits.write(tmp_path / "q", kinds=kinds, form="npy", kv=True, norm_bias=True)
    report = json.loads(weights("convert", folder, tmp_path / "m", "--to", "hf", "--json"))
    assert not report["dropped"]
    assert report["mapped"][f"{Q}.weight"] == [f"quant_weight.npy: {Q}"]
    assert (tmp_path / "m" / "quant_model_description_w8a8.json").exists()
    assert open_model(str(tmp_path / "m")).fingerprint() == open_model(str(folder)).fingerprint()


def test_scalars_may_be_numbers_and_a_missing_part_is_named(tmp_path: Path) -> None:
    folder = eight_bits.write(tmp_path / "q", form="npy")
    before = open_model(str(folder)).fingerprint()
    for part in ("input_scale", "input_offset"):
        values = np.load(folder / f"{part}.npy", allow_pickle=True).item()
        np.save(folder / f"{part}.npy", boxed({name: float(value[0]) for name, value in values.items()}))
    assert open_model(str(folder)).fingerprint() == before
    weight = np.load(folder / "quant_weight.npy", allow_pickle=True).item()
    np.save(folder / "quant_weight.npy", boxed(weight | {"lm_head": np.zeros((2048, 64), np.int8)}))
    with pytest.raises(InputError, match=r"deq_scale.npy: lm_head is missing"):
        open_model(str(folder))
    np.save(folder / "weight_scale.npy", boxed({"lm_head": np.zeros(2048)}))
    np.save(folder / "weight_offset.npy", boxed({"lm_head": np.zeros(2048)}))
    with pytest.raises(InputError, match=r"lm_head is said to be W8A16, but is no linear of its decoder layers"):
        open_model(str(folder))
    np.save(folder / "quant_weight.npy", boxed(weight))
    values = np.load(folder / "deq_scale.npy", allow_pickle=True).item()
    np.save(folder / "deq_scale.npy", boxed({name: value for name, value in values.items() if name != DOWN}))
    with pytest.raises(InputError, match=rf"deq_scale.npy: {DOWN} is missing, which quant_weight.npy has"):
        open_model(str(folder))
    (folder / "anti_weight").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="anti_weight: no such folder"):
        open_model(str(folder))


def test_the_machine_knows_every_opcode_that_numpys_pickles_have() -> None:
    names = {
        opcode.name
        for protocol in (2, 3, 4, 5)
        for opcode, _, _ in pickletools.genops(pickle.dumps(boxed({"a": np.arange(999), "b": np.float32(1)}), protocol))
    }
    known = set(_pickles._Machine(io.BytesIO(), ()).actions())
    assert names - {"STOP"} <= known
    assert not known & {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID", "EXT1", "EXT2", "EXT4"}
    assert guide.WEIGHTS in FIVE


@pytest.mark.oracle
def test_tensors_of_torch_are_read_without_torch(tmp_path: Path) -> None:
    import torch

    weight = torch.arange(-64, 64, dtype=torch.int8).reshape(16, 8)
    tensors = {
        "int8": weight,
        "long": torch.arange(300, dtype=torch.int64) * 5,
        "half": torch.linspace(0, 1, 200, dtype=torch.float16),
        "one": torch.tensor([0.5]),
        "scalar": torch.tensor(0.25, dtype=torch.float64),
        "part": torch.arange(1000, dtype=torch.float32)[100:900].reshape(80, 10),
        "turned": torch.arange(60, dtype=torch.int32).reshape(6, 10).T,
    }
    for protocol in (2, 3, 4):
        found = dictionaries.read(pickled(tmp_path / "x.npy", tensors, protocol))
        for name, tensor in tensors.items():
            assert (found[name].shape, str(found[name].dtype)) == (tuple(tensor.shape), str(tensor.numpy().dtype))
            assert (found[name].whole() == tensor.numpy()).all(), name
        assert (found["part"].rows(3, 9) == tensors["part"][3:9].numpy()).all()
    with pytest.raises(InputError, match=r"lies in pieces; save it as tensor.contiguous"):
        dictionaries.read(pickled(tmp_path / "x.npy", {"a": weight[:, ::2]}))
    with pytest.raises(InputError, match=r"names torch.BFloat16Storage"):
        dictionaries.read(pickled(tmp_path / "x.npy", {"a": torch.zeros(3, dtype=torch.bfloat16)}))
