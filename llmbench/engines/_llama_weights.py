"""The weights of a Llama or Qwen2 model as the NumPy engine multiplies with them.

Rewritings that save calls at each step and change nothing but the last bits: the weight of an RMSNorm, and the
sqrt(hidden) of its mean, are multiplied into the matrix behind it; 1/sqrt(head_dim) into q; the rows of q and k are
reordered so that the two halves that RoPE turns into each other lie side by side, as one complex number; the gate and
up matrices are negated, since silu(g) * u = (-g) * (-u) / (1 + exp(-g)).
"""

import math

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.weights.model import Model, ModelConfig

Float32 = npt.NDArray[np.float32]


class Layer(msgspec.Struct, frozen=True):
    """float32 matrices as [in, out]: `qkv` [hidden, (heads + 2 kv_heads) * head_dim], `gate_up` [hidden, 2 ffn]."""

    qkv: Float32
    qkv_bias: Float32 | None
    output: Float32
    gate_up: Float32
    down: Float32


class LlamaWeights(msgspec.Struct, frozen=True):
    """`embedding` float32 [vocab, hidden], `head` [hidden, vocab], `final_norm` [hidden] unless it is in the head."""

    embedding: Float32
    layers: list[Layer]
    final_norm: Float32 | None
    head: Float32


def load(model: Model) -> LlamaWeights:
    """Read a model, block by block, into the merged matrices; no second copy of a matrix is made."""
    config = model.config
    embedding = model.tensor("model.embed_tokens.weight")
    layers = [_layer(model, f"model.layers.{i}.") for i in range(config.num_layers)]
    norm = _norm(model, "model.norm.weight")
    if config.tie_embeddings:
        return LlamaWeights(embedding=embedding, layers=layers, final_norm=norm, head=embedding.T)
    head = np.empty((config.hidden_size, config.vocab_size), np.float32)
    _transpose_into(head, model, "lm_head.weight", norm)
    return LlamaWeights(embedding=embedding, layers=layers, final_norm=None, head=head)


def num_bytes(config: ModelConfig) -> int:
    """What the loaded weights take."""
    return 4 * config.num_parameters


def _layer(model: Model, prefix: str) -> Layer:
    config = model.config
    hidden, ffn, dim = config.hidden_size, config.intermediate_size, config.head_dim
    queries, keys = config.num_heads * dim, config.num_kv_heads * dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    scale = np.float32(1 / math.sqrt(dim))
    norm = _norm(model, prefix + "input_layernorm.weight")
    qkv = np.empty((hidden, queries + 2 * keys), np.float32)
    q, k, v = np.split(qkv, [queries, queries + keys], axis=1)
    _transpose_into(q, model, attention + "q_proj.weight", norm * scale)
    _transpose_into(k, model, attention + "k_proj.weight", norm)
    _transpose_into(v, model, attention + "v_proj.weight", norm)
    _pair_halves(q, dim)
    _pair_halves(k, dim)
    norm = -_norm(model, prefix + "post_attention_layernorm.weight")
    gate_up = np.empty((hidden, 2 * ffn), np.float32)
    _transpose_into(gate_up[:, :ffn], model, mlp + "gate_proj.weight", norm)
    _transpose_into(gate_up[:, ffn:], model, mlp + "up_proj.weight", norm)
    output, down = np.empty((queries, hidden), np.float32), np.empty((ffn, hidden), np.float32)
    _transpose_into(output, model, attention + "o_proj.weight")
    _transpose_into(down, model, mlp + "down_proj.weight")
    bias = _qkv_bias(model, attention, scale) if config.attention_bias else None
    return Layer(qkv=qkv, qkv_bias=bias, output=output, gate_up=gate_up, down=down)


def _qkv_bias(model: Model, prefix: str, scale: np.float32) -> Float32:
    """float32 [(heads + 2 kv_heads) * head_dim], scaled and reordered as the matrix is."""
    q, k, v = (model.tensor(f"{prefix}{part}_proj.bias") for part in "qkv")
    q *= scale
    _pair_halves(q[None], model.config.head_dim)
    _pair_halves(k[None], model.config.head_dim)
    return np.concatenate([q, k, v])


def _norm(model: Model, name: str) -> Float32:
    """float32 [hidden]: the weight of an RMSNorm times sqrt(hidden), since the engine divides by sqrt(sum(x^2))."""
    return model.tensor(name) * np.float32(math.sqrt(model.config.hidden_size))


def _transpose_into(out: Float32, model: Model, name: str, scale: Float32 | None = None) -> None:
    """out[i, o] = weight[o, i] * scale[i], in pieces that stay in the cache."""
    for start, block in model.blocks(name):
        for row in range(0, len(block), 64):
            piece = block[row : row + 64].T
            target = out[:, start + row : start + row + piece.shape[1]]
            if scale is None:
                target[:] = piece
            else:
                np.multiply(piece, scale[:, None], out=target)


def _pair_halves(matrix: Float32, dim: int) -> None:
    """Reorder, in place, the columns of each head from (x0 x1 … y0 y1 …) to (x0 y0 x1 y1 …)."""
    rows, columns = matrix.shape
    for row in range(0, rows, 256):
        part = matrix[row : row + 256]
        halves = part.reshape(len(part), columns // dim, 2, dim // 2)
        part[:] = halves.swapaxes(2, 3).reshape(len(part), columns)
