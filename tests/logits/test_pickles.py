"""Pickled files are read by another process, which makes arrays of them and nothing else."""

import os
import pickle
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmbench.errors import InputError
from llmbench.logits import contest
from llmbench.logits.pickles import convert, unpickle

ROW = np.random.default_rng(0).normal(0, 5, 40).astype(np.float32)


@pytest.fixture
def tensor() -> Iterator[type]:
    """A class that pickles as mindspore's Tensor does: its module's name, and a tuple with an array as its state."""

    class Tensor:
        def __init__(self, values: npt.NDArray[np.float32]) -> None:
            self.values = values

        def __getstate__(self) -> tuple[npt.NDArray[np.float32], ...]:
            return (self.values,)

        def __setstate__(self, state: tuple[npt.NDArray[np.float32], ...]) -> None:
            (self.values,) = state

    Tensor.__module__, Tensor.__qualname__ = "mindspore.common.tensor", "Tensor"
    names = ("mindspore", "mindspore.common", "mindspore.common.tensor")
    for name in names:
        module = types.ModuleType(name)
        module.Tensor = Tensor  # type: ignore[attr-defined]
        sys.modules[name] = module
    yield Tensor
    for name in names:
        del sys.modules[name]


def saved(path: Path, held: Any, shape: tuple[int, ...]) -> Path:
    objects = np.empty(shape, object)
    objects.reshape(-1)[:] = held
    np.save(path, objects, allow_pickle=True)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_tensor_that_holds_the_row_becomes_the_row(tmp_path: Path, tensor: type, protocol: int) -> None:
    objects = np.empty((), object)
    objects[()] = tensor(ROW.reshape(1, 1, -1))
    path = tmp_path / "x.npy"
    with path.open("wb") as file:
        npy: Any = np.lib.format
        npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(objects, file, protocol=protocol)
    values = unpickle(path.read_bytes(), "x.npy")
    assert (values.shape, values.dtype) == ((1, 1, 40), np.dtype("float32"))
    np.testing.assert_array_equal(values.reshape(-1), ROW)


def test_a_tensor_for_each_value_becomes_the_row(tmp_path: Path, tensor: type) -> None:
    path = saved(tmp_path / "x.npy", [tensor(np.array(value)) for value in ROW], (1, 40))
    values = unpickle(path.read_bytes(), "x.npy")
    assert values.shape == (1, 40)
    np.testing.assert_array_equal(values.reshape(-1), ROW)


def test_a_folder_is_converted_and_can_be_compared(tmp_path: Path, tensor: type) -> None:
    source = tmp_path / "base"
    source.mkdir()
    saved(source / "1718418290.5565388_1.020350.0915.0278.0_100.npy", [tensor(np.array(v)) for v in ROW], (1, 1, 40))
    np.save(source / "1718418291.5_17523278149414880322_100.npy", ROW.reshape(1, -1))
    assert convert(source, tmp_path / "out") == (1, 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in source.iterdir())
    for path in (tmp_path / "out").iterdir():
        np.testing.assert_array_equal(contest.read_row(path), ROW)
    with pytest.raises(InputError, match="there is something in it already"):
        convert(source, tmp_path / "out")


class Bomb:
    """Calls something when it is loaded."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("function", "args", "named"),
    [
        (os.system, ("touch EXPLODED",), "posix.system"),
        (eval, ("open('EXPLODED', 'w')",), "builtins.eval"),
        (getattr, (os, "system"), "builtins.getattr"),
        (np.load, ("x.npy",), "numpy"),
        (__import__, ("os",), "builtins.__import__"),
    ],
)
def test_what_a_file_wants_to_call_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: Any, args: tuple[Any, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.npy"
    if function is getattr:
        args = ("", "join")
    saved(path, [Bomb(function, *args)], (1, 1))
    with pytest.raises(InputError, match=r"x\.npy: its pickle was not read: UnpicklingError: it names ") as caught:
        unpickle(path.read_bytes(), "x.npy")
    assert named in str(caught.value)
    assert not (tmp_path / "EXPLODED").exists()


@pytest.mark.parametrize("wrong", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x02\x00{}", b"\x93NUMPY\x01\x00"])
def test_what_is_no_pickled_array_is_refused_in_one_line(wrong: bytes) -> None:
    with pytest.raises(InputError, match=r"^x\.npy: its pickle was not read: ") as caught:
        unpickle(wrong, "x.npy")
    assert "\n" not in str(caught.value)


def test_a_pickle_of_other_things_has_no_values(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.npy", ["text"], (1, 1))
    with pytest.raises(InputError, match="there are no floating-point values in it"):
        unpickle(path.read_bytes(), "x.npy")
