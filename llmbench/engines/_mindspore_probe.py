"""Which operators and which dtype MindSpore's device really runs, found by running them once on small arrays."""

import functools
import logging
from collections.abc import Callable

import mindspore as ms
import numpy as np
import numpy.typing as npt
from mindspore import Tensor, nn, ops

from llmbench.engines import _mindspore_home as home
from llmbench.engines._mindspore_cells import (
    FusedAttention,
    FusedNorm,
    Int8Product,
    Int8WeightProduct,
    Operators,
    Pages,
)
from llmbench.weights.config import ModelConfig
from llmbench.weights.quantised import DEQ_FORMS, W8A8, W8A16, DeqForm

Float64 = npt.NDArray[np.float64]

_FEW_ROWS = (5, 128)  # measured: of up to 4 rows both ways take the same time, of 512 this one takes a third more
_log = logging.getLogger(__name__)


def choose(config: ModelConfig) -> Operators:
    """Fused operators where they run on the heads of this model, and the dtype; the log says why not the others.

    On the CPU the dtype is float32, since lower ones are emulated there. Elsewhere it is that of the stored weights,
    when it has 16 bits and the device multiplies it; then float16; then float32.
    """
    dtype, kinds = _dtype(config), set(config.quantised.values())
    operators = Operators(
        fused_attention=all(
            runs("fused attention", functools.partial(try_attention, config, dtype, steps)) for steps in (1, 16)
        ),
        fused_norm=runs("fused RMSNorm", lambda: try_norm(dtype)),
        w8a8=_w8a8(dtype) if "W8A8" in kinds or "W8A8S" in kinds else None,
        w8a16="W8A16" in kinds and runs("W8A16", functools.partial(try_w8a16, dtype)),
        few_rows=_FEW_ROWS if device() == "CPU" else (0, 0),
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


def try_w8a8(form: DeqForm, dtype: str) -> None:
    """The product of integers, on numbers that 16 bits hold. Raises ValueError when it is not what it should be."""
    rng = np.random.default_rng(0)
    linear = W8A8(
        weight=rng.integers(-127, 128, (32, 64)).astype(np.int8),
        input_scale=1 / 32,
        input_offset=-5,
        quant_bias=rng.integers(-9999, 9999, 32).astype(np.int32),
        deq_scale=2.0 ** -rng.integers(12, 15, 32).astype(np.float32),
    )
    steps = rng.integers(-128, 128, (4, 64))
    x = (steps - linear.input_offset).astype(np.float64) * linear.input_scale
    expected = (steps @ linear.weight.T.astype(np.int64) + linear.quant_bias) * linear.deq_scale
    _compare(Int8Product([linear], form, dtype), x, dtype, expected)


def try_w8a16(dtype: str) -> None:
    """The product with weights of 8 bits. Raises ValueError when it is not what it should be."""
    rng = np.random.default_rng(0)
    linear = W8A16(
        weight=rng.integers(-128, 128, (32, 64)).astype(np.int8),
        weight_scale=2.0 ** -rng.integers(6, 9, (32, 1)).astype(np.float32),
        weight_offset=rng.integers(-20, 20, (32, 1)).astype(np.float32),
    )
    x = rng.integers(-16, 16, (4, 64)) / 16
    _compare(Int8WeightProduct([linear], dtype), x, dtype, x @ linear.dequantised().T.astype(np.float64))


def _compare(cell: nn.Cell, x: Float64, dtype: str, expected: Float64) -> None:
    """Hold what a cell gives against what it should, as nearly as 16 bits can."""
    found = cell(Tensor(x, getattr(ms, dtype))).astype(ms.float32).asnumpy()
    if not np.allclose(found, expected, rtol=0.01, atol=0.01 * np.abs(expected).mean()):
        raise ValueError(f"it gives {found.flat[0]:g} for {expected.flat[0]:g}")


def _w8a8(dtype: str) -> DeqForm | None:
    """The form of deq_scale with which the device multiplies integers rightly; None where it does not."""
    return next((form for form in DEQ_FORMS if runs(f"W8A8 by {form}", functools.partial(try_w8a8, form, dtype))), None)


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
