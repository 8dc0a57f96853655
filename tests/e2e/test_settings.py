"""`llmbench perf --settings`: the commented examples, what overrides what, and wrong files."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli import _perf, _plan
from llmbench.errors import ConfigError
from tests.loadgen.conftest import LAST_CHUNK, STREAM_HEAD, Step, ToyServer, answer, chunk

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "configs" / "perf"


def defaults() -> dict[str, Any]:
    """What `perf` has without any flag, in the names of its settings."""
    from typer.main import get_command

    from llmbench.cli import app

    command = get_command(app(["perf"])).commands["perf"]  # type: ignore[attr-defined]
    with command.make_context("perf", []) as context:
        values = dict(context.params)
    for name in ("json", "quiet", "resume", "settings", "task", "header", "api_key"):
        values.pop(name)
    return values | {"allow": [], "dialect_option": []}


def settings(path: Path, **flags: Any) -> _perf.Settings:
    return _perf.from_file(path, {**defaults(), **flags}, set(flags))


def perf(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "llmbench", "perf", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120, env=os.environ | environment
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_read_and_makes_its_plan(path: Path) -> None:
    found = settings(path)
    plan = _plan.make(found, lambda text: None)
    assert plan.settings.dialect == (found.dialect or "contest")
    assert len(plan.requests) == {"contest": 1500, "closed-loop": 200, "ramp": 330, "openai": 240}[path.stem]


def test_the_contests_example_is_its_speed_task() -> None:
    found = settings(EXAMPLES / "contest.yaml")
    assert (found.qps, found.test_time_s, found.dataset, found.dialect) == (0.5, 3000, "alpaca_5010", "contest")


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("qps: 3\nseed: 7\nworkers: auto\ntokenizer: some.model\n")
    found = settings(path, qps=9.0)
    assert (found.qps, found.seed, found.workers, found.port) == (9.0, 7, "auto", 8835)
    assert found.tokenizer == Path("some.model")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qsp: 3", "mine.yaml: qsp: unknown key; did you mean 'qps'?"),
        ("test_time: 3", "test_time: unknown key; did you mean 'test_time_s'?"),
        ("qps: fast", "mine.yaml: qps: Expected `float`, got `str`"),
        ("concurrency: 0", "mine.yaml: concurrency: Expected `int` >= 1"),
        ("timeout_s: 0", "mine.yaml: timeout_s: Expected `float` > 0"),
        ("tokenizer: 3", "mine.yaml: tokenizer: Expected `str`"),
        ("api_key: secret", "mine.yaml: api_key: unknown key"),
        ("- qps", "expected a mapping"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        settings(path)
    assert message in str(caught.value)


def test_a_closed_loop_runs_from_its_file(tmp_path: Path) -> None:
    with closing(ToyServer(lambda n, body: answer(["t "] * 4))) as toy:
        flags = ["-n", 12, "--max-new-tokens", 4, "--arrivals", "closed:users=8", "--results", tmp_path, "--json"]
        done = perf("--settings", EXAMPLES / "closed-loop.yaml", "--url", toy.url, *flags)
    assert json.loads(done.stdout)["summary"]["num_answered"] == 12, done.stderr
    assert len(toy.bodies) == 13, "the preflight's and the plan's"
    assert toy.most_at_once <= 8
    (folder,) = tmp_path.iterdir()
    kept = json.loads((folder / "config.json").read_text())
    assert (kept["dataset"], kept["num_requests"]) == ("synthetic:prompt=lognormal:128:96,output=uniform:16:256", 12)


def chatting(n: int, body: bytes) -> list[Step]:
    """An OpenAI chat of as many chunks as are asked for, each with a running usage."""
    asked = json.loads(body)
    assert asked["stream_options"]["continuous_usage_stats"]
    assert asked["model"] == "m"
    number = asked["max_tokens"]
    events: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"content": "t "}}], "usage": {"completion_tokens": i + 1}}
        for i in range(number)
    ]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
    events.append({"choices": [], "usage": {"completion_tokens": number, "prompt_tokens": 3}})
    data = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    return [STREAM_HEAD, chunk(data + b"data: [DONE]\n\n"), LAST_CHUNK]


def test_an_openai_server_is_measured_with_a_key_that_is_written_nowhere(tmp_path: Path) -> None:
    with closing(ToyServer(chatting)) as toy:
        flags = ["-n", 5, "-X", 100, "--max-new-tokens", 3, "--served-model", "m", "--results", tmp_path, "--json"]
        flags += ["--header", "X-Tenant: s3cret-tenant"]
        done = perf("--settings", EXAMPLES / "openai.yaml", "--url", toy.url, *flags, LLMBENCH_API_KEY="s3cret-key")
    assert json.loads(done.stdout)["summary"]["num_answered"] == 5, done.stderr
    assert len(toy.heads) == 6
    assert all(b"Authorization: Bearer s3cret-key\r\n" in head for head in toy.heads)
    assert all(b"X-Tenant: s3cret-tenant\r\n" in head for head in toy.heads)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert not written
    assert "s3cret" not in done.stdout + done.stderr


def test_a_wrong_dialect_fails_before_anything_is_measured(tmp_path: Path) -> None:
    with closing(ToyServer(lambda n, body: answer(["t "] * 2))) as toy:
        done = perf("--url", toy.url, "--dialect", "tgi", "-n", 5, "--results", tmp_path)
    assert done.returncode == 3
    assert "does not answer in dialect tgi" in done.stderr
    assert len(toy.bodies) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dialect-option", "data_shap=list"], "Did you mean 'data_shape'"),
        (["--served-model", "m"], "dialect contest: unknown option 'model'"),
        (["--header", "nothing"], "--header nothing: expected NAME:VALUE"),
        (["--task", "1", "--dataset", "x.json"], "leave one of --task and --dataset out"),
        (["--settings", "nothing.yaml"], "nothing.yaml: cannot read the settings"),
    ],
)
def test_wrong_flags_are_wrong_input(tmp_path: Path, flags: list[str], message: str) -> None:
    done = perf("--url", "http://127.0.0.1:9", "-n", 2, "--results", tmp_path, *flags)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
