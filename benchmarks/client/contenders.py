"""Who is measured: how each is installed, what it is called with, and where its report says what it measured."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from llmbench.workload import plan as plans

ROOT = Path(__file__).parents[2]
PROMPT_TOKENS = 32
TORCH = "torch==2.13.0"  # plain torch brings several GB of CUDA; this release has a CPU build

# what `vllm bench serve` imports; the package itself is replaced by the .py files of its wheel
VLLM_NEEDS = (
    *(TORCH, "transformers", "aiohttp", "numpy", "tqdm", "pandas", "pillow", "pydantic", "psutil", "cloudpickle"),
    *("regex", "msgspec", "pyzmq", "cachetools", "fastapi", "openai", "requests", "pyyaml", "blake3", "py-cpuinfo"),
    *("einops", "prometheus_client", "sentencepiece", "tiktoken", "partial-json-parser", "datasets", "uvloop"),
    *("pybase64", "cbor2", "openai_harmony", "mistral_common", "gguf", "depyf", "llguidance", "lm-format-enforcer"),
)
# the same for SGLang's client
SGLANG_NEEDS = (
    "transformers",
    "aiohttp",
    "msgspec",
    "numpy",
    "orjson",
    "requests",
    "tqdm",
    "pillow",
    "pybase64",
    "datasets",
)


class Load(NamedTuple):
    """What everybody does; a rate of 0 keeps `streams` busy."""

    name: str
    rate: float
    streams: int
    number: int
    tokens: int
    ttft_s: float
    gap_s: float
    workers: int = 1
    """Processes of llmbench that send; its peers have as many as they please."""


class Reported(NamedTuple):
    """What a contender says of the server, in seconds; None where it does not say."""

    ttft_mean: float | None
    ttft_p99: float | None
    icl_p99: float | None
    late_p99: float | None = None
    """Sent - due."""
    planned_s: float | None = None
    """Between the first and the last request of its own plan."""


class Job(NamedTuple):
    """One run: the load, the server, the folder that is the run's own, the contender's own folder."""

    load: Load
    url: str
    folder: Path
    home: Path


class Contender(NamedTuple):
    """One client. `packages` are installed into a venv of its own; without any it runs in ours."""

    name: str
    packages: tuple[str, ...]
    command: Callable[[Job], list[str]]
    reported: Callable[[Job], Reported]
    help: Callable[[Path], list[str]]
    wheel: str = ""
    """A wheel of which only the .py files are taken, into the folder `src`."""


def install(contender: Contender, cache: Path) -> str:
    """Make its venv and its tokenizer; an empty text, or why it cannot be."""
    home = cache / contender.name
    if not contender.packages or (home / "installed").exists():
        return ""
    home.mkdir(parents=True, exist_ok=True)
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(home / "bin/pip"), "install", "-q", "--prefer-binary", *contender.packages],
        [str(home / "bin/python"), "-c", _TOKENIZER, str(home / "tokenizer"), str(ROOT / "README.md")],
        *_only_python(contender.wheel, home),
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or ["failed without a word"])[-1][:200]
    (home / "installed").touch()
    return ""


def _only_python(wheel: str, home: Path) -> list[list[str]]:
    """Commands that fetch a wheel and unpack its .py files."""
    if not wheel:
        return []
    unpack = (
        "import glob, sys, zipfile; found = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0]); "
        "found.extractall(sys.argv[2], [n for n in found.namelist() if n.endswith('.py') or 'dist-info' in n])"
    )
    return [
        [str(home / "bin/pip"), "download", "-q", "--no-deps", "-d", str(home / "wheel"), wheel],
        [str(home / "bin/python"), "-c", unpack, str(home / "wheel"), str(home / "src")],
    ]


# A byte-level tokenizer in Hugging Face's format: the peers make their prompts with one. Nothing is downloaded.
_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
made = Tokenizer(models.BPE())
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
made.train([sys.argv[2]], trainers.BpeTrainer(vocab_size=2000, special_tokens=["<s>", "</s>"],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
made = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="</s>")
made.save_pretrained(sys.argv[1])
"""


def _found(folder: Path, pattern: str) -> Any:
    """The JSON file of this name, wherever it was put."""
    paths = sorted(folder.rglob(pattern))
    if not paths:
        raise FileNotFoundError(f"{folder}: no {pattern}")
    return json.loads(paths[-1].read_text(encoding="utf-8"))


def _milli(value: float | None) -> float | None:
    return None if value is None else value / 1e3


# -- llmbench --------------------------------------------------------------------------------------------------------


