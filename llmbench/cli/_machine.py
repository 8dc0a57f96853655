"""What of a machine matters to somebody who measures on it."""

import os
import platform
import resource
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import msgspec
import psutil

from llmbench.loadgen._pacer import KernelTimer

_FEW_FILES = 4096
_LITTLE_SHARED_BYTES = 256 << 20
_MOST_LOAD = 0.5  # per core, of others
_MOST_STEAL = 0.01
OTHERS_BUSY = 0.1
"""Where others have more of a machine's CPU time, what is measured on it is theirs too."""
_GOOD_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One property; `ok` None where it cannot be known here. `remedy` says what to do when it is not ok."""

    name: str
    value: str
    ok: bool | None
    remedy: str = ""


def findings() -> list[Finding]:
    """Everything that can be looked up at once."""
    return [*_processor(), *_limits(), *_clock(), _python()]


class Steal:
    """Share of the machine's time that a hypervisor gave to somebody else, from making this to asking."""

    def __init__(self) -> None:
        self._before = _ticks()

    def finding(self) -> Finding:
        """The share since then."""
        after = _ticks()
        if after is None or self._before is None or after[1] == self._before[1]:
            return Finding(name="stolen time", value="unknown", ok=None)
        share = (after[0] - self._before[0]) / (after[1] - self._before[1])
        return Finding(
            name="stolen time",
            value=f"{100 * share:.1f} %",
            ok=share <= _MOST_STEAL,
            remedy="the hypervisor gives this machine's cores to others: use dedicated ones, or repeat more often",
        )


class Others:
    """Who else uses the machine, from making this to asking.

    Ours is this process, its children that have ended, and what `also` says of those that have not.
    """

    def __init__(self, also: Callable[[], float] = lambda: 0.0) -> None:
        self._also = also
        self._ours_s = self._ours()
        self._busy_s, self._all_s = _cpu_s()

    def share(self) -> float:
        """Of the CPU time of all cores, what was used by others or stolen by the hypervisor."""
        busy_s, all_s = _cpu_s()
        theirs_s = busy_s - self._busy_s - (self._ours() - self._ours_s)
        return max(0.0, theirs_s) / max(all_s - self._all_s, 1e-3)

    def _ours(self) -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return self._also() + sum(one.ru_utime + one.ru_stime for one in used)


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding(
        name="cores",
        value=str(cores),
        ok=cores > 1,
        remedy="client and server share one core: measure a server on another machine",
    )
    load = os.getloadavg()[0]
    yield Finding(
        name="load average, 1 minute",
        value=f"{load:.2f}",
        ok=load <= _MOST_LOAD * cores,
        remedy="something else is running: stop it, it takes time from the client",
    )
    found = {_read(path) for path in Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor")} - {""}
    yield Finding(
        name="CPU governor",
        value=", ".join(sorted(found)) or "not readable",
        ok=found == {"performance"} if found else None,
        remedy="the clock rate changes with the load: cpupower frequency-set -g performance",
    )


def _limits() -> Iterator[Finding]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = hard == resource.RLIM_INFINITY
    yield Finding(
        name="open files",
        value="unlimited" if unlimited else f"{hard:,}",
        ok=unlimited or hard >= _FEW_FILES,
        remedy="an overloaded server means a socket for each request: raise the hard limit (ulimit -Hn)",
    )
    try:
        shared = os.statvfs("/dev/shm")
    except OSError:
        yield Finding(name="shared memory", value="no /dev/shm", ok=None)
    else:
        free = shared.f_bavail * shared.f_frsize
        yield Finding(
            name="shared memory",
            value=f"{free / 2**20:,.0f} MiB free",
            ok=free >= _LITTLE_SHARED_BYTES,
            remedy="the bundled stack keeps arrays there: in a container, start it with --shm-size 1g",
        )
    scope = _read(Path("/proc/sys/kernel/yama/ptrace_scope"))
    kinds = {"": "unrestricted", "0": "unrestricted", "1": "own children", "2": "administrator", "3": "nobody"}
    yield Finding(
        name="profilers may attach (ptrace)",
        value=kinds.get(scope, scope),
        ok=None if scope in ("2", "3") else True,
    )


def _clock() -> Iterator[Finding]:
    source = _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"))
    yield Finding(
        name="clock source",
        value=source or "unknown",
        ok=source in _GOOD_CLOCKS if source else None,
        remedy="reading this clock takes a system call: boot with clocksource=tsc if the processor's is stable",
    )
    try:
        KernelTimer().close()
        works = True
    except (OSError, AttributeError):
        works = False
    yield Finding(
        name="kernel timer (timerfd)",
        value="works" if works else "not here",
        ok=works,
        remedy="requests are sent up to 1 ms late without it: run on Linux, outside of a sandbox that forbids it",
    )


def _python() -> Finding:
    fast = find_spec("uvloop") is not None and sys.platform != "win32"
    return Finding(
        name="Python",
        value=f"{platform.python_version()}, {'uvloop' if fast else 'asyncio'}",
        ok=fast,
        remedy="without uvloop a read costs three times as much: pip install uvloop",
    )


def _cpu_s() -> tuple[float, float]:
    """CPU time that was used or stolen, and all of it, since the machine started."""
    times = psutil.cpu_times()._asdict()
    total = sum(value for name, value in times.items() if not name.startswith("guest"))  # it is in `user` too
    return total - times["idle"] - times.get("iowait", 0.0), total


def _ticks() -> tuple[int, int] | None:
    """Stolen and all ticks since the machine started."""
    first, _, _ = _read(Path("/proc/stat")).partition("\n")
    numbers = [int(word) for word in first.split()[1:9]]
    return (numbers[7], sum(numbers)) if len(numbers) == 8 else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
