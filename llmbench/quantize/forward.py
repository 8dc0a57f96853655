"""One decoder layer of a float model, written down plainly, so that what goes into each linear can be looked at.

A model flows through it layer by layer: of its weights no more than one layer is ever held.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench.weights.config import ModelConfig
from llmbench.weights.model import Model

Float32 = npt.NDArray[np.float32]
Complex64 = npt.NDArray[np.complex64]
Tensors = dict[str, Float32]
"""Of one layer, by their names without "model.layers.N."."""
See = Callable[[str, Float32], None]
"""Is shown what goes into the linears of a point, float32 [T, width], by the point's name; "keys" and "values" are what
goes into the cache, [T, kv_heads * head_dim], keys turned by RoPE."""


class Point(NamedTuple):
    """Where a layer's linears have one input: they share its scale. `source` is the norm or the linear in front, of
    which each output is, but for what is multiplied with it, a channel of the input.
    """

    source: str
    linears: tuple[str, ...]


POINTS = {
    "qkv": Point("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    "o": Point("self_attn.v_proj", ("self_attn.o_proj",)),
    "gate_up": Point("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    "down": Point("mlp.up_proj", ("mlp.down_proj",)),
}
NORM_POINTS = ("qkv", "gate_up")
"""Those with a norm in front."""


def prefix(layer: int) -> str:
    """How the names of a layer's tensors begin."""
    return f"model.layers.{layer}."


def tensors(model: Model, layer: int) -> Tensors:
    """The weights of one layer."""
    start = prefix(layer)
    return {name.removeprefix(start): model.tensor(name) for name in model.names() if name.startswith(start)}


class Layer:
    """A decoder layer with its weights."""

    def __init__(self, config: ModelConfig, own: Tensors, turns: Complex64) -> None:
        self._config = config
        self._own = own
        self._turns = turns

    def __call__(self, x: Float32, see: See) -> Float32:
        """float32 [T, hidden] behind the layer, of one sequence's hidden states [T, hidden] in front of it."""
        h = self._norm("input_layernorm", x)
        see("qkv", h)
        q, k, v = (self._heads(self.linear(f"self_attn.{part}_proj", h)) for part in "qkv")
        q, k = self._turned(q), self._turned(k)
        see("keys", k.reshape(len(x), -1))
        see("values", v.reshape(len(x), -1))
        attended = self._attended(q, k, v)
        see("o", attended)
        x = x + self.linear("self_attn.o_proj", attended)
        h = self._norm("post_attention_layernorm", x)
        see("gate_up", h)
        gate, up = self.linear("mlp.gate_proj", h), self.linear("mlp.up_proj", h)
        with np.errstate(over="ignore"):  # exp(-gate) of a very negative gate: infinite, and silu then rightly 0
            inner: Float32 = gate / (1 + np.exp(-gate)) * up
        see("down", inner)
        return x + self.linear("mlp.down_proj", inner)

    def linear(self, name: str, x: Float32) -> Float32:
        """float32 [T, out]."""
        y: Float32 = x @ self._own[f"{name}.weight"].T
        bias = self._own.get(f"{name}.bias")
        if bias is not None:
            y += bias
        return y

    def _norm(self, name: str, x: Float32) -> Float32:
        return rms_norm(x, self._own[f"{name}.weight"], self._config.rms_norm_eps, self._own.get(f"{name}.bias"))

    def _heads(self, x: Float32) -> Float32:
        """[T, heads * head_dim] as [T, heads, head_dim]."""
        return x.reshape(len(x), -1, self._config.head_dim)

    def _turned(self, x: Float32) -> Float32:
        """RoPE: the two halves of each head are turned into each other."""
        half = self._config.head_dim // 2
        z = (x[..., :half] + 1j * x[..., half:]) * self._turns[: len(x), None]
        return np.concatenate([z.real, z.imag], axis=-1)

    def _attended(self, q: Float32, k: Float32, v: Float32) -> Float32:
        """float32 [T, heads * head_dim]: causal attention, the heads of one key head at a time."""
        num, group = len(q), self._config.num_heads // self._config.num_kv_heads
        out = np.empty_like(q)
        future = np.triu(np.full((num, num), -np.inf, np.float32), 1)
        for head in range(self._config.num_kv_heads):
            own = slice(head * group, (head + 1) * group)
            scores = q[:, own].swapaxes(0, 1) @ k[:, head].T  # [group, T, T]
            scores *= np.float32(1 / math.sqrt(self._config.head_dim))
            scores += future
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            out[:, own] = (scores @ v[:, head]).swapaxes(0, 1)
        return out.reshape(num, -1)


def rms_norm(x: Float32, weight: Float32, eps: float, bias: Float32 | None = None) -> Float32:
    """x / sqrt(mean(x^2) + eps) * weight, plus the bias that m2 gives a norm."""
    mean = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(x.shape[1])
    y: Float32 = x / np.sqrt(mean + np.float32(eps)) * weight
    return y if bias is None else y + bias
