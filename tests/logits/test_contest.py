"""The contest's dump of logits, files as in contest-stack.md 6.2 to 6.4."""

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import InputError
from llmbench.logits import contest
from llmbench.logits.contest import Header, Writer, file_name, manifest_path, parse_name, read_dump, read_row

HEADER = Header(every=100, model="random:tiny", fingerprint="ab", engine="numpy_llama", dtype="float32", vocab_size=8)
ROW = np.arange(8, dtype=np.float32) / np.float32(4)


def write(writer: Writer, row: npt.NDArray[np.float32] = ROW, index: int = 100, prefill: bool = False) -> None:
    writer.write(
        row,
        head=[1, 20355, 915, 278, 7],
        arrival_s=1718418290.5565388,
        request_id="r1",
        index=index,
        prefill=prefill,
        token_id=7,
        batch_size=3,
    )


# -- names ----------------------------------------------------------------------------------------------------------


def test_the_two_names_of_the_contest_come_out_exactly() -> None:
    """6.3: decode ids are floats, those of prefill are integers; both are cut after 20 characters."""
    decode = file_name(1718418290.5565388, [1, 20355, 915, 278, 29889, 1], 100, prefill=False)
    assert decode == "1718418290.5565388_1.020355.0915.0278.0_100.npy"
    prefill = file_name(1718421271.1172364, [1, 7523, 278, 1494, 14880, 322, 29871], 100, prefill=True)
    assert prefill == "1718421271.1172364_17523278149414880322_100.npy"


@pytest.mark.parametrize(
    ("head", "prefill", "sequence"),
    [([1], True, "1"), ([1], False, "1.0"), ([1, 2], False, "1.02.0"), ([31999] * 20, True, "31999319993199931999")],
)
def test_short_prompts_give_short_names(head: list[int], prefill: bool, sequence: str) -> None:
    assert file_name(1.5, head, 0, prefill=prefill) == f"1.5000000_{sequence}_0.npy"


@given(
    arrival_s=st.floats(1e9, 4e9),
    head=st.lists(st.integers(0, 200_000), min_size=1, max_size=20),
    index=st.integers(0, 100_000),
    prefill=st.booleans(),
)
def test_a_name_can_be_parsed_and_has_three_parts(arrival_s: float, head: list[int], index: int, prefill: bool) -> None:
    name = file_name(arrival_s, head, index, prefill=prefill)
    assert name.count("_") == 2
    parsed = parse_name(name)
    assert (parsed.time, parsed.index) == (arrival_s, index)
    assert 0 < len(parsed.sequence) <= 20
    assert parsed.key == (parsed.sequence, index)


@pytest.mark.parametrize(
    "name",
    ["", ".npy", "1.5_1_100", "1.5_1_100.npz", "1.5_1.npy", "1.5_1_1_100.npy", "x_1_100.npy", "1.5_1_-1.npy",
     "1.5_1_100.npy.npy", ".DS_Store", "1.5_1_100.npy\n", "1.5.5_1_100.npy", "++_1_100.npy", "1.5_1_٣.npy"],
)  # fmt: skip
def test_a_name_that_is_not_the_contests_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"not a contest logits file; expected time_sequence_index\.npy"):
        parse_name(name)


def test_names_of_one_key_sort_in_the_order_of_arrival() -> None:
    times = [1718418290.5, 1718418290.56, 1718418299.0, 1718418300.0]
    names = [file_name(time, [1, 2], 100, prefill=False) for time in times]
    assert sorted(names) == names  # the contest's script pairs by sorting names
    assert sorted(names, key=parse_name) == names


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefill", "shape"), [(True, (1, 8)), (False, (1, 1, 8))])
def test_a_row_is_a_float32_file_of_the_contests_shape(tmp_path: Path, prefill: bool, shape: tuple[int, ...]) -> None:
    writer = Writer(tmp_path / "file_npy", HEADER)
    write(writer, prefill=prefill)
    writer.close()
    (path,) = (tmp_path / "file_npy").iterdir()
    values = np.load(path, allow_pickle=False)
    assert (values.dtype, values.shape) == (np.float32, shape)
    assert path.stat().st_size == 128 + 4 * 8
    np.testing.assert_array_equal(read_row(path), ROW)


