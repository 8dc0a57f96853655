"""MindFormers' own LlamaForCausalLM, an independent reference for the other engines: nothing of its model is ours.

There is no paged attention on the CPU, so the cache holds token ids instead of keys and values: each step computes its
sequences whole, from the ids in their blocks. Slow, and right wherever the blocks are shared, moved or computed again.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmbench import config as files
from llmbench.engines import Batch, Capacity, EngineSettings, StepResult
from llmbench.engines import _mindspore_home as home
from llmbench.engines import _step as step
from llmbench.errors import ConfigError, InputError, ServingError
from llmbench.weights.config import ModelConfig
from llmbench.weights.model import Model

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

_LONGEST = 4096  # tokens, unless the YAML says otherwise: MindFormers' mask takes the square of it
_SHORTEST = 32
_WARM = 256  # graphs for longer sequences are compiled when they are needed
_DTYPES = ("compute_dtype", "layernorm_compute_type", "softmax_compute_type", "rotary_dtype", "param_init_type")
# Where MindFormers would take an operator that the CPU does not have, and the setting by which it takes plain ones:
# RmsNorm; a batched product of unequal ranks in the rotary embedding; and 16-bit products, which are emulated.
_ON_CPU: dict[str, Any] = {
    "fused_rms_norm": False,
    "use_rope_slice": True,
    "use_flash_attention": False,
} | dict.fromkeys(_DTYPES, "float32")

_log = logging.getLogger(__name__)


class Mindformers:
    """The engine; its cache is int32 [blocks * block_size] token ids."""

    name = "mindformers"

    def __init__(self, model: Model, settings: EngineSettings) -> None:
        fields = model_fields(model.config, settings.model_cfg_path)
        self._block_size = settings.block_size
        self._vocab_size = model.config.vocab_size
        longest = min(model.config.max_positions, fields["seq_length"])
        per_sequence = -(-longest // settings.block_size)
        self._num_blocks = settings.num_blocks or settings.max_batch * per_sequence
        self._max_model_len = min(longest, self._num_blocks * settings.block_size)
        fields["seq_length"] = self._max_model_len
        fields["max_position_embedding"] = max(self._max_model_len, model.config.max_positions)
        self._network, self.dtype = _build(model, fields)
        self._ids: Int32 = np.zeros(self._num_blocks * settings.block_size, np.int32)
        self._compiled: set[int] = set()
        self.compiled_s = 0.0
        if settings.warm_up:
            self._warm_up()

    def capacity(self) -> Capacity:
        """What this engine can hold."""
        return Capacity(num_blocks=self._num_blocks, block_size=self._block_size, max_model_len=self._max_model_len)

    def step(self, batch: Batch) -> StepResult:
        """Compute one step and write the token ids."""
        step.check(batch, self._max_model_len, self._vocab_size)
        slots = [self._slots(batch, i) for i in range(len(batch.query_lens))]
        ends = np.cumsum(batch.query_lens)
        for i, (end, query_len) in enumerate(zip(ends.tolist(), batch.query_lens.tolist(), strict=True)):
            self._ids[slots[i][-query_len:]] = batch.token_ids[end - query_len : end]
        rows = step.logit_rows(batch)
        logits = np.empty((len(rows), self._vocab_size), np.float32)
        for i, (end, query_len) in enumerate(zip(ends.tolist(), batch.query_lens.tolist(), strict=True)):
            wanted = (rows >= end - query_len) & (rows < end)
            if wanted.any():
                found = self._run(self._ids[slots[i]])
                logits[wanted] = found[rows[wanted] - end]  # the last token of a step is the last of its sequence
        return step.result(batch, logits)

    def close(self) -> None:
        """Give back the weights."""
        self._network = None

    def _slots(self, batch: Batch, i: int) -> npt.NDArray[np.intp]:
        """Where all tokens of a sequence are."""
        positions = np.arange(batch.context_lens[i], dtype=np.intp)
        blocks = batch.block_tables[i, positions // self._block_size].astype(np.intp)
        slots: npt.NDArray[np.intp] = blocks * self._block_size + positions % self._block_size
        return slots

    def _run(self, ids: Int32) -> Float32:
        """The logits of a whole sequence, float32 [len, vocab]; it is padded behind its end, which nothing looks at."""
        import mindspore

        length = min(max(_SHORTEST, 1 << (len(ids) - 1).bit_length()), self._max_model_len)
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(ids)] = ids
        start = time.perf_counter()
        try:
            found = self._network(mindspore.Tensor(padded))
        except (RuntimeError, ValueError, TypeError) as error:  # what MindSpore raises
            raise ServingError(f"mindformers: {home.reason(error)}") from error
        logits: Float32 = (found[0] if isinstance(found, tuple) else found).asnumpy()
        if length not in self._compiled:
            self._compiled.add(length)
            took_s = time.perf_counter() - start
            self.compiled_s += took_s
            _log.info("compiled sequences of up to %d tokens in %.1f s", length, took_s)
        return logits.reshape(length, -1)[: len(ids)]

    def _warm_up(self) -> None:
        """Compile the graphs of short sequences."""
        lengths = [_SHORTEST << i for i in range((_WARM // _SHORTEST).bit_length())]
        for i, length in enumerate(lengths, 1):
            _log.info("warming up: graph %d of %d", i, len(lengths))
            self._run(np.zeros(min(length, self._max_model_len), np.int32))


def engine(model: Model, settings: EngineSettings) -> Mindformers:
    """Load a model. Raises InputError when it does not fit into the free memory or MindFormers cannot express it,
    ConfigError for a predict YAML that is wrong or of another model.
    """
    where = home.start(settings.threads)
    step.check_memory(model)
    with _silent():
        import mindformers
    _log.info("MindFormers %s; what it logs is in %s", mindformers.__version__, where / "output")
    return Mindformers(model, settings)


def model_fields(config: ModelConfig, path: str | None) -> dict[str, Any]:
    """The keyword arguments of MindFormers' LlamaConfig: the shape is the model's, the rest is the YAML's.

    Raises InputError for a model that MindFormers' Llama is not, ConfigError for a YAML of another shape.
    """
    if config.head_dim * config.num_heads != config.hidden_size:
        raise InputError(
            f"engine mindformers: its heads have hidden_size / num_heads = {config.hidden_size // config.num_heads}"
            f" elements, those of this model {config.head_dim}"
        )
    shape = {
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "theta": config.rope_theta,
        "qkv_has_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_embeddings,
    }
    given = _read(path) if path else {}
    for key, value in shape.items():
        if given.get(key, value) not in (value, None):
            raise ConfigError(f"{path}: model.model_config.{key}: {given[key]!r}, but the model has {value!r}")
    own = {
        "batch_size": 1,
        "seq_length": given.get("seq_length", _LONGEST),
        "use_past": False,  # sequences are computed whole
        "is_dynamic": True,  # the mask is cut to their length
        "pad_token_id": -1,  # padding is behind the end; an id in a prompt that is hidden would be another model
        "checkpoint_name_or_path": "",  # the weights are those of --model
    }
    return given | shape | own


def _read(path: str) -> dict[str, Any]:
    """The model_config of a predict YAML. Raises ConfigError."""
    found = files.read(Path(path)).get("model")
    fields = found.get("model_config") if isinstance(found, dict) else None
    if not isinstance(fields, dict):
        raise ConfigError(f"{path}: model.model_config: this block of a MindFormers predict YAML is missing")
    if fields.get("type", "LlamaConfig") != "LlamaConfig":
        raise ConfigError(f"{path}: model.model_config.type: only LlamaConfig works here, got {fields['type']!r}")
    if not isinstance(fields.get("seq_length", 1), int) or fields.get("seq_length", 1) < 1:
        raise ConfigError(f"{path}: model.model_config.seq_length: must be a whole number above 0")
    return {key: value for key, value in fields.items() if key != "type"}


def _build(model: Model, fields: dict[str, Any]) -> tuple[Any, str]:
    """MindFormers' network with the weights of a model, and the dtype it computes in."""
    import mindspore
    from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

    if mindspore.get_context("device_target") == "CPU":
        _log.info("on the CPU MindFormers runs with %s", ", ".join(f"{k}: {v}" for k, v in _ON_CPU.items()))
        fields = fields | _ON_CPU
    try:
        network = LlamaForCausalLM(LlamaConfig(**fields))
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"model.model_config: MindFormers: {home.reason(error)}") from error
    network.set_train(False)
    parameters = {parameter.name: parameter for parameter in network.get_parameters()}
    for name in model.names():
        values, parameter = model.tensor(name), parameters.pop(LlamaForCausalLM.convert_name(name), None)
        if parameter is not None:
            parameter.set_data(mindspore.Tensor(values, parameter.dtype))
        elif values.any():  # a W8A8 linear has a bias, which is zeros where the float model has none
            raise InputError(f"engine mindformers: its Llama has no {name}; --engine mindspore_llama has it")
    if parameters:
        raise InputError(f"engine mindformers: the model has no weights for {', '.join(parameters)}")
    return network, str(fields.get("compute_dtype", "float16"))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """While MindFormers is imported and sets up its logger, which writes to stdout; its files are left to it."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
        for name in logging.root.manager.loggerDict:
            logger = logging.getLogger(name)
            for handler in [handler for handler in logger.handlers if getattr(handler, "stream", None) is nowhere]:
                logger.removeHandler(handler)
