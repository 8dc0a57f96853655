"""Llama and Qwen2 in MindSpore's graph mode: our own cells over a paged KV cache, one graph for each bucket of shapes.

On Ascend with the fused operators and in the dtype of the device, where a probe finds that they run; else from plain
operators, on the CPU in float32.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Capacity, EngineSettings, Group, StepResult, Watcher
from llmbench.engines import _mindspore_home as home
from llmbench.engines import _step as step
from llmbench.errors import AgentDied, ServingError
from llmbench.weights import shard
from llmbench.weights.model import Model

Int32 = npt.NDArray[np.int32]
Intp = npt.NDArray[np.intp]
Float32 = npt.NDArray[np.float32]

_CACHE_SHARE = 0.125  # of the free memory; unlike NumPy's zeros, MindSpore's take theirs at once
_LONGEST_PIECE = 512  # new tokens of one sequence in one call
_SHORTEST_PIECE = 16
_SHORTEST_CONTEXT = 64
_WARM_CONTEXT = 512  # graphs for longer contexts are compiled when they are needed

_log = logging.getLogger(__name__)


class Call(msgspec.Struct, frozen=True):
    """One call of the graph: `members` intp [n] of the batch, and of each the new tokens `first` to `first + num`."""

    members: Intp
    first: int
    num: int


class Shape(msgspec.Struct, frozen=True):
    """What a graph is compiled for: sequences, new tokens of each, blocks of each, rows of logits."""

    num: int
    steps: int
    width: int
    rows: int


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """From which the buckets follow: powers of two, the largest one being the limit itself."""

    max_batch: int
    max_blocks: int
    block_size: int

    def shape(self, num: int, steps: int, context_len: int, *, every_row: bool) -> Shape:
        """The smallest bucket that holds this."""
        blocks = max(1, -(-_power_of_two(max(context_len, _SHORTEST_CONTEXT)) // self.block_size))
        steps = 1 if steps == 1 else max(_SHORTEST_PIECE, _power_of_two(steps))
        num = min(_power_of_two(num), self.max_batch)
        rows = num if steps == 1 else steps if every_row else 1
        return Shape(num=num, steps=steps, width=min(blocks, self.max_blocks), rows=rows)

    def warm(self) -> list[Shape]:
        """Those that are compiled before the first request."""
        longest = self.max_blocks * self.block_size
        nums = [*(1 << i for i in range(self.max_batch.bit_length())), self.max_batch]
        decodes = [(num, 1, context) for context in _doubling(_SHORTEST_CONTEXT, _WARM_CONTEXT) for num in nums]
        prompts = [(1, piece, piece) for piece in _doubling(_SHORTEST_PIECE, min(_LONGEST_PIECE, longest))]
        found = [self.shape(*asked, every_row=False) for asked in decodes + prompts]
        return list(dict.fromkeys(found))


class MindsporeLlama:
    """The engine."""

    name = "mindspore_llama"

    def __init__(self, model: Model, settings: EngineSettings, num_blocks: int, first_id: int | None = None) -> None:
        """Load a model; `first_id` is where the vocabulary of a rank's part begins."""
        from llmbench.engines import _mindspore_cells as cells
        from llmbench.engines import _mindspore_probe as probe

        operators = probe.choose(model.config)
        self.dtype = operators.dtype
        if model.config.kv_cache is not None:
            _log.info("keys and values stay %s, though the model has scales for an int8 cache", operators.dtype)
        self._vocab_size = model.config.vocab_size
        self._block_size = settings.block_size
        self._num_blocks = num_blocks
        self._max_model_len = min(model.config.max_positions, self._num_blocks * settings.block_size)
        self._sizes = Sizes(
            max_batch=settings.max_batch,
            max_blocks=-(-self._max_model_len // settings.block_size),
            block_size=settings.block_size,
        )
        pages = cells.Pages(num_blocks=self._num_blocks, block_size=settings.block_size)
        self._decoder: Any = cells.Decoder(model, pages, self._max_model_len, operators, first_id)
        self._cleaner: Any = cells.Cleaner(self._decoder, model.config, settings.block_size, operators.dtype)
        self._compiled: set[Shape] = set()
        self.compiled_s = 0.0
        self._watcher: Watcher | None = None
        self._parts: Any = None
        if settings.warm_up:
            self._warm_up()

    def capacity(self) -> Capacity:
        """What this engine can hold."""
        return Capacity(num_blocks=self._num_blocks, block_size=self._block_size, max_model_len=self._max_model_len)

    def step(self, batch: Batch) -> StepResult:
        """Compute one step and write the KV cache."""
        step.check(batch, self._max_model_len, self._vocab_size)
        return self._choose(batch, self._logits(batch, self._vocab_size))

    def watch(self, watcher: Watcher | None) -> None:
        """Show what the layers compute, see engines.Watchable: each part is a graph of its own then."""
        from llmbench.engines import _mindspore_cells as cells

        self._watcher = watcher
        if watcher is not None and self._parts is None:
            self._parts = cells.Parts(self._decoder)

    def close(self) -> None:
        """Give back the weights and the cache."""
        self._decoder = self._cleaner = self._parts = None

    def _logits(self, batch: Batch, vocab_size: int) -> Float32:
        """float32 [m, vocab] of the tokens in `logit_rows`."""
        rows = step.logit_rows(batch)
        parts = [self._call(batch, call, rows) for call in _calls(batch, self._sizes.max_batch)]
        if len(parts) == 1:
            return parts[0][1]
        logits = np.empty((len(rows), vocab_size), np.float32)
        for places, found in parts:
            logits[places] = found
        return logits

    def _choose(self, batch: Batch, logits: Float32) -> StepResult:
        """The tokens, from logits [m, vocab]."""
        try:
            return step.result(batch, logits)
        except ServingError:
            self._forget(batch)
            raise

    def _call(self, batch: Batch, call: Call, rows: Intp) -> tuple[Intp, Float32]:
        """Run one call: which of `rows` it has the logits of, in order, and these."""
        scored = batch.score_prompts is not None and bool(batch.score_prompts[call.members].any())
        query_lens = batch.query_lens[call.members]
        starts = np.cumsum(batch.query_lens, dtype=np.intp)[call.members] - query_lens + call.first
        longest = int((batch.context_lens[call.members] - query_lens).max()) + call.first + call.num
        shape = self._sizes.shape(len(call.members), call.num, longest, every_row=scored)
        arrays = self._arrays(batch, call, starts, shape)
        if shape.steps == 1:
            there = starts
        else:
            there = np.arange(starts[0] if scored else starts[0] + call.num - 1, starts[0] + call.num)
        if self._watcher is None:
            found = self._run(shape, *arrays).asnumpy()
        else:
            tokens = starts if shape.steps == 1 else np.arange(starts[0], starts[0] + call.num)
            found = self._show(self._watcher, tokens, *arrays)
        found = found[: len(there)]
        wanted = np.isin(there, rows)
        return np.searchsorted(rows, there[wanted]), found if wanted.all() else found[wanted]

    def _arrays(self, batch: Batch, call: Call, starts: Intp, shape: Shape) -> tuple[Int32, Int32, Int32, Int32, Int32]:
        """The inputs of the decoder, padded to a bucket: padding tokens have position 0 in the padding block."""
        num, new = len(call.members), np.arange(call.num)
        ids, positions = np.zeros((2, shape.num, shape.steps), np.int32)
        ids[:num, : call.num] = batch.token_ids[starts[:, None] + new]
        begins = batch.context_lens[call.members] - batch.query_lens[call.members] + call.first
        positions[:num, : call.num] = begins[:, None] + new
        tables = np.full((shape.num, shape.width), self._num_blocks, np.int32)
        needed = -(-batch.context_lens[call.members] // self._block_size)
        width = min(shape.width, batch.block_tables.shape[1])
        used = np.arange(width) < needed[:, None]
        np.copyto(tables[:num, :width], batch.block_tables[call.members, :width], where=used)
        slots = np.full((shape.num, shape.steps), self._num_blocks * self._block_size, np.int32)
        at = positions[:num, : call.num]
        slots[:num, : call.num] = (
            np.take_along_axis(tables[:num], at // self._block_size, axis=1) * self._block_size + at % self._block_size
        )
        if shape.steps == 1:
            wanted = np.arange(shape.rows, dtype=np.int32)
        else:
            wanted = np.arange(shape.rows, dtype=np.int32) + (0 if shape.rows > 1 else call.num - 1)
        return ids, positions, slots.reshape(-1), tables, wanted

    def _run(self, shape: Shape, *arrays: Int32) -> Any:
        """The logits [rows, vocab] as a MindSpore tensor."""
        import mindspore

        start = time.perf_counter()
        try:
            logits = self._decoder(*(mindspore.Tensor(array) for array in arrays))
        except (RuntimeError, ValueError, TypeError) as error:  # what MindSpore raises
            raise ServingError(f"mindspore: {home.reason(error)}") from error
        if shape not in self._compiled:
            self._compiled.add(shape)
            took_s = time.perf_counter() - start
            self.compiled_s += took_s
            _log.info("compiled %s in %.1f s", _text(shape, self._block_size), took_s)
        return logits

    def _show(self, watcher: Watcher, tokens: Intp, *arrays: Int32) -> Float32:
        """The logits [rows, vocab], each part shown to the watcher: its first rows are of these tokens of the step."""
        import mindspore

        def show(part: str, x: Any) -> Any:
            values = np.array(x.astype(mindspore.float32).asnumpy())
            watcher(part, tokens, values[: len(tokens)])
            return mindspore.Tensor(values).astype(x.dtype)

        *inputs, rows = arrays
        try:
            logits: Float32 = self._parts(show, *map(mindspore.Tensor, inputs)).asnumpy()
        except (RuntimeError, ValueError, TypeError) as error:  # what MindSpore raises
            raise ServingError(f"mindspore: {home.reason(error)}") from error
        return logits[rows]

    def _warm_up(self) -> None:
        """Compile the graphs of the usual buckets, each by running it on padding."""
        shapes = self._sizes.warm()
        start = time.perf_counter()
        for i, shape in enumerate(shapes, 1):
            _log.info("warming up: graph %d of %d, %s", i, len(shapes), _text(shape, self._block_size))
            self._run(shape, *self._padding(shape))
        _log.info("warmed up: %d graphs in %.1f s", len(shapes), time.perf_counter() - start)

    def _padding(self, shape: Shape) -> tuple[Int32, Int32, Int32, Int32, Int32]:
        tokens = np.zeros((shape.num, shape.steps), np.int32)
        slots = np.full(tokens.size, self._num_blocks * self._block_size, np.int32)
        tables = np.full((shape.num, shape.width), self._num_blocks, np.int32)
        return tokens, tokens, slots, tables, np.zeros(shape.rows, np.int32)

    def _forget(self, batch: Batch) -> None:
        """Clear the blocks of a step without finite logits: padding multiplies old values by 0, which NaN survives."""
        import mindspore

        used = step.used_blocks(batch, self._block_size)
        for block in np.unique(np.append(used, self._num_blocks)):
            slots = block * self._block_size + np.arange(self._block_size, dtype=np.int32)
            self._cleaner(mindspore.Tensor(slots.astype(np.int32)))


class ShardedMindspore(MindsporeLlama):
    """One rank of several. The sums over all ranks are MindSpore's own, in the graph; each rank's columns of the logits
    go to rank 0 as those of every engine do.
    """

    def __init__(self, model: Model, settings: EngineSettings, group: Group) -> None:
        own = shard.cut(model, group.rank, group.size)
        ids = shard.part("model.embed_tokens.weight", model.config, group.rank, group.size)
        self._group = group
        self._width = own.config.vocab_size
        super().__init__(own, settings, _least_num_blocks(own, settings, group), ids.start)
        self._vocab_size = model.config.vocab_size

    def step(self, batch: Batch) -> StepResult:
        """Compute one step together with the other ranks; only rank 0's result has tokens and logits."""
        step.check(batch, self._max_model_len, self._vocab_size)
        part = self._logits(batch, self._width)
        gathered = self._group.gather(part)
        if gathered is not None:
            return self._choose(batch, step.join(gathered, self._vocab_size))
        if not np.isfinite(part).all():  # then rank 0 finds no token and forgets these blocks, too
            self._forget(batch)
        return step.nothing(batch)

    def _run(self, shape: Shape, *arrays: Int32) -> Any:
        try:
            return super()._run(shape, *arrays)
        except ServingError as error:  # the other ranks may wait for this one in the middle of the graph
            raise AgentDied(str(error)) from error


def engine(model: Model, settings: EngineSettings) -> MindsporeLlama:
    """Load a model. Raises InputError when its weights do not fit into the free memory."""
    home.start(settings.threads)
    step.check_memory(model)
    return MindsporeLlama(model, settings, _num_blocks(model, settings, _CACHE_SHARE))


def sharded(model: Model, settings: EngineSettings, group: Group) -> ShardedMindspore:
    """Load a rank's part of a model. Raises ConfigError when it cannot be cut, InputError when it does not fit."""
    shard.check(model.name, model.config, group.size)
    home.start(settings.threads)
    from llmbench.engines import _mindspore_ranks as ranks

    step.check_memory(model)
    ranks.join(group)  # which nobody has done before everybody has looked at what is free
    return ShardedMindspore(model, settings, group)


def _num_blocks(model: Model, settings: EngineSettings, share: float) -> int:
    """As many as are asked for, or as a share of the free memory holds."""
    return settings.num_blocks or step.choose_num_blocks(model.config, settings, share)


def _least_num_blocks(model: Model, settings: EngineSettings, group: Group) -> int:
    """What every rank can hold: they have to compile the same graphs in the same order."""
    numbers = np.zeros(group.size, np.float32)
    numbers[group.rank] = _num_blocks(model, settings, _CACHE_SHARE / group.size)
    return int(group.all_reduce(numbers).min())


def _calls(batch: Batch, max_batch: int) -> Iterator[Call]:
    """Sequences with one new token together, the others one by one, in pieces."""
    single = np.flatnonzero(batch.query_lens == 1)
    for start in range(0, len(single), max_batch):
        yield Call(single[start : start + max_batch], 0, 1)
    for i in np.flatnonzero(batch.query_lens > 1).tolist():
        query_len = int(batch.query_lens[i])
        for first in range(0, query_len, _LONGEST_PIECE):
            yield Call(np.array([i]), first, min(_LONGEST_PIECE, query_len - first))


def _power_of_two(number: int) -> int:
    """The smallest one that is not below a number."""
    return 1 << (number - 1).bit_length()


def _doubling(first: int, last: int) -> list[int]:
    """The first number, twice it, and so on up to the last."""
    return [first << i for i in range((last // first).bit_length())]


def _text(shape: Shape, block_size: int) -> str:
    return f"{shape.num} x {shape.steps} new tokens, contexts up to {shape.width * block_size}"
