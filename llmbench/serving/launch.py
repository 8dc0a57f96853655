"""Starting `llmbench serve` as a process of its own, for commands that need a server."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

import msgspec

from llmbench.errors import ConfigError, ServingError

READY = "llmbench serve: ready on "
_GOODBYE_S = 15.0  # longer than a server drains


class Server(msgspec.Struct, frozen=True, kw_only=True):
    """A server that answers."""

    url: str
    pid: int


def flags(given: Mapping[str, object]) -> list[str]:
    """`--flag value` for each setting that was given; None stands for "not given"."""
    return [word for flag, value in given.items() if value is not None for word in (flag, str(value))]


@contextlib.contextmanager
def launched(argv: list[str]) -> Iterator[Server]:
    """`llmbench serve --port 0 ARGV`, answering; stopped on leaving, and by itself should this process be killed.

    Raises ServingError (ConfigError when the server said that its settings are wrong) with its last line of output.
    """
    command = [sys.executable, "-m", "llmbench", "serve", "--port", "0", "--until-stdin-closes", *argv]
    # a session of its own: Ctrl-C in a terminal must reach the measuring process only, so that answers can drain
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            yield Server(url=_wait_until_ready(process), pid=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_GOODBYE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    for line in process.stdout:
        found = re.match(re.escape(READY) + r"(\S+)", line)
        if found:
            return found[1]
    status = process.wait()
    kind = ConfigError if status == ConfigError.exit_code else ServingError
    raise kind(f"the bundled stack did not start (exit status {status}); its message is above")
