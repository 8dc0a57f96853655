"""The YAML of the contest's llm-serving, read into our settings.

Every key is honoured, or it is named in a note with the reason, or the file is refused: none is silently dead. Values
are as the original meant them where its code did something else; such places say so.
"""

from typing import Any

from llmbench.errors import ConfigError

_BLOCKS = ("model_config", "serving_config", "tokenizer", "basic_inputs", "extra_inputs", "warmup_inputs")
_REQUIRED = {
    "model_config": ("model_name", "end_token", "vocab_size", "prefill_batch_size", "decode_batch_size"),
    "serving_config": ("agent_ports", "server_port"),
}

_UNUSED = {
    "model_config.zactivate_len": "KV lengths are not bucketed by this engine",
    "model_config.model_type": "only the ge backend of the original reads it",
    "model_config.seq_type": "nothing is padded here",
    "model_config.batch_waiting_time": "the original never read it",
    "model_config.decode_batch_waiting_time": "the original never read it",
    "model_config.current_index": "the original's kbk backend ignored it",
    "model_config.model_path": "graphs of the ge backend are not loaded",
    "model_config.backend": "the engine is chosen with `engine`",
    "model_config.model_cfg_path": "the model is chosen with --model",
    "model_config.vocab_size": "the model's own vocabulary is used",
    "serving_config.server_ip": "the original never read it; bind elsewhere with --host",
    "serving_config.start_device_id": "this engine runs on the CPU",
    "serving_config.prefill_batch_waiting_time": "prompts are batched without waiting",
    "serving_config.decode_batch_waiting_time": "the original never used it",
    "serving_config.enable_host_post_sampling": "sampling always happens at the agent's host",
    "basic_inputs.type": "the engine makes its own inputs",
    "extra_inputs.type": "the engine makes its own inputs",
    "warmup_inputs.type": "the engine makes its own inputs",
}
_READ = {
    "model_config": (
        "model_name", "max_generate_length", "seq_length", "prefill_batch_size", "decode_batch_size",
        "batching_strategy", "page_attention", "pad_token_id", "end_token", "model_dtype",
    ),
    "serving_config": ("agent_ports", "agent_ip", "server_port"),
    "pa_config": ("num_blocks", "block_size", "decode_seq_length"),
    "tokenizer": ("type", "vocab_file"),
    "basic_inputs": (),
    "extra_inputs": (),
    "warmup_inputs": (),
}  # fmt: skip

_TOKENIZER = "LlamaTokenizer"


def recognise(values: dict[str, Any]) -> bool:
    """Whether this is an llm-serving file rather than one of ours."""
    return "model_config" in values or "serving_config" in values


