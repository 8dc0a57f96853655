"""Every kind of finding, each with the file, the request and the value that it is about."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.accuracy import profiles
from llmbench.accuracy.compare import ATOL, RTOL, Comparison, compare, explain
from llmbench.errors import InvalidMeasurement
from llmbench.logits.contest import Header, Row, Writer, manifest_path, read_dump

Float32 = npt.NDArray[np.float32]
VOCAB = 32
HEADER = Header(every=5, model="m", fingerprint="f", engine="e", dtype="float32", vocab_size=VOCAB)
PROMPT = (1, 20355, 915, 278)


class Captured(msgspec.Struct, frozen=True):
    """One row to be written."""

    request_id: str
    index: int
    arrival_s: float
    prompt: Sequence[int] = PROMPT
    prefill: bool = False
    batch_size: int = 1


ROWS = (
    Captured("r1", 5, 1000.5, prefill=True),
    Captured("r1", 10, 1000.5),
    Captured("r2", 10, 1001.25),
    Captured("r3", 10, 1002.0, prompt=(1, 7)),
)


def logits(row: Captured) -> Float32:
    """The same row for the same request and index, up to 20 or so as a model's are."""
    seed = int.from_bytes(row.request_id.encode(), "little") * 1000 + row.index
    return np.random.default_rng(seed).normal(0, 6, VOCAB).astype(np.float32)


Dumped = Callable[..., Path]


@pytest.fixture
def dumped(tmp_path: Path) -> Dumped:
    """Writes a folder of rows as an agent does; `late` shifts the clock as on another day."""

    def write(
        name: str, rows: Sequence[Captured] = ROWS, manifest: bool = True, late: float = 0.0, header: Header = HEADER
    ) -> Path:
        folder = tmp_path / name
        writer = Writer(folder, header)
        for row in rows:
            writer.write(
                logits(row),
                head=row.prompt,
                arrival_s=row.arrival_s + late,
                request_id=row.request_id,
                index=row.index,
                prefill=row.prefill,
                token_id=7,
                batch_size=row.batch_size,
            )
        writer.close()
        if not manifest:
            manifest_path(folder).unlink()
        return folder

    return write


def file_of(folder: Path, request_id: str, index: int) -> Path:
    rows: tuple[Row, ...] = read_dump(folder).rows or ()
    return folder / next(row.file for row in rows if (row.request_id, row.index) == (request_id, index))


def compared(base: Path, new: Path) -> Comparison:
    return compare(base, new)[0]


def put(path: Path, at: int, value: float) -> None:
    """Change one value of a file and leave its shape."""
    values: Float32 = np.load(path)
    values.reshape(-1)[at] = value
    np.save(path, values)


def kinds(comparison: Comparison) -> list[tuple[str, str | None]]:
    return [(finding.kind, finding.request_id) for finding in comparison.findings]


