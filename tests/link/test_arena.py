import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from llmbench.engines import StepResult
from llmbench.link import arena
from llmbench.link.arena import Arena, Dimensions, Row, StepArrays
from llmbench.types import Sampling

SIZE = Dimensions(max_batch=3, max_tokens=8, max_blocks=4)


def ours() -> set[Path]:
    """The files of this process."""
    return set(_folder().glob(f"llmbench-{os.getpid()}-*"))


def _folder() -> Path:
    made = Arena.create(SIZE)
    made.unlink()
    return made.path.parent


@pytest.fixture
def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert not psutil.pid_exists(process.pid)
    return process.pid


@pytest.fixture
def left() -> Iterator[list[Path]]:
    """Files that a test puts into the folder; they are gone after it."""
    paths: list[Path] = []
    yield paths
    for path in paths:
        path.unlink(missing_ok=True)


def test_what_one_side_writes_the_other_reads_also_when_the_name_is_gone() -> None:
    here = Arena.create(SIZE)
    there = Arena.attach(here.path, SIZE)
    here.unlink()
    assert not here.path.exists()
    here.arrays.admit(2, Sampling(temperature=0.5, top_k=7, top_p=0.25), seed=2**64 - 1)
    here.arrays.set_blocks(2, 0, [5, 6])
    here.arrays.set_blocks(2, 2, [9])
    num_tokens = here.arrays.write([Row(2, [11, 12], 10, True), Row(0, [13], 4, False)], [3, 0])
    batch = there.arrays.batch(2, num_tokens)
    assert num_tokens == 3
    assert batch.token_ids.tolist() == [11, 12, 13]
    assert batch.query_lens.tolist() == [2, 1]
    assert batch.context_lens.tolist() == [10, 4]
    assert batch.wants_token.tolist() == [True, False]
    assert batch.block_tables[0, :3].tolist() == [5, 6, 9]
    assert batch.sampling[0].tolist() == (0.5, 0.25, 7, 3, 2**64 - 1)
    there.arrays.store(
        StepResult(token_ids=np.array([42, -1], np.int32), chosen_logits=np.array([1.5, 0.0], np.float32))
    )
    assert here.arrays.result(2) == ([42, -1], [1.5, 0.0])


def test_private_arrays_are_those_of_one_process() -> None:
    first, second = StepArrays.private(SIZE), StepArrays.private(SIZE)
    first.write([Row(0, [1, 2, 3], 3, True)], [0])
    assert second.token_ids.tolist() == [0] * SIZE.max_tokens


def test_the_arrays_do_not_overlap_and_fill_the_memory() -> None:
    arrays = StepArrays.private(SIZE)
    names = [name for name in vars(arrays) if name != "size"]
    views = {name: getattr(arrays, name) for name in names}
    assert sum(view.nbytes for view in views.values()) == arena.num_bytes(SIZE)
    for value, view in enumerate(views.values(), 1):
        view.view(np.uint8)[...] = value
    for value, view in enumerate(views.values(), 1):
        assert (view.view(np.uint8) == value).all()


def test_a_file_is_readable_by_its_owner_only() -> None:
    made = Arena.create(SIZE)
    try:
        assert made.path.stat().st_mode & 0o777 == 0o600
    finally:
        made.unlink()
    made.unlink()  # twice is fine


def test_sweeping_removes_the_files_of_the_dead_and_no_others(dead_pid: int, left: list[Path]) -> None:
    folder = _folder()
    names = {
        "dead": f"llmbench-{dead_pid}-00ff",
        "alive": f"llmbench-{os.getpid()}-00ff",
        "parent": f"llmbench-{os.getppid()}-00ff",
        "not a number": "llmbench-results-00ff",
        "not a number to Python": "llmbench-²-00ff",
        "another program": f"other-{dead_pid}-00ff",
        "without a mark": f"llmbench-{dead_pid}",
    }
    for name in names.values():
        path = folder / name
        path.write_bytes(b"")
        left.append(path)
    assert folder / names["dead"] in arena.sweep()
    assert {key for key, name in names.items() if not (folder / name).exists()} == {"dead"}
    assert folder / names["dead"] not in arena.sweep()


def test_a_process_that_was_killed_before_the_agent_had_attached_is_swept_up_after() -> None:
    script = (
        "import os, signal\n"
        "from llmbench.link.arena import Arena, Dimensions\n"
        "print(Arena.create(Dimensions(max_batch=3, max_tokens=8, max_blocks=4)).path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    path = Path(done.stdout.strip())
    assert done.returncode == -9
    assert path.exists()
    assert path in arena.sweep()
    assert not path.exists()


def test_no_room_is_an_error_at_once_and_leaves_nothing_behind() -> None:
    """A file that is only promised would kill both processes with SIGBUS at the first write that finds no room."""
    before = ours()
    with pytest.raises(OSError, match=r"space|large|memory"):
        Arena.create(Dimensions(max_batch=3, max_tokens=2**42, max_blocks=4))
    assert ours() == before
