"""Which operators and which dtype MindSpore's device really runs, found by running them once on small arrays."""

import functools
import logging
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from llmbench.engines import _mindspore_home as home
from llmbench.engines._mindspore_cells import FusedAttention, FusedNorm, Operators, Pages
from llmbench.weights.config import ModelConfig

_log = logging.getLogger(__name__)


def choose(config: ModelConfig) -> Operators:
    """Fused operators where they run on the heads of this model, and the dtype; the log says why not the others.

    On the CPU the dtype is float32, since lower ones are emulated there. Elsewhere it is that of the stored weights,
    when it has 16 bits and the device multiplies it; then float16; then float32.
    """
    dtype = _dtype(config)
    operators = Operators(
        fused_attention=all(
            runs("fused attention", functools.partial(try_attention, config, dtype, steps)) for steps in (1, 16)
        ),
        fused_norm=runs("fused RMSNorm", lambda: try_norm(dtype)),
        dtype=dtype,
    )
    _log.info("MindSpore %s on %s: %s", ms.__version__, device(), operators)
    return operators


def device() -> str:
    """What MindSpore computes on: "CPU", "Ascend"."""
    return str(ms.get_context("device_target"))


def runs(name: str, trial: Callable[[], None]) -> bool:
    """Whether a trial ends without an error; the log has its first line if not."""
    try:
        trial()
    except Exception as error:  # noqa: BLE001 - an operator that is missing ends in all kinds of errors
        _log.info("%s does not run on %s: %s", name, device(), home.reason(error))
        return False
    return True


def try_attention(config: ModelConfig, dtype: str, steps: int) -> None:
    """ReshapeAndCache on the heads of this model, with PagedAttention when `steps` is 1, else with flash attention."""
    attention, kind = FusedAttention(config, Pages(num_blocks=4, block_size=16), dtype), getattr(ms, dtype)
    q = Tensor(np.ones((steps, config.num_heads, config.head_dim)), kind)
    kv = Tensor(np.ones((steps, config.num_kv_heads, config.head_dim)), kind)
    slots = Tensor(np.arange(steps, dtype=np.int32))
    tables, lens = Tensor(np.array([[0, 1]], np.int32)), Tensor(np.array([steps], np.int32))
    mask = Tensor(np.zeros((1, 1, 1, steps, 32), np.float32))
    attention(q, kv, kv, slots, tables, mask, lens).asnumpy()


def try_norm(dtype: str) -> None:
    """RmsNorm."""
    FusedNorm(np.ones(64, np.float32), 1e-5, dtype)(Tensor(np.ones((2, 64)), getattr(ms, dtype))).asnumpy()


def _dtype(config: ModelConfig) -> str:
    stored = [config.dtype] if config.dtype in ("float16", "bfloat16") else []
    if device() == "CPU":
        for dtype in stored:
            _log.info("the weights are %s; on the CPU they are float32, since MindSpore emulates 16 bits there", dtype)
        return "float32"
    for dtype in (*stored, "float16"):
        if runs(f"MatMul in {dtype}", functools.partial(_multiply, dtype)):
            return dtype
    return "float32"


class _Product(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.multiply = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        return self.multiply(x, x)


def _multiply(dtype: str) -> None:
    _Product()(Tensor(np.ones((16, 16)), getattr(ms, dtype))).asnumpy()
