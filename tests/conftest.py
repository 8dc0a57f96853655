"""What tests of several rooms share: the settings of hypothesis, and servers as real processes."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import psutil
import pytest
from hypothesis import settings

# quick to start, and the same numbers with and without numba; what is about another engine names it
os.environ["LLMBENCH_ENGINE"] = "numpy_llama"

# the same examples on every run; a busy machine is not a failure
settings.register_profile("llmbench", derandomize=True, deadline=None)
settings.load_profile("llmbench")

ROOT = Path(__file__).parents[1]
READY_WITHIN_S = 60.0


class Serving:
    """`llmbench serve --port 0 FLAGS` as a process. Leaving its context ends it, and every process it has started."""

    def __init__(self, *flags: str, log: Path, port: int = 0) -> None:
        self._log = log
        command = [sys.executable, "-m", "llmbench", "serve", "--port", str(port), *flags]
        with log.open("wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        self.ready_line = ""
        self.url = ""
        self.agent_pids: tuple[int, ...] = ()

    def wait_until_ready(self) -> "Serving":
        """Until the ready line, or the end of the process: then `url` stays empty."""
        assert self.process.stdout is not None
        self.ready_line = self.process.stdout.readline()
        if found := re.search(r"ready on (http://\S+) .*agent ([\d, ]+)\)", self.ready_line):
            self.url, self.agent_pids = found[1], tuple(map(int, found[2].split(", ")))
        return self

    @property
    def agent_pid(self) -> int:
        """Of rank 0."""
        return self.agent_pids[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What it has written to stderr so far."""
        return self._log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.process.send_signal(number)
        return self.process.wait(30)

    def __enter__(self) -> "Serving":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        children: list[psutil.Process] = []
        if self.process.poll() is None:
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.process.kill()
        self.process.wait(30)
        assert self.process.stdout is not None
        self.process.stdout.close()
        for child in children:
            if child.is_running():
                child.kill()


Launch = Callable[..., Serving]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start servers with `launch(*flags)`; what is left of them is killed after the test."""
    started: list[Serving] = []

    def start(*flags: str, port: int = 0) -> Serving:
        started.append(Serving(*flags, log=tmp_path / f"serve-{len(started)}.log", port=port))
        return started[-1].wait_until_ready()

    yield start
    for serving in started:
        serving.__exit__(None, None, None)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server of random:tiny that tests share; they leave it as they found it."""
    log = tmp_path_factory.mktemp("server") / "serve.log"
    with Serving("--model", "random:tiny", "--threads", "1", log=log) as serving:
        yield serving.wait_until_ready()


def need(library: str) -> None:
    """Skip the test where a library is not installed; it is not imported, since MindFormers writes files then."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


def poll(until: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Whether something becomes true in time."""
    deadline = time.monotonic() + within_s
    while not until():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def ended(pid: int) -> bool:
    """Whether a process has ended; one whose parent has not asked yet has."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
