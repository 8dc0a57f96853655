"""How fast two captures are compared, beside a loop of `np.load` and `np.allclose` as the contest's script has it.

    python benchmarks/compare.py                       # 500 requests of 68 rows of 32,000: 4.35 GB a side as full32
    python benchmarks/compare.py --tiers full16 --ways compiled     # one of its four lines
    python benchmarks/compare.py --requests 20         # a smaller one

Both captures are made on the fly, in a folder for temporary files that is removed in the end: logits with float16
values, every row of the new capture differing from its base in most values. The comparison is the command, `llmbench
acc compare`, in a process of its own: its time includes Python's start, its memory is the most that the process ever
had. Reads come from the page cache, if the machine has room for both captures there. Where the extra `fast` is
installed the comparison takes its compiled pass, in turns with NumPy (LLMBENCH_ISA=none); each line says which it was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench import native
from llmbench.logits.store import INDEX, Manifest, Tier, Writer

Float32 = npt.NDArray[np.float32]
_POOL = 64
_BLOCK = 16


class Size(NamedTuple):
    """How many requests, rows of each, and values in a row."""

    requests: int
    steps: int
    vocab_size: int

    @property
    def num_rows(self) -> int:
        return self.requests * self.steps


class Measured(NamedTuple):
    """One way to compare: how long it took, how much of all cores, the bytes of both sides, the memory at its peak."""

    name: str
    seconds: float
    cpu_s: float
    num_bytes: int
    peak_bytes: int | None

    def __str__(self) -> str:
        rate, each = self.num_bytes / self.seconds / 1e9, self.num_bytes / self.cpu_s / 1e9
        memory = "" if self.peak_bytes is None else f"  {self.peak_bytes / 1e6:.0f} MB at most"
        return (
            f"{self.name:<36} {self.seconds:6.2f} s  {rate:5.2f} GB/s of both sides  "
            f"{each:5.2f} GB for a second of a core{memory}"
        )


def rows(size: Size, noise: float) -> Iterator[Float32]:
    """Blocks float32 [n, V] with float16 values; the same with every `noise` but for the noise."""
    pool = np.random.default_rng(0).normal(0, 4, (_POOL, size.vocab_size)).astype(np.float32)
    pool += np.random.default_rng(1).normal(0, 1, pool.shape).astype(np.float32) * np.float32(noise)
    pool = pool.astype(np.float16).astype(np.float32)
    for first in range(0, size.num_rows, _BLOCK):
        numbers = range(first, min(first + _BLOCK, size.num_rows))
        yield np.stack([np.roll(pool[number % _POOL], number) for number in numbers])


def write_store(folder: Path, size: Size, tier: Tier, noise: float) -> None:
    """A capture of every row, request by request."""
    manifest = Manifest(
        model="made on the fly", fingerprint="", engine="none", dtype="float16", vocab_size=size.vocab_size, tier=tier
    )
    writer = Writer(folder, manifest)
    for number in range(size.requests):
        writer.request(f"r{number}", 32)
    first = 0
    for block in rows(size, noise):
        numbers = np.arange(first, first + len(block))
        first += len(block)
        meta = np.zeros(len(block), INDEX)
        meta["request"], meta["step"] = np.divmod(numbers, size.steps)
        meta["position"], meta["batch"], meta["token"] = meta["step"] + 31, 16, block.argmax(axis=1)
        writer.write(block, meta)
    writer.close()


def write_files(folder: Path, size: Size, noise: float, num_files: int) -> None:
    """The first rows as .npy files, (1, 1, V)."""
    folder.mkdir()
    number = 0
    for block in rows(size, noise):
        for row in block:
            if number == num_files:
                return
            np.save(folder / f"{number:07}.npy", row.reshape(1, 1, -1))
            number += 1


def command(base: Path, new: Path, tier: Tier, way: str) -> Measured:
    """`llmbench acc compare` in a process of its own."""
    num_bytes = sum(path.stat().st_size for side in (base, new) for path in side.glob("part-*.f*"))
    report = base.parent / "compared.json"
    words = [sys.executable, "-m", "llmbench", "acc", "compare", str(base), str(new), "--json", str(report)]
    environment = os.environ | ({native.VARIABLE: native.NONE} if way == "numpy" else {})
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None, "it was asked for"
    screen = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    print(screen.partition("\n")[0], file=sys.stderr)
    assert os.waitstatus_to_exitcode(status) == 0, "captures that differ this little pass"
    found = json.loads(report.read_bytes())["computed_with"]
    name = f"acc compare, {tier}, {found}"
    return Measured(name, seconds, usage.ru_utime + usage.ru_stime, num_bytes, usage.ru_maxrss * 1024)


def loop(base: Path, new: Path, name: str) -> Measured:
    """What the contest's script does with each pair of files, without its prints."""
    start, cpu_start = time.perf_counter(), time.process_time()
    num_bytes = 0
    for path in sorted(base.iterdir()):
        theirs, ours = np.load(path), np.load(new / path.name)
        np.allclose(ours, theirs.astype(np.float32), atol=5e-3, equal_nan=False)
        num_bytes += theirs.nbytes + ours.nbytes
    return Measured(name, time.perf_counter() - start, time.process_time() - cpu_start, num_bytes, None)


def warm(*folders: Path) -> None:
    """Read everything once, so that what was written last is not the only part in the page cache."""
    for folder in folders:
        for path in folder.iterdir():
            with path.open("rb", buffering=0) as file:
                while file.read(16 << 20):
                    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--steps", type=int, default=68)
    parser.add_argument("--vocab-size", type=int, default=32_000)
    parser.add_argument("--tiers", nargs="+", default=["full32", "full16"])
    parser.add_argument("--ways", nargs="+", choices=["compiled", "numpy"], default=["compiled", "numpy"])
    parser.add_argument("--noise", type=float, default=5e-3, help="standard deviation of what is added to the base")
    parser.add_argument("--npy-files", type=int, default=2000, help="pairs for the loop of np.load and np.allclose")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None, help="where to put the captures")
    given = parser.parse_args()
    size = Size(given.requests, given.steps, given.vocab_size)
    found = []
    for tier in given.tiers:
        with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
            base, new = Path(scratch) / "base", Path(scratch) / "new"
            write_store(base, size, tier, 0.0)
            write_store(new, size, tier, given.noise)
            warm(base, new)
            found += [command(base, new, tier, way) for _ in range(given.repeats) for way in given.ways]
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        base, new = Path(scratch) / "base", Path(scratch) / "new"
        num_files = min(given.npy_files, size.num_rows)
        write_files(base, size, 0.0, num_files)
        write_files(new, size, given.noise, num_files)
        found += [loop(base, new, f"np.load + np.allclose, {num_files} files") for _ in range(given.repeats)]
    print(f"{size.num_rows} rows of {size.vocab_size}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(*found, sep="\n")


if __name__ == "__main__":
    main()
