"""Processes that this one starts and waits for, and what this one may open."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator, Sequence

import msgspec

from llmbench.errors import ConfigError, ServingError


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """A server that answers; `about` is what it said of itself behind its URL."""

    url: str
    pid: int
    about: str = ""


@contextlib.contextmanager
def child(command: Sequence[str], ready: str, what: str, goodbye_s: float) -> Iterator[Child]:
    """A server in a process of its own, which prints `ready` and its URL when it answers.

    It is ended on leaving, and killed when it takes longer than `goodbye_s`; it must end by itself when its stdin
    closes, should this process be killed. Raises ServingError when it does not start, ConfigError when it says that its
    settings are wrong; its own message is on stderr.
    """
    # a session of its own: Ctrl-C in a terminal must reach the measuring process only, so that answers can drain
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            url, _, about = _answering(process, ready, what).partition(" ")
            yield Child(url=url, pid=process.pid, about=about)
        finally:
            process.terminate()
            try:
                process.wait(goodbye_s)
            except subprocess.TimeoutExpired:
                process.kill()


def allow_many_sockets() -> None:
    """Raise the soft limit of open files to the hard one: at the common 1024, the 1000th client would be reset, and an
    overloaded server means a socket per request."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS says that there is no limit, and has one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _answering(process: "subprocess.Popen[str]", ready: str, what: str) -> str:
    """What it prints behind `ready`."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(ready):
            return line.removeprefix(ready).strip()
    status = process.wait()
    kind = ConfigError if status == ConfigError.exit_code else ServingError
    raise kind(f"{what} did not start (exit status {status}); its message is above")
