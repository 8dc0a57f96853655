"""What `llmbench serve` is told: our schema, flags over it, llm-serving YAML files and MindIE files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from llmbench.errors import ConfigError
from llmbench.serving import config
from llmbench.serving.config import CaptureRows, Http, KvCache, Loaded, ServeConfig
from llmbench.serving.scheduler import Limits

MINDIE_FILE = Path(__file__).parents[3] / "shared/data/mindie_config.json"
CONFIGS = Path(__file__).parents[2] / "configs" / "serve"

# The keys of the contest's llama_7b_kbk_pa_dyn.yaml, all that contest-stack.md, section 2, documents.
LLM_SERVING: dict[str, dict[str, Any]] = {
    "model_config": {
        "model_name": "llama_7b",
        "max_generate_length": 4096,
        "end_token": 2,
        "seq_length": [4096],
        "vocab_size": 32000,
        "prefill_batch_size": [1],
        "decode_batch_size": [128],
        "zactivate_len": [512, 1024, 2048, 4096],
        "model_type": "dyn",
        "seq_type": "static",
        "batch_waiting_time": 0.0,
        "decode_batch_waiting_time": 0.0,
        "batching_strategy": "continuous",
        "current_index": False,
        "page_attention": True,
        "model_dtype": "DataType.FLOAT32",
        "pad_token_id": 0,
        "backend": "kbk",
        "model_cfg_path": "predict_llama2_7b.yaml",
        "model_path": {"prefill_model": ["a.mindir"]},
    },
    "serving_config": {
        "agent_ports": [16002],
        "start_device_id": 0,
        "agent_ip": "localhost",
        "server_ip": "localhost",
        "server_port": 8835,
        "prefill_batch_waiting_time": 0.0,
        "decode_batch_waiting_time": 0.0,
        "enable_host_post_sampling": False,
    },
    "pa_config": {"num_blocks": 1024, "block_size": 16, "decode_seq_length": 4096},
    "tokenizer": {"type": "LlamaTokenizer", "vocab_file": "/models/tokenizer.model"},
    "basic_inputs": {"type": "LlamaBasicInputs"},
    "extra_inputs": {"type": "LlamaExtraInputs"},
    "warmup_inputs": {"type": "LlamaWarmupInputs"},
}
ANOTHER: dict[str, Any] = {  # a value that differs from the one above, for each key
    "model_config.model_name": "llama2_13b",
    "model_config.max_generate_length": 2048,
    "model_config.end_token": 7,
    "model_config.seq_length": [512, 1024],
    "model_config.prefill_batch_size": [32],
    "model_config.decode_batch_size": [16, 64],
    "model_config.batching_strategy": "static",
    "model_config.page_attention": False,
    "model_config.model_dtype": "DataType.FLOAT16",
    "model_config.pad_token_id": 3,
    "serving_config.agent_ports": [17000],
    "serving_config.agent_ip": "127.0.0.2",
    "serving_config.server_port": 9000,
    "pa_config.num_blocks": 2048,
    "pa_config.block_size": 32,
    "tokenizer.type": "WizardCoderTokenizer",
    "tokenizer.vocab_file": "/elsewhere/tokenizer.model",
}
KEYS = [f"{block}.{key}" for block, fields in LLM_SERVING.items() for key in fields]

Write = Callable[[Any], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_yaml(values: Any) -> Path:
        path = tmp_path / "serve.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return to_yaml


def contest(write: Write, changes: dict[str, Any] | None = None, without: str = "", **flags: Any) -> Loaded:
    """The contest's file with some keys changed or left out."""
    values = {block: dict(fields) for block, fields in LLM_SERVING.items()}
    for dotted, value in (changes or {}).items():
        block, _, key = dotted.partition(".")
        values.setdefault(block, {})[key] = value
    block, _, key = without.partition(".")
    if key:
        del values[block][key]
    elif block:
        del values[block]
    return config.load(write(values), **{"model": "random:llama2-7b,layers=1", **flags})


