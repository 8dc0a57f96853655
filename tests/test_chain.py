"""The chain of hashes over a folder's files: whatever is changed, it names the first place."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench import chain
from llmbench.errors import InputError

FILES = ("plan.gz", "journal.jsonl", "empty.jsonl")
LINES = [b'{"n": 1}\n', b'{"n": 2}\n', b'{"n": 3}\n']


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "plan.gz").write_bytes(bytes(range(256)) * 8192)  # 2 MiB
    (tmp_path / "journal.jsonl").write_bytes(b"".join(LINES))
    (tmp_path / "empty.jsonl").touch()
    chain.seal(tmp_path, FILES)
    return tmp_path


def broken(folder: Path, files: tuple[str, ...] = FILES) -> str:
    sealed = chain.read(folder)
    assert sealed is not None
    found = chain.verify(folder, sealed, files)
    return "" if found is None else str(found)


def test_what_was_sealed_fits_and_has_a_link_for_each_line_and_block(folder: Path) -> None:
    sealed = chain.read(folder)
    assert sealed is not None
    assert broken(folder) == ""
    assert [len(part.links) for part in sealed.parts] == [2, 3, 1]
    assert len(sealed.head) == 64
    assert sealed.head.startswith(sealed.parts[-1].links[-1])


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([LINES[0], b'{"n": 9}\n', LINES[2]], "journal.jsonl, line 2: is not what was sealed"),
        ([LINES[0], LINES[2], LINES[1]], "journal.jsonl, line 2: is not what was sealed"),
        ([LINES[0], LINES[1]], "journal.jsonl, line 3: was sealed and is missing"),
        ([*LINES, b"{}\n"], "journal.jsonl, line 4: was added after it was sealed"),
        ([], "journal.jsonl, line 1: is not what was sealed"),
    ],
)
def test_the_first_line_that_does_not_fit_is_named(folder: Path, lines: list[bytes], why: str) -> None:
    (folder / "journal.jsonl").write_bytes(b"".join(lines))
    assert broken(folder) == why


@given(at=st.integers(0, 256 * 8192 - 1))
def test_any_changed_byte_of_a_binary_file_is_found(tmp_path_factory: pytest.TempPathFactory, at: int) -> None:
    folder = tmp_path_factory.mktemp("chain")
    data = bytearray(bytes(range(256)) * 8192)
    (folder / "plan.gz").write_bytes(data)
    chain.seal(folder, ["plan.gz"])
    data[at] ^= 1
    (folder / "plan.gz").write_bytes(data)
    assert broken(folder, ("plan.gz",)) == f"plan.gz, MiB {1 + at // (1 << 20)}: is not what was sealed"


def test_a_file_that_is_gone_or_new_is_named(folder: Path) -> None:
    assert broken(folder, (*FILES, "journal-2-0.jsonl")) == "journal-2-0.jsonl: was added after the run was sealed"
    (folder / "plan.gz").unlink()
    assert broken(folder) == "plan.gz: was sealed and cannot be read (No such file or directory)"


def test_a_head_that_is_not_that_of_the_links_is_found(folder: Path) -> None:
    path = folder / chain.FILE
    sealed = chain.read(folder)
    assert sealed is not None
    path.write_text(path.read_text().replace(sealed.head, "0" * 64))
    assert broken(folder) == f"chain.json: its head {'0' * 16} is not that of its links"


def test_a_chain_that_is_none_is_refused_and_one_that_is_not_there_is_none(tmp_path: Path) -> None:
    assert chain.read(tmp_path) is None
    (tmp_path / chain.FILE).write_text("[]")
    with pytest.raises(InputError, match=r"chain\.json: not a chain"):
        chain.read(tmp_path)
    with pytest.raises(InputError, match="cannot be sealed"):
        chain.seal(tmp_path, ["missing"])
