"""The weights of a Llama or Qwen2 model as the NumPy engine multiplies with them.

Rewritings that save calls at each step and change nothing but the last bits: the weight of a layer's RMSNorm, and the
sqrt(hidden) of its mean, are multiplied into the matrix behind it; 1/sqrt(head_dim) into q; the rows of q and k are
reordered so that the two halves that RoPE turns into each other lie side by side, as one complex number; gate and up
are negated, since silu(g) * u = (-g) * (-u) / (1 + exp(-g)). A linear of W8A8 keeps its int8 numbers: there the norm
is applied to the input, and the factors are in the scales of the output.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines._linear import FloatLinear, Int8Linear, Joined, Linear, Norm, exact
from llmbench.engines._matrix import Layout, Matrix, Workers
from llmbench.weights.model import Model
from llmbench.weights.quantised import W8A8

Float32 = npt.NDArray[np.float32]
Blocks = Iterator[tuple[int, Float32]]
_Number = TypeVar("_Number", bound=np.generic)


class Layer(msgspec.Struct, frozen=True):
    """`qkv` is hidden -> (heads + 2 kv_heads) * head_dim, in this order; `gate_up` is hidden -> 2 ffn."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear


class LlamaWeights(msgspec.Struct, frozen=True):
    """`head` is hidden -> vocab. Tied embeddings are in it alone: then `embedding` float32 [vocab, hidden] is None.
    `final_norm` [hidden] is multiplied with sqrt(hidden).
    """

    embedding: Float32 | None
    layers: list[Layer]
    final_norm: Float32
    head: Matrix

    def embed(self, token_ids: npt.NDArray[np.int32]) -> Float32:
        """float32 [T, hidden]."""
        return self.head.columns(token_ids) if self.embedding is None else self.embedding[token_ids]


class _Use(NamedTuple):
    """A linear by name, its outputs times `factor`; those of `paired` ones lie as RoPE turns them."""

    name: str
    factor: float = 1.0
    paired: bool = False


def load(model: Model, layout: Layout, workers: Workers, dtype: npt.DTypeLike = np.float32) -> LlamaWeights:
    """Read a model into the merged matrices, most of it block by block; no second copy of the whole is made.

    What is float32 here is float64 where that is asked for.
    """
    config = model.config
    loader = _Loader(model, layout, workers, dtype)
    layers = [loader.layer(f"model.layers.{i}.") for i in range(config.num_layers)]
    norm = loader.gain("model.norm.weight")
    head = Matrix(config.hidden_size, config.vocab_size, layout, workers, dtype)
    tied = config.tie_embeddings
    head.fill(0, model.blocks("model.embed_tokens.weight" if tied else "lm_head.weight"))
    embedding = None if tied else model.tensor("model.embed_tokens.weight").astype(dtype, copy=False)
    return LlamaWeights(embedding=embedding, layers=layers, final_norm=norm, head=head)


def kv_scales(model: Model, layer: int, dtype: npt.DTypeLike) -> tuple[Float32, Float32]:
    """Scale and offset [2 kv_heads, head_dim] of the int8 cache of a layer, as its keys and values lie."""
    scales = model.kv_scales(layer)
    assert scales is not None, "the model has an int8 cache"
    dim = model.config.head_dim

    def joined(keys: Float32, values: Float32) -> Float32:
        both: Float32 = np.concatenate([_pair_halves(keys, dim), values]).astype(dtype)
        return both.reshape(-1, dim)

    return joined(scales.key_scale, scales.value_scale), joined(scales.key_offset, scales.value_offset)


