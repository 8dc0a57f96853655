"""Llama and Qwen2 with vector code of our own, compiled by numba: float32, paged KV cache, threads that do not stall.

A step is a list of operations (_numba_program) over work arrays (_numba_layout); what they compute is in
_numba_kernels and _numba_attention.
"""

import math

import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Capacity, EngineSettings, StepResult, Watcher
from llmbench.engines import _numba_attention as attention
from llmbench.engines import _numba_program as program
from llmbench.engines import _numba_weights as weights
from llmbench.engines import _rope as rope
from llmbench.engines import _step as step
from llmbench.engines._blas import available_threads, set_threads
from llmbench.engines._numba_layout import Layout
from llmbench.errors import InputError
from llmbench.memory import aligned
from llmbench.native.isa import ISA
from llmbench.weights.model import Model

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Intp = npt.NDArray[np.intp]

DTYPES = ("float32",)
_CACHE_SHARE = 0.25  # of the memory still free once the weights are there
_QUERIES = 8 * ISA.rows  # of a prompt and a head that one thread takes at once
_DECODED = 4  # decoded tokens for each thread, from which on each is taken whole


class NumbaLlama:
    """The engine. Keys are float32 [layers, blocks, kv_heads, head_dim, positions], values [layers, blocks, kv_heads,
    positions, head_dim]; what the kernels go along in whole vectors is filled up to them.
    """

    name = "numba_llama"
    dtype = "float32"

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        config = self._config = model.config
        self._num_threads = settings.threads or available_threads()
        set_threads(1)  # those of BLAS would spin beside ours
        self._weights = weights.load(model)
        longest = max(config.hidden_size, config.num_heads * config.head_dim, config.intermediate_size)
        widened = longest * ISA.width  # a panel of int8 weights as floats
        self._crew = program.Crew(self._num_threads, max(widened, attention.num_floats(config.head_dim)))
        self.compiled_s = self._crew.compiled_s
        self._block_size = settings.block_size
        num_blocks = settings.num_blocks or step.choose_num_blocks(config, settings, _CACHE_SHARE)
        padded_dim, padded_block = attention.padded_dim(config.head_dim), attention.padded_block(settings.block_size)
        cache = (config.num_layers, num_blocks, config.num_kv_heads)
        self._keys: Float32 = aligned((*cache, config.head_dim, padded_block), np.float32)
        self._values: Float32 = aligned((*cache, settings.block_size, padded_dim), np.float32)
        self._max_model_len = min(config.max_positions, num_blocks * settings.block_size)
        rotations = rope.rotations(config, self._max_model_len, np.float32)
        self._tables = [np.ascontiguousarray(part) for part in (rotations.real, rotations.imag)]
        self._model = np.zeros(1, program.MODEL)
        self._model[0] = (
            *(config.num_heads, config.num_kv_heads, config.head_dim, padded_dim, settings.block_size, padded_block),
            *(self._tables[0].ctypes.data, self._tables[1].ctypes.data),
            *(config.rms_norm_eps, 1 / math.sqrt(config.head_dim)),
        )
        self._layout: Layout | None = self._laid_out(max(64, settings.max_batch))
        self._watcher: Watcher | None = None

    def capacity(self) -> Capacity:
        """What this engine can hold."""
        num_blocks = self._keys.shape[1]
        return Capacity(num_blocks=num_blocks, block_size=self._block_size, max_model_len=self._max_model_len)

    def step(self, batch: Batch) -> StepResult:
        """Compute one step and write the KV cache."""
        step.check(batch, self._max_model_len, self._config.vocab_size)
        layout, num = self._layout, len(batch.token_ids)
        assert layout is not None, "a step after the end"
        if num > layout.num_rows:
            layout = self._layout = self._laid_out(2 ** (num - 1).bit_length())
        layout.x.fill(self._weights.embed(batch.token_ids))
        shared = self._shared(batch)
        ops = layout.ops(num, len(shared.picked), len(shared.items))
        if self._watcher is None:
            self._crew.run(ops, self._model, shared)
        else:
            self._show_parts(self._watcher, layout, ops, shared)
        logits = layout.logits.floats(len(shared.picked))
        kept = batch.want_logits or batch.score_prompts is not None
        return step.result(batch, logits.copy() if kept else logits)

    def watch(self, watcher: Watcher | None) -> None:
        """Show what the layers compute; see engines.Watchable."""
        self._watcher = watcher

    def close(self) -> None:
        """Give back the weights and the cache."""
        self._crew.close()
        self._layout = None  # it has the addresses of what goes now
        self._weights.layers.clear()
        self._keys = self._values = np.empty((0, 0), np.float32)

    def _laid_out(self, num_rows: int) -> Layout:
        return Layout(self._config, self._weights, self._keys, self._values, num_rows, self._num_threads)

    def _show_parts(self, watcher: Watcher, layout: Layout, ops: npt.NDArray[np.void], shared: program.Step) -> None:
        """Run the operations, and stop wherever there is something to be seen."""
        everything, done = np.arange(len(shared.tokens)), 0
        for mark in layout.marks:
            if mark.stop > len(ops) or (mark.picked and not len(shared.picked)):
                break
            self._crew.run(ops[done : mark.stop], self._model, shared)
            done = mark.stop
            tokens = shared.picked if mark.picked else everything
            watcher(mark.part, tokens, mark.rows.floats(len(tokens)))
        self._crew.run(ops[done:], self._model, shared)
        if len(shared.picked):
            watcher("lm_head", shared.picked, layout.logits.floats(len(shared.picked)))

    def _shared(self, batch: Batch) -> program.Step:
        """What all operations of a step need to know."""
        query_lens, context_lens = batch.query_lens, batch.context_lens
        ends = np.cumsum(query_lens, dtype=np.int64)
        sequence = np.repeat(np.arange(len(query_lens)), query_lens)
        tokens = np.empty((len(sequence), 2), np.int64)
        positions = tokens[:, 0] = np.arange(len(sequence)) + np.repeat(context_lens - ends, query_lens)
        blocks = batch.block_tables[sequence, positions // self._block_size].astype(np.int64)
        tokens[:, 1] = blocks * self._block_size + positions % self._block_size
        return program.Step(
            tokens=tokens,
            items=self._items(query_lens, context_lens, ends - query_lens),
            tables=np.array(batch.block_tables, np.int32, order="C"),
            picked=step.logit_rows(batch).astype(np.int64, copy=False),
        )

    def _items(self, query_lens: Int32, context_lens: Int32, starts: Intp) -> npt.NDArray[np.void]:
        """ITEM: of a decoded token the heads that share keys and values, of a prompt some tokens and one head."""
        kv_heads = self._config.num_kv_heads
        group = self._config.num_heads // kv_heads
        decoded = np.flatnonzero(query_lens == 1)
        # all heads of a sequence at once, or, of few sequences, some for every thread
        parts = 1 if len(decoded) >= _DECODED * self._num_threads else kv_heads
        found = np.zeros((len(decoded), parts), attention.ITEM)
        found["kv_head"] = np.arange(parts)
        found["kv_heads"] = kv_heads // parts
        found["head"] = found["kv_head"] * group
        found["num"] = group
        for name, values in (("row", starts), ("visible", context_lens)):
            found[name] = values[decoded, None]
        found["table"] = decoded[:, None]
        items = [found.ravel()]
        for i in np.flatnonzero(query_lens > 1).tolist():
            num = int(query_lens[i])
            # the last ones see most: no thread is to begin with them late
            first = np.arange(0, num, _QUERIES)[::-1, None]
            found = np.zeros((len(first), self._config.num_heads), attention.ITEM)
            found["head"] = np.arange(self._config.num_heads)
            found["kv_head"], found["kv_heads"] = found["head"] // group, 1
            found["row"], found["num"] = starts[i] + first, np.minimum(_QUERIES, num - first)
            found["visible"], found["growth"], found["table"] = context_lens[i] - num + first + 1, 1, i
            items.append(found.ravel())
        return np.concatenate(items)


def engine(model: Model, settings: EngineSettings) -> NumbaLlama:
    """Load a model. Raises InputError when it has an int8 cache, or weights that do not fit into the free memory."""
    if model.config.kv_cache is not None:
        raise InputError(f"model {model.name}: numba_llama has no {model.config.kv_cache} cache; numpy_llama does")
    step.check_memory(model)
    return NumbaLlama(model, settings)