def refusal(load: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- ours -----------------------------------------------------------------------------------------------------------


def test_without_a_file_and_flags_the_defaults_hold() -> None:
    loaded = config.load(None, model=None, limits=None)
    assert loaded == Loaded(config=ServeConfig())
    assert (loaded.config.model, loaded.config.host, loaded.config.port) == ("embedded", "127.0.0.1", 8835)


def test_every_key_of_a_file_is_taken(write: Write) -> None:
    loaded = config.load(
        write(
            {
                "model": "random:tiny",
                "limits": {"max_batch": 4, "batching": "static", "max_model_len": 100},
                "kv_cache": {"num_blocks": 32, "block_size": 8},
                "dialects": {"contest": {"data_shape": "object"}},
                "capture": {"folder": "rows", "every": 5},
            }
        )
    )
    assert loaded.config == ServeConfig(
        model="random:tiny",
        limits=Limits(max_batch=4, batching="static", max_model_len=100),
        kv_cache=KvCache(num_blocks=32, block_size=8),
        dialects={"contest": {"data_shape": "object"}},
        capture=CaptureRows(folder="rows", every=5),
    )


def test_flags_win_over_the_file_key_by_key(write: Write) -> None:
    path = write(
        {
            "port": 1,
            "model": "random:tiny",
            "limits": {"max_batch": 4, "max_waiting": 9},
            "dialects": {"contest": {"data_shape": "object"}},
            "capture": {"folder": "rows"},
        }
    )
    loaded = config.load(
        path,
        port=2,
        model=None,
        limits={"max_batch": 8},
        dialects={"contest": {"drop_last_token": False}},
        capture={"every": 7},
    )
    assert loaded.config == ServeConfig(
        port=2,
        model="random:tiny",
        limits=Limits(max_batch=8, max_waiting=9),
        dialects={"contest": {"data_shape": "object", "drop_last_token": False}},
        capture=CaptureRows(folder="rows", every=7),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modle": "x"}, "modle: unknown key; did you mean 'model'?"),
        ({"limits": {"max_btach": 4}}, "limits.max_btach: unknown key; did you mean 'max_batch'?"),
        ({"kv_cache": {"blocksize": 4}}, "kv_cache.blocksize: unknown key; did you mean 'block_size'?"),
        ({"capture": {"every": 5}}, "capture: Object missing required field `folder`"),
        ({"capture": {"folder": "x", "evry": 5}}, "capture.evry: unknown key; did you mean 'every'?"),
        ({"limits": {"max_batch": "many"}}, "limits.max_batch: Expected `int`, got `str`"),
        ({"limits": {"max_batch": 0}}, "limits.max_batch: must be at least 1, got 0"),
        ({"limits": {"max_waiting": 0}}, "limits.max_waiting: must be at least 1, got 0"),
        ({"limits": {"max_model_len": 0}}, "limits.max_model_len: must be at least 1, got 0"),
        ({"limits": {"batching": "dynamic"}}, "limits.batching: Invalid enum value 'dynamic'"),
        ({"kv_cache": {"num_blocks": 0}}, "kv_cache.num_blocks: must be at least 1, got 0"),
        ({"kv_cache": {"block_size": -1}}, "kv_cache.block_size: must be at least 1, got -1"),
        ({"threads": 0}, "threads: must be at least 1, got 0"),
        ({"capture": {"folder": "x", "every": 0}}, "capture.every: must be at least 1, got 0"),
        (
            {"capture": {"folder": "x", "tier": "contest", "force": "b"}},
            "capture.force: contest files do not say that tokens were forced",
        ),
        ({"port": 65_536}, "port: must be between 0 and 65535, got 65536"),
        ({"ranks": 0}, "ranks: must be at least 1, got 0"),
        ({"ranks": 2, "stub": "link"}, "ranks: there are no agents with stub link; got 2"),
        ({"agent_ports": [-1]}, "agent_ports: must be between 0 and 65535, got -1"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_key(write: Write, values: dict[str, Any], message: str) -> None:
    path = write(values)
    assert refusal(lambda: config.load(path)).startswith(f"{path}: {message}")


def test_what_is_wrong_in_a_flag_is_named_too() -> None:
    assert refusal(lambda: config.load(None, port=70_000)) == "flags: port: must be between 0 and 65535, got 70000"


def test_a_step_must_have_room_for_a_token_of_every_running_sequence() -> None:
    message = refusal(lambda: config.load(None, limits={"max_batch": 600}))
    assert message.startswith("flags: limits.max_tokens_per_step: must be at least limits.max_batch (600)")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_settings_files_of_the_project_can_be_loaded(path: Path) -> None:
    assert config.load(path, model="random:llama2-7b,layers=1").config.model == "random:llama2-7b,layers=1"


def test_the_settings_file_of_the_embedded_model_says_what_the_defaults_are() -> None:
    assert config.load(CONFIGS / "embedded.yaml").config == ServeConfig(
        dialects={"contest": {"data_shape": "list", "drop_last_token": True}}
    )


# -- llm-serving ----------------------------------------------------------------------------------------------------


def test_the_contests_file_is_read_as_the_original_meant_it(write: Write) -> None:
    loaded = contest(write).config
    assert (loaded.model_name, loaded.model_dtype, loaded.pad_id, loaded.eos_ids) == (
        "llama_7b", "DataType.FLOAT32", 0, (2,),
    )  # fmt: skip
    assert (loaded.port, loaded.agent_host, loaded.agent_ports) == (8835, "127.0.0.1", (16002,))
    assert loaded.tokenizer == "/models/tokenizer.model"
    assert loaded.limits.max_batch == 128
    assert loaded.limits.batching == "continuous"
    # the original refuses prompt + new tokens >= seq_length[-1], so 4095 is the longest that runs
    assert loaded.limits.max_model_len == 4095
    # block 0 of the original is never handed out
    assert loaded.kv_cache == KvCache(num_blocks=1023, block_size=16)


def test_keys_that_are_left_out_take_the_defaults_of_the_original(write: Write) -> None:
    values = {block: dict(fields) for block, fields in LLM_SERVING.items() if block != "pa_config"}
    required = ("model_name", "end_token", "vocab_size", "prefill_batch_size", "decode_batch_size", "page_attention")
    values["model_config"] = {key: values["model_config"][key] for key in required}
    loaded = config.load(write(values), model="random:llama2-7b,layers=1").config
    assert loaded.kv_cache == KvCache(num_blocks=223, block_size=128)
    assert loaded.limits.batching == "continuous"
    assert loaded.pad_id == 0


@pytest.mark.parametrize("dotted", KEYS)
def test_no_documented_key_is_silently_dead(write: Write, dotted: str) -> None:
    """Another value changes the settings, or a note names the key, or it is refused by name."""
    before = contest(write)
    try:
        after = contest(write, {dotted: ANOTHER[dotted]} if dotted in ANOTHER else {})
    except ConfigError as error:
        named, changed = dotted in str(error), False
    else:
        named, changed = any(note.startswith(dotted) for note in after.notes), after.config != before.config
    assert named or changed


def test_each_note_gives_its_reason_once(write: Write) -> None:
    notes = contest(write).notes
    assert len(set(notes)) == len(notes)
    assert all(" has no effect: " in note or ": " in note for note in notes)
    noted = {note.partition(" ")[0].rstrip(":") for note in notes}
    assert noted <= set(KEYS)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"model_config.decode_batch_size": [16, 64]}, "max_batch", 64),
        ({"model_config.batching_strategy": "static"}, "batching", "static"),
        ({"model_config.seq_length": [512]}, "max_model_len", 511),
        ({"model_config.seq_length": [512, 1024]}, "max_model_len", 1023),
        ({"model_config.max_generate_length": 300}, "max_model_len", 300),
    ],
)
def test_limits_of_the_contest_become_ours(write: Write, changes: dict[str, Any], field: str, value: Any) -> None:
    assert msgspec.to_builtins(contest(write, changes).config.limits)[field] == value


