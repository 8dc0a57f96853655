"""Engines: what computes logits and picks tokens; synchronous, one rank, no sockets. One file each.

An engine module has a factory `engine(model, settings) -> Engine`; the name of the file is the name users type. One
that can hold a model in parts has another, `sharded(model, settings, group) -> Engine`, for each rank of a group.

The KV cache is paged: position p of a sequence lies in block `block_table[p // block_size]` at `p % block_size`, and
the scheduler, not the engine, decides which blocks are whose.
"""

import importlib
import logging
import os
from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import native, plugins
from llmbench.engines._rope import rotations as rotations
from llmbench.engines._sampling import pick as pick
from llmbench.errors import InputError, NotInstalled
from llmbench.weights.model import Model

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
Intp = npt.NDArray[np.intp]

SAMPLING = np.dtype(
    [
        ("temperature", "<f4"),  # 0 is greedy
        ("top_p", "<f4"),  # 1 cuts nothing off
        ("top_k", "<i4"),  # 0 cuts nothing off
        ("step", "<i4"),  # how many tokens the sequence has got so far: the counter of its random numbers
        ("seed", "<u8"),  # of the sequence, so that its text does not depend on the batch it runs in
    ]
)


_EXTRAS = {
    "mindspore": "mindspore",
    "mindformers": "mindspore",
    "numba": "fast",
    "llvmlite": "fast",
}  # library -> our extra

VARIABLE = "LLMBENCH_ENGINE"

_log = logging.getLogger(__name__)


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`num_blocks` None lets the engine choose from the model and the free memory; `threads`, of this rank, None uses
    every core; `step_time_s` is how long a step of the stub takes, other engines take the time they need. With
    `warm_up` an engine that compiles does so for the usual shapes before the first step. `model_cfg_path` is a predict
    YAML of MindFormers, for the engine of this name. `dtype` None is the engine's own; another one is to be among the
    `DTYPES` of its module.
    """

    num_blocks: int | None = None
    block_size: int = 16
    max_batch: int = 64
    threads: int | None = None
    step_time_s: float = 0.0
    warm_up: bool = False
    model_cfg_path: str | None = None
    dtype: str | None = None


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can hold: KV blocks, tokens in a block, and the longest sequence (prompt and answer)."""

    num_blocks: int
    block_size: int
    max_model_len: int


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """One step of n sequences with T new tokens together; prefill (whole or in pieces) and decode may be mixed.

    `token_ids` int32 [T]: the new tokens of each sequence, one sequence after the other. `query_lens` int32 [n]: how
    many of them each has. `context_lens` int32 [n]: tokens of each that are in the cache after this step, the new ones
    included, so that the first new one has position `context_lens - query_lens`. `block_tables` int32 [n, W]: block
    ids, what lies behind the last one needed is undefined. `wants_token` bool [n]: false for a prefill piece that is
    not the last. `sampling` SAMPLING [n]. `want_logits` asks for the row of every sequence that wants a token;
    `score_prompts` bool [n] for the rows of every new token of the sequences marked in it, None for no such sequence.
    """

    token_ids: Int32
    query_lens: Int32
    context_lens: Int32
    block_tables: Int32
    wants_token: npt.NDArray[np.bool_]
    sampling: npt.NDArray[np.void]
    want_logits: bool = False
    score_prompts: npt.NDArray[np.bool_] | None = None


class StepResult(msgspec.Struct, frozen=True, kw_only=True):
    """`token_ids` int32 [n] (-1 where none was wanted), `chosen_logits` float32 [n] (raw logit of that token).

    `logits` float32 [m, vocab]: of the m sequences that wanted a token, in order, when asked for; None else.
    `prompt_logits`: float32 [query_len, vocab] for each sequence in `score_prompts`, in order. Later steps write
    to none of these arrays.
    """

    token_ids: Int32
    chosen_logits: Float32
    logits: Float32 | None = None
    prompt_logits: tuple[Float32, ...] = ()


class Engine(Protocol):
    """What the agent drives."""

    name: str
    dtype: str
    """What the logits are computed in, such as "float32"; what of the model is of 8 bits, its config says."""
    compiled_s: float
    """Seconds that the first runs of compiled graphs have taken so far; 0 for an engine that compiles nothing."""

    def capacity(self) -> Capacity:
        """What this engine can hold."""
        ...

    def step(self, batch: Batch) -> StepResult:
        """Compute one step and write the KV cache."""
        ...

    def close(self) -> None:
        """Give back what is held; calling it twice is fine."""
        ...


