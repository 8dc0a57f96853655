"""How fast the engines are beside each other and Hugging Face's generate in float32: all from one run, in turns.

    python benchmarks/engines.py --model random:110m --rounds 3 --sides numpy_llama,mindspore_llama

Decode: 32 prompt tokens and 64 new ones, greedy; tokens/s = batch * 63 / (t(64 new) - t(1 new)).
Prefill: 512 / t(1 new) at batch 1. Each side has a process of its own, so that their threads do not meet; while one
works the others wait. A ratio is the median over the rounds of one side / another, each from the same round. The first
round is not counted: in it MindSpore compiles. `mindformers` computes each sequence whole at each step: batch 1 only.
On a machine that others use too, `--cpu-time --threads 1` counts the time that the process has had instead.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import msgspec
import numpy as np
import numpy.typing as npt
import torch
import transformers

from llmbench import engines
from llmbench.weights.config import ModelConfig
from llmbench.weights.model import Model, open_model

Int32 = npt.NDArray[np.int32]
Generate = Callable[[Int32, int], float]
"""Seconds to generate so many tokens after prompts int32 [batch, length]."""

Clock = Callable[[], float]

_NEW_TOKENS = 64


class Workload(msgspec.Struct, frozen=True):
    """What is generated, and what of the time is counted."""

    name: str
    batch: int
    prompt_len: int
    decode: bool


WORKLOADS = [
    Workload("decode, batch 1", 1, 32, True),
    Workload("decode, batch 16", 16, 32, True),
    Workload("decode, batch 64", 64, 32, True),
    Workload("prefill 512", 1, 512, False),
]


def main() -> None:
    """Measure in turns and print."""
    options = _options()
    names = options.sides.split(",")
    sides = {side: _start(side, options.model, options.threads, options.cpu_time) for side in names}
    counted = "CPU second" if options.cpu_time else "second"
    print(f"{options.model}, {options.threads} threads, {options.rounds} rounds; tokens per {counted}, medians")
    for workload in [workload for workload in WORKLOADS if options.only in workload.name]:
        speeds: dict[str, list[float]] = {side: [] for side in sides if side != "mindformers" or workload.batch == 1}
        for _ in range(options.rounds + 1):  # the first warms up
            for side in speeds:
                sides[side].send(workload)
                speeds[side].append(sides[side].recv())
        print(_lines(workload, {side: values[1:] for side, values in speeds.items()}), flush=True)
    for connection in sides.values():
        connection.send(None)


def ours(name: str, model: Model, num_threads: int, clock: Clock) -> Generate:
    """One of our engines, driven as a scheduler would."""
    settings = engines.EngineSettings(num_blocks=64 * 8, threads=num_threads)
    engine = engines.get(name, model, settings)
    tables = np.random.default_rng(0).permutation(64 * 8).astype(np.int32)

    def generate(prompts: Int32, num_new: int) -> float:
        batch, length = prompts.shape
        width = -(-(length + num_new) // settings.block_size)
        blocks = tables[: batch * width].reshape(batch, width)
        start = clock()
        tokens = engine.step(_batch(prompts.ravel(), length, length, blocks)).token_ids
        for i in range(1, num_new):
            tokens = engine.step(_batch(tokens, 1, length + i, blocks)).token_ids
        return clock() - start

    return generate


def theirs(model: Model, num_threads: int, clock: Clock) -> Generate:
    """Hugging Face's generate on the same weights."""
    torch.set_num_threads(num_threads)
    transformers.logging.set_verbosity_error()
    reference = hugging_face(model)

    def generate(prompts: Int32, num_new: int) -> float:
        ids = torch.from_numpy(prompts.astype(np.int64))
        start = clock()
        with torch.inference_mode():
            reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=num_new,
                max_new_tokens=num_new,
                do_sample=False,
                pad_token_id=0,
            )
        return clock() - start

    return generate


def hugging_face(model: Model) -> transformers.PreTrainedModel:
    """The Hugging Face model with the weights of ours, float32."""
    kinds = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    }
    config_kind, model_kind = kinds[model.config.architecture]
    reference = model_kind(config_kind(**_hf_fields(model.config)))
    state = {name: torch.from_numpy(model.tensor(name)) for name in model.names()}
    reference.load_state_dict(state, strict=not model.config.tie_embeddings)
    return reference.float().eval()


def _hf_fields(config: ModelConfig) -> dict[str, object]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
    }


def _start(side: str, model: str, num_threads: int, cpu_time: bool) -> Connection:
    """A process that answers each workload with tokens per second, until it is sent None."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, side, model, num_threads, cpu_time), daemon=True).start()
    return here


def _serve(connection: Connection, side: str, model: str, num_threads: int, cpu_time: bool) -> None:
    clock = time.process_time if cpu_time else time.perf_counter
    opened = open_model(model)
    generate = theirs(opened, num_threads, clock) if side == "hf" else ours(side, opened, num_threads, clock)
    vocab_size = opened.config.vocab_size
    while (workload := connection.recv()) is not None:
        prompts = np.random.default_rng(1).integers(3, vocab_size, (workload.batch, workload.prompt_len), np.int32)
        first_s = generate(prompts, 1)
        if workload.decode:
            more_s = generate(prompts, _NEW_TOKENS) - first_s
            connection.send(workload.batch * (_NEW_TOKENS - 1) / more_s)
        else:
            connection.send(workload.batch * workload.prompt_len / first_s)


def _batch(tokens: Int32, query_len: int, context_len: int, blocks: Int32) -> engines.Batch:
    """A step in which all sequences are equally long, greedy."""
    num = len(blocks)
    return engines.Batch(
        token_ids=tokens,
        query_lens=np.full(num, query_len, np.int32),
        context_lens=np.full(num, context_len, np.int32),
        block_tables=blocks,
        wants_token=np.ones(num, np.bool_),
        sampling=np.zeros(num, engines.SAMPLING),
    )


def _lines(workload: Workload, speeds: dict[str, list[float]]) -> str:
    """One line of speeds, and one for each later side's ratio to the first."""
    columns = (f"{side} {statistics.median(values):7.0f}" for side, values in speeds.items())
    lines = [f"{workload.name:17}  " + "   ".join(columns)]
    first, *others = speeds
    for side in others:
        ratios = sorted(a / b for a, b in zip(speeds[side], speeds[first], strict=True))
        middle = statistics.median(ratios)
        lines.append(f"{'':17}  {side} / {first} {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:110m")
    parser.add_argument("--sides", default="hf,numpy_llama", help="engines and hf; ratios are to the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time; says the same with --threads 1 only")
    parser.add_argument("--only", default="", help="only the workloads with this in their names")
    return parser.parse_args()


if __name__ == "__main__":
    main()