def test_a_cache_without_pages_says_that_the_settings_of_pages_have_no_effect(write: Write) -> None:
    loaded = contest(write, {"model_config.page_attention": False, "pa_config.num_blocks": 99})
    assert loaded.config.kv_cache == KvCache()
    noted = {note.partition(" ")[0].rstrip(":") for note in loaded.notes}
    assert {"model_config.page_attention", "pa_config.num_blocks", "pa_config.block_size"} <= noted


@pytest.mark.parametrize(
    "dotted",
    [
        *("model_config", "serving_config", "tokenizer", "basic_inputs", "extra_inputs", "warmup_inputs"),
        *("model_config.model_name", "model_config.end_token", "model_config.vocab_size"),
        *("model_config.prefill_batch_size", "model_config.decode_batch_size"),
        *("serving_config.agent_ports", "serving_config.server_port"),
    ],
)
def test_what_the_original_requires_is_required(write: Write, dotted: str) -> None:
    assert dotted in refusal(lambda: contest(write, without=dotted))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_config.decode_bacth_size": [1]}, "model_config.decode_bacth_size: unknown key"),
        ({"serving_config.port": 1}, "serving_config.port: unknown key"),
        ({"extras.x": 1}, "extras.x: unknown key"),
        ({"model_config.decode_batch_size": []}, "model_config.decode_batch_size: is required and must not be empty"),
        ({"model_config.decode_batch_size": [0]}, "model_config.decode_batch_size: expected a list of whole numbers"),
        ({"model_config.decode_batch_size": 128}, "model_config.decode_batch_size: expected a list of whole numbers"),
        ({"model_config.seq_length": "4096"}, "model_config.seq_length: expected a list of whole numbers"),
        ({"model_config.max_generate_length": "x"}, "model_config.max_generate_length: expected a whole number"),
        ({"model_config.model_name": 7}, "model_config.model_name: expected text, got 7"),
        ({"pa_config.num_blocks": "1024"}, "pa_config.num_blocks: expected a whole number, got '1024'"),
        ({"pa_config.num_blocks": True}, "pa_config.num_blocks: expected a whole number, got True"),
        ({"tokenizer.type": "GPT2Tokenizer"}, "tokenizer.type: "),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(write: Write, changes: dict[str, Any], message: str) -> None:
    assert f": {message}" in refusal(lambda: contest(write, changes))


