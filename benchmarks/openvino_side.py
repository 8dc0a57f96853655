"""OpenVINO GenAI as a side of benchmarks/engines.py: installed into a venv of its own, and run there by this file.

Its continuous batching, greedy, prefix cache off. The model is ours, exported by optimum: float32, or with weights of
8 bits in every linear and the embeddings, as optimum does it.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CACHE = Path.home() / ".cache" / "llmbench-peers" / "openvino"
PACKAGES = ("torch==2.13.0", "openvino", "openvino-genai", "optimum-intel[openvino]")  # plain torch would bring CUDA
FORMATS = {"openvino": "fp32", "openvino_int8": "int8"}
"""What the weights of a side are, as optimum calls it."""

# A pipeline wants a tokenizer, which has nothing to do here.
_TOKENIZER = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
made = Tokenizer(models.BPE(letters, []))
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(sys.argv[1])
"""


def generator(side: str, model: Any, num_threads: int, cpu_time: bool) -> Callable[[Any, int], float]:
    """Generates so many tokens after prompts int32 [batch, length], in seconds. Raises NotInstalled."""
    folder = _exported(model, FORMATS[side])
    clock = "cpu" if cpu_time else "wall"
    worker = subprocess.Popen(
        [str(CACHE / "bin/python"), __file__, str(folder), str(num_threads), clock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdin is not None, "a pipe"
    assert worker.stdout is not None, "a pipe"
    asked, told = worker.stdin, worker.stdout
    _until(told, "ready")

    def generate(prompts: Any, num_new: int) -> float:
        print(json.dumps({"prompts": prompts.tolist(), "num_new": num_new}), file=asked, flush=True)
        return float(_until(told, "took "))

    return generate


def _until(lines: Any, start: str) -> str:
    """The rest of the next line that starts so; OpenVINO writes lines of its own."""
    for line in lines:
        if line.startswith(start):
            return str(line.removeprefix(start))
    raise RuntimeError("OpenVINO's process has ended")


def _exported(model: Any, weight_format: str) -> Path:
    """The folder of OpenVINO's model, made the first time."""
    _install()
    name = model.name.replace(":", "-")
    source, out = CACHE / "models" / name, CACHE / "models" / f"{name}-{weight_format}"
    if not (out / "openvino_model.xml").exists():
        if not (source / "tokenizer.json").exists():
            _write(model, source)
            _run("bin/python", "-c", _TOKENIZER, str(source))
        task = ("--task", "text-generation-with-past", "--weight-format", weight_format)
        _run("bin/optimum-cli", "export", "openvino", "--model", str(source), *task, str(out))
    return out


def _install() -> None:
    """Make the venv. Raises NotInstalled."""
    if (CACHE / "installed").exists():
        return
    print(f"installing OpenVINO GenAI into {CACHE}: some GB and minutes", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(CACHE)], check=True)
    _run("bin/pip", "install", "-q", "--prefer-binary", *PACKAGES)
    _run("bin/pip", "uninstall", "-q", "-y", "torchvision")  # one that does not fit this torch stops transformers
    (CACHE / "installed").touch()


def _run(program: str, *words: str) -> None:
    from llmbench.errors import NotInstalled

    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}
    done = subprocess.run([str(CACHE / program), *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise NotInstalled((done.stderr.strip().splitlines() or ["it failed without a word"])[-1])


def _write(model: Any, folder: Path) -> None:
    """A Hugging Face folder."""
    from safetensors.numpy import save_file

    from llmbench.weights.config import to_hf

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_hf(model.config)))
    save_file({name: model.tensor(name) for name in model.names()}, folder / "model.safetensors", {"format": "pt"})


def main(folder: str, num_threads: int, clock: str) -> None:
    """In the venv: answer each line {"prompts": [[ids]], "num_new": n} of stdin with the seconds that it took."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    now = time.process_time if clock == "cpu" else time.perf_counter
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size, scheduler.max_num_batched_tokens, scheduler.enable_prefix_caching = 2, 4096, False
    hints = {"INFERENCE_NUM_THREADS": num_threads, "INFERENCE_PRECISION_HINT": "f32"}
    pipeline = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", hints)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [openvino.Tensor(np.array([ids], np.int64)) for ids in asked["prompts"]]
        config = genai.GenerationConfig(max_new_tokens=asked["num_new"], ignore_eos=True, do_sample=False)
        start = now()
        results = pipeline.generate(prompts, [config] * len(prompts))
        took_s = now() - start
        assert {len(ids) for result in results for ids in result.m_generation_ids} == {asked["num_new"]}
        print(f"took {took_s}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