def translate(values: dict[str, Any], source: str, model: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our settings, and a note for every key that changes nothing. `model` is what the user gave with --model.

    Raises ConfigError naming the key that is missing, unknown, or cannot be honoured.
    """
    file = _File(values, source)
    file.check()
    ours: dict[str, Any] = {
        "model_name": file.text("model_config.model_name"),
        "port": file.integer("serving_config.server_port", 8835),
        "agent_host": _loopback(file.text("serving_config.agent_ip", "localhost")),
        "agent_port": _agent_port(file),
        "pad_id": file.integer("model_config.pad_token_id", 0),
        "eos_ids": [file.integer("model_config.end_token")],
        "model_dtype": file.text("model_config.model_dtype") or None,  # for the model-info route, as in the original
        "limits": _limits(file),
        "kv_cache": _kv_cache(file),
    }
    if model is None:
        raise file.error(
            "model_config.model_cfg_path",
            "names a MindFormers model, which this version does not load; say what to serve with --model "
            "(embedded, random:llama2-7b, or a Hugging Face folder)",
        )
    kind = file.text("tokenizer.type", _TOKENIZER)
    if kind != _TOKENIZER:
        raise file.error("tokenizer.type", f"only {_TOKENIZER}, a sentencepiece tokenizer.model, is read; got {kind!r}")
    vocab_file = file.get("tokenizer.vocab_file")
    if vocab_file:
        ours["tokenizer"] = str(vocab_file)
    return ours, tuple(file.notes)


class _File:
    """The mapping, read by dotted key, with errors that name the file and the key."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self._values = values
        self._source = source
        self.notes: list[str] = []

    def error(self, key: str, message: str) -> ConfigError:
        return ConfigError(f"{self._source}: {key}: {message}")

    def check(self) -> None:
        """Blocks and keys: nothing missing, nothing unknown; notes for what is without effect."""
        for block in _BLOCKS:
            if not isinstance(self._values.get(block), dict):
                raise self.error(block, "this block of an llm-serving file is missing")
        for block, keys in _REQUIRED.items():
            for key in keys:
                if self._values[block].get(key) in (None, []):
                    raise self.error(f"{block}.{key}", "is required and must not be empty")
        for block, fields in self._values.items():
            if block not in _READ:
                raise self.error(block, f"unknown block; known: {', '.join(_READ)}")
            if not isinstance(fields, dict | None):
                raise self.error(block, f"expected keys with values, found {fields!r}")
            for key in fields or {}:
                self._check_key(block, key)

    def _check_key(self, block: str, key: str) -> None:
        dotted = f"{block}.{key}"
        if dotted in _UNUSED:
            self.notes.append(f"{dotted} has no effect: {_UNUSED[dotted]}")
        elif key not in _READ[block]:
            raise self.error(dotted, "unknown key")

    def get(self, key: str, default: Any = None) -> Any:
        block, _, name = key.partition(".")
        value = (self._values.get(block) or {}).get(name)
        return default if value is None else value

    def given(self, block: str) -> list[str]:
        """The dotted keys of a block."""
        return [f"{block}.{key}" for key in self._values.get(block) or {}]

    def integer(self, key: str, default: int | None = None) -> Any:
        value = self.get(key, default)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise self.error(key, f"expected a whole number, got {value!r}")
        return value

    def integers(self, key: str, default: list[int]) -> list[int]:
        value = self.get(key, default)
        if not isinstance(value, list) or not all(type(item) is int and item > 0 for item in value) or not value:
            raise self.error(key, f"expected a list of whole numbers above 0, got {value!r}")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"expected text, got {value!r}")
        return value


def _limits(file: _File) -> dict[str, Any]:
    decode_batch = file.integers("model_config.decode_batch_size", [1])
    if len(decode_batch) > 1:
        file.notes.append(f"model_config.decode_batch_size: the largest, {max(decode_batch)}, is used for every step")
    seq_length = file.integers("model_config.seq_length", [4096])
    # the original admits a prompt only when prompt + new tokens stay *below* the limit
    limit = min(max(seq_length) - 1, file.integer("model_config.max_generate_length", max(seq_length)))
    strategy = file.text("model_config.batching_strategy", "continuous")
    paged = file.get("model_config.page_attention", False)
    prefill_batch = max(file.integers("model_config.prefill_batch_size", [1]))
    if paged:
        file.notes.append("model_config.prefill_batch_size has no effect: with page attention the original ignored it")
        prefill_batch = 1
    return {
        "max_batch": max(decode_batch),
        "max_tokens_per_step": max(512, max(decode_batch), prefill_batch * 64),
        "max_model_len": limit,
        "batching": "static" if strategy == "static" else "continuous",
    }


def _kv_cache(file: _File) -> dict[str, Any]:
    if not file.get("model_config.page_attention", False):
        file.notes.append(
            "model_config.page_attention: false asks for one slot per sequence; the cache is paged anyway"
        )
        file.notes += [f"{key} has no effect: model_config.page_attention is false" for key in file.given("pa_config")]
        return {}
    if file.get("pa_config.decode_seq_length") is not None:
        file.notes.append("pa_config.decode_seq_length has no effect: block tables are as wide as the longest sequence")
    # block 0 of the original's pool is reserved for padding slots, which do not exist here
    return {
        "num_blocks": file.integer("pa_config.num_blocks", 224) - 1,
        "block_size": file.integer("pa_config.block_size", 128),
    }


def _agent_port(file: _File) -> int:
    ports = file.integers("serving_config.agent_ports", [16002])
    if len(ports) > 1:
        raise file.error("serving_config.agent_ports", f"asks for {len(ports)} ranks; this version runs one agent")
    return ports[0]


def _loopback(name: str) -> str:
    return "127.0.0.1" if name == "localhost" else name