def _llmbench(job: Job) -> list[str]:
    load = job.load
    # the embedded tokenizer makes two more of it: the oracle counts PROMPT_TOKENS, and another number is a finding
    samples = [{"instruction": "say " * (PROMPT_TOKENS - 2), "input": "", "output": ""}]
    (job.folder / "prompts.json").write_text(json.dumps(samples), encoding="utf-8")
    arrivals = ["-X", str(load.rate)] if load.rate else ["--arrivals", "burst", "--concurrency", str(load.streams)]
    return [
        *(sys.executable, "-m", "llmbench", "perf", "--url", job.url, "--dialect", "openai_completions"),
        *("--dataset", str(job.folder / "prompts.json"), "--max-new-tokens", str(load.tokens), "-n", str(load.number)),
        *("--results", str(job.folder), "--quiet", "--no-preflight", "--workers", str(load.workers), *arrivals),
    ]


def _llmbench_reported(job: Job) -> Reported:
    requests = _found(job.folder, "summary.json")["summary"]["requests"]
    first = requests["ttft_from_sent"]
    due_s = [planned.due_s for planned in plans.load(next(job.folder.rglob("plan.jsonl.gz"))).requests]
    return Reported(
        ttft_mean=first["mean"],
        ttft_p99=first["p99"],
        icl_p99=requests["itl"]["p99"],
        late_p99=requests["lateness"]["p99"],
        planned_s=due_s[-1] - due_s[0] if job.load.rate else None,
    )


# -- the lower bound ---------------------------------------------------------------------------------------------------


def _raw(job: Job) -> list[str]:
    load = job.load
    words = (job.url.removeprefix("http://"), load.rate, load.streams, load.number, load.tokens)
    return [sys.executable, str(Path(__file__).with_name("raw.py")), *map(str, words)]


def _raw_reported(job: Job) -> Reported:
    return Reported(**json.loads((job.folder / "stdout.txt").read_text(encoding="utf-8")))


# -- peers -------------------------------------------------------------------------------------------------------------


def _guidellm(job: Job) -> list[str]:
    load = job.load
    profile = f"kind=poisson,rate={load.rate}" if load.rate else f"kind=concurrent,streams={load.streams}"
    return [
        *(str(job.home / "bin/guidellm"), "run"),
        *("--backend", f"kind=openai_http,target={job.url},request_format=/v1/completions,model=oracle"),
        *("--profile", profile, "--constraint", f"kind=max_requests,count={load.number}"),
        *("--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={load.tokens}"),
        *("--tokenizer", f"kind=hf_auto,model={job.home / 'tokenizer'}"),
        *("--output", f"kind=json,path={job.folder / 'report.json'}", "--disable-console-interactive"),
        *("--seed", "kind=static,value=42"),
    ]


def _guidellm_reported(job: Job) -> Reported:
    metrics = _found(job.folder, "report.json")["benchmarks"][0]["metrics"]
    first = metrics["time_to_first_token_ms"]["successful"]
    gaps = metrics["inter_token_latency_ms"]["successful"]  # of each request's mean: it has no gaps of its own
    return Reported(_milli(first["mean"]), _milli(first["percentiles"]["p99"]), _milli(gaps["percentiles"]["p99"]))


def _aiperf(job: Job) -> list[str]:
    load = job.load
    pace = ("--request-rate", str(load.rate), "--arrival-pattern", "poisson")
    return [
        *(str(job.home / "bin/aiperf"), "profile", "--model", "oracle", "--url", job.url),
        *("--endpoint-type", "completions", "--streaming", "--tokenizer", str(job.home / "tokenizer")),
        *("--synthetic-input-tokens-mean", str(PROMPT_TOKENS), "--output-tokens-mean", str(load.tokens)),
        *("--output-tokens-stddev", "0", "--request-count", str(load.number), "--use-server-token-count"),
        *("--ui", "none", "--no-gpu-telemetry", "--no-server-metrics", "--random-seed", "1"),
        *("--num-dataset-entries", "200", "--extra-inputs", "ignore_eos:true"),
        *("--output-artifact-dir", str(job.folder / "artifacts")),
        *(pace if load.rate else ("--concurrency", str(load.streams))),
    ]


def _aiperf_reported(job: Job) -> Reported:
    found = _found(job.folder / "artifacts", "profile_export_aiperf.json")
    first, gaps = found["time_to_first_token"], found.get("inter_chunk_latency", {})
    return Reported(_milli(first["avg"]), _milli(first["p99"]), _milli(gaps.get("p99")))


