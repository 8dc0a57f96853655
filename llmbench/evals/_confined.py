"""Code that nobody has read, run in a process that is shut in.

A new session in an empty folder of its own; limits on CPU time, memory, file sizes, files and processes; no
environment, no input; user and network namespaces of its own where the system allows it, so that no socket leads
anywhere. This keeps accidents in; it is no wall against code that means harm: for that, use a machine that may be lost.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from typing import Literal

Outcome = Literal["passed", "failed", "timed out"]
PASSED: Outcome = "passed"

_MEMORY_BYTES = 1 << 30
_FILE_BYTES = 1 << 20
_NETWORK = "/proc/self/ns/net"

# Runs in the new process: shuts itself in, runs the program from stdin, and says the secret word only when the program
# has come to its end. The word is gone from the process's input before the program begins.
_RUNNER = """\
import ctypes, os, resource, sys
cpu_s, memory, file_size = map(int, sys.argv[1:])
word, program = sys.stdin.read().split("\\n", 1)
out = os.dup(1)
for stream in (0, 1, 2):
    os.dup2(os.open(os.devnull, os.O_RDWR), stream)
try:
    ctypes.CDLL(None, use_errno=True).unshare(0x10000000 | 0x40000000)  # CLONE_NEWUSER | CLONE_NEWNET
except (OSError, AttributeError):
    pass  # not on Linux
for kind, limit in (
    (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, file_size),
    (resource.RLIMIT_NOFILE, 32), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 0),
):
    resource.setrlimit(kind, (limit, limit))
exec(compile(program, "program", "exec"), {"__name__": "__main__"})
os.write(out, word.encode())
"""


def run(program: str, timeout_s: float) -> Outcome:
    """Run a program to its end; "passed" when it came there without an error."""
    word = secrets.token_hex(16)
    limits = [str(int(timeout_s) + 1), str(_MEMORY_BYTES), str(_FILE_BYTES)]
    with tempfile.TemporaryDirectory(prefix="llmbench-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", _RUNNER, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(f"{word}\n{program}".encode("utf-8", "replace"), timeout_s)
        except subprocess.TimeoutExpired:
            return "timed out"
        finally:
            _end(process)
    return PASSED if said == word.encode() else "failed"


def network_is_cut() -> bool:
    """Whether this system gives a program network namespaces of its own, so that it reaches nobody."""
    try:
        ours = os.readlink(_NETWORK)
    except OSError:  # not Linux
        return False
    return run(f"import os\nassert os.readlink({_NETWORK!r}) != {ours!r}", 5.0) == PASSED


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill the whole session, then wait for it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it is over
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
