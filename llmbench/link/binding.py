"""BIND_CPU: each rank on cores of its own, as MindIE binds the host process of each device.

Ranks are spread evenly over the NUMA nodes; those of one node share its cores in equal, contiguous pieces, or take
CPU_BINDING_NUM cores each. Only cores that this process may use count. Whatever is in the way is logged, never fatal.
"""

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmbench.errors import ConfigError

_log = logging.getLogger(__name__)

NUMBER_VARIABLE = "CPU_BINDING_NUM"


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def bind(rank: int, num_ranks: int) -> None:
    """Bind this process, all its threads, to the cores of a rank; say in the log where it is, or why it is not."""
    try:
        cores = cores_of(rank, num_ranks, _nodes(), os.environ)
        for thread in Path("/proc/self/task").iterdir():  # BLAS has started its own when NumPy was imported
            os.sched_setaffinity(int(thread.name), cores)
    except (ConfigError, OSError, AttributeError) as error:  # AttributeError: macOS and Windows have no such call
        _log.warning("rank %d is not bound to cores: %s", rank, error)
    else:
        _log.info("rank %d is bound to cores %s", rank, ",".join(map(str, cores)))


def cores_of(
    rank: int, num_ranks: int, nodes: Sequence[Sequence[int]], environment: Mapping[str, str]
) -> Sequence[int]:
    """The cores of one rank, out of those of each NUMA node. Raises ConfigError when there are not enough."""
    fewest, more = divmod(num_ranks, len(nodes))
    sizes = [fewest + (i < more) for i in range(len(nodes))]
    node = next(i for i in range(len(nodes)) if rank < sum(sizes[: i + 1]))
    index, cores = rank - sum(sizes[:node]), nodes[node]
    share = len(cores) // sizes[node]
    given = environment.get(NUMBER_VARIABLE, str(share))
    if not given.isdecimal() or not 1 <= int(given) <= share:
        raise ConfigError(
            f"{NUMBER_VARIABLE}: {given} cores for each of {sizes[node]} ranks, of the {len(cores)} cores of their node"
        )
    number = int(given)
    return cores[index * number : (index + 1) * number]


def _nodes() -> list[list[int]]:
    """The usable cores of each NUMA node that has any; all as one node where the system does not tell."""
    usable = available_cores()
    lists = [path.read_text() for path in sorted(Path("/sys/devices/system/node").glob("node[0-9]*/cpulist"))]
    nodes = [[core for core in usable if core in set(parse_cores(text))] for text in lists]
    return [node for node in nodes if node] or [usable]


def parse_cores(text: str) -> list[int]:
    """The kernel's list format: `0-2,8` is 0, 1, 2, 8."""
    pieces = [piece.partition("-") for piece in text.strip().split(",") if piece]
    return [core for first, _, last in pieces for core in range(int(first), int(last or first) + 1)]