def test_an_agent_runs_for_each_port_as_in_the_original(write: Write) -> None:
    loaded = contest(write, {"serving_config.agent_ports": [16002, 16010]}).config
    assert (loaded.ranks, loaded.agent_ports) == (2, (16002, 16010))
    assert contest(write, {"serving_config.agent_ports": [16002, 16010]}, ranks=1).config.ranks == 1


@pytest.mark.parametrize("block", ["pa_config", "model_config", "tokenizer"])
@pytest.mark.parametrize("value", [5, "text", [1]])
def test_a_block_that_is_no_mapping_is_refused_by_name(write: Write, block: str, value: Any) -> None:
    values = {**LLM_SERVING, block: value}
    path = write(values)
    assert refusal(lambda: config.load(path, model="random:tiny")).startswith(f"{path}: {block}: ")


def test_the_model_must_be_named_because_mindformers_files_are_not_read(write: Write) -> None:
    message = refusal(lambda: contest(write, model=None))
    assert "model_config.model_cfg_path: " in message
    assert "--model" in message


def test_flags_win_over_the_contests_file_too(write: Write) -> None:
    loaded = contest(write, port=0, limits={"max_batch": 2}, tokenizer="/mine/tokenizer.model").config
    assert (loaded.port, loaded.limits.max_batch, loaded.tokenizer) == (0, 2, "/mine/tokenizer.model")
    assert loaded.limits.max_model_len == 4095


# -- MindIE ---------------------------------------------------------------------------------------------------------