def test_the_folder_holds_nothing_but_rows_and_the_manifest_lies_beside_it(tmp_path: Path) -> None:
    """The contest's script reads every file of the folder."""
    folder = tmp_path / "deep" / "file_npy"
    writer = Writer(folder, HEADER)
    write(writer, index=100)
    write(writer, index=200)
    writer.close()
    assert sorted(path.name for path in folder.iterdir()) == [
        "1718418290.5565388_1.020355.0915.0278.0_100.npy",
        "1718418290.5565388_1.020355.0915.0278.0_200.npy",
    ]
    assert manifest_path(folder) == tmp_path / "deep" / "file_npy.manifest.jsonl"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["file_npy", "file_npy.manifest.jsonl"]


def test_the_manifest_says_whose_each_row_is(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows", HEADER)
    write(writer)
    dump = read_dump(tmp_path / "rows")  # while it is still being written
    writer.close()
    assert dump.header == HEADER
    assert dump.rows is not None
    (row,) = dump.rows
    assert (row.file, row.request_id, row.index, row.prefill, row.token_id, row.batch_size) == (
        "1718418290.5565388_1.020355.0915.0278.0_100.npy", "r1", 100, False, 7, 3,
    )  # fmt: skip
    assert dump.files == (row.file,)


def test_only_indices_that_divide_are_wanted(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows", HEADER)
    assert [index for index in range(301) if writer.wants(index)] == [0, 100, 200, 300]
    writer.close()


def test_a_restarted_agent_goes_on_with_the_same_manifest(tmp_path: Path) -> None:
    for index in (100, 200):
        writer = Writer(tmp_path / "rows", HEADER)
        write(writer, index=index)
        writer.close()
    dump = read_dump(tmp_path / "rows")
    assert dump.header == HEADER
    assert [row.index for row in dump.rows or ()] == [100, 200]


@pytest.mark.parametrize("torn", [b'{"file": "1.5_1_100.npy", "requ', b"{", b"\x00\x00"])
def test_a_manifest_line_that_a_crash_tore_is_left_out(tmp_path: Path, torn: bytes) -> None:
    writer = Writer(tmp_path / "rows", HEADER)
    write(writer)
    writer.close()
    with manifest_path(tmp_path / "rows").open("ab") as manifest:
        manifest.write(torn)
    assert len(read_dump(tmp_path / "rows").rows or ()) == 1


def test_a_restarted_agent_does_not_write_into_a_torn_line(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows", HEADER)
    write(writer, index=100)
    writer.close()
    with manifest_path(tmp_path / "rows").open("ab") as manifest:
        manifest.write(b'{"file": "1.5_1_1')
    writer = Writer(tmp_path / "rows", HEADER)
    write(writer, index=200)
    writer.close()
    assert [row.index for row in read_dump(tmp_path / "rows").rows or ()] == [100, 200]


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"not json\n", b'{"format": 5}\n'])
def test_a_manifest_without_a_header_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rows").mkdir()
    manifest_path(tmp_path / "rows").write_bytes(content)
    with pytest.raises(InputError, match=r"rows\.manifest\.jsonl: "):
        read_dump(tmp_path / "rows")


def test_a_broken_line_in_the_middle_of_a_manifest_is_refused(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows", HEADER)
    writer.close()
    with manifest_path(tmp_path / "rows").open("ab") as manifest:
        manifest.write(b'{"file": 5}\n{"file": "x"')
    with pytest.raises(InputError, match="not a manifest of logits"):
        read_dump(tmp_path / "rows")


def test_a_folder_of_the_contest_has_no_manifest(tmp_path: Path) -> None:
    np.save(tmp_path / "1.5_1.0_100.npy", ROW.reshape(1, 1, -1))
    dump = read_dump(tmp_path)
    assert (dump.header, dump.rows, dump.files) == (None, None, ("1.5_1.0_100.npy",))


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no such folder of logits; make one with `llmbench acc dump -o"):
        read_dump(tmp_path / "nothing")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write logits there"):
        Writer(tmp_path / "rows", HEADER)


def test_a_folder_below_a_file_cannot_be_written_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file/rows: cannot write logits there"):
        Writer(tmp_path / "file" / "rows", HEADER)


# -- reading rows ---------------------------------------------------------------------------------------------------


def saved(tmp_path: Path, values: npt.ArrayLike) -> Path:
    path = tmp_path / "1.5_1.0_100.npy"
    np.save(path, np.asarray(values))
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_other_floats_are_read_as_float32(tmp_path: Path, dtype: type) -> None:
    row = read_row(saved(tmp_path, ROW.astype(dtype).reshape(1, -1)))
    assert row.dtype == np.float32
    np.testing.assert_array_equal(row, ROW)


@pytest.mark.parametrize("shape", [(8,), (2, 4), (8, 1), (1, 2, 4), (1, 1, 1, 8), (1, 0), ()])
def test_another_shape_is_refused_and_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.zeros(shape, np.float32)
    with pytest.raises(InputError) as caught:
        read_row(saved(tmp_path, values))
    assert str(caught.value) == f"1.5_1.0_100.npy: expected shape (1, V) or (1, 1, V), found {shape}"


@pytest.mark.parametrize("values", [np.zeros((1, 8), np.int64), np.zeros((1, 8), bool), np.zeros((1, 8), "U3")])
def test_values_that_are_no_floats_are_refused(tmp_path: Path, values: npt.NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match=r"1\.5_1\.0_100\.npy: expected floating-point values, found"):
        read_row(saved(tmp_path, values))


class Bomb:
    """What a pickled array might hold."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.system, ("touch EXPLODED",)


def test_pickled_objects_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original saves object arrays of tensors; reading one would run what is in it."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "1.5_1.0_100.npy"
    np.save(path, np.array([[Bomb()]], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="it holds pickled objects, which are never loaded: they can run code"):
        read_row(path)
    assert not (tmp_path / "EXPLODED").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"not an array at all",
        b"\x80\x04N.",
        b"PK\x03\x04zip",
        b"\x93NUMPY\x01\x00\x02\x00{}",
        b"\x93NUMPY\x01\x00\xff\xff{",
    ],
)
def test_a_file_that_is_no_array_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "1.5_1.0_100.npy"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^1\.5_1\.0_100\.npy: ") as caught:
        read_row(path)
    assert "\n" not in str(caught.value)


def test_an_archive_of_arrays_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "1.5_1.0_100.npy"
    with path.open("wb") as file:
        np.savez(file, a=ROW)
    with pytest.raises(InputError, match=r"^1\.5_1\.0_100\.npy: "):
        read_row(path)


def test_a_header_that_is_damaged_anywhere_is_refused_or_read(tmp_path: Path) -> None:
    path = saved(tmp_path, ROW.reshape(1, -1))
    data = path.read_bytes()
    for place in range(8, 128):
        for byte in b'("\n[':
            path.write_bytes(data[:place] + bytes([byte]) + data[place + 1 :])
            try:
                read_row(path)
            except InputError as error:
                assert path.name in str(error)  # noqa: PT017


def test_every_cut_of_a_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, ROW.reshape(1, -1))
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(InputError, match="cannot be read as an array"):
            read_row(path)


def test_the_manifest_is_plain_json_lines(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "rows", HEADER)
    write(writer)
    writer.close()
    first, second = map(json.loads, manifest_path(tmp_path / "rows").read_text().splitlines())
    assert first["format"] == "llmbench-contest-logits-1"
    assert second["file"].endswith("_100.npy")
    assert contest.EVERY == 100
