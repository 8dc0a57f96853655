"""MindIE's `config.json`, read into our settings: every key is honoured, named in a note, or refused.

The management and metrics routes are served on the business port: one server, one port.
"""

from typing import Any

from llmbench.serving._foreign import ForeignFile

_DEPLOY = "BackendConfig.ModelDeployConfig"
_MODEL = f"{_DEPLOY}.ModelConfig"
_SCHEDULE = "BackendConfig.ScheduleConfig"

_NO_TLS = "this server speaks plain HTTP; put a TLS proxy in front of it"
_ONE_NODE = "this server runs on one node"
_ONE_PORT = "its routes are served on ServerConfig.port"
_NO_ESTIMATE = "steps mix prefill and decode, so that nothing has to be estimated"

# keys, or how several begin, and why they change nothing
_UNUSED = {
    "Version": "it says which MindIE wrote the file",
    "LogConfig": "log lines go to stderr",
    "ServerConfig.management": _ONE_PORT,
    "ServerConfig.metricsPort": _ONE_PORT,
    "ServerConfig.pd": _ONE_NODE,
    "ServerConfig.inter": _ONE_NODE,
    "ServerConfig.tls": _NO_TLS,
    "ServerConfig.kmcKsf": _NO_TLS,
    "ServerConfig.tokenTimeout": "the time-out is for the whole answer, ServerConfig.e2eTimeout",
    "ServerConfig.openAiSupport": "the OpenAI routes take vLLM's fields",
    "ServerConfig.allowAllZeroIpListening": "ipAddress is taken as it is",
    "BackendConfig.backendName": "there is one backend",
    "BackendConfig.npuDeviceIds": "this engine runs on the CPU",
    "BackendConfig.tokenizerProcessNumber": "the server tokenises by itself",
    "BackendConfig.multiNodesInferPort": _ONE_NODE,
    "BackendConfig.interNode": _ONE_NODE,
    f"{_MODEL}.cpuMemSize": "requests that give way are computed again, not swapped",
    f"{_MODEL}.npuMemSize": "the engine sizes its KV cache by the memory of this machine",
    f"{_MODEL}.backendType": "the engine is chosen with --engine",
    f"{_MODEL}.trustRemoteCode": "code of a model is never run",
    f"{_SCHEDULE}.templateType": "prefill and decode always share steps, as in Mix",
    f"{_SCHEDULE}.templateName": "there is one template",
    f"{_SCHEDULE}.maxPrefillBatchSize": "a step is bounded by its tokens, maxPrefillTokens",
    f"{_SCHEDULE}.prefillTimeMsPerReq": _NO_ESTIMATE,
    f"{_SCHEDULE}.decodeTimeMsPerReq": _NO_ESTIMATE,
    f"{_SCHEDULE}.supportSelectBatch": _NO_ESTIMATE,
    f"{_SCHEDULE}.maxPreemptCount": "a request that gives way is computed again, always",
    f"{_SCHEDULE}.maxQueueDelayMicroseconds": "a step never waits for more requests",
    f"{_SCHEDULE}.maxFirstTokenWaitTime": "decode is never held up by prompts",
}


def recognise(values: dict[str, Any]) -> bool:
    """Whether this is a MindIE file rather than one of ours."""
    return "ServerConfig" in values and "BackendConfig" in values


def translate(values: dict[str, Any], source: str, model: str | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our settings, and a note for every key that changes nothing. `model` is what the user gave with --model.

    Raises ConfigError naming the key that is missing, unknown, or cannot be honoured.
    """
    file = ForeignFile(values, source)
    _refuse(file)
    served = f"{_MODEL}.0"
    for key in ("modelWeightPath", "modelName"):
        file.require(f"{served}.{key}")
    weights = file.get(f"{served}.modelWeightPath", "")
    max_batch = file.get(f"{_SCHEDULE}.maxBatchSize", 200)
    ours: dict[str, Any] = {
        "model": weights if model is None else model,
        "model_name": file.get(f"{served}.modelName", ""),
        "host": file.get("ServerConfig.ipAddress", "127.0.0.1"),
        "port": file.get("ServerConfig.port", 1025),
        "http": {
            "max_connections": file.get("ServerConfig.maxLinkNum", 1000),
            "request_timeout_s": file.get("ServerConfig.e2eTimeout", 600.0),
        },
        "limits": {
            "max_batch": max_batch,
            "max_tokens_per_step": max(max_batch, file.get(f"{_SCHEDULE}.maxPrefillTokens", 8192)),
            "max_model_len": file.get(f"{_DEPLOY}.maxSeqLen", 2560),
            "max_prompt_len": file.get(f"{_DEPLOY}.maxInputTokenLen", 2048),
            "max_new_tokens": file.get(f"{_SCHEDULE}.maxIterTimes", 512),
        },
        "ranks": file.get(f"{served}.worldSize", 1),
        "kv_cache": {"block_size": file.get(f"{_SCHEDULE}.cacheBlockSize", 128)},
    }
    kind = file.get(f"{served}.modelInstanceType", "Standard")
    if kind not in ("Standard", "StandardMock"):
        raise file.error(f"{_MODEL}.modelInstanceType", f"expected Standard or StandardMock, got {kind!r}")
    if kind == "StandardMock":
        ours["engine"] = "stub"
    return ours, file.finish(_UNUSED)


def _refuse(file: ForeignFile) -> None:
    """What cannot be had here."""
    file.must_be("ServerConfig.httpsEnabled", False, _NO_TLS)
    file.must_be("ServerConfig.fullTextEnabled", False, "chunks carry what is new, not the text so far")
    file.must_be("ServerConfig.inferMode", "standard", "prefill and decode run on one server")
    file.must_be("BackendConfig.modelInstanceNumber", 1, "one server runs one instance")
    file.must_be("BackendConfig.multiNodesInferEnabled", False, _ONE_NODE)
    file.must_be(f"{_DEPLOY}.truncation", False, "a prompt that is too long is refused, never cut")
    file.must_be(f"{_SCHEDULE}.prefillPolicyType", 0, "the policy is first come, first served")
    file.must_be(f"{_SCHEDULE}.decodePolicyType", 0, "the policy is first come, first served")
