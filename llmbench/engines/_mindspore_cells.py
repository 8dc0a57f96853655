"""A Llama or Qwen2 decoder as MindSpore cells in graph mode, over a paged KV cache of its own parameters.

Shapes in a call: n sequences of q new tokens each, T = n * q, block tables of W blocks, L = W * block_size. All are
those of a bucket: MindSpore compiles one graph for each. Padding tokens write to a block of their own, the last one.
"""

import math
from collections.abc import Callable

import mindspore as ms
import msgspec
import numpy as np
import numpy.typing as npt
from mindspore import Parameter, Tensor, nn, ops
from mindspore.ops import auto_generate

from llmbench.weights.config import ModelConfig
from llmbench.weights.model import Model
from llmbench.weights.quantised import W8A8, W8A16, DeqForm, packed

Float32 = npt.NDArray[np.float32]

_GATHER_ELEMENTS = 1 << 20  # of keys, and as many of values, at once: 4 MiB each, which the processor's cache holds
_MOST_GROUPS = 8  # that a batch is cut into for that: each takes operators of its own to compile and to start


class Operators(msgspec.Struct, frozen=True, kw_only=True):
    """What the device computes with: its fused operators where they run, else plain ones; a MindSpore dtype by name.

    `w8a8` is the form in which its product of integers takes deq_scale; without it, and without `w8a16`, linears of
    8 bits are de-quantised. `few_rows` says of how many rows a product with a matrix is taken the other way round, see
    Product.
    """

    fused_attention: bool = False
    fused_norm: bool = False
    w8a8: DeqForm | None = None
    w8a16: bool = False
    few_rows: tuple[int, int] = (0, 0)
    dtype: str = "float32"


class Pages(msgspec.Struct, frozen=True, kw_only=True):
    """The blocks of the KV cache; one more than these holds the padding."""

    num_blocks: int
    block_size: int

    @property
    def num_slots(self) -> int:
        return (self.num_blocks + 1) * self.block_size


class _Cell(nn.Cell):
    """What all cells use: primitives, since what Python functions and methods wrap takes longer to compile."""

    def __init__(self) -> None:
        super().__init__()
        self.reshape = ops.Reshape()
        self.transpose = ops.Transpose()
        self.cast = ops.Cast()
        self.gather = ops.Gather()
        self.slice = ops.Slice()


class Norm(_Cell):
    """RMSNorm, float32 inside, where there is no operator for it."""

    def __init__(self, weight: Float32, eps: float, dtype: str, bias: Float32 | None = None) -> None:
        super().__init__()
        self.weight = _parameter(weight, "float32")
        self.add = _plus(bias, "float32")
        self.eps = eps
        self.dtype = getattr(ms, dtype)
        self.mean = ops.ReduceMean(True)
        self.square = ops.Square()
        self.rsqrt = ops.Rsqrt()

    def construct(self, x: Tensor) -> Tensor:
        """x [T, hidden] of any dtype -> [T, hidden]."""
        x = self.cast(x, ms.float32)
        return self.cast(self.add(x * self.rsqrt(self.mean(self.square(x), -1) + self.eps) * self.weight), self.dtype)


