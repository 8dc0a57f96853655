"""What `llmbench serve` is told: one strict schema, with defaults that serve the embedded model."""

from pathlib import Path
from typing import Any

import msgspec

from llmbench import config
from llmbench.errors import ConfigError
from llmbench.link.frames import CaptureTier
from llmbench.serving import llm_serving, mindie
from llmbench.serving.scheduler import Limits
from llmbench.serving.stubs import Level


class KvCache(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The paged KV cache; `num_blocks` None lets the engine choose from model and memory."""

    num_blocks: int | None = None
    block_size: int = 16


class CaptureRows(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logit rows written while serving, into `folder`: where the index of the last input token divides by `every`.

    `tier` is how much of a row is kept: fp (a fingerprint), topk (its largest values), full16, full32, or contest (the
    contest's .npy files). `every` None takes every row, or every 100th for the contest. But for the contest's files, a
    share of `rate` is taken, which nobody can foresee without the `seed`. `force` is a base, a store or the folder of a
    run that has one: its requests get its tokens here, whatever the engine would choose.
    """

    folder: str
    every: int | None = None
    tier: CaptureTier = "topk"
    rate: float = 1.0
    seed: str = ""
    force: str = ""


class Http(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client may do.

    `max_body_bytes` of a request, and `body_timeout_s` until it is there; `request_timeout_s` from its arrival to the
    end of its answer; a client that takes nothing of its answer for `idle_timeout_s` is dropped; `drain_s` is what
    answers under way get when the server is told to stop. `max_connections` None sets no limit. With an `api_key`
    every route but /health wants `Authorization: Bearer KEY`.
    """

    max_body_bytes: int = 16 << 20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 3600.0
    idle_timeout_s: float = 60.0
    drain_s: float = 5.0
    max_connections: int | None = None
    api_key: str | None = None


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bundled stack.

    `model` is `embedded`, `random:PRESET` or a folder; `engine` None takes numba_llama where it is installed and quick,
    else numpy_llama; `tokenizer` is used by models that bring none; `pad_id` inside
    a prompt is refused, as the contest's stack did; `eos_ids` None takes the model's; `model_dtype` is what the info
    routes say, None for the engine's; `threads` of the engine, None for all cores. `ranks` agents hold the model
    together, each a part of it, and share the threads; `agent_ports` are for the first of them, 0 or none
    takes a free one; `bind_cpu` gives each cores of its own, see link.binding.
    `dialects` holds the options of HTTP dialects by name. `stub` replaces a part of the stack, see serving.stubs, by
    one that takes `step_time_s` for a step and nothing else. `model_cfg_path` is a predict YAML of MindFormers, which
    the engine `mindformers` reads.
    """

    model: str = "embedded"
    engine: str | None = None
    model_cfg_path: str | None = None
    tokenizer: str | None = None
    model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8835
    agent_host: str = "127.0.0.1"
    agent_ports: tuple[int, ...] = ()
    ranks: int = 1
    bind_cpu: bool = False
    threads: int | None = None
    pad_id: int | None = 0
    eos_ids: tuple[int, ...] | None = None
    model_dtype: str | None = None
    http: Http = Http()
    limits: Limits = Limits()
    kv_cache: KvCache = KvCache()
    dialects: dict[str, dict[str, Any]] = {}
    capture: CaptureRows | None = None
    stub: Level = "none"
    step_time_s: float = 0.0


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """A settings file and what it says about itself that a user should know."""

    config: ServeConfig
    notes: tuple[str, ...] = ()


def load(path: Path | None, **overrides: Any) -> Loaded:
    """Settings from a file and flags, which win; None stands for "not given".

    The file is ours, an llm-serving YAML, or a MindIE config.json.

    Raises ConfigError `file: key: what is wrong`.
    """
    values = config.read(path) if path else {}
    notes: tuple[str, ...] = ()
    given = {key: value for key, value in overrides.items() if value is not None}
    for foreign in (llm_serving, mindie):
        if foreign.recognise(values):
            values, notes = foreign.translate(values, str(path), model=given.get("model"))
            break
    built = config.build(_merge(values, given), ServeConfig, str(path or "flags"))
    _check(built, str(path or "flags"))
    return Loaded(config=built, notes=notes)


def _merge(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Overrides on top, mapping by mapping."""
    merged = dict(values)
    for key, value in overrides.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def _check(built: ServeConfig, source: str) -> None:
    """What the types cannot say."""
    limits, cache = built.limits, built.kv_cache
    positive = {
        "limits.max_batch": limits.max_batch,
        "limits.max_waiting": limits.max_waiting,
        "limits.max_model_len": limits.max_model_len,
        "limits.max_prompt_len": limits.max_prompt_len,
        "limits.max_new_tokens": limits.max_new_tokens,
        "kv_cache.block_size": cache.block_size,
        "kv_cache.num_blocks": cache.num_blocks,
        "threads": built.threads,
        "ranks": built.ranks,
        "http.max_body_bytes": built.http.max_body_bytes,
        "http.max_connections": built.http.max_connections,
        "capture.every": built.capture.every if built.capture else None,
    }
    for key, value in positive.items():
        if value is not None and value < 1:
            raise ConfigError(f"{source}: {key}: must be at least 1, got {value}")
    if not built.step_time_s >= 0:
        raise ConfigError(f"{source}: step_time_s: must be 0 or more, got {built.step_time_s:g}")
    if built.capture is not None and not 0 <= built.capture.rate <= 1:
        raise ConfigError(f"{source}: capture.rate: must be from 0 to 1, got {built.capture.rate}")
    if built.capture is not None and built.capture.force and built.capture.tier == "contest":
        raise ConfigError(
            f"{source}: capture.force: contest files do not say that tokens were forced; choose another capture.tier"
        )
    for key in ("body_timeout_s", "request_timeout_s", "idle_timeout_s"):
        if not getattr(built.http, key) > 0:
            raise ConfigError(f"{source}: http.{key}: must be above 0, got {getattr(built.http, key)}")
    if limits.max_tokens_per_step < limits.max_batch:
        raise ConfigError(
            f"{source}: limits.max_tokens_per_step: must be at least limits.max_batch ({limits.max_batch}), "
            f"or running sequences would wait for each other; got {limits.max_tokens_per_step}"
        )
    for key, ports in (("port", (built.port,)), ("agent_ports", built.agent_ports)):
        for port in ports:
            if not 0 <= port <= 65_535:
                raise ConfigError(f"{source}: {key}: must be between 0 and 65535, got {port}")
    if built.ranks > 1 and built.stub in ("link", "http"):
        raise ConfigError(f"{source}: ranks: there are no agents with stub {built.stub}; got {built.ranks}")
