"""EleutherAI's lm-eval scores and generates over HTTP with the server's own tokenizer (checked with lm_eval 0.4.13)."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

pytestmark = pytest.mark.clients

MODEL = "random:tiny"
ROWS: list[dict[str, Any]] = [
    {"q": "The sky is", "choices": ["blue", "green", "loud"], "gold": 0},
    {"q": "Fire is", "choices": ["cold", "hot"], "gold": 1},
    {"q": "Grass grows and it is", "choices": ["red", "very green"], "gold": 1},
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATE = """
task: tiny_generate
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def run(url: str, folder: Path, batch_size: int) -> dict[str, list[dict[str, Any]]]:
    """The samples of both tasks as lm-eval logs them."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, task in (("choice", CHOICE), ("generate", GENERATE)):
        (folder / f"{name}.yaml").write_text(task.replace("ROWS", str(rows)))
    arguments = f"model={MODEL},base_url={url}/v1/completions,tokenizer_backend=remote,max_length=512"
    command = [
        *(sys.executable, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments),
        *("--tasks", "tiny_choice,tiny_generate", "--include_path", str(folder), "--batch_size", str(batch_size)),
        *("--log_samples", "--output_path", str(folder / "out")),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | offline, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for path in (folder / "out").rglob("samples_*.jsonl"):
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        found["choice" if "choice" in path.name else "generate"] = sorted(samples, key=lambda one: one["doc_id"])
    return found


def completion(url: str, **body: Any) -> dict[str, Any]:
    posted = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode())
    with urllib.request.urlopen(posted) as response:
        choice: dict[str, Any] = json.load(response)["choices"][0]
    return choice


def tokens(url: str, text: str) -> list[int]:
    body = json.dumps({"prompt": text, "add_special_tokens": False}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{url}/tokenize", body)) as response:
        found: list[int] = json.load(response)["tokens"]
    return found


def likelihood(url: str, question: str, choice: str) -> float:
    """The log-likelihood of a choice behind its question, asked by hand without a new token."""
    ids, num_context = tokens(url, f"{question} {choice}"), len(tokens(url, question))
    scores = completion(url, prompt=ids, max_tokens=0, echo=True, logprobs=1)["logprobs"]["token_logprobs"]
    return float(sum(scores[num_context:]))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_likelihoods_and_texts_are_those_of_the_server(url: str, tmp_path: Path, batch_size: int) -> None:
    found = run(url, tmp_path, batch_size)
    for row, sample in zip(ROWS, found["choice"], strict=True):
        read = [float(response[0][0]) for response in sample["resps"]]
        assert read == pytest.approx([likelihood(url, row["q"], choice) for choice in row["choices"]], abs=1e-3)
        assert sample["acc"] == float(read.index(max(read)) == row["gold"])
    for row, sample in zip(ROWS, found["generate"], strict=True):
        ids = tokens(url, row["q"])
        text = completion(url, prompt=ids, max_tokens=5, temperature=0, stop=["\n"])["text"]
        assert sample["resps"] == [[text]]
