"""One sequence through an engine in this process: given tokens in steps of any lengths, the logits after each of them,
and what the layers gave.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from llmbench import engines
from llmbench.engines import SAMPLING, Batch, EngineSettings, Float32, Intp
from llmbench.errors import InputError
from llmbench.logits.store import Store
from llmbench.weights.model import Model

Logits = npt.NDArray[Any]
Show: TypeAlias = Callable[[str, Intp, Float32], None]
"""As engines.Watcher, but with the places of the tokens in the sequence."""

_BLOCK_SIZE = 16


class Lane:
    """An engine with room for one sequence of up to `longest` tokens; each run begins a new one.

    Raises InputError when the model holds none that long, and what engines.get raises.
    """

    def __init__(
        self, model: Model, engine: str, longest: int, *, dtype: str | None = None, threads: int | None = None
    ) -> None:
        if longest > model.config.max_positions:
            raise InputError(
                f"model {model.name} holds sequences of {model.config.max_positions} tokens; this one has {longest}"
            )
        num_blocks = -(-longest // _BLOCK_SIZE)
        settings = EngineSettings(
            num_blocks=num_blocks, block_size=_BLOCK_SIZE, max_batch=1, threads=threads, dtype=dtype
        )
        self._engine = engines.get(engine, model, settings)
        self._blocks = np.arange(num_blocks, dtype=np.int32)[None]
        self.vocab_size = model.config.vocab_size
        self.dtype = self._engine.dtype

    def run(self, ids: Sequence[int], lengths: Sequence[int], first: int = 0, show: Show | None = None) -> Logits:
        """The logits after each token from place `first` on, [len - first, vocab]; `lengths` are those of the steps.

        Raises InputError when the engine shows nothing and `show` is given.
        """
        assert sum(lengths) == len(ids), "the steps make up the sequence"
        rows, start = [], 0
        for length in lengths:
            rows.append(self.step(ids[start : start + length], start, first, show))
            start += length
        return np.concatenate(rows)

    def step(self, ids: Sequence[int], start: int, first: int = 0, show: Show | None = None) -> Logits:
        """The same for the next step alone: `ids` lie from `start` on in the sequence."""
        end = start + len(ids)
        wanted = end - max(start, first)  # rows; those of a whole step, or of its last tokens
        batch = Batch(
            token_ids=np.array(ids, np.int32),
            query_lens=np.array([len(ids)], np.int32),
            context_lens=np.array([end], np.int32),
            block_tables=self._blocks,
            wants_token=np.array([wanted > 0]),
            sampling=np.zeros(1, SAMPLING),
            want_logits=wanted == 1,
            score_prompts=np.array([True]) if wanted > 1 else None,
        )
        if show is not None:
            placed = show
            engines.watchable(self._engine).watch(lambda part, tokens, x: placed(part, tokens + start, x))
        try:
            result = self._engine.step(batch)
        finally:
            if show is not None:
                engines.watchable(self._engine).watch(None)
        if wanted > 1:
            return result.prompt_logits[0][-wanted:]
        return result.logits if result.logits is not None else np.empty((0, self.vocab_size), np.float32)

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()

    def __enter__(self) -> "Lane":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def served(num_prompt: int, num_tokens: int) -> list[int]:
    """The steps in which a server computes a prompt and what it has answered: the prompt, then token by token."""
    return [num_prompt, *[1] * (num_tokens - num_prompt)]


def otherwise(num_prompt: int, num_tokens: int) -> list[int]:
    """Other steps for the same: the prompt in three pieces, the answer in one."""
    piece = -(-num_prompt // 3)
    pieces = [min(piece, num_prompt - start) for start in range(0, num_prompt, piece)]
    return pieces + [num_tokens - num_prompt] * (num_tokens > num_prompt)


def greedy(lane: Lane, prompt: Sequence[int], num_new: int) -> list[int]:
    """The first tokens of the answer to a prompt, each the likeliest."""
    found: list[int] = []
    row = lane.run(prompt, [len(prompt)], len(prompt) - 1)[-1]
    while len(found) < num_new:
        found.append(int(row.argmax()))
        if len(found) < num_new:
            row = lane.step(found[-1:], len(prompt) + len(found) - 1)[-1]
    return found


def answer(store: Store, request: int) -> list[int]:
    """The tokens that a captured request, by its place in `store.requests`, got: up to the first that is not known."""
    own = store.table[(store.table["request"] == request) & (store.table["token"] >= 0)]
    steps, at = np.unique(own["step"], return_index=True)
    num = int(np.cumprod(steps == np.arange(len(steps))).sum())
    tokens: list[int] = own["token"][at[:num]].tolist()
    return tokens
