"""The weights of a Llama or Qwen2 model as the numba engine multiplies with them: in panels, read once from end to end.

A panel has ISA.width columns and all inputs: float32 [inputs, width]; int8 [inputs, width] where activations are floats
(W8A16); int8 [groups, width, group] where they are int8, too (W8A8), see native.isa. Each linear begins a panel, and
what fills up its last one is 0.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench.engines import _numba_program as program
from llmbench.engines._numba_kernels import RAISED
from llmbench.memory import aligned
from llmbench.native.isa import ISA
from llmbench.weights.model import Model
from llmbench.weights.quantised import W8A8, W8A16

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Quantisation = tuple[float, int]
"""Scale and offset: what the inputs of a W8A8 linear are divided by, and what is added to them then."""


class Product(NamedTuple):
    """One or several linears side by side. `kind` is that of its operation, `num` of inputs, or groups of them, and
    `column` its first one in the result. `scale` float32, `bias` (of W8A8 int32) and `offset` float32 are of columns.
    """

    kind: int
    num: int
    column: int
    weight: npt.NDArray[np.float32] | Int8
    scale: Float32
    bias: npt.NDArray[np.float32] | npt.NDArray[np.int32]
    offset: Float32
    quantisation: Quantisation | None = None

    @property
    def panels(self) -> int:
        return len(self.weight)


class Layer(NamedTuple):
    """Norms are gain and bias, float32 [padded hidden]; each list of products has the same input."""

    attention_norm: tuple[Float32, Float32]
    qkv: list[Product]
    output: list[Product]
    mlp_norm: tuple[Float32, Float32]
    gate_up: list[Product]
    down: list[Product]


class LlamaWeights(NamedTuple):
    """`embedding` float32 [vocab, hidden] is None where it is tied to the head, which then has it."""

    embedding: Float32 | None
    layers: list[Layer]
    norm: tuple[Float32, Float32]
    head: list[Product]

    def embed(self, token_ids: npt.NDArray[np.int32]) -> Float32:
        """float32 [T, hidden]."""
        if self.embedding is not None:
            found: Float32 = self.embedding[token_ids]
            return found
        panels, columns = np.divmod(token_ids, ISA.width)
        tied: Float32 = self.head[0].weight[panels, :, columns]  # type: ignore[assignment]
        return tied


def padded(num: int) -> int:
    """Columns in whole panels."""
    return -(-num // ISA.width) * ISA.width


def load(model: Model) -> LlamaWeights:
    """Read a model into panels, block by block."""
    config = model.config
    layers = [_layer(model, f"model.layers.{i}.") for i in range(config.num_layers)]
    tied = config.tie_embeddings
    head = products(model, ["model.embed_tokens" if tied else "lm_head"])
    embedding = None if tied else model.tensor("model.embed_tokens.weight")
    return LlamaWeights(embedding, layers, _norm(model, "model.norm"), head)


def _layer(model: Model, prefix: str) -> Layer:
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    return Layer(
        attention_norm=_norm(model, prefix + "input_layernorm"),
        qkv=products(model, [f"{attention}{part}_proj" for part in "qkv"]),
        output=products(model, [attention + "o_proj"]),
        mlp_norm=_norm(model, prefix + "post_attention_layernorm"),
        gate_up=products(model, [mlp + "gate_proj", mlp + "up_proj"]),
        down=products(model, [mlp + "down_proj"]),
    )


def _norm(model: Model, name: str) -> tuple[Float32, Float32]:
    """Gain and bias, float32 [padded]."""
    num = model.shape(name + ".weight")[0]
    gain, bias = aligned(padded(num), np.float32), aligned(padded(num), np.float32)
    gain[:num] = model.tensor(name + ".weight")
    if name + ".bias" in model.names():
        bias[:num] = model.tensor(name + ".bias")
    return gain, bias


def products(model: Model, names: list[str]) -> list[Product]:
    """The linears of one input, neighbours in one product where they are alike."""
    found: list[Product] = []
    column = 0
    for name in names:
        found.append(_product(model, name, column))
        column += padded(model.shape(name + ".weight")[0])
    return _joined(found)


def _product(model: Model, name: str, column: int) -> Product:
    """One linear, of whatever kind."""
    linear = model.linear(name)
    if isinstance(linear, W8A8):
        return _integer(linear, column)
    return _float(model, name, column) if linear is None else _narrow(linear, column)


def _integer(linear: W8A8, column: int) -> Product:
    num_out = len(linear.weight)
    bias = linear.quant_bias.astype(np.int64)
    if RAISED:  # what is added to activations, so that they are not negative
        bias = bias - RAISED * linear.weight.sum(axis=1, dtype=np.int64)
    panels = _grouped(linear.weight, ISA.group)
    return Product(
        kind=program.INTEGER,
        num=panels.shape[1],
        column=column,
        weight=panels,
        scale=_columns(num_out, linear.deq_scale),
        bias=_columns(num_out, bias.astype(np.int32), np.int32),  # of more than 32 bits, the sum drops the same ones
        offset=_columns(num_out, 0.0),
        quantisation=(linear.input_scale, linear.input_offset),
    )


def _narrow(linear: W8A16, column: int) -> Product:
    num_out, num_in = linear.weight.shape
    return Product(
        kind=program.NARROW,
        num=num_in,
        column=column,
        weight=_grouped(linear.weight, 1),
        scale=_columns(num_out, linear.weight_scale[:, 0]),
        bias=_columns(num_out, linear.bias()),
        offset=_columns(num_out, linear.weight_offset[:, 0]),
    )


def _grouped(weight: Int8, group: int) -> Int8:
    """int8 [panels, groups, width, group] of a weight [out, in]."""
    num_out, num_in = weight.shape
    groups = -(-num_in // group)
    panels: Int8 = aligned((padded(num_out) // ISA.width, groups, ISA.width, group), np.int8)
    whole = np.zeros((ISA.width, groups * group), np.int8)
    for panel, inside, rows in _pieces(0, weight):
        whole[: len(rows), :num_in] = rows
        found = whole[: len(rows)].reshape(len(rows), groups, group)
        panels[panel, :, inside : inside + len(rows)] = found.swapaxes(0, 1)
    return panels


def _float(model: Model, name: str, column: int) -> Product:
    num_out, num_in = model.shape(name + ".weight")
    panels = aligned((padded(num_out) // ISA.width, num_in, ISA.width), np.float32)
    for first, block in model.blocks(name + ".weight"):
        for panel, inside, rows in _pieces(first, block):
            panels[panel, :, inside : inside + len(rows)] = rows.T
    bias = model.tensor(name + ".bias") if name + ".bias" in model.names() else 0.0
    return Product(
        program.FLOAT, num_in, column, panels, _columns(num_out, 1.0), _columns(num_out, bias), _columns(num_out, 0.0)
    )


def _columns(num: int, values: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    """A number for each column, 0 for those that fill up."""
    found = aligned(padded(num), dtype)
    found[:num] = values
    return found


def _pieces(first: int, block: npt.NDArray[Any]) -> Iterator[tuple[int, int, npt.NDArray[Any]]]:
    """Rows of a weight from row `first` on, cut where panels end: the panel, the first column in it, and the rows."""
    row = 0
    while row < len(block):
        panel, inside = divmod(first + row, ISA.width)
        rows = block[row : row + ISA.width - inside]
        yield panel, inside, rows
        row += len(rows)


def _joined(parts: list[Product]) -> list[Product]:
    """One product of all where they are of one kind and their inputs are quantised in one way."""
    first = parts[0]
    if len(parts) == 1 or any((part.kind, part.quantisation) != (first.kind, first.quantisation) for part in parts):
        return parts
    return [
        first._replace(
            weight=_end_to_end([part.weight for part in parts]),
            scale=_end_to_end([part.scale for part in parts]),
            bias=_end_to_end([part.bias for part in parts]),
            offset=_end_to_end([part.offset for part in parts]),
        )
    ]


def _end_to_end(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    found = aligned((sum(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    np.concatenate(arrays, out=found)
    return found
