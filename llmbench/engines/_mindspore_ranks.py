"""Agents as ranks of MindSpore's own collectives: its MCCL on the CPU, HCCL on Ascend.

They are started by us and not by msrun, and meet at a store of rank 0's on a port of the loopback interface; so there
is no scheduler process either.
"""

import datetime
import logging
import socket

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import management
from mindspore.mint.distributed import TCPStore

from llmbench.engines import Group
from llmbench.engines import _mindspore_home as home
from llmbench.errors import ServingError

_HOST = "127.0.0.1"
_PATIENCE = datetime.timedelta(seconds=60)

_log = logging.getLogger(__name__)


def join(group: Group) -> None:
    """Take part as the rank that this process is in `group`. Raises ServingError where the ranks do not meet."""
    port = _agree_on_port(group)
    try:
        store = TCPStore(_HOST, port, world_size=group.size, is_master=group.rank == 0, timeout=_PATIENCE)
        management._init_with_store(timeout=_PATIENCE, world_size=group.size, rank=group.rank, store=store)
        total = float(_Sum()(Tensor(np.ones(1, np.float32))).asnumpy()[0])
    except (RuntimeError, ValueError, TypeError) as error:  # what MindSpore raises
        raise ServingError(f"mindspore: rank {group.rank} of {group.size}: {home.reason(error)}") from error
    if total != group.size:
        raise ServingError(f"mindspore: {group.size} ranks add up to {total:g}")
    _log.info("rank %d of %d takes part in %s", group.rank, group.size, management.GlobalComm.BACKEND)


class _Sum(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, x: Tensor) -> Tensor:
        return self.all_reduce(x)


def _agree_on_port(group: Group) -> int:
    """One that rank 0 finds free; nobody else has a reason to take it until it listens there, a moment later."""
    port = 0
    if group.rank == 0:
        with socket.socket() as found:
            found.bind((_HOST, 0))
            port = found.getsockname()[1]
    return int(group.all_reduce(np.array([port], np.float32))[0])