def test_a_dump_equals_itself_and_another_of_the_same_values(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new", rows=ROWS[::-1], late=86_400.0)
    for comparison in (compared(base, base), compared(base, new)):
        assert (comparison.verdict, comparison.findings) == ("passed", ())
        assert (comparison.base.num_rows, comparison.new.num_rows, comparison.num_compared) == (4, 4, 4)
        assert (comparison.num_failed, comparison.num_flips, comparison.num_equal) == (0, 0, 4)
        assert comparison.distributions["max_abs"].max == 0
        assert comparison.joined_by == "request"


def test_one_value_that_is_off_by_002_is_named_with_request_index_and_vocabulary_id(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new", late=86_400.0)
    path = file_of(new, "r2", 10)
    before = float(np.load(path).reshape(-1)[17])
    put(path, 17, before + 0.02)
    comparison = compared(base, new)
    assert (comparison.verdict, comparison.num_compared, comparison.num_failed) == ("failed", 4, 1)
    (finding,) = comparison.findings
    assert (finding.kind, finding.file, finding.request_id) == ("different", path.name, "r2")
    allowed = ATOL + RTOL * abs(before)
    assert finding.message == (
        f"request r2, index 10, vocabulary id 17: base {before:.6g}, new {before + 0.02:.6g}, difference 0.02 "
        f"where {allowed:.3g} is allowed"
    )
    worst = comparison.worst
    assert worst is not None
    assert (worst.request_id, worst.index, worst.vocab_id) == ("r2", 10, 17)
    assert explain(worst) == finding.message
    assert comparison.distributions["max_abs"].max == pytest.approx(0.02, abs=1e-6)
    assert comparison.num_equal == 3


def test_the_worst_value_is_the_one_furthest_beyond_what_is_allowed_there(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new")
    for folder, first, second in ((base, 0.0, 1000.0), (new, 0.006, 1000.012)):
        put(file_of(folder, "r1", 10), 3, first)
        put(file_of(folder, "r3", 10), 4, second)
    comparison = compared(base, new)
    assert comparison.worst is not None
    assert (comparison.worst.request_id, comparison.worst.vocab_id) == ("r1", 3)
    assert comparison.distributions["max_abs"].max == pytest.approx(0.012, abs=1e-4)
    assert kinds(comparison) == [("different", "r1")]


def test_a_row_that_chooses_another_token_is_counted_even_within_the_tolerance(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new")
    for folder, third, fourth in ((base, 40.001, 40.0), (new, 40.0, 40.001)):
        put(file_of(folder, "r1", 10), 3, third)
        put(file_of(folder, "r1", 10), 4, fourth)
    comparison = compared(base, new)
    assert (comparison.verdict, comparison.num_flips) == ("passed", 1)


@pytest.mark.parametrize("base_value", [0.0, 1.0, -3.0, 17.203125, 512.0, -1000.0, 1e-30])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_boundary_of_the_tolerance_is_exact(dumped: Dumped, base_value: float, sign: int) -> None:
    """|new - base| <= 0.005 + 1e-5 |base|, to the last float32 on either side."""
    base, new = dumped("base"), dumped("new")
    value = np.float32(base_value)
    allowed = ATOL + RTOL * abs(float(value))
    inside = np.float32(float(value) + sign * allowed)
    away = np.float32(sign * np.inf)
    while abs(float(np.nextafter(inside, away)) - float(value)) <= allowed:
        inside = np.nextafter(inside, away)
    while abs(float(inside) - float(value)) > allowed:
        inside = np.nextafter(inside, value)
    for folder, there in ((base, value), (new, inside)):
        put(file_of(folder, "r1", 10), 9, float(there))
    assert compared(base, new).verdict == "passed"
    outside = np.nextafter(inside, away)
    put(file_of(new, "r1", 10), 9, float(outside))
    comparison = compared(base, new)
    assert comparison.verdict == "failed"
    assert "vocabulary id 9" in comparison.findings[0].message


@given(scale=st.floats(0.0, 2.0), seed=st.integers(0, 10_000))
def test_the_rule_is_that_of_the_contests_script(scale: float, seed: int) -> None:
    """`np.allclose(new, base, atol=5e-3, equal_nan=False)`, base the reference."""
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 10, VOCAB)
    new = base + rng.uniform(-1, 1, VOCAB) * scale * (ATOL + RTOL * np.abs(base))
    theirs = np.allclose(new, base, atol=5e-3, equal_nan=False)
    ours = bool((np.abs(new - base) <= ATOL + RTOL * np.abs(base)).all())
    assert theirs == ours


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_value_that_is_no_number_fails_on_either_side_and_on_both(dumped: Dumped, value: float, shown: str) -> None:
    for spoilt in (("base",), ("new",), ("base", "new")):
        base, new = dumped(f"base-{'-'.join(spoilt)}"), dumped(f"new-{'-'.join(spoilt)}")
        for side in spoilt:
            put(file_of({"base": base, "new": new}[side], "r1", 10), 21, value)
        comparison = compared(base, new)
        assert comparison.verdict == "failed"
        assert kinds(comparison) == [("not finite", "r1")]
        assert comparison.findings[0].message == f"{spoilt[0]} value {shown} at vocabulary id 21"


@pytest.mark.parametrize("manifest", [True, False])
def test_a_deleted_file_is_missing(dumped: Dumped, manifest: bool) -> None:
    base, new = dumped("base"), dumped("new", late=86_400.0)
    gone = file_of(new, "r3", 10)
    expected = file_of(base, "r3", 10)
    gone.unlink()
    if not manifest:
        manifest_path(new).unlink()
    comparison = compared(base, new)
    assert comparison.verdict == "not comparable"
    assert comparison.num_compared == 3
    missing = [finding for finding in comparison.findings if finding.kind == "missing"]
    assert {finding.file for finding in missing} <= {gone.name, expected.name}
    assert expected.name in {finding.file for finding in missing}
    assert all(finding.request_id == "r3" for finding in missing)


def test_an_extra_file_is_named(dumped: Dumped) -> None:
    more = Captured("r4", 15, 1003.0)
    base, new = dumped("base"), dumped("new", rows=(*ROWS, more))
    comparison = compared(base, new)
    assert comparison.verdict == "not comparable"
    (finding,) = comparison.findings
    assert (finding.kind, finding.file, finding.request_id) == ("extra", file_of(new, "r4", 15).name, "r4")
    assert kinds(compared(new, base)) == [("missing", "r4")]


def test_a_file_that_the_manifest_does_not_list_is_extra(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new")
    (new / "notes.txt").write_text("hello")
    (finding,) = compared(base, new).findings
    assert (finding.kind, finding.file, finding.request_id) == ("extra", "notes.txt", None)
    assert "its manifest does not list it" in finding.message


def test_without_a_manifest_a_stray_file_is_named(dumped: Dumped) -> None:
    base, new = dumped("base", manifest=False), dumped("new", manifest=False)
    (new / ".DS_Store").write_bytes(b"x")
    (finding,) = compared(base, new).findings
    assert (finding.kind, finding.file) == ("unreadable", ".DS_Store")


@pytest.mark.parametrize("side", ["base", "new"])
def test_an_empty_file_is_unreadable_and_named(dumped: Dumped, side: str) -> None:
    folders = {"base": dumped("base"), "new": dumped("new")}
    path = file_of(folders[side], "r1", 10)
    path.write_bytes(b"")
    comparison = compared(folders["base"], folders["new"])
    assert comparison.verdict == "not comparable"
    (finding,) = comparison.findings
    assert (finding.kind, finding.file, finding.request_id) == ("unreadable", path.name, "r1")
    assert finding.message.startswith(f"in {folders[side]}: {path.name}: ")


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ((1, VOCAB - 1), "shape", f"it has {VOCAB - 1} values where {VOCAB} are due"),
        ((1, 1, 1), "shape", f"it has 1 values where {VOCAB} are due"),
        ((2, VOCAB // 2), "unreadable", "expected shape (1, V) or (1, 1, V), found (2, 16)"),
        ((VOCAB,), "unreadable", "expected shape (1, V) or (1, 1, V), found (32,)"),
    ],
)
def test_another_shape_is_never_broadcast(dumped: Dumped, shape: tuple[int, ...], kind: str, message: str) -> None:
    base, new = dumped("base"), dumped("new")
    path = file_of(new, "r1", 10)
    np.save(path, np.zeros(shape, np.float32))
    comparison = compared(base, new)
    assert comparison.verdict == "not comparable"
    (finding,) = comparison.findings
    assert (finding.kind, finding.file, finding.request_id) == (kind, path.name, "r1")
    assert message in finding.message


def test_pickled_objects_are_unreadable(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new")
    path = file_of(new, "r1", 10)
    np.save(path, np.array([[None]], dtype=object), allow_pickle=True)
    (finding,) = compared(base, new).findings
    assert (finding.kind, finding.file) == ("unreadable", path.name)
    assert "pickled" in finding.message


def test_several_files_of_one_key_are_joined_by_request(dumped: Dumped) -> None:
    """r1 and r2 have the same prompt, so the contest's key (sequence, 10) has two files; the new run answered r2
    first."""
    base = dumped("base")
    rows = [msgspec.structs.replace(row, arrival_s=2000.0 - row.arrival_s) for row in ROWS]
    new = dumped("new", rows=rows)
    assert compared(base, new).verdict == "passed"
    for folder in (base, new):
        manifest_path(folder).unlink()
    by_name = compared(base, new)
    assert (by_name.joined_by, by_name.verdict) == ("file name", "failed")  # what a name alone cannot tell apart


def test_without_a_manifest_files_of_one_key_are_paired_in_the_order_of_time(dumped: Dumped) -> None:
    base, new = dumped("base", manifest=False), dumped("new", late=86_400.0, manifest=False)
    comparison = compared(base, new)
    assert (comparison.joined_by, comparison.verdict, comparison.num_compared) == ("file name", "passed", 4)
    assert comparison.batch_sizes is None


def test_a_folder_of_the_contest_is_compared_with_ours_by_name(dumped: Dumped) -> None:
    base, new = dumped("base", manifest=False), dumped("new", late=5.0)
    comparison = compared(base, new)
    assert (comparison.joined_by, comparison.verdict) == ("file name", "passed")
    put(file_of(new, "r3", 10), 0, 99.0)
    (finding,) = compared(base, new).findings
    assert (finding.kind, finding.request_id) == ("different", "r3")  # our manifest still knows whose it is


def test_times_of_different_length_are_ordered_as_numbers(dumped: Dumped) -> None:
    """1000.5 stood before 1000.25 when names were sorted as text of different length."""
    base, new = dumped("base", manifest=False), dumped("new", manifest=False)
    for folder in (base, new):
        for path in folder.iterdir():
            time, sequence, index = path.stem.split("_")
            path.rename(folder / f"{float(time)!r}_{sequence}_{index}.npy")
    assert compared(base, new).verdict == "passed"


def test_two_rows_of_one_request_and_index_are_no_rows(dumped: Dumped) -> None:
    """Two requests of one id: neither may hide behind the other, and which is which, only a clock could tell."""
    twice = (Captured("same", 10, 1000.0), Captured("same", 10, 1001.0), ROWS[0])
    base, new = dumped("base", rows=twice), dumped("new", rows=twice)
    comparison = compared(base, new)
    assert (comparison.verdict, comparison.num_compared) == ("not comparable", 1)
    assert kinds(comparison) == [("duplicate", "same")] * 4
    assert "is 2 times in" in comparison.findings[0].message


@pytest.mark.parametrize(("field", "value"), [("every", 100), ("vocab_size", 64)])
def test_dumps_of_different_rows_have_no_verdict(dumped: Dumped, field: str, value: int) -> None:
    base = dumped("base")
    new = dumped("new", header=msgspec.structs.replace(HEADER, **{field: value}))
    with pytest.raises(InvalidMeasurement) as caught:
        compared(base, new)
    ours = getattr(HEADER, field)
    assert str(caught.value) == f"{base} was captured with {field} {ours}, {new} with {value}"


def test_another_engine_or_model_may_be_compared(dumped: Dumped) -> None:
    other = msgspec.structs.replace(HEADER, engine="mindspore_llama", dtype="float16", fingerprint="")
    assert compared(dumped("base"), dumped("new", header=other)).verdict == "passed"


def test_nothing_to_compare_is_no_pass(dumped: Dumped) -> None:
    assert compared(dumped("base", rows=()), dumped("new", rows=())).verdict == "not comparable"


def test_values_that_differ_outweigh_files_that_are_missing(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new")
    put(file_of(new, "r1", 5), 0, 99.0)
    file_of(new, "r3", 10).unlink()
    comparison = compared(base, new)
    assert comparison.verdict == "failed"
    assert {kind for kind, _ in kinds(comparison)} == {"different", "missing"}


def test_the_batches_that_the_new_rows_were_computed_in_are_told(dumped: Dumped) -> None:
    rows = [msgspec.structs.replace(row, batch_size=size) for row, size in zip(ROWS, (1, 16, 7, 3), strict=True)]
    comparison = compared(dumped("base"), dumped("new", rows=rows))
    assert comparison.batch_sizes == (1, 7, 16)


def test_every_row_that_differs_is_found(dumped: Dumped) -> None:
    base, new = dumped("base"), dumped("new")
    for path in new.iterdir():
        put(path, 0, 99.0)
    comparison = compared(base, new)
    assert (comparison.num_failed, len(comparison.findings)) == (4, 4)
    assert {finding.file for finding in comparison.findings} == {path.name for path in new.iterdir()}


@pytest.mark.parametrize(
    ("dtype", "base", "new", "profile"),
    [
        ("float32", "", "", "fp32"),
        ("float32", "", "w8a8", "w8"),
        ("float16", "w8a16", "", "w8"),
        ("float32", "w8a8", "w8a8+kv8", "w8"),
        ("float32", "", "w8a8s", "w4"),
        ("float32", "w8a8", "w8a8", "bf16"),  # a last bit more or less makes another number of an int8 activation
        ("float32", "kv8", "kv8", "bf16"),
        ("float16", "w8a16", "w8a16", "fp16"),  # the same weights on both sides, and no activation is rounded
    ],
)
def test_without_a_name_the_profile_is_that_of_what_is_rounded(dtype: str, base: str, new: str, profile: str) -> None:
    assert profiles.for_sides(dtype, base, new) == profile