class _Loader:
    """Reads the linears of a model."""

    def __init__(self, model: Model, layout: Layout, workers: Workers, dtype: npt.DTypeLike) -> None:
        self._model = model
        self._layout = layout
        self._workers = workers
        self._dtype = dtype
        self._names = frozenset(model.names())

    def layer(self, prefix: str) -> Layer:
        attention, mlp, q_factor = prefix + "self_attn.", prefix + "mlp.", 1 / math.sqrt(self._model.config.head_dim)
        qkv = (
            _Use(attention + "q_proj", q_factor, paired=True),
            _Use(attention + "k_proj", paired=True),
            _Use(attention + "v_proj"),
        )
        gate_up = (_Use(mlp + "gate_proj", -1.0), _Use(mlp + "up_proj", -1.0))
        return Layer(
            qkv=self._linear(qkv, self._norm(prefix + "input_layernorm")),
            output=self._linear([_Use(attention + "o_proj")]),
            gate_up=self._linear(gate_up, self._norm(prefix + "post_attention_layernorm")),
            down=self._linear([_Use(mlp + "down_proj")]),
        )

    def gain(self, name: str) -> Float32:
        """[hidden]: the weight of an RMSNorm times sqrt(hidden), since the engine divides by sqrt(sum(x^2))."""
        weight: Float32 = self._model.tensor(name).astype(self._dtype)
        weight *= math.sqrt(self._model.config.hidden_size)
        return weight

    def _norm(self, name: str) -> Norm:
        bias = self._model.tensor(name + ".bias") if self._model.config.norm_bias else None
        return Norm(self.gain(name + ".weight"), None if bias is None else bias.astype(self._dtype))

    def _linear(self, uses: Sequence[_Use], norm: Norm | None = None) -> Linear:
        """Linears of one input: in as few products as their kinds and the scales of their inputs allow."""
        read = [(use, self._int8(use.name)) for use in uses]
        parts: list[Linear] = []
        for rounding, group in itertools.groupby(read, key=lambda each: _rounding(each[1])):
            if rounding is None:
                parts.append(self._float_linear([use for use, _ in group], norm))
            else:
                parts.append(self._int8_linear([(use, int8) for use, int8 in group if int8 is not None], norm))
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _int8(self, name: str) -> W8A8 | None:
        """A linear of W8A8; None for others, those of W8A16 among them, which are floats here."""
        linear = self._model.linear(name)
        return linear if isinstance(linear, W8A8) else None

    def _matrix(self, uses: Sequence[_Use], layout: Layout) -> Matrix:
        shapes = [self._model.shape(use.name + ".weight") for use in uses]
        return Matrix(shapes[0][1], sum(shape[0] for shape in shapes), layout, self._workers, self._dtype)

    def _float_linear(self, uses: Sequence[_Use], norm: Norm | None) -> FloatLinear:
        matrix = self._matrix(uses, self._layout)
        column, biases = 0, []
        for use in uses:
            matrix.fill(column, self._blocks(use, norm))
            biases.append(self._bias(use, norm))
            column += len(biases[-1])
        bias = np.concatenate(biases)
        return FloatLinear(matrix, bias.astype(self._dtype) if bias.any() else None)

    def _blocks(self, use: _Use, norm: Norm | None) -> Blocks:
        """The blocks of a weight [out, in] times what is multiplied into it; paired ones are reordered, so whole."""
        name = use.name + ".weight"
        scale = use.factor if norm is None else norm.gain * use.factor
        if use.paired:
            yield 0, _pair_halves(self._model.tensor(name) * scale, self._model.config.head_dim)
            return
        for start, block in self._model.blocks(name):
            yield start, block * scale

    def _bias(self, use: _Use, norm: Norm | None) -> npt.NDArray[np.float64]:
        """float64 [out]: the bias of a linear of floats, and what it makes of the bias of the norm before it."""
        model, name = self._model, use.name + ".weight"
        bias = np.zeros(model.shape(name)[0])
        if use.name + ".bias" in self._names:
            bias += model.tensor(use.name + ".bias")
        if norm is not None and norm.bias is not None:
            for start, block in model.blocks(name):
                bias[start : start + len(block)] += block @ norm.bias.astype(np.float64)
        bias *= use.factor
        return _pair_halves(bias, model.config.head_dim) if use.paired else bias

    def _int8_linear(self, linears: Sequence[tuple[_Use, W8A8]], norm: Norm | None) -> Int8Linear:
        matrix = self._matrix([use for use, _ in linears], exact(self._layout))
        column, biases, scales = 0, [], []
        for use, int8 in linears:
            matrix.fill(column, [(0, self._ordered(use, int8.weight))])
            biases.append(self._ordered(use, int8.quant_bias).astype(np.float64))
            scales.append(self._ordered(use, int8.deq_scale).astype(np.float64) * use.factor)
            column += len(int8.weight)
        first = linears[0][1]
        return Int8Linear(
            matrix, norm, first.input_scale, first.input_offset, np.concatenate(biases), np.concatenate(scales)
        )

    def _ordered(self, use: _Use, rows: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        return _pair_halves(rows, self._model.config.head_dim) if use.paired else rows


def _rounding(linear: W8A8 | None) -> tuple[float, int] | None:
    """How the input of a linear is rounded; None when it is not."""
    return None if linear is None else (linear.input_scale, linear.input_offset)


def _pair_halves(rows: npt.NDArray[_Number], dim: int) -> npt.NDArray[_Number]:
    """The rows of each head from (x0 x1 … y0 y1 …) to (x0 y0 x1 y1 …)."""
    halves = rows.reshape(len(rows) // dim, 2, dim // 2, -1)
    pairs: npt.NDArray[_Number] = halves.swapaxes(1, 2).reshape(rows.shape)
    return pairs
