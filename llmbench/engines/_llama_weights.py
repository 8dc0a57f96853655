"""The weights of a Llama or Qwen2 model as the NumPy engine multiplies with them.

Rewritings that save calls at each step and change nothing but the last bits: the weight of a layer's RMSNorm, and the
sqrt(hidden) of its mean, are multiplied into the matrix behind it; 1/sqrt(head_dim) into q; the rows of q and k are
reordered so that the two halves that RoPE turns into each other lie side by side, as one complex number; the gate and
up matrices are negated, since silu(g) * u = (-g) * (-u) / (1 + exp(-g)).
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines._matrix import Layout, Matrix, Workers
from llmbench.weights.model import Model

Float32 = npt.NDArray[np.float32]
Blocks = Iterator[tuple[int, Float32]]


class Layer(msgspec.Struct, frozen=True):
    """`qkv` is hidden -> (heads + 2 kv_heads) * head_dim, in this order; `gate_up` is hidden -> 2 ffn."""

    qkv: Matrix
    qkv_bias: Float32 | None
    output: Matrix
    gate_up: Matrix
    down: Matrix


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


def load(model: Model, layout: Layout, workers: Workers, dtype: npt.DTypeLike = np.float32) -> LlamaWeights:
    """Read a model into the merged matrices, most of it block by block; no second copy of the whole is made.

    What is float32 here is float64 where that is asked for.
    """
    config = model.config
    layers = [_layer(model, f"model.layers.{i}.", layout, workers, dtype) for i in range(config.num_layers)]
    norm = _norm(model, "model.norm.weight", dtype)
    head = Matrix(config.hidden_size, config.vocab_size, layout, workers, dtype)
    tied = config.tie_embeddings
    head.fill(0, model.blocks("model.embed_tokens.weight" if tied else "lm_head.weight"))
    embedding = None if tied else model.tensor("model.embed_tokens.weight").astype(dtype, copy=False)
    return LlamaWeights(embedding=embedding, layers=layers, final_norm=norm, head=head)


def _layer(model: Model, prefix: str, layout: Layout, workers: Workers, dtype: npt.DTypeLike) -> Layer:
    config = model.config
    hidden, ffn, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    norm = _norm(model, prefix + "input_layernorm.weight", dtype)
    qkv = Matrix(hidden, queries + 2 * keys, layout, workers, dtype)
    qkv.fill(0, _paired(model, attention + "q_proj.weight", norm / math.sqrt(dim)))
    qkv.fill(queries, _paired(model, attention + "k_proj.weight", norm))
    qkv.fill(queries + keys, _scaled(model, attention + "v_proj.weight", norm))
    norm = -_norm(model, prefix + "post_attention_layernorm.weight", dtype)
    gate_up = Matrix(hidden, 2 * ffn, layout, workers, dtype)
    gate_up.fill(0, _scaled(model, mlp + "gate_proj.weight", norm))
    gate_up.fill(ffn, _scaled(model, mlp + "up_proj.weight", norm))
    output, down = Matrix(queries, hidden, layout, workers, dtype), Matrix(ffn, hidden, layout, workers, dtype)
    output.fill(0, model.blocks(attention + "o_proj.weight"))
    down.fill(0, model.blocks(mlp + "down_proj.weight"))
    bias = _qkv_bias(model, attention, dtype) if config.attention_bias else None
    return Layer(qkv=qkv, qkv_bias=bias, output=output, gate_up=gate_up, down=down)


def _qkv_bias(model: Model, prefix: str, dtype: npt.DTypeLike) -> Float32:
    """float32 [(heads + 2 kv_heads) * head_dim], scaled and reordered as the matrix is."""
    dim = model.config.head_dim
    q, k, v = (model.tensor(f"{prefix}{part}_proj.bias").astype(dtype) for part in "qkv")
    q /= math.sqrt(dim)
    return np.concatenate([_pair_halves(q, dim), _pair_halves(k, dim), v])


def _norm(model: Model, name: str, dtype: npt.DTypeLike) -> Float32:
    """float32 [hidden]: the weight of an RMSNorm times sqrt(hidden), since the engine divides by sqrt(sum(x^2))."""
    weight: Float32 = model.tensor(name).astype(dtype)
    weight *= math.sqrt(model.config.hidden_size)
    return weight


def _scaled(model: Model, name: str, scale: Float32) -> Blocks:
    """The blocks of a weight [out, in] times scale [in]."""
    return ((start, block * scale) for start, block in model.blocks(name))


def _paired(model: Model, name: str, scale: Float32) -> Blocks:
    """A weight [out, in] times scale [in], whole, since the rows of a head are reordered."""
    yield 0, _pair_halves(model.tensor(name) * scale, model.config.head_dim)


def _pair_halves(rows: Float32, dim: int) -> Float32:
    """The rows of each head from (x0 x1 … y0 y1 …) to (x0 y0 x1 y1 …)."""
    halves = rows.reshape(len(rows) // dim, 2, dim // 2, -1)
    pairs: Float32 = halves.swapaxes(1, 2).reshape(rows.shape)
    return pairs
