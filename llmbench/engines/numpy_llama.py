"""Llama and Qwen2 in NumPy: float32, paged KV cache, prefill and decode mixed in one step; runs wherever NumPy does.

As a reference for other engines it also computes in float64, and as an engine of 16 bits would, see RoundedLlama.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Capacity, EngineSettings, Group, StepResult, Watcher
from llmbench.engines import _attention as attention
from llmbench.engines import _llama_weights as weights
from llmbench.engines import _matrix as matrix
from llmbench.engines import _rope as rope
from llmbench.engines import _rounding as rounding
from llmbench.engines import _step as step
from llmbench.engines._blas import available_threads, has_small_matrix_kernels, set_threads
from llmbench.engines._linear import Linear
from llmbench.engines._pages import FloatPages, Int8Pages, Pages
from llmbench.engines._scratch import Scratch
from llmbench.errors import ServingError
from llmbench.weights import shard
from llmbench.weights.model import Model

Int32 = npt.NDArray[np.int32]
Intp = npt.NDArray[np.intp]
Float32 = npt.NDArray[np.float32]

DTYPES = ("float32", "float64", "float16", "bfloat16")
_CACHE_SHARE = 0.25  # of the memory still free once the weights are there
_MLP_ROWS = 256  # tokens that go through an MLP at once: bounds its work array


class Plan(msgspec.Struct, frozen=True):
    """What all layers of a step share. `slots` intp [T]: where each token's key and value go; `rotations` complex64
    [T, 1, head_dim / 2]; `logit_rows` intp [m]: the tokens whose logits are wanted.
    """

    slots: Intp
    rotations: npt.NDArray[np.complex64]
    logit_rows: Intp
    groups: list[attention.DecodeGroup]
    prompts: list[attention.Prompt]


class NumpyLlama:
    """The engine. Quantised linears of W8A8 are computed in whole numbers, see _linear; those of W8A16 as floats."""

    name = "numpy_llama"
    dtype: str
    compiled_s = 0.0

    def __init__(
        self, model: Model, settings: EngineSettings, num_ranks: int = 1, dtype: npt.DTypeLike = np.float32
    ) -> None:
        """Load a model, which is the part of one rank where there are several on this machine.

        What is said to be float32 here and below is of `dtype`.
        """
        config = model.config
        self._config = config
        self.dtype = np.dtype(dtype).name
        self._vocab_size = config.vocab_size
        self._heads = attention.Heads(config.num_heads, config.num_kv_heads, config.head_dim)
        self._token_elements = 2 * config.num_kv_heads * config.head_dim  # of the cache of a layer
        self._workers, layout = _share_out(settings.threads or available_threads())
        self._weights = weights.load(model, layout, self._workers, dtype)
        self._block_size = settings.block_size
        self._num_blocks = num_blocks = settings.num_blocks or self._choose_num_blocks(settings, num_ranks)
        self._cache = self._pages(model, dtype)
        self._max_model_len = min(config.max_positions, num_blocks * settings.block_size)
        self._rotations = rope.rotations(config, self._max_model_len, dtype)
        self._scratches = [Scratch(dtype) for _ in range(self._workers.num_threads)]
        self._scratch = self._scratches[0]
        self._watcher: Watcher | None = None

    def capacity(self) -> Capacity:
        """What this engine can hold."""
        return Capacity(num_blocks=self._num_blocks, block_size=self._block_size, max_model_len=self._max_model_len)

    def step(self, batch: Batch) -> StepResult:
        """Compute one step and write the KV cache."""
        step.check(batch, self._max_model_len, self._vocab_size)
        plan = self._plan(batch)
        with np.errstate(over="ignore"):  # exp(-gate) of a very negative gate: infinite, and silu then rightly 0
            hidden = self._layers(batch, plan)
            logits = self._head(hidden)
        return self._choose(batch, plan, logits)

    def watch(self, watcher: Watcher | None) -> None:
        """Show what the layers compute; see engines.Watchable."""
        self._watcher = watcher

    def close(self) -> None:
        """Give back the weights and the cache."""
        self._workers.close()
        self._weights.layers.clear()
        self._cache.clear()
        self._scratches.clear()
        self._scratch = Scratch()

    def _choose_num_blocks(self, settings: EngineSettings, num_ranks: int) -> int:
        """As many as a share of the free memory has room for."""
        itemsize = np.dtype(self.dtype if self._config.kv_cache is None else np.int8).itemsize
        return step.choose_num_blocks(self._config, settings, _CACHE_SHARE / num_ranks, itemsize)

    def _pages(self, model: Model, dtype: npt.DTypeLike) -> list[Pages]:
        """The cache of each layer."""
        config = self._config
        shape = (self._num_blocks, self._block_size, 2 * config.num_kv_heads, config.head_dim)
        if config.kv_cache is None:
            return [FloatPages(shape, dtype) for _ in range(config.num_layers)]
        return [Int8Pages(shape, *weights.kv_scales(model, i, dtype)) for i in range(config.num_layers)]

    def _choose(self, batch: Batch, plan: Plan, logits: Float32) -> StepResult:
        """The tokens, from logits [m, vocab]."""
        if self._watcher is not None:
            self._show("lm_head", logits, plan)
        try:
            return step.result(batch, logits)
        except ServingError:
            self._forget(batch)
            raise

    def _forget(self, batch: Batch) -> None:
        """Clear the blocks of a step without finite logits: padding multiplies old values by 0, which NaN survives."""
        used = step.used_blocks(batch, self._block_size)
        for pages in self._cache:
            pages.clear(used)

    def _plan(self, batch: Batch) -> Plan:
        query_lens, context_lens = batch.query_lens, batch.context_lens
        ends = np.cumsum(query_lens, dtype=np.intp)
        sequence = np.repeat(np.arange(len(query_lens)), query_lens)
        positions = np.arange(ends[-1]) + np.repeat(context_lens - ends, query_lens)
        blocks = batch.block_tables[sequence, positions // self._block_size].astype(np.intp)
        decodes = np.flatnonzero(query_lens == 1)
        block_elements = self._block_size * self._token_elements
        return Plan(
            slots=blocks * self._block_size + positions % self._block_size,
            rotations=self._rotations[positions][:, None],
            logit_rows=step.logit_rows(batch),
            groups=attention.group_decodes(
                ends[decodes] - 1, context_lens[decodes], batch.block_tables[decodes], self._block_size, block_elements
            ),
            prompts=[self._prompt(batch, i, int(ends[i])) for i in np.flatnonzero(query_lens > 1).tolist()],
        )

    def _prompt(self, batch: Batch, i: int, end: int) -> attention.Prompt:
        query_len, context_len = int(batch.query_lens[i]), int(batch.context_lens[i])
        table = batch.block_tables[i, : -(-context_len // self._block_size)].astype(np.intp)
        fresh = query_len == context_len and self._config.kv_cache is None  # what is kept is what was computed
        return attention.Prompt(end - query_len, end, context_len, table, fresh)

    def _layers(self, batch: Batch, plan: Plan) -> Float32:
        """float32 [m, hidden] behind all layers and the last norm, of the tokens whose logits are wanted."""
        x = self._embed(batch.token_ids)
        if self._watcher is not None:
            self._show("embedding", x, plan)
        last = self._config.num_layers - 1
        for i, layer in enumerate(self._weights.layers):
            attended = self._attend(layer, self._cache[i], x, plan)
            if i == last:  # behind the last keys and values, only the rows that give logits matter
                x, attended = x[plan.logit_rows], attended[plan.logit_rows]
            x += self._row_parallel(layer.output, attended, "added")
            if self._watcher is not None:
                self._show(f"layers.{i}.attention", x, plan)
            for row in range(0, len(x), _MLP_ROWS):
                self._mlp(layer, x[row : row + _MLP_ROWS])
            if self._watcher is not None:
                self._show(f"layers.{i}.mlp", x, plan)
        hidden = self._normalised(x)
        hidden *= self._weights.final_norm
        if self._watcher is not None:
            self._show("norm", hidden, plan)
        return hidden

    def _attend(self, layer: weights.Layer, cache: Pages, x: Float32, plan: Plan) -> Float32:
        """float32 [T, heads * head_dim]; writes the new keys and values of this layer."""
        heads, num = self._heads, len(x)
        qkv = self._multiply(layer.qkv, self._normalised(x), "qkv").reshape(num, -1, heads.head_dim)
        self._turn(qkv, plan)
        cache.write(plan.slots, qkv[:, heads.num_heads :])
        out = self._scratch.get("attended", num, heads.num_heads, heads.head_dim)
        if plan.groups:
            self._decode(plan.groups, qkv, cache, out)
        for prompt in plan.prompts:
            self._prefill(prompt, qkv, cache, out)
        return out.reshape(num, -1)

    def _turn(self, qkv: Float32, plan: Plan) -> None:
        """RoPE: queries and keys of qkv [T, heads + 2 kv_heads, head_dim], in place."""
        turned = qkv[:, : self._heads.num_heads + self._heads.num_kv_heads].view(self._rotations.dtype)
        turned *= plan.rotations

    def _decode(self, groups: list[attention.DecodeGroup], qkv: Float32, cache: Pages, out: Float32) -> None:
        heads = self._heads
        q = qkv[:, : heads.num_heads]
        elements = sum(group.mask.size for group in groups) * self._token_elements
        num_parts = min(len(groups), self._workers.num_parts(elements))

        def work(part: int) -> None:
            for group in groups[part::num_parts]:
                attention.decode(group, q, cache, heads, self._scratches[part], out)

        self._workers.run(work, num_parts)

    def _prefill(self, prompt: attention.Prompt, qkv: Float32, cache: Pages, out: Float32) -> None:
        heads = self._heads
        q = qkv[:, : heads.num_heads]
        keys_values = attention.keys_values(prompt, qkv, cache, heads, self._scratch)
        chunks = attention.chunks(prompt, heads)
        multiplications = (prompt.stop - prompt.start) * prompt.context_len * heads.num_heads * heads.head_dim
        num_parts = min(len(chunks), self._workers.num_parts(multiplications))

        def work(part: int) -> None:
            for rows in chunks[part::num_parts]:
                attention.prefill(prompt, rows, q, keys_values, heads, self._scratches[part], out)

        self._workers.run(work, num_parts)

    def _mlp(self, layer: weights.Layer, x: Float32) -> None:
        """x += down(silu(gate(x)) * up(x)), in place; gate and up are negated, see _llama_weights."""
        num, ffn = len(x), self._config.intermediate_size
        both = self._multiply(layer.gate_up, self._normalised(x), "both")
        gate, up = both[:, :ffn], both[:, ffn:]
        denominator = np.exp(gate, out=self._scratch.get("denominator", num, ffn))
        denominator += 1
        gate *= up
        gate /= denominator
        x += self._row_parallel(layer.down, gate, "added")

    def _normalised(self, x: Float32) -> Float32:
        """float32 [T, hidden]: x / sqrt(sum(x^2) + hidden * eps); the rest of RMSNorm is in the next linear."""
        squares = np.einsum("ij,ij->i", x, x)
        squares += self._config.hidden_size * self._config.rms_norm_eps
        np.sqrt(squares, out=squares)
        normalised: Float32 = np.divide(x, squares[:, None], out=self._scratch.get("normalised", *x.shape))
        return normalised

    def _head(self, hidden: Float32) -> Float32:
        """float32 [m, vocab]."""
        head = self._weights.head
        return head.multiply(hidden, np.empty((len(hidden), head.padded), hidden.dtype))

    def _multiply(self, by: Linear, x: Float32, scratch: str) -> Float32:
        """float32 [T, num_out], in a work array of this name."""
        return by.multiply(x, self._scratch, scratch)

    _row_parallel = _multiply  # by a linear that is cut along its inputs where there are several ranks

    def _embed(self, token_ids: Int32) -> Float32:
        """float32 [T, hidden]."""
        return self._weights.embed(token_ids)

    def _show(self, part: str, x: Float32, plan: Plan) -> None:
        """Let the watcher see what a part gave; behind the last layer's attention, that is for the logits' tokens."""
        tokens = plan.logit_rows if len(x) == len(plan.logit_rows) else np.arange(len(x))
        if self._watcher is not None:
            self._watcher(part, tokens, x)


class RoundedLlama(NumpyLlama):
    """What an engine of 16 bits gives: products are added up in float32, as such engines do, and what they would store
    is rounded: weights, each product, normalised and hidden states, queries, keys and values, and the logits.
    """

    def __init__(self, model: Model, settings: EngineSettings, dtype: str) -> None:
        super().__init__(rounding.rounded(model, dtype), settings)
        self.dtype = dtype
        self._round = rounding.IN_PLACE[dtype]
        self.watch(None)

    def watch(self, watcher: Watcher | None) -> None:
        """Show what the layers compute; see engines.Watchable."""

        def rounded(part: str, tokens: Intp, x: Float32) -> None:
            self._round(x)
            if watcher is not None:
                watcher(part, tokens, x)
                self._round(x)

        super().watch(rounded)

    def _turn(self, qkv: Float32, plan: Plan) -> None:
        self._round(qkv)
        super()._turn(qkv, plan)
        self._round(qkv)

    def _normalised(self, x: Float32) -> Float32:
        return self._round(super()._normalised(x))

    def _multiply(self, by: Linear, x: Float32, scratch: str) -> Float32:
        return self._round(super()._multiply(by, x, scratch))

    def _row_parallel(self, by: Linear, x: Float32, scratch: str) -> Float32:
        return self._multiply(by, self._round(x), scratch)


class ShardedLlama(NumpyLlama):
    """One rank of several. Each has some heads, a part of the MLPs and of the vocabulary; what goes from layer to
    layer every rank has whole, the same bits of it: the sum of what all of them computed.
    """

    def __init__(self, model: Model, settings: EngineSettings, group: Group) -> None:
        super().__init__(shard.cut(model, group.rank, group.size), settings, group.size)
        self._group = group
        self._vocab_size = model.config.vocab_size
        self._ids = shard.part("model.embed_tokens.weight", model.config, group.rank, group.size)

    def step(self, batch: Batch) -> StepResult:
        """Compute one step together with the other ranks; only rank 0's result has tokens and logits."""
        step.check(batch, self._max_model_len, self._vocab_size)
        plan = self._plan(batch)
        with np.errstate(over="ignore"):  # as above
            hidden = self._layers(batch, plan)
            part = self._head(hidden)
        gathered = self._group.gather(part)
        if gathered is not None:
            return self._choose(batch, plan, step.join(gathered, self._vocab_size))
        if not np.isfinite(hidden).all():  # then rank 0 finds no token and forgets these blocks, too
            self._forget(batch)
        return step.nothing(batch)

    def _row_parallel(self, by: Linear, x: Float32, scratch: str) -> Float32:
        return self._group.all_reduce(self._multiply(by, x, scratch))

    def _embed(self, token_ids: Int32) -> Float32:
        """Each token's row is at one rank; the others add zeros."""
        own = (token_ids >= self._ids.start) & (token_ids < self._ids.stop)
        x = np.zeros((len(token_ids), self._config.hidden_size), np.float32)
        x[own] = self._weights.embed(token_ids[own] - np.int32(self._ids.start))
        return self._group.all_reduce(x)


