"""The YAML of the contest's llm-serving, read into our settings.

Every key is honoured, or it is named in a note with the reason, or the file is refused: none is silently dead. Values
are as the original meant them where its code did something else; such places say so.
"""

from typing import Any

from llmbench.serving._foreign import ForeignFile

_BLOCKS = ("model_config", "serving_config", "tokenizer", "basic_inputs", "extra_inputs", "warmup_inputs")
_REQUIRED = (
    "model_config.model_name",
    "model_config.end_token",
    "model_config.vocab_size",
    "model_config.prefill_batch_size",
    "model_config.decode_batch_size",
    "serving_config.agent_ports",
    "serving_config.server_port",
)

_UNUSED = {
    "model_config.zactivate_len": "KV lengths are not bucketed by this engine",
    "model_config.model_type": "only the ge backend of the original reads it",
    "model_config.seq_type": "nothing is padded here",
    "model_config.batch_waiting_time": "the original never read it",
    "model_config.decode_batch_waiting_time": "the original never read it",
    "model_config.current_index": "the original's kbk backend ignored it",
    "model_config.model_path": "graphs of the ge backend are not loaded",
    "model_config.backend": "the engine is chosen with `engine`",
    "model_config.vocab_size": "the model's own vocabulary is used",
    "serving_config.server_ip": "the original never read it; bind elsewhere with --host",
    "serving_config.start_device_id": "this engine runs on the CPU",
    "serving_config.prefill_batch_waiting_time": "prompts are batched without waiting",
    "serving_config.decode_batch_waiting_time": "the original never used it",
    "pa_config.decode_seq_length": "block tables are as wide as the longest sequence",
    "pa_config.": "page attention is off in this file",
    "serving_config.enable_host_post_sampling": "sampling always happens at the agent's host",
    "basic_inputs.type": "the engine makes its own inputs",
    "extra_inputs.type": "the engine makes its own inputs",
    "warmup_inputs.type": "the engine makes its own inputs",
}


def recognise(values: dict[str, Any]) -> bool:
    """Whether this is an llm-serving file rather than one of ours."""
    return "model_config" in values or "serving_config" in values


def translate(values: dict[str, Any], source: str, model: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our settings, and a note for every key that changes nothing. `model` is what the user gave with --model.

    Raises ConfigError naming the key that is missing, unknown, or cannot be honoured.
    """
    file = ForeignFile(values, source)
    _check(file, values)
    if model is None:
        raise file.error(
            "model_config.model_cfg_path",
            "gives the settings of a MindFormers model, but not where its weights are: say what to serve with --model "
            "(embedded, random:llama2-7b, or a Hugging Face folder)",
        )
    agent_ip = file.get("serving_config.agent_ip", "localhost")
    agent_ports = file.integers("serving_config.agent_ports", [16002])
    ours: dict[str, Any] = {
        "model": model,
        "model_cfg_path": _model_cfg_path(file),
        "model_name": file.get("model_config.model_name", ""),
        "port": file.get("serving_config.server_port", 8835),
        "agent_host": "127.0.0.1" if agent_ip == "localhost" else agent_ip,
        "agent_ports": agent_ports,
        "ranks": len(agent_ports),  # one agent for each, as in the original
        "pad_id": file.get("model_config.pad_token_id", 0),
        "eos_ids": [file.get("model_config.end_token", 2)],
        # told on the model-info route and used for nothing else, as in the original
        "model_dtype": file.get("model_config.model_dtype", "DataType.FLOAT32"),
        "tokenizer": file.get("tokenizer.vocab_file", "") or None,
        "limits": _limits(file),
        "kv_cache": _kv_cache(file),
    }
    return ours, file.finish(_UNUSED)


def _check(file: ForeignFile, values: dict[str, Any]) -> None:
    """What the original checked: blocks and keys that must be there."""
    for block in _BLOCKS:
        if block not in values:
            raise file.error(block, "this block of an llm-serving file is missing")
    for block, fields in values.items():
        if not isinstance(fields, dict):
            raise file.error(block, f"expected a block of keys and values, got {fields!r}")
    for key in _REQUIRED:
        file.require(key)
    file.must_be("tokenizer.type", "LlamaTokenizer", "the vocabulary is read with sentencepiece")


def _model_cfg_path(file: ForeignFile) -> str | None:
    path = file.get("model_config.model_cfg_path", "")
    if path:
        file.note(
            "model_config.model_cfg_path",
            "is for the engine mindformers only: the others take all of a model from --model",
        )
    return path or None


def _limits(file: ForeignFile) -> dict[str, Any]:
    decode_batch = file.integers("model_config.decode_batch_size", [1])
    if len(decode_batch) > 1:
        file.note("model_config.decode_batch_size", f"has several values: {max(decode_batch)} is used for every step")
    seq_length = file.integers("model_config.seq_length", [4096])
    # the original admits a prompt only when prompt + new tokens stay *below* the limit
    longest = min(max(seq_length) - 1, file.get("model_config.max_generate_length", max(seq_length)))
    prefill_batch = max(file.integers("model_config.prefill_batch_size", [1]))
    if file.get("model_config.page_attention", False):
        file.note("model_config.prefill_batch_size", "has no effect: with page attention the original ignored it")
        prefill_batch = 1
    return {
        "max_batch": max(decode_batch),
        "max_tokens_per_step": max(512, max(decode_batch), prefill_batch * 64),
        "max_model_len": longest,
        "batching": "static" if file.get("model_config.batching_strategy", "continuous") == "static" else "continuous",
    }


def _kv_cache(file: ForeignFile) -> dict[str, Any]:
    if not file.get("model_config.page_attention", False):
        file.note("model_config.page_attention", "false asks for one slot per sequence: the cache is paged anyway")
        return {}
    # block 0 of the original's pool is reserved for padding slots, which do not exist here
    return {
        "num_blocks": file.get("pa_config.num_blocks", 224) - 1,
        "block_size": file.get("pa_config.block_size", 128),
    }