MINDIE: dict[str, Any] = {
    "Version": "1.0.0",
    "LogConfig": {"logLevel": "Info"},
    "ServerConfig": {
        "ipAddress": "127.0.0.1",
        "managementPort": 1026,
        "port": 1025,
        "maxLinkNum": 7,
        "httpsEnabled": False,
        "tlsCaFile": ["ca.pem"],
        "inferMode": "standard",
    },
    "BackendConfig": {
        "npuDeviceIds": [[0]],
        "ModelDeployConfig": {
            "maxSeqLen": 256,
            "maxInputTokenLen": 200,
            "truncation": False,
            "ModelConfig": [
                {"modelInstanceType": "Standard", "modelName": "small", "modelWeightPath": "/m", "worldSize": 1}
            ],
        },
        "ScheduleConfig": {"cacheBlockSize": 32, "maxPrefillTokens": 64, "maxBatchSize": 5, "maxIterTimes": 9},
    },
}


def mindie(write: Write, change: tuple[str, Any] | None = None, **flags: Any) -> Loaded:
    """The file with one key, dotted, changed."""
    values = json.loads(json.dumps(MINDIE))
    if change is not None:
        *path, last = change[0].split(".")
        block = values
        for part in path:
            block = block[int(part)] if part.isdigit() else block.setdefault(part, {})
        block[last] = change[1]
    return config.load(write(values), **{"model": "random:tiny", **flags})


def test_a_mindie_file_is_read(write: Write) -> None:
    loaded = mindie(write)
    assert loaded.config == ServeConfig(
        model="random:tiny",
        model_name="small",
        port=1025,
        http=Http(max_connections=7, request_timeout_s=600.0),
        limits=Limits(max_batch=5, max_tokens_per_step=64, max_model_len=256, max_prompt_len=200, max_new_tokens=9),
        kv_cache=KvCache(block_size=32),
    )
    noted = {note.partition(" ")[0] for note in loaded.notes}
    assert noted == {
        "Version", "LogConfig", "ServerConfig.managementPort", "ServerConfig.tlsCaFile", "BackendConfig.npuDeviceIds"
    }  # fmt: skip


def test_the_model_of_a_mindie_file_is_served_unless_another_is_given(write: Write) -> None:
    assert mindie(write, model=None).config.model == "/m"


def test_the_world_size_of_a_mindie_file_is_the_number_of_ranks(write: Write) -> None:
    assert mindie(write, ("BackendConfig.ModelDeployConfig.ModelConfig.0.worldSize", 4)).config.ranks == 4


def test_a_mock_model_of_mindie_is_the_stub_engine(write: Write) -> None:
    key = "BackendConfig.ModelDeployConfig.ModelConfig.0.modelInstanceType"
    assert mindie(write, (key, "StandardMock")).config.engine == "stub"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("ServerConfig.httpsEnabled", True, "ServerConfig.httpsEnabled: only False works here, got True"),
        ("ServerConfig.inferMode", "dmi", "ServerConfig.inferMode: only 'standard' works here"),
        ("ServerConfig.prot", 1, "ServerConfig.prot: unknown key"),
        ("ServerConfig.port", "1025", "ServerConfig.port: expected a whole number, got '1025'"),
        ("BackendConfig.ModelDeployConfig.truncation", True, "BackendConfig.ModelDeployConfig.truncation: only False"),
        ("BackendConfig.ModelDeployConfig.ModelConfig.0.worldSize", "2", ".worldSize: expected a whole number, got"),
        ("BackendConfig.ModelDeployConfig.ModelConfig.0.modelName", "", ".modelName: is required"),
        ("BackendConfig.ModelDeployConfig.ModelConfig.0.modelInstanceType", "Mock", "expected Standard or"),
    ],
)
def test_what_a_mindie_file_cannot_have_here_is_refused_by_name(
    write: Write, key: str, value: Any, message: str
) -> None:
    assert message in refusal(lambda: mindie(write, (key, value)))


@pytest.mark.skipif(not MINDIE_FILE.exists(), reason="the real file is not part of the project")
def test_the_real_mindie_file_is_read() -> None:
    loaded = config.load(MINDIE_FILE, model="random:tiny")
    assert loaded.config.model_name == "qwen2_7b"
    assert loaded.config.limits.max_batch == 200