def engine(model: Model, settings: EngineSettings) -> NumpyLlama:
    """Load a model. Raises InputError when its weights do not fit into the free memory."""
    dtype = settings.dtype or "float32"
    if dtype in rounding.IN_PLACE:
        step.check_memory(model)
        return RoundedLlama(model, settings, dtype)
    step.check_memory(model, np.dtype(dtype).itemsize)
    return NumpyLlama(model, settings, dtype=dtype)


def sharded(model: Model, settings: EngineSettings, group: Group) -> ShardedLlama:
    """Load a rank's part of a model. Raises ConfigError when it cannot be cut, InputError when it does not fit."""
    shard.check(model.name, model.config, group.size)
    step.check_memory(model)
    group.all_reduce(np.zeros(1, np.float32))  # nobody takes memory before everybody has looked at what is free
    return ShardedLlama(model, settings, group)


def _share_out(num_threads: int) -> tuple[matrix.Workers, matrix.Layout]:
    """Threads of our own over panels where BLAS is fast with small matrices; else the threads of BLAS over whole ones.

    Ours sleep while they wait. Those of OpenBLAS spin, which stalls them for milliseconds when a core is shared.
    """
    panels = has_small_matrix_kernels()
    set_threads(1 if panels else num_threads)
    return matrix.Workers(num_threads if panels else 1), matrix.PANELS if panels else matrix.WHOLE
