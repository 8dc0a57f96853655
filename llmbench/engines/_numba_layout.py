"""The work arrays of a step, and its operations with their addresses; for each step only the numbers of rows change."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llmbench.engines import _numba_program as program
from llmbench.engines._numba_kernels import BYTES
from llmbench.engines._numba_weights import LlamaWeights, Product, Quantisation, padded
from llmbench.memory import aligned
from llmbench.native.isa import ISA
from llmbench.weights.config import ModelConfig

Float32 = npt.NDArray[np.float32]

_PRODUCT_ROWS = 22 * ISA.rows  # that a thread multiplies with a panel before it goes on to the next one
_PRODUCT = 40_000  # multiplications of a chunk, at least: some microseconds
_NUMBERS = 8192  # of a chunk of rows, at least
_LINE = 64  # bytes that rows are further apart than they are wide, so that they do not share a set of the cache
_PRODUCTS = (program.FLOAT, program.NARROW, program.INTEGER)


class Rows:
    """A work array: rows of so many numbers, filled up with zeros to whole panels."""

    def __init__(self, num: int, width: int, itemsize: int = 4, apart: int = _LINE) -> None:
        self.stride = itemsize * padded(width) + apart
        self._bytes = aligned((num, self.stride), np.uint8)
        self.address: int = self._bytes.ctypes.data
        self.width = width

    def floats(self, num: int) -> Float32:
        """The first rows, float32 [num, width], in place."""
        found: Float32 = self._bytes.view(np.float32)[:num, : self.width]
        return found

    def fill(self, rows: Float32) -> None:
        """Set the first rows. What fills them up is 0 again, also where they were not numbers before."""
        wide = self._bytes.view(np.float32)[: len(rows)]
        wide[:, : self.width] = rows
        wide[:, self.width :] = 0


class Mark(NamedTuple):
    """Behind the first `stop` operations, `rows` holds what `part` gave: of all tokens, or of the picked ones."""

    stop: int
    part: str
    rows: Rows
    picked: bool


class Layout:
    """The operations of steps of up to `num_rows` tokens. `picks` is the first of them for the picked tokens only."""

    def __init__(
        self,
        config: ModelConfig,
        weights: LlamaWeights,
        keys: Float32,
        values: Float32,
        num_rows: int,
        num_threads: int,
    ) -> None:
        """`keys` and `values` are the cache, their first axis is the layer."""
        self.num_rows = num_rows
        self.marks: list[Mark] = []
        self._num_threads = num_threads
        self._weights = weights
        self._ops: list[dict[str, Any]] = []
        queries, heads = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.x, self._normal = (Rows(num_rows, config.hidden_size) for _ in range(2))
        self._qkv = Rows(num_rows, padded(queries) + 2 * padded(heads))
        self._attended = Rows(num_rows, queries)
        self._gates = Rows(num_rows, 2 * padded(config.intermediate_size))
        self._gated = Rows(num_rows, config.intermediate_size)
        self._small = Rows(num_rows, max(config.hidden_size, queries, config.intermediate_size), BYTES)
        self.logits = Rows(num_rows, config.vocab_size, apart=0)  # so that NumPy need not copy them to find the largest
        self._heads = {"k_column": 4 * padded(queries), "v_column": 4 * (padded(queries) + padded(heads))}
        self.picks = 0
        self._write(config, keys, values)
        self._all = np.zeros(len(self._ops), program.OP)
        for op, fields in zip(self._all, self._ops, strict=True):
            for name, value in fields.items():
                op[name] = value
        self._is_product = np.isin(self._all["kind"], _PRODUCTS)
        self._sizes: tuple[int, ...] = ()

    def _write(self, config: ModelConfig, keys: Float32, values: Float32) -> None:
        """All operations, in order."""
        hidden, ffn = config.hidden_size, config.intermediate_size
        self._mark("embedding", self.x)
        for i, layer in enumerate(self._weights.layers):
            cache = {"keys": keys[i].ctypes.data, "values": values[i].ctypes.data, **self._heads}
            self._normalise(layer.attention_norm, hidden, layer.qkv)
            self._multiply(layer.qkv, self._normal, self._qkv)
            self._op(program.TURN, self._qkv, self._qkv, num=self._qkv.stride // 4, **cache)
            self._op(program.ATTEND, self._qkv, self._attended, num=1, **cache, **self._quantised(layer.output))
            if layer is self._weights.layers[-1]:  # behind the last keys and values, only what gives logits matters
                self.picks = len(self._ops)
                self._pick(self.x)
                self._pick(self._attended)
                if any(product.quantisation for product in layer.output):
                    self._pick(self._small)
            self._multiply(layer.output, self._attended, self.x, add=1)
            self._mark(f"layers.{i}.attention", self.x)
            self._normalise(layer.mlp_norm, hidden, layer.gate_up)
            self._multiply(layer.gate_up, self._normal, self._gates)
            self._op(
                program.GATE,
                self._gates,
                self._gated,
                num=ffn,
                panels=padded(ffn) // ISA.width,
                offset=4 * padded(ffn),
                **self._quantised(layer.down),
            )
            self._multiply(layer.down, self._gated, self.x, add=1)
            self._mark(f"layers.{i}.mlp", self.x)
        self._normalise(self._weights.norm, hidden, self._weights.head)
        self._mark("norm", self._normal)
        self._multiply(self._weights.head, self._normal, self.logits)

    def _op(self, kind: int, x: Rows, out: Rows, column: int = 0, **fields: Any) -> None:
        places = {"x": x.address, "x_stride": x.stride, "out": out.address + column, "out_stride": out.stride}
        self._ops.append({"kind": kind, **places, **fields})

    def _mark(self, part: str, rows: Rows) -> None:
        self.marks.append(Mark(len(self._ops), part, rows, picked=self.picks > 0))

    def _normalise(self, norm: tuple[Float32, Float32], num: int, readers: list[Product]) -> None:
        gain, bias = (array.ctypes.data for array in norm)
        panels = padded(num) // ISA.width
        fields = {"num": num, "panels": panels, "scale": gain, "bias": bias, **self._quantised(readers)}
        self._op(program.NORMALISE, self.x, self._normal, **fields)

    def _pick(self, rows: Rows) -> None:
        self._op(program.PICK, rows, rows, num=rows.stride // 4)

    def _quantised(self, readers: list[Product]) -> dict[str, Any]:
        """The fields of an operation whose result is also needed as the first W8A8 product of its readers wants it."""
        asked = [product.quantisation for product in readers if product.quantisation is not None]
        return self._small_fields(asked[0]) if asked else {}

    def _small_fields(self, quantisation: Quantisation) -> dict[str, Any]:
        scale, offset = quantisation
        return {"q": self._small.address, "q_stride": self._small.stride, "q_scale": scale, "q_offset": offset}

    def _multiply(self, products: list[Product], x: Rows, out: Rows, add: int = 0) -> None:
        """The products of one input; `_small` has it quantised as the first W8A8 product wants it."""
        asked = [product.quantisation for product in products if product.quantisation is not None]
        held = asked[0] if asked else None
        for product in products:
            if product.quantisation is not None and product.quantisation != held:
                held = product.quantisation
                self._op(program.QUANTISE, x, x, num=x.width, **self._small_fields(held))
            self._op(
                product.kind,
                self._small if product.quantisation is not None else x,
                out,
                column=4 * product.column,
                num=product.num,
                weight=product.weight.ctypes.data,
                panels=product.panels,
                panel_bytes=product.weight[0].nbytes,
                offset=product.offset.ctypes.data,
                scale=product.scale.ctypes.data,
                bias=product.bias.ctypes.data,
                add=add,
            )

    def ops(self, num_tokens: int, num_picked: int, num_items: int) -> npt.NDArray[np.void]:
        """OP [operations] for a step of so many tokens, of which so many give logits; valid until the next call."""
        sizes = (num_tokens, num_picked, num_items)
        if sizes != self._sizes:
            self._sizes = sizes
            self._cut(*sizes)
        return self._all if num_picked else self._all[: self.picks]

    def _cut(self, num_tokens: int, num_picked: int, num_items: int) -> None:
        """Into chunks: so many rows, and of a product so many panels, that a thread has some microseconds of each."""
        ops = self._all
        rows = np.where(np.arange(len(ops)) < self.picks, num_tokens, max(1, num_picked))
        share = -(-rows // (4 * self._num_threads))
        ops["rows"] = rows
        ops["chunk_rows"] = np.maximum(share, _NUMBERS // ops["num"])
        some = self._is_product
        parts = -(-rows[some] // _PRODUCT_ROWS)
        chunk_rows = -(-rows[some] // (parts * ISA.rows)) * ISA.rows
        ops["chunk_rows"][some] = chunk_rows
        ops["chunk_rows"][ops["kind"] == program.PICK] = num_tokens
        ops["chunks"] = -(-rows // ops["chunk_rows"])
        one = ops["num"][some] * ISA.width * np.minimum(rows[some], chunk_rows)
        panels = ops["panels"][some]
        ops["chunk_panels"][some] = np.maximum(
            panels // (16 * self._num_threads), np.clip(_PRODUCT // one, 1, -(-panels // self._num_threads))
        )
        ops["chunks"][some] *= -(-panels // ops["chunk_panels"][some])
        ops["chunks"][ops["kind"] == program.ATTEND] = num_items
