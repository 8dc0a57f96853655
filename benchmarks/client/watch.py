"""CPU time and memory of a process and everything it has started, ten times a second."""

import subprocess
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

_EVERY_S = 0.1


class Sample(NamedTuple):
    at_s: float
    cpu_s: float
    rss_bytes: int


class Watched(NamedTuple):
    """A finished process."""

    status: int
    launched_s: float
    samples: list[Sample]

    def cpu_s(self, from_s: float, to_s: float) -> float:
        """CPU time between two instants, interpolated."""
        return self._at(to_s) - self._at(from_s)

    @property
    def peak_rss_bytes(self) -> int:
        return max((sample.rss_bytes for sample in self.samples), default=0)

    def _at(self, instant_s: float) -> float:
        before = Sample(self.launched_s, 0.0, 0)
        for sample in self.samples:
            if sample.at_s >= instant_s:
                share = (instant_s - before.at_s) / max(sample.at_s - before.at_s, 1e-9)
                return before.cpu_s + share * (sample.cpu_s - before.cpu_s)
            before = sample
        return before.cpu_s


def watch(command: list[str], folder: Path, timeout_s: float, env: dict[str, str]) -> Watched:
    """Run a command to its end, its output in `folder`; killed with all it started when it takes too long."""
    samples: list[Sample] = []
    with (folder / "stdout.txt").open("wb") as out, (folder / "stderr.txt").open("wb") as errors:
        launched_s = time.monotonic()
        process = psutil.Popen(command, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, cwd=folder, env=env)
        killer = threading.Timer(timeout_s, _kill, [process])
        killer.start()
        gone: dict[int, float] = {}  # the last that was seen of processes that have ended
        while process.poll() is None:
            samples.append(_sample(process, gone))
            time.sleep(_EVERY_S)
        killer.cancel()
    return Watched(process.returncode, launched_s, samples)


def _sample(process: "psutil.Popen", seen: dict[int, float]) -> Sample:
    rss = 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for one in family:
        try:
            with one.oneshot():
                times = one.cpu_times()
                seen[one.pid] = times.user + times.system
                rss += one.memory_info().rss
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return Sample(time.monotonic(), sum(seen.values()), rss)


def _kill(process: "psutil.Popen") -> None:
    try:
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for one in family:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