def _evalscope(job: Job) -> list[str]:
    load = job.load
    pace = ("--rate", str(load.rate), "--open-loop") if load.rate else ("--parallel", str(load.streams))
    return [
        *(str(job.home / "bin/evalscope"), "perf", "--url", f"{job.url}/v1/completions", "--api", "openai"),
        *("--model", "oracle", "--number", str(load.number), "--dataset", "random"),
        *("--tokenizer-path", str(job.home / "tokenizer"), "--min-prompt-length", str(PROMPT_TOKENS)),
        *("--max-prompt-length", str(PROMPT_TOKENS), "--max-tokens", str(load.tokens)),
        *("--min-tokens", str(load.tokens), "--stream", "--no-test-connection", "--seed", "1"),
        *("--outputs-dir", str(job.folder / "outputs"), *pace),
    ]


def _evalscope_reported(job: Job) -> Reported:
    mean = _found(job.folder / "outputs", "benchmark_summary.json")["Avg TTFT (ms)"]
    rows = _found(job.folder / "outputs", "benchmark_percentile.json")
    high = next(row for row in rows if row["Percentiles"] == "99%")
    return Reported(_milli(mean), _milli(high["TTFT (ms)"]), _milli(high["ITL (ms)"]))


def _vllm_bench(home: Path) -> list[str]:
    return [str(home / "bin/python"), str(Path(__file__).with_name("vllm_bench.py")), str(home / "src")]


def _vllm(job: Job) -> list[str]:
    load = job.load
    pace = ("--request-rate", str(load.rate)) if load.rate else ("--max-concurrency", str(load.streams))
    return [
        *(*_vllm_bench(job.home), "--backend", "openai", "--base-url", job.url),
        *("--endpoint", "/v1/completions", "--model", "oracle", "--tokenizer", str(job.home / "tokenizer")),
        *("--dataset-name", "random", "--random-input-len", str(PROMPT_TOKENS)),
        *("--random-output-len", str(load.tokens), "--num-prompts", str(load.number), "--ignore-eos"),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--save-result", "--result-dir", str(job.folder)),
        *("--result-filename", "report.json", "--disable-tqdm", "--ready-check-timeout-sec", "0"),
        *("--num-warmups", "0", "--seed", "1", *pace),
    ]


def _vllm_reported(job: Job) -> Reported:
    found = _found(job.folder, "report.json")
    return Reported(_milli(found["mean_ttft_ms"]), _milli(found["p99_ttft_ms"]), _milli(found["p99_itl_ms"]))


def _sglang_bench(home: Path) -> list[str]:
    return [str(home / "bin/python"), str(Path(__file__).with_name("sglang_bench.py")), str(home / "src")]


def _sglang(job: Job) -> list[str]:
    load = job.load
    pace = ("--request-rate", str(load.rate)) if load.rate else ("--max-concurrency", str(load.streams))
    return [
        *(*_sglang_bench(job.home), "--backend", "vllm", "--base-url", job.url, "--model", "oracle"),
        *("--tokenizer", str(job.home / "tokenizer"), "--dataset-name", "random-ids"),
        *("--random-input-len", str(PROMPT_TOKENS), "--random-output-len", str(load.tokens)),
        *("--random-range-ratio", "1", "--num-prompts", str(load.number), "--warmup-requests", "0"),
        *("--disable-tqdm", "--seed", "1", "--output-file", str(job.folder / "report.jsonl"), *pace),
    ]


def _sglang_reported(job: Job) -> Reported:
    found = _found(job.folder, "report.jsonl")
    return Reported(_milli(found["mean_ttft_ms"]), _milli(found["p99_ttft_ms"]), _milli(found["p99_itl_ms"]))


def _help(program: str) -> Callable[[Path], list[str]]:
    return lambda home: [str(home / "bin" / program), "--help"]


CONTENDERS = {
    one.name: one
    for one in (
        Contender(
            "llmbench",
            (),
            _llmbench,
            _llmbench_reported,
            lambda _: [sys.executable, "-m", "llmbench", "perf", "--help"],
        ),
        Contender("raw", (), _raw, _raw_reported, lambda _: [sys.executable, "-c", "import asyncio, json, argparse"]),
        Contender(
            "vllm", VLLM_NEEDS, _vllm, _vllm_reported, lambda home: [*_vllm_bench(home), "--help"], wheel="vllm==0.33.0"
        ),
        Contender(
            "sglang",
            SGLANG_NEEDS,
            _sglang,
            _sglang_reported,
            lambda home: [*_sglang_bench(home), "--help"],
            wheel="sglang==0.5.23",
        ),
        Contender("guidellm", ("guidellm==0.8.1", TORCH), _guidellm, _guidellm_reported, _help("guidellm")),
        Contender("aiperf", ("aiperf==0.13.0",), _aiperf, _aiperf_reported, _help("aiperf")),
        Contender("evalscope", ("evalscope[perf]==1.14.1", TORCH), _evalscope, _evalscope_reported, _help("evalscope")),
    )
}