class FusedNorm(_Cell):
    """RMSNorm as Ascend's operator."""

    def __init__(self, weight: Float32, eps: float, dtype: str, bias: Float32 | None = None) -> None:
        super().__init__()
        self.weight = _parameter(weight, dtype)
        self.add = _plus(bias, dtype)
        self.norm = auto_generate.RmsNorm(eps)

    def construct(self, x: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]."""
        return self.add(self.norm(x, self.weight)[0])


class PlainAttention(_Cell):
    """Attention from operators that every device has: scatter new keys and values, gather those of the block tables.

    The caches are [kv_heads * slots, head_dim], so that a gather gives [n, kv_heads, L, head_dim] and both products are
    batched matrix products without a transposition. They are never reshaped: that copies them.

    Decoding sequences are taken a few at once, so that what is gathered is still in the processor's cache when it is
    multiplied. MindSpore would gather for all of them first; each gather is made to depend on what is to come before.
    """

    def __init__(self, config: ModelConfig, pages: Pages, dtype: str) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.group = config.num_heads // config.num_kv_heads
        self.dtype = getattr(ms, dtype)
        rows = config.num_kv_heads * pages.num_slots
        self.keys = _zeros((rows, config.head_dim), dtype)
        self.values = _zeros((rows, config.head_dim), dtype)
        self.first_rows = Tensor(np.arange(config.num_kv_heads, dtype=np.int32)[None, :, None] * pages.num_slots)
        self.block_size = pages.block_size
        self.offsets = Tensor(np.arange(pages.block_size, dtype=np.int32))
        self.scale = 1.0 / math.sqrt(config.head_dim)
        self.update = ops.ScatterUpdate()
        self.compare = ops.BatchMatMul(transpose_b=True)
        self.weigh = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)
        self.join = ops.Concat(0)

    def places(self, slots: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Where to write, int32 [T * kv_heads], and what to read, int32 [n, kv_heads, L]: rows of the caches."""
        num, width = tables.shape
        kv = self.num_kv_heads
        rows = self.reshape(slots, (-1, 1)) + self.reshape(self.first_rows, (1, kv))
        seen = self.reshape(tables, (num, 1, width, 1)) * self.block_size + self.offsets
        seen = self.reshape(seen, (num, 1, width * self.block_size)) + self.first_rows
        return self.reshape(rows, (-1,)), seen

    def write(self, keys: Tensor, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [T, kv_heads, head_dim] into the caches."""
        return (
            self.update(self.keys, rows, self.reshape(keys, (-1, self.head_dim))),
            self.update(self.values, rows, self.reshape(values, (-1, self.head_dim))),
        )

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, write_at: Tensor, read_at: Tensor, mask: Tensor, lens: Tensor
    ) -> Tensor:
        """q [T, heads, head_dim], k and v [T, kv_heads, head_dim] -> [T, heads * head_dim].

        `write_at` and `read_at` are those of `places`; `mask` [n, 1, 1, q, L]: 0 or -inf; `lens` is for the fused
        operators.
        """
        num, kv, length = read_at.shape
        keys, values = self.write(k, v, write_at)
        q = q * self.scale
        few = _few(num, kv * length * self.head_dim)
        if q.shape[0] > num or few == num:
            return self.attend(q, keys, values, read_at, mask)
        out = q
        outs: tuple[Tensor, ...] = ()
        for first in range(0, num, few):
            size = min(few, num - first)
            own_q = self.slice(q, (first, 0, 0), (size, self.num_heads, self.head_dim))
            own_mask = self.slice(mask, (first, 0, 0, 0, 0), (size, 1, 1, 1, length))
            own_read = ops.depend(self.slice(read_at, (first, 0, 0), (size, kv, length)), out)
            out = self.attend(own_q, keys, values, own_read, own_mask)
            outs = (*outs, out)
        return self.join(outs)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, read_at: Tensor, mask: Tensor) -> Tensor:
        """What `construct` gives, of some sequences and the whole caches; q is scaled."""
        num, kv, length = read_at.shape
        group, dim = self.group, self.head_dim
        steps = q.shape[0] // num
        keys = self.reshape(self.gather(keys, read_at, 0), (num * kv, length, dim))
        scores = self.scores(q, keys, steps)
        scores = self.cast(self.reshape(scores, (num, kv, group, steps, length)), ms.float32) + mask
        shares = self.reshape(self.cast(self.softmax(scores), self.dtype), (num * kv, group * steps, length))
        values = self.gather(values, ops.depend(read_at, shares), 0)
        out = self.weigh(shares, self.reshape(values, (num * kv, length, dim)))
        if steps > 1:
            out = self.transpose(self.reshape(out, (num, kv, group, steps, dim)), (0, 3, 1, 2, 4))
        return self.reshape(out, (num * steps, self.num_heads * dim))

    def scores(self, q: Tensor, keys: Tensor, steps: int) -> Tensor:
        """q [T, heads, head_dim] by keys [n * kv_heads, L, head_dim] -> [n * kv_heads, group * q, L].

        Of one new token it is taken as keys q^T, see Product.
        """
        pairs, group, dim = keys.shape[0], self.group, self.head_dim
        if steps == 1:
            scores = self.compare(keys, self.reshape(q, (pairs, group, dim)))
            return scores if group == 1 else self.transpose(scores, (0, 2, 1))
        q = self.reshape(q, (pairs // self.num_kv_heads, steps, self.num_kv_heads, group, dim))
        return self.compare(self.reshape(self.transpose(q, (0, 2, 3, 1, 4)), (pairs, group * steps, dim)), keys)


class FusedAttention(_Cell):
    """Attention from Ascend's operators: ReshapeAndCache, PagedAttention for one new token, else flash attention."""

    def __init__(self, config: ModelConfig, pages: Pages, dtype: str) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        shape = (pages.num_blocks + 1, pages.block_size, config.num_kv_heads, config.head_dim)
        self.keys = _zeros(shape, dtype)
        self.values = _zeros(shape, dtype)
        scale = 1.0 / math.sqrt(config.head_dim)
        self.update = auto_generate.ReshapeAndCache()
        self.paged = auto_generate.PagedAttention(config.num_heads, scale, config.num_kv_heads)
        self.flash = auto_generate.FlashAttentionScore(config.num_heads, scale_value=scale, input_layout="BSH")

    def places(self, slots: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
        """Where to write and what to read: slots and tables as they are."""
        return slots, tables

    def write(self, keys: Tensor, values: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [T, kv_heads, head_dim] into slots int32 [T]; what they are then depends on it."""
        shape = (1, slots.shape[0], self.num_kv_heads * self.head_dim)
        done = self.update(self.reshape(keys, shape), self.reshape(values, shape), self.keys, self.values, slots)
        return ops.depend(self.keys, done), ops.depend(self.values, done)

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, write_at: Tensor, read_at: Tensor, mask: Tensor, lens: Tensor
    ) -> Tensor:
        """As PlainAttention; `lens` int32 [n]: how many tokens each sequence has in the cache after this step."""
        num, length = read_at.shape[0], mask.shape[-1]
        steps = q.shape[0] // num
        width = self.num_heads * self.head_dim
        keys, values = self.write(k, v, write_at)
        if steps == 1:
            out = self.paged(self.reshape(q, (num, 1, width)), keys, values, read_at, lens)
        else:
            keys = self.reshape(self.gather(keys, read_at, 0), (num, length, self.num_kv_heads * self.head_dim))
            values = self.reshape(self.gather(values, read_at, 0), (num, length, self.num_kv_heads * self.head_dim))
            hidden = self.cast(self.reshape(mask, (num, 1, steps, length)) < 0, ms.uint8)
            out = self.flash(self.reshape(q, (num, steps, width)), keys, values, None, None, None, hidden)[3]
        return self.reshape(out, (num * steps, width))


class Whole(nn.Cell):
    """What is there is all there is: of ranks where there is one, of a sum where nothing is added."""

    def construct(self, x: Tensor) -> Tensor:
        """x as it is."""
        return x


class Plus(nn.Cell):
    """A bias that is added."""

    def __init__(self, bias: Float32, dtype: str) -> None:
        super().__init__()
        self.bias = _parameter(bias, dtype)

    def construct(self, x: Tensor) -> Tensor:
        """x [T, n] -> [T, n]."""
        return x + self.bias


class Product(_Cell):
    """Linears side by side, in floats, their weights [all outs, in].

    Of a few rows it is taken as (W x^T)^T: MindSpore's library for the CPU, oneDNN, copies its second factor before it
    multiplies, which then is x and not W. With 16 rows that takes half of the time.
    """

    def __init__(self, weight: Parameter, bias: Float32 | None, operators: Operators) -> None:
        super().__init__()
        self.weight = weight
        self.add = _plus(bias, operators.dtype)
        self.least, self.most = operators.few_rows
        self.multiply = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, all outs]."""
        if self.least <= x.shape[0] < self.most:
            return self.add(self.transpose(self.multiply(self.weight, x), (1, 0)))
        return self.add(self.multiply(x, self.weight))


class Int8Product(_Cell):
    """W8A8 linears side by side, which quantise the same activations alike, by Ascend's operators."""

    def __init__(self, linears: list[W8A8], form: DeqForm, dtype: str) -> None:
        super().__init__()
        first = linears[0]
        scales = np.concatenate([linear.deq_scale for linear in linears])
        self.weight = Parameter(Tensor(np.concatenate([linear.weight for linear in linears])), requires_grad=False)
        self.bias = Parameter(Tensor(np.concatenate([linear.quant_bias for linear in linears])), requires_grad=False)
        self.deq_scale = Parameter(Tensor(packed(scales) if form == "int64" else scales), requires_grad=False)
        num_in = first.weight.shape[1]
        self.scale = _parameter(np.full(num_in, 1 / first.input_scale, np.float32), dtype)
        self.offset = _parameter(np.full(num_in, first.input_offset, np.float32), dtype)
        self.quantise = auto_generate.QuantV2()
        self.product = auto_generate.QuantBatchMatmul(False, True, getattr(ms, dtype))

    def construct(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, all outs]."""
        x = self.quantise(x, self.scale, self.offset, False, "ROUND", ms.int8)
        return self.product(x, self.weight, self.deq_scale, None, self.bias, None)


class Int8WeightProduct(_Cell):
    """W8A16 linears side by side, by Ascend's operator, which adds what it calls the offset of a weight."""

    def __init__(self, linears: list[W8A16], dtype: str) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.concatenate([linear.weight for linear in linears])), requires_grad=False)
        self.scale = _parameter(np.concatenate([linear.weight_scale[:, 0] for linear in linears]), dtype)
        self.offset = _parameter(-np.concatenate([linear.weight_offset[:, 0] for linear in linears]), dtype)
        bias = np.concatenate([linear.bias() for linear in linears])
        self.add = _plus(bias if bias.any() else None, dtype)
        self.product = auto_generate.WeightQuantBatchMatmul(False, True)

    def construct(self, x: Tensor) -> Tensor:
        """x [T, in] -> [T, all outs]."""
        return self.add(self.product(x, self.weight, self.scale, self.offset, None, None, None))


class Layer(_Cell):
    """One decoder layer; `several` ranks hold parts of it, whose results are added."""

    def __init__(self, model: Model, index: int, pages: Pages, operators: Operators, several: bool) -> None:
        super().__init__()
        config, prefix, dtype = model.config, f"model.layers.{index}.", operators.dtype
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        norm = FusedNorm if operators.fused_norm else Norm
        self.input_norm, self.mlp_norm = (
            norm(
                model.tensor(f"{prefix}{own}_layernorm.weight"),
                config.rms_norm_eps,
                dtype,
                _biases(model, [f"{prefix}{own}_layernorm"]),
            )
            for own in ("input", "post_attention")
        )
        attention = FusedAttention if operators.fused_attention else PlainAttention
        self.attention = attention(config, pages, dtype)
        qkv = [f"{prefix}self_attn.{part}_proj" for part in "qkv"]
        gate_up = [f"{prefix}mlp.{part}_proj" for part in ("gate", "up")]
        self.qkv = _linear(model, qkv, operators)
        self.output = _linear(model, [f"{prefix}self_attn.o_proj"], operators)
        self.gate_up = _linear(model, gate_up, operators)
        self.down = _linear(model, [f"{prefix}mlp.down_proj"], operators)
        self.total = _total(several)
        self.halves = ops.Split(-1, 2)
        self.join = ops.Concat(-1)
        self.silu = auto_generate.SiLU()

    def construct(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        write_at: Tensor,
        read_at: Tensor,
        mask: Tensor,
        lens: Tensor,
    ) -> Tensor:
        """x [T, hidden] -> [T, hidden]; cos and sin [T, 1, head_dim]."""
        return self.feed(self.attend(x, cos, sin, write_at, read_at, mask, lens))

    def attend(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        write_at: Tensor,
        read_at: Tensor,
        mask: Tensor,
        lens: Tensor,
    ) -> Tensor:
        """x and what attention adds to it."""
        num, heads, kv, dim = x.shape[0], self.num_heads, self.num_kv_heads, self.head_dim
        qkv = self.qkv(self.input_norm(x))
        qkv = self.reshape(qkv, (num, heads + 2 * kv, dim))
        turned = self.slice(qkv, (0, 0, 0), (num, heads + kv, dim))
        first, second = self.halves(turned)
        turned = turned * cos + self.join((second, first)) * sin
        q = self.slice(turned, (0, 0, 0), (num, heads, dim))
        k = self.slice(turned, (0, heads, 0), (num, kv, dim))
        v = self.slice(qkv, (0, heads + kv, 0), (num, kv, dim))
        return x + self.total(self.output(self.attention(q, k, v, write_at, read_at, mask, lens)))

    def feed(self, x: Tensor) -> Tensor:
        """x and what the MLP adds to it."""
        gate, up = self.halves(self.gate_up(self.mlp_norm(x)))
        return x + self.total(self.down(self.silu(gate) * up))


class Decoder(_Cell):
    """The whole model: token ids in, float32 logits out.

    Where it is a rank's part, its vocabulary begins at `first_id`, and so do the columns of its logits.
    """

    def __init__(
        self, model: Model, pages: Pages, max_model_len: int, operators: Operators, first_id: int | None = None
    ) -> None:
        super().__init__()
        config, dtype = model.config, operators.dtype
        self.block_size = pages.block_size
        self.embedding = _parameter(model.tensor("model.embed_tokens.weight"), dtype)
        self.first_id = first_id
        several = first_id is not None
        self.total = _total(several)
        self.layers = nn.CellList([Layer(model, i, pages, operators, several) for i in range(config.num_layers)])
        norm = FusedNorm if operators.fused_norm else Norm
        self.norm = norm(model.tensor("model.norm.weight"), config.rms_norm_eps, dtype)
        tied = config.tie_embeddings
        self.head = Product(self.embedding, None, operators) if tied else _linear(model, ["lm_head"], operators)
        cos, sin = _rotations(config, max_model_len)
        self.cos = _parameter(cos, dtype)
        self.sin = _parameter(sin, dtype)
        self.places = Tensor(np.arange(-(-max_model_len // pages.block_size) * pages.block_size, dtype=np.int32))
        self.zero = Tensor(0.0, getattr(ms, dtype))
        self.visible = Tensor(0.0, ms.float32)
        self.hidden = Tensor(-math.inf, ms.float32)
        self.select = ops.Select()
        self.both = ops.LogicalAnd()

    def construct(self, ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor, rows: Tensor) -> Tensor:
        """float32 [m, vocab] of the tokens `rows` int32 [m] of the T.

        `ids` and `positions` int32 [n, q]; `slots` int32 [T]: where each token's key and value go; `tables` int32
        [n, W].
        """
        x, cos, sin, write_at, read_at, mask, lens = self.enter(ids, positions, slots, tables)
        for layer in self.layers:
            x = layer(x, cos, sin, write_at, read_at, mask, lens)
        return self.project(self.norm(self.gather(x, rows, 0)))

    def enter(
        self, ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The embeddings [T, hidden], and what else every layer is called with."""
        num, steps = ids.shape
        at = self.reshape(positions, (num * steps,))
        x = self.embed(self.reshape(ids, (num * steps,)))
        cos = self.reshape(self.gather(self.cos, at, 0), (num * steps, 1, -1))
        sin = self.reshape(self.gather(self.sin, at, 0), (num * steps, 1, -1))
        place = self.slice(self.places, (0,), (tables.shape[1] * self.block_size,))
        mask = self.select(place <= self.reshape(positions, (num, 1, 1, steps, 1)), self.visible, self.hidden)
        write_at, read_at = self.layers[0].attention.places(slots, tables)
        return x, cos, sin, write_at, read_at, mask, at + 1

    def project(self, x: Tensor) -> Tensor:
        """float32 [m, vocab] of normalised hidden states [m, hidden]."""
        return self.cast(self.head(x), ms.float32)

    def embed(self, ids: Tensor) -> Tensor:
        """[T, hidden] of ids int32 [T]. Of several ranks one has a token's row, the others add zeros."""
        if self.first_id is None:
            return self.gather(self.embedding, ids, 0)
        own = ids - self.first_id
        there = self.both(own >= 0, own < self.embedding.shape[0])
        x = self.gather(self.embedding, self.select(there, own, 0 * own), 0)
        return self.total(self.select(self.reshape(there, (-1, 1)), x, self.zero))


class Entrance(nn.Cell):
    """What a decoder does before its layers, as a graph of its own: so that what it gives can be seen, and changed."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def construct(self, ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor) -> tuple[Tensor, ...]:
        """As Decoder.enter."""
        return self.decoder.enter(ids, positions, slots, tables)


class Attend(nn.Cell):
    """The attention of one layer."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def construct(
        self, x: Tensor, cos: Tensor, sin: Tensor, write_at: Tensor, read_at: Tensor, mask: Tensor, lens: Tensor
    ) -> Tensor:
        """As Layer.attend."""
        return self.layer.attend(x, cos, sin, write_at, read_at, mask, lens)


class Feed(nn.Cell):
    """The MLP of one layer."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: Tensor) -> Tensor:
        """As Layer.feed."""
        return self.layer.feed(x)


class Project(nn.Cell):
    """The head."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def construct(self, x: Tensor) -> Tensor:
        """As Decoder.project."""
        return self.decoder.project(x)


class Parts:
    """A decoder part by part, each shown before the next one begins."""

    def __init__(self, decoder: Decoder) -> None:
        self._entrance = Entrance(decoder)
        self._layers = [(Attend(layer), Feed(layer)) for layer in decoder.layers]
        self._norm = decoder.norm
        self._project = Project(decoder)

    def __call__(
        self, show: Callable[[str, Tensor], Tensor], ids: Tensor, positions: Tensor, slots: Tensor, tables: Tensor
    ) -> Tensor:
        """float32 [T, vocab] of all tokens. `show` gives what to go on with, of the same shape and dtype."""
        x, *shared = self._entrance(ids, positions, slots, tables)
        x = show("embedding", x)
        for i, (attend, feed) in enumerate(self._layers):
            x = show(f"layers.{i}.attention", attend(x, *shared))
            x = show(f"layers.{i}.mlp", feed(x))
        return show("lm_head", self._project(show("norm", self._norm(x))))


class Cleaner(nn.Cell):
    """Writes zeros into slots of all layers."""

    def __init__(self, decoder: Decoder, config: ModelConfig, block_size: int, dtype: str) -> None:
        super().__init__()
        self.layers = decoder.layers
        self.tables = Tensor(np.zeros((1, 1), np.int32))
        self.zeros = Tensor(np.zeros((block_size, config.num_kv_heads, config.head_dim)), getattr(ms, dtype))

    def construct(self, slots: Tensor) -> Tensor:
        """Clear `slots` int32 [block_size]; what is returned means nothing."""
        for layer in self.layers:
            write_at, _ = layer.attention.places(slots, self.tables)
            layer.attention.write(self.zeros, self.zeros, write_at)
        return slots


def _few(num: int, elements: int) -> int:
    """Of how many of the sequences keys are gathered at once, of so many elements each."""
    few = num
    while few > 1 and few * elements > _GATHER_ELEMENTS and few * _MOST_GROUPS > num:
        few = few // 2
    return few


def _rotations(config: ModelConfig, num_positions: int) -> tuple[Float32, Float32]:
    """cos and sin float32 [positions, head_dim]; the first half of sin is negated, as the halves change places."""
    # the frequencies in float32 as Hugging Face has them: at position 4000 their rounding is seen in the angle
    powers = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** powers
    angles = np.arange(num_positions, dtype=np.float32)[:, None] * frequencies
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([cos, cos], axis=1), np.concatenate([-sin, sin], axis=1)


def _total(several: bool) -> nn.Cell:
    """The sum over all ranks, the same bits at each."""
    return ops.AllReduce() if several else Whole()


def _linear(model: Model, names: list[str], operators: Operators) -> nn.Cell:
    """Linears side by side, in 8 bits where all of them are and the device has operators for it."""
    kinds = {model.config.quantised.get(name) for name in names}
    if operators.w8a8 is not None and kinds <= {"W8A8", "W8A8S"}:
        w8a8 = [linear for name in names if isinstance(linear := model.linear(name), W8A8)]
        return Int8Product(w8a8, operators.w8a8, operators.dtype)
    if operators.w8a16 and kinds == {"W8A16"}:
        w8a16 = [linear for name in names if isinstance(linear := model.linear(name), W8A16)]
        return Int8WeightProduct(w8a16, operators.dtype)
    weight = _matrix(model, [f"{name}.weight" for name in names], operators.dtype)
    return Product(weight, _biases(model, names), operators)


def _biases(model: Model, names: list[str]) -> Float32 | None:
    """float32 [all outs]: biases one behind another; None where they are zeros, as of most quantised linears.

    Of several ranks each has its own part of the bias of a W8A8 linear that is cut along its inputs.
    """
    there = set(model.names())
    bias = np.concatenate([_bias(model, name, f"{name}.bias" in there) for name in names])
    return bias if bias.any() else None


def _bias(model: Model, name: str, there: bool) -> Float32:
    return model.tensor(f"{name}.bias") if there else np.zeros(model.shape(f"{name}.weight")[0], np.float32)


def _plus(bias: Float32 | None, dtype: str) -> nn.Cell:
    return Whole() if bias is None else Plus(bias, dtype)


def _matrix(model: Model, names: list[str], dtype: str) -> Parameter:
    """Weights [out, in] one below the other, read block by block."""
    shapes = [model.shape(name) for name in names]
    whole = np.empty((sum(shape[0] for shape in shapes), shapes[0][1]), np.float32)
    row = 0
    for name, shape in zip(names, shapes, strict=True):
        for start, block in model.blocks(name):
            whole[row + start : row + start + len(block)] = block
        row += shape[0]
    return _parameter(whole, dtype)


def _parameter(array: Float32, dtype: str) -> Parameter:
    return Parameter(Tensor(array, getattr(ms, dtype)), requires_grad=False)


def _zeros(shape: tuple[int, ...], dtype: str) -> Parameter:
    return Parameter(ops.zeros(shape, getattr(ms, dtype)), requires_grad=False)
