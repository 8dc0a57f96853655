"""An engine in this process as a bench: straight through its contract, without scheduler, detokeniser or link.

All prompts of a batch are computed, in pieces; then all sequences decode in step. Prompts are random ids, none of them
padding, and greedy tokens go on behind eos, so that lengths are exact.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from llmbench import clock, engines
from llmbench.engines import SAMPLING, Batch, EngineSettings, Int32
from llmbench.errors import ServingError
from llmbench.metrics.sweep import Case, Pass
from llmbench.weights.model import Model

_FIRST_ID = 3  # behind unk, bos and eos
_TRIES = 6  # of a pass in which the engine compiled
Piece = tuple[int, int, int]
"""A sequence, and the positions from and to before which it is computed."""


class EngineBench:
    """Runs cases on an engine; `tokens_per_step` new tokens of prompts at most go into one step."""

    def __init__(
        self, model: Model, engine: str | None, settings: EngineSettings, *, tokens_per_step: int = 512, seed: int = 0
    ) -> None:
        """Raises InputError when the engine cannot run this model here."""
        self._engine = engines.get(engine, model, settings)
        self._capacity = self._engine.capacity()
        self._vocab_size = model.config.vocab_size
        self._quantisation = model.config.quantisation
        self._tokens_per_step = tokens_per_step
        self._rng = np.random.default_rng(seed)

    @property
    def what(self) -> str:
        """The engine, for people."""
        quantised = f", {self._quantisation}," if self._quantisation else ""
        return f"{self._engine.name} {self._engine.dtype}{quantised} in this process"

    def unfit(self, case: Case) -> str:
        """Sequences longer than the model's, or more blocks than the cache has."""
        capacity = self._capacity
        length = case.input_len + case.output_len
        if length > capacity.max_model_len:
            return f"{length} tokens in a sequence, {capacity.max_model_len} are the most here"
        needed = case.batch * self._width(case)
        if needed > capacity.num_blocks:
            return f"{needed} blocks of {capacity.block_size} tokens, the cache has {capacity.num_blocks}"
        return ""

    def run(self, case: Case, num_new: int) -> Pass:
        """One batch; a pass in which the engine compiled is run again. Raises ServingError."""
        for _ in range(_TRIES):
            before_s = self._engine.compiled_s
            found = self._run(case, num_new)
            if self._engine.compiled_s == before_s:
                return found
        raise ServingError(f"the engine compiled something in each of {_TRIES} passes")

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()

    def _run(self, case: Case, num_new: int) -> Pass:
        prompts = self._rng.integers(_FIRST_ID, self._vocab_size, (case.batch, case.input_len), dtype=np.int32)
        width = self._width(case)
        tables = np.arange(case.batch * width, dtype=np.int32).reshape(case.batch, width)
        sampling = np.zeros(case.batch, SAMPLING)
        sampling["top_p"] = 1
        steps = [*_prefill(prompts, tables, sampling, self._tokens_per_step)]
        prefill_s: list[float] = []
        steps_s: list[float] = []
        tokens = np.empty(case.batch, np.int32)
        start_ns = before_ns = clock.now_ns()
        for members, step in steps:
            result = self._engine.step(step)
            tokens[members[step.wants_token]] = result.token_ids[step.wants_token]
            before_ns = _noted(prefill_s, before_ns)
        first_ns = before_ns
        for context_len in range(case.input_len + 1, case.input_len + num_new):
            tokens = self._engine.step(_decode(tokens, context_len, tables, sampling)).token_ids
            before_ns = _noted(steps_s, before_ns)
        return Pass(
            total_s=clock.seconds(start_ns, before_ns),
            first_s=clock.seconds(start_ns, first_ns),
            steps_s=steps_s,
            prefill_s=prefill_s,
        )

    def _width(self, case: Case) -> int:
        """Blocks of one sequence."""
        return -(-(case.input_len + case.output_len) // self._capacity.block_size)


def _noted(times_s: list[float], before_ns: int) -> int:
    """Add the time since an instant, and give this one."""
    now_ns = clock.now_ns()
    times_s.append(clock.seconds(before_ns, now_ns))
    return now_ns


def _prefill(
    prompts: Int32, tables: Int32, sampling: npt.NDArray[np.void], budget: int
) -> Iterator[tuple[npt.NDArray[np.intp], Batch]]:
    """The steps that compute prompts int32 [n, len], and which sequences are in each."""
    length = prompts.shape[1]
    for pieces in steps_of(len(prompts), length, budget):
        members = np.array([piece[0] for piece in pieces], np.intp)
        stops = np.array([piece[2] for piece in pieces], np.int32)
        yield (
            members,
            Batch(
                token_ids=np.concatenate([prompts[member, start:stop] for member, start, stop in pieces]),
                query_lens=np.array([stop - start for _, start, stop in pieces], np.int32),
                context_lens=stops,
                block_tables=tables[members],
                wants_token=stops == length,
                sampling=sampling[members],
            ),
        )


def steps_of(num: int, length: int, budget: int) -> Iterator[list[Piece]]:
    """Sequences of one length, one after the other, cut into steps of `budget` new tokens; the last may have fewer."""
    total = num * length
    for first in range(0, total, budget):
        last = min(first + budget, total)
        yield [
            (member, max(first - member * length, 0), min(last - member * length, length))
            for member in range(first // length, -(-last // length))
        ]


def _decode(tokens: Int32, context_len: int, tables: Int32, sampling: npt.NDArray[np.void]) -> Batch:
    """A step of one new token for each sequence."""
    num = len(tokens)
    return Batch(
        token_ids=tokens,
        query_lens=np.ones(num, np.int32),
        context_lens=np.full(num, context_len, np.int32),
        block_tables=tables,
        wants_token=np.ones(num, np.bool_),
        sampling=sampling,
    )
