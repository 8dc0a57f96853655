"""Whether a run may be believed, end to end: `llmbench perf` against our own server, judged check by check.

Overall verdicts are not looked at: on a machine that others use the client may really be late.
"""

import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llmbench.serving.launch import launched

ROOT = Path(__file__).parents[2]
PROMPT = "Name the capital of France, please, and say what is known about it: " * 3


@contextmanager
def server(tmp_path: Path, **limits: Any) -> Iterator[str]:
    """The bundled stack around an engine that takes 2 ms for a step."""
    config = tmp_path / f"{'-'.join(limits) or 'plain'}.yaml"
    config.write_text(json.dumps({"engine": "stub", "step_time_s": 0.002, "threads": 1, "limits": limits}))
    with launched([str(config)]) as found:
        yield found.url


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [{"instruction": f"number {i}: {PROMPT}", "input": "", "output": "one two three four"} for i in range(40)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    return path


def perf(tmp_path: Path, dataset: Path, url: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [
        sys.executable,
        "-m",
        "llmbench",
        "perf",
        "--url",
        url,
        "--dataset",
        str(dataset),
        "-X",
        "20",
        "-n",
        "40",
    ]
    return subprocess.run(
        [*command, "--results", str(tmp_path / "results"), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def folder(tmp_path: Path) -> Path:
    """Of the newest run."""
    return max((tmp_path / "results").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def outcomes(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The checks of the newest run by id."""
    checks = json.loads((folder(tmp_path) / "summary.json").read_text())["checks"]
    return {check["id"]: check for check in checks}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_both_books_agree_when_nobody_else_is_there(tmp_path: Path, dataset: Path, workers: str) -> None:
    with server(tmp_path) as url:
        done = perf(tmp_path, dataset, url, "--workers", workers)
    found = outcomes(tmp_path)
    for name in ("ledger-requests", "ledger-tokens-server", "ledger-prompts", "ledger-ttft"):
        assert found[name]["verdict"] == "ok", (name, found[name], done.stderr)


def test_one_request_of_somebody_else_makes_the_run_invalid(tmp_path: Path, dataset: Path) -> None:
    def interfere(url: str) -> None:
        journals = tmp_path / "results"
        while not any(path.stat().st_size > 2000 for path in journals.glob("*/journal.jsonl")):
            time.sleep(0.05)  # until some answers are there
        body = json.dumps({"prompt": "Hello", "max_tokens": 2}).encode()
        asked = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            answer.read()

    with server(tmp_path) as url:
        other = threading.Thread(target=interfere, args=(url,), daemon=True)
        other.start()
        done = perf(tmp_path, dataset, url, "-X", "10")
        other.join(10)
    assert done.returncode == 3
    found = outcomes(tmp_path)["ledger-requests"]
    assert (found["value"], found["verdict"]) == (1, "failed")


def test_counters_can_be_left_alone_and_those_that_are_asked_for_must_be_there(tmp_path: Path, dataset: Path) -> None:
    with server(tmp_path) as url:
        perf(tmp_path, dataset, url, "--metrics-url", "off")
        assert outcomes(tmp_path)["ledger-requests"]["verdict"] == "not applicable"
        done = perf(tmp_path, dataset, url, "--metrics-url", f"{url}/nothing-here")
    assert done.returncode == 3
    assert "no Prometheus metrics are there" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("dialect", ["contest", "openai_completions"])
def test_the_cache_is_verified_by_usage_or_by_counters(tmp_path: Path, dataset: Path, dialect: str) -> None:
    flags = ("--dialect", dialect, "--cache")
    with server(tmp_path, prefix_cache=True) as url:
        perf(tmp_path, dataset, url, *flags, "cold")
        cold = outcomes(tmp_path)["cache"]
        plan = folder(tmp_path) / "plan.jsonl.gz"
        perf(tmp_path, dataset, url, "--plan", str(plan))
        cold_no_more = outcomes(tmp_path)["cache"]
        perf(tmp_path, dataset, url, *flags, "warm")
        warm = outcomes(tmp_path)["cache"]
    assert (cold["verdict"], cold["value"]) == ("ok", 0)
    assert cold_no_more["verdict"] == "failed"
    assert cold_no_more["value"] > 0.5
    assert warm["verdict"] == "ok", warm
    assert warm["value"] > 0.5


def test_a_server_without_a_cache_is_cold_and_never_warm(tmp_path: Path, dataset: Path) -> None:
    with server(tmp_path) as url:
        for declared, verdict in (("cold", "ok"), ("warm", "failed"), ("any", "ok")):
            perf(tmp_path, dataset, url, "--cache", declared)
            assert outcomes(tmp_path)["cache"]["verdict"] == verdict


def test_objectives_that_are_not_kept_are_told_and_kept_in_a_file(tmp_path: Path, dataset: Path) -> None:
    with server(tmp_path) as url:
        done = perf(
            tmp_path, dataset, url, "--slo", "ttft:p50<1us,e2el<60s", "--allow", "lateness", "--allow", "stalls"
        )
    assert "objective NOT KEPT: ttft:p50<" in done.stdout
    assert "objective kept: e2el<60s: 100.00% of 40 requests" in done.stdout
    assert done.returncode in (1, 3)  # 3 when the machine was too busy for anything
    outcomes = json.loads((folder(tmp_path) / "slo.json").read_text())
    assert [outcome["answer"] for outcome in outcomes] == ["fail", "pass"]
    wrong = perf(tmp_path, dataset, url, "--slo", "ttft:p99")
    assert wrong.returncode == 2
    assert "--slo ttft:p99: write METRIC:pNN<LIMIT" in wrong.stderr.splitlines()[-1]
