"""The store: what is written is read back bit by bit, in every tier, and after a crash at any byte."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from llmbench.errors import InputError
from llmbench.logits import digest
from llmbench.logits.store import F16, F32, INDEX, Manifest, Store, Tier, Writer, is_store, read_manifest

Float32 = npt.NDArray[np.float32]
VOCAB = 300
MANIFEST = Manifest(
    model="random:tiny", fingerprint="ab", engine="numpy_llama", dtype="float32", vocab_size=VOCAB, k=8, num_tail=4
)
Written = Callable[..., Path]


def logits(n: int = 6, dtype: type = np.float32, seed: int = 0) -> Float32:
    """float32 [n, VOCAB] as of a model that computes in `dtype`."""
    return np.random.default_rng(seed).normal(0, 5, (n, VOCAB)).astype(dtype).astype(np.float32)


def meta(requests: Sequence[int], steps: Sequence[int]) -> npt.NDArray[np.void]:
    rows = np.zeros(len(requests), INDEX)
    rows["request"], rows["step"], rows["position"] = requests, steps, np.add(steps, 9)
    rows["token"], rows["batch"] = 7, len(requests)
    return rows


def put(folder: Path, rows: Float32, tier: Tier, dtype: str = "float32") -> Path:
    """Two requests, their rows in steps of two."""
    writer = Writer(folder, msgspec.structs.replace(MANIFEST, tier=tier, dtype=dtype))
    for name in ("r0", "r1"):
        writer.request(name, 10, [1, 2, 3])
    for step in range(len(rows) // 2):
        writer.write(rows[2 * step : 2 * step + 2], meta([0, 1], [step, step]))
    writer.close()
    return folder


def read_all(store: Store) -> Float32:
    out = np.empty((len(store), store.vocab_size), np.float32)
    store.read(np.arange(len(store)), out)
    return out


def same_bits(a: Float32, b: Float32) -> bool:
    return bool((a.view(np.uint32) == b.view(np.uint32)).all())


@pytest.mark.parametrize(
    ("tier", "dtype", "native", "bytes_each"),
    [("full32", np.float32, "float32", 4), ("full16", np.float16, "float16", 2), ("full16", np.float32, "float32", 4)],
)
def test_full_rows_come_back_bit_by_bit(tmp_path: Path, tier: Tier, dtype: type, native: str, bytes_each: int) -> None:
    rows = logits(dtype=dtype)
    rows[1, 5], rows[2, 6], rows[3, 7] = np.inf, -0.0, -np.inf
    store = Store(put(tmp_path / "s", rows, tier, native))
    assert same_bits(read_all(store), rows)
    data = [path for path in (tmp_path / "s").iterdir() if path.suffix in (".f16", ".f32")]
    assert sum(path.stat().st_size for path in data) == rows.size * bytes_each
    assert not len(store.damaged())


def test_a_row_that_is_no_float16_among_others_that_are_loses_nothing(tmp_path: Path) -> None:
    rows = logits(dtype=np.float16)
    rows[3] += np.float32(1e-6)
    rows[4, 0] = 1e9  # above the largest float16
    store = Store(put(tmp_path / "s", rows, "full16", "float16"))
    assert store.table["kind"].tolist() == [F16, F16, F16, F32, F32, F16]
    assert same_bits(read_all(store), rows)


def test_bfloat16_rows_take_two_bytes_a_value(tmp_path: Path) -> None:
    rows = (logits().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    store = Store(put(tmp_path / "s", rows, "full16", "bfloat16"))
    assert same_bits(read_all(store), rows)
    assert (tmp_path / "s" / "part-0000.bf16").stat().st_size == rows.size * 2


@pytest.mark.parametrize("tier", ["fp", "topk", "full16", "full32"])
def test_every_tier_keeps_the_statistics_of_the_whole_row(tmp_path: Path, tier: Tier) -> None:
    rows = logits()
    table = Store(put(tmp_path / "s", rows, tier)).table
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(table["lse"], np.log(np.exp(exact).sum(1)), rtol=1e-6)
    np.testing.assert_allclose(table["mean"], exact.mean(1), rtol=1e-6)
    np.testing.assert_allclose(table["variance"], exact.var(1), rtol=1e-4)
    order = np.argsort(-rows, axis=1)
    assert table["top_id"].tolist() == order[:, 0].tolist()
    assert table["second_id"].tolist() == order[:, 1].tolist()
    assert table["token_logit"].tolist() == rows[:, 7].tolist()
    assert table["checksum"].tolist() == digest.checksum(rows).tolist()


def test_the_k_largest_and_the_same_sample_of_the_rest_are_kept(tmp_path: Path) -> None:
    rows, other = logits(), logits(seed=1)
    store = Store(put(tmp_path / "s", rows, "topk"))
    top = store.top(np.arange(len(store)))
    for i, row in enumerate(rows):
        assert set(top.ids[i].tolist()) == set(np.argsort(-row)[:8].tolist())
        assert same_bits(top.values[i], row[top.ids[i]])
        assert same_bits(top.tail[i], row[top.tail_ids[i]])
    again = Store(put(tmp_path / "t", other, "topk")).top(np.arange(6))
    assert again.tail_ids.tolist() == top.tail_ids.tolist()  # request and step decide, nothing else
    assert len({tuple(ids) for ids in top.tail_ids.tolist()}) == 6


def test_rows_of_one_part_can_be_read_in_any_order(tmp_path: Path) -> None:
    rows = logits(10)
    store = Store(put(tmp_path / "s", rows, "full32"))
    for numbers in ([9], [3, 4, 5, 0, 1, 9, 8], [], [2, 2]):
        out = np.empty((len(numbers), VOCAB), np.float32)
        store.read(np.array(numbers, np.int64), out)
        assert same_bits(out, rows[numbers])
    (found,) = store.find("r1", 2)
    assert found == 5
    assert not len(store.find("r2", 0))


@pytest.mark.parametrize("tier", ["fp", "topk", "full16", "full32"])
def test_a_store_cut_at_any_byte_is_read_up_to_its_last_whole_row(tmp_path: Path, tier: Tier) -> None:
    """A killed writer leaves every file whole up to some byte; each one is cut alone, which is worse than that."""
    rows = logits(dtype=np.float16)
    folder = put(tmp_path / "s", rows, tier, "float16")
    for path in sorted(folder.glob("part-*")):
        data = path.read_bytes()
        each = len(data) // (2 if path.suffix == ".jsonl" else len(rows))
        for size in range(max(0, len(data) - 2 * each), len(data)):
            path.write_bytes(data[:size])
            store = Store(folder)
            if path.suffix == ".jsonl":  # a request that is not known: its rows are nobody's
                assert len(store) == 3 * data[:size].count(b"\n")
            else:
                assert len(store) == size // each
                assert store.num_torn == (len(rows) - len(store) if path.suffix != ".index" else size % each > 0)
            if tier.startswith("full") and path.suffix != ".jsonl":
                assert same_bits(read_all(store), rows[: len(store)])
            store.close()
        path.write_bytes(data)
    assert len(Store(folder)) == len(rows)


def test_a_record_that_was_overwritten_is_not_believed(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", logits(), "full32")
    path = folder / "part-0000.index"
    data = bytearray(path.read_bytes())
    data[2 * INDEX.itemsize + 4] ^= 1
    data[-INDEX.itemsize :] = bytes(INDEX.itemsize)  # what a file system may leave after a power cut
    path.write_bytes(data)
    store = Store(folder)
    assert (len(store), store.num_torn) == (4, 2)


def test_a_value_that_was_overwritten_is_found(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", logits(), "full32")
    path = folder / "part-0000.f32"
    data = bytearray(path.read_bytes())
    data[3 * VOCAB * 4 + 17] ^= 1
    path.write_bytes(data)
    assert Store(folder).damaged().tolist() == [3]


def test_a_restarted_agent_goes_on_in_the_same_store(tmp_path: Path) -> None:
    first, second = logits(4), logits(4, seed=1)
    put(tmp_path / "s", first, "full32")
    capture_id = read_manifest(tmp_path / "s").capture_id
    with (tmp_path / "s" / "part-0000.index").open("ab") as index:
        index.write(b"torn")
    store = Store(put(tmp_path / "s", second, "full32"))
    assert same_bits(read_all(store), np.concatenate([first, second]))
    assert [request.id for request in store.requests] == ["r0", "r1", "r0", "r1"]
    assert store.find("r0", 0).tolist() == [0, 4]
    assert store.manifest.capture_id == capture_id


def test_the_record_is_that_of_the_docs() -> None:
    """docs/files.md: names, types and order, without padding."""
    text = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("A record: "))
    found = re.findall(r"`(\w+)` ([uif]\d+)", line)
    assert found == [(name, f"{INDEX[name].kind}{8 * INDEX[name].itemsize}") for name in INDEX.names or ()]
    assert INDEX.itemsize == 92


def test_a_store_is_read_while_it_is_written(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "s", MANIFEST)
    assert (is_store(tmp_path / "s"), len(Store(tmp_path / "s"))) == (True, 0)
    writer.request("r0", 10)
    for step in range(3):
        writer.write(logits(1), meta([0], [step]))
        assert len(Store(tmp_path / "s")) == step + 1
    writer.close()


@pytest.mark.parametrize(("field", "value"), [("fingerprint", "other"), ("tier", "fp"), ("vocab_size", 5), ("k", 9)])
def test_a_capture_of_something_else_is_not_mixed_in(tmp_path: Path, field: str, value: object) -> None:
    Writer(tmp_path / "s", MANIFEST).close()
    other = msgspec.structs.replace(MANIFEST, **{field: value})
    with pytest.raises(InputError, match=f"it holds a capture with {field} .*; choose a new folder"):
        Writer(tmp_path / "s", other)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(InputError, match="it holds something that is no capture"):
        Writer(tmp_path, MANIFEST)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"format": "llmbench-logits-9"}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json: "):
        Store(tmp_path)


def test_rows_without_whole_values_say_so_when_they_are_asked_for(tmp_path: Path) -> None:
    out = np.empty((1, VOCAB), np.float32)
    with pytest.raises(InputError, match="tier topk does not hold whole rows"):
        Store(put(tmp_path / "t", logits(), "topk")).read(np.array([0]), out)
    with pytest.raises(InputError, match="tier fp keeps no largest values"):
        Store(put(tmp_path / "f", logits(), "fp")).top(np.array([0]))


def test_a_store_without_whole_prompts_is_still_read(tmp_path: Path) -> None:
    folder = put(tmp_path / "s", logits(), "fp")
    path = folder / "part-0000.requests.jsonl"
    lines = path.read_text().replace(',"ids":[]', "")
    assert "ids" not in lines
    path.write_text(lines)
    assert [request.ids for request in Store(folder).requests] == [(), ()]


@pytest.mark.parametrize("special", [None, np.inf, np.nan])
@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_a_pair_of_stores_gives_the_values_of_both_and_which_rows_are_equal(
    tmp_path: Path, kind: str, special: float | None
) -> None:
    rows = [(logits(seed=seed).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for seed in (0, 1)]
    if kind == "float16":
        rows = [values.astype(np.float16).astype(np.float32) for values in rows]
    rows[1][[1, 4]] = rows[0][[1, 4]]
    if special is not None:
        rows[0][4, 7] = rows[1][4, 7] = rows[1][2, 0] = special
    tier: Tier = "full32" if kind == "float32" else "full16"
    base, new = (Store(put(tmp_path / name, values, tier, kind)) for name, values in zip("ab", rows, strict=True))
    numbers = np.array([4, 5, 0, 1, 2])
    out, other = np.empty((2, 5, VOCAB), np.float32)
    rooms = np.empty((5, VOCAB), np.uint16), np.empty((5, VOCAB), np.uint16)
    equal, pair = base.read_pair(new, numbers, numbers, out, other, rooms)
    assert equal.tolist() == [True, False, False, True, False]
    some = np.array([0, 3, VOCAB - 1, 7, 1])
    for found, expected, own in zip(pair.at(some), rows, (numbers, numbers), strict=True):
        assert same_bits(found, expected[own, some])
    for start in range(0, 5, 2):
        pair.rows(slice(start, start + 2))
    assert same_bits(out, rows[0][numbers])
    assert same_bits(other, rows[1][numbers])