Watcher: TypeAlias = Callable[[str, Intp, Float32], None]
"""Is shown the name of a part, which of the step's new tokens, intp [m], and what the part gave for them, float32
[m, width]. What it writes there is what the engine goes on with."""


@runtime_checkable
class Watchable(Protocol):
    """An engine that can show what its layers compute, beside being an Engine."""

    def watch(self, watcher: Watcher | None) -> None:
        """Show the parts of every step from now on; None ends it. It is not for speed.

        The parts, in this order: "embedding"; for each layer "layers.0.attention" and "layers.0.mlp", the hidden state
        behind it (what was added to it, and what there was before); "norm", the normalised hidden state; "lm_head", the
        logits. A part may come in pieces, each of other tokens. From the last layer's attention on, it may be only
        those tokens whose logits are wanted.
        """
        ...


class Group(Protocol):
    """The processes that hold one model together, as one of them sees it.

    Every rank takes each step with the same Batch, but for `want_logits`, and must come to the same exchanges in the
    same order with arrays of the same shape. What rank 0 returns counts; the other ranks' StepResult is not looked at.
    """

    rank: int
    """0 to size - 1."""
    size: int
    """How many ranks there are, at least 2."""

    def all_reduce(self, array: Float32) -> Float32:
        """The sum over all ranks, the same bits at each; `array` is given up for it."""
        ...

    def gather(self, array: Float32) -> Float32 | None:
        """float32 [size, ...] at rank 0, every rank's array in their order; None at the others."""
        ...


def choose(num_ranks: int = 1, dtype: str | None = None, kv_cache: str | None = None) -> str:
    """The engine of those who name none: numba_llama where it can be had and is quick, else numpy_llama.

    The log says which, and why. The environment may name another one.
    """
    if asked := os.environ.get(VARIABLE):
        return asked
    missing = _why_not_numba(num_ranks, dtype, kv_cache)
    name = "numpy_llama" if missing else "numba_llama"
    _log.info("engine %s: %s", name, missing or "numba is installed, and this processor has the instructions for it")
    return name


def _why_not_numba(num_ranks: int, dtype: str | None, kv_cache: str | None) -> str:
    """What is in the way of numba_llama, "" for nothing."""
    if num_ranks > 1:
        return f"of {num_ranks} ranks, and numba_llama runs on one"
    if dtype not in (None, "float32"):
        return f"numba_llama has no {dtype}"
    if kv_cache is not None:
        return f"numba_llama has no {kv_cache} cache"
    if missing := native.why_not():
        return missing
    found = importlib.import_module("llmbench.native.isa").ISA
    return "" if found.quick else f"numba_llama is not quick with the instructions {found.name!r}, all there are here"


def get(name: str | None, model: Model, settings: EngineSettings, group: Group | None = None) -> Engine:
    """An engine by name, its weights loaded; with a group, the part that this rank holds. None chooses one.

    Raises InputError for an unknown engine, one that cannot run here, not on several ranks, or not in the dtype that
    the settings ask for; NotInstalled, which is one too, when it needs a library that is not there.
    """
    if name is None:
        name = choose(1 if group is None else group.size, settings.dtype, model.config.kv_cache)
    try:
        return _made(name, model, settings, group)
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in _EXTRAS:
            raise
        raise NotInstalled(
            f"engine {name}: {library} is not installed; pip install 'llmbench[{_EXTRAS[library]}]'"
        ) from error


def _made(name: str, model: Model, settings: EngineSettings, group: Group | None) -> Engine:
    module = plugins.load("engines", name)  # which may import its library, or leave that to the factory
    if group is not None and not hasattr(module, "sharded"):
        raise InputError(f"engine {name}: it runs on one rank only, {group.size} were asked for")
    dtypes = vars(module).get("DTYPES", ())
    if settings.dtype is not None and (group is not None or settings.dtype not in dtypes):
        known = f"on one rank it has {', '.join(dtypes)}" if dtypes else "it has its own only"
        raise InputError(f"engine {name}: dtype {settings.dtype!r}: {known}")
    engine: Engine = module.engine(model, settings) if group is None else module.sharded(model, settings, group)
    return engine


def watchable(engine: Engine) -> Watchable:
    """The engine as one that shows what its layers compute. Raises InputError when it does not."""
    if not isinstance(engine, Watchable):
        raise InputError(
            f"engine {engine.name}: it does not show what its layers compute; "
            "numpy_llama, numba_llama and mindspore_llama do"
        )
    return engine
