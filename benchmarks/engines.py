"""How fast the engines are beside Hugging Face's generate in float32 and the limits of this machine: one run, in turns.

    python -m benchmarks.engines --model random:110m --rounds 3
    python -m benchmarks.engines --sides numpy_llama,mindspore_llama --only "batch 16"
    python -m benchmarks.engines --sides hf,numba_llama,openvino,numba_w8a16,numba_w8a8,openvino_int8

Decode: 32 prompt tokens and 64 new ones, greedy; tokens/s = batch * 63 / (t(64 new) - t(1 new)). `mindformers` computes
each sequence whole at each step, so it gets 4 new tokens. Prefill: 512 / t(1 new) at batch 1.

`numba_w8a16` and `numba_w8a8` are numba_llama with every linear and the head in 8 bits: each row of a weight by its
largest number, all activations by one scale. The numbers are random, so this says how fast it is, not how right.
`openvino` and `openvino_int8` are OpenVINO GenAI, which is installed into ~/.cache/llmbench-peers when it is asked for.

Each side has a process of its own, so that their threads do not meet; while one works the others wait. A ratio is the
median over the rounds of one side / another, each from the same round. The first round is not counted: in it MindSpore
compiles. A side that is not installed is left out, and said. What a ratio should be at least stands behind it.

The limit is what reading the weights once for each step, or multiplying by them, takes at least, whichever is longer;
attention is left out. Both speeds are measured in every round: reading by a matrix-vector product of 512 MB,
multiplying by a matrix product, with NumPy's BLAS. An engine with another library may be faster.

On a machine that others use too, `--cpu-time --threads 1` counts the time that the process has had instead.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from benchmarks import openvino_side
from llmbench import engines
from llmbench.engines import _blas as blas
from llmbench.errors import NotInstalled
from llmbench.weights import sources
from llmbench.weights.config import ModelConfig
from llmbench.weights.model import Model, open_model
from llmbench.weights.quantised import W8A8, W8A16, Kind, Linear
from llmbench.weights.tensors import Tensors

Int32 = npt.NDArray[np.int32]
Generate = Callable[[Int32, int], float]
"""Seconds to generate so many tokens after prompts int32 [batch, length]."""

Clock = Callable[[], float]

_NEW_TOKENS = 64
_NEW_TOKENS_WHOLE = 4  # of an engine that computes sequences whole
_READ_SHAPE = (8192, 16384)  # float32: 512 MB, which no cache holds
_MULTIPLY_SIZE = 1536


class Workload(msgspec.Struct, frozen=True):
    """What is generated, and what of the time is counted."""

    name: str
    batch: int
    prompt_len: int
    decode: bool


class Machine(msgspec.Struct, frozen=True):
    """What it does at most: bytes read in a second, and multiplications with an addition."""

    reads: float
    multiplications: float

    def limit(self, workload: Workload, config: ModelConfig) -> float:
        """Tokens in a second."""
        head = config.vocab_size * config.hidden_size
        weights = config.num_parameters - (0 if config.tie_embeddings else head)
        tokens = workload.batch * (1 if workload.decode else workload.prompt_len)
        multiplications = (weights - head) * tokens + head * workload.batch
        return tokens / max(4 * weights / self.reads, multiplications / self.multiplications)


WORKLOADS = [
    Workload("decode, batch 1", 1, 32, True),
    Workload("decode, batch 16", 16, 32, True),
    Workload("decode, batch 64", 64, 32, True),
    Workload("prefill 512", 1, 512, False),
]
TARGETS: dict[tuple[str, str], tuple[float, ...]] = {
    ("numpy_llama", "hf"): (2.0, 1.4, 1.2, 0.9),
    ("mindspore_llama", "numpy_llama"): (0.5, 0.8, 0.8, 0.6),
    ("numba_llama", "hf"): (2.5, 3.0, 2.5, 2.2),
    ("numba_llama", "openvino"): (0.9, 0.9, 0.9, 0.9),
    ("numba_w8a8", "openvino_int8"): (0.9, 0.9, 0.9, 0.9),
}
"""How fast the first should be, as a multiple of the second, for each workload."""

_EIGHT_BITS: dict[str, Kind] = {"numba_w8a16": "W8A16", "numba_w8a8": "W8A8"}
_INPUT_SCALE = 0.04  # 5 standard deviations of what a norm gives

_MACHINE = "machine"  # the side that measures it


def main() -> None:
    """Measure in turns and print."""
    options = _options()
    config = open_model(options.model).config
    sides = _start_all([_MACHINE, *options.sides.split(",")], options)
    counted = "CPU second" if options.cpu_time else "second"
    print(f"{options.model}, {options.threads} threads, {options.rounds} rounds; tokens per {counted}, medians")
    for number, workload in enumerate(WORKLOADS):
        if options.only not in workload.name:
            continue
        answers: dict[str, list[Any]] = {side: [] for side in sides}
        for _ in range(options.rounds + 1):  # the first warms up
            for side, connection in sides.items():
                connection.send(workload)
                answers[side].append(connection.recv())
        speeds = {side: values[1:] for side, values in answers.items()}
        machines: list[Machine] = speeds.pop(_MACHINE)
        limits = [machine.limit(workload, config) for machine in machines]
        print(_table(workload, machines, limits, speeds, [target[number] for target in TARGETS.values()]), flush=True)
    for connection in sides.values():
        connection.send(None)


def ours(name: str, model: Model, num_threads: int | None, clock: Clock) -> Generate:
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
    """Hugging Face's generate on the same weights. Raises NotInstalled."""
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise NotInstalled(f"{error.name} is not installed; pip install 'llmbench[oracle]'") from error
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


def hugging_face(model: Model) -> Any:
    """The Hugging Face model with the weights of ours, float32."""
    import torch
    import transformers

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
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,  # transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},  # transformers 5
        "tie_word_embeddings": config.tie_embeddings,
    }


def machine(num_threads: int, clock: Clock) -> Callable[[], Machine]:
    """Measures the machine, the best of a few tries each."""
    blas.set_threads(num_threads)
    rng = np.random.default_rng(0)
    matrix, vector = np.ones(_READ_SHAPE, np.float32), np.ones(_READ_SHAPE[1], np.float32)
    square = rng.random((_MULTIPLY_SIZE, _MULTIPLY_SIZE), np.float32)

    def best(work: Callable[[], Any], repeats: int) -> float:
        times = []
        for _ in range(repeats):
            start = clock()
            work()
            times.append(clock() - start)
        return min(times)

    def measure() -> Machine:
        reads = matrix.nbytes / best(lambda: matrix @ vector, 5)
        return Machine(reads, _MULTIPLY_SIZE**3 / best(lambda: square @ square, 5))

    return measure


def _start_all(names: list[str], options: argparse.Namespace) -> dict[str, Connection]:
    """A process for each side that is installed; the others are named."""
    started = {name: _start(name, options) for name in names}
    missing = {name: reason for name, connection in started.items() if (reason := connection.recv()) is not None}
    for name, reason in missing.items():
        print(f"{name} is left out: {reason}")
    return {name: connection for name, connection in started.items() if name not in missing}


def _start(side: str, options: argparse.Namespace) -> Connection:
    """A process that says why it cannot be, or None, and then answers each workload until it is sent None."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    args = (there, side, options.model, options.threads, options.cpu_time)
    context.Process(target=_serve, args=args, daemon=True).start()
    return here


def _serve(connection: Connection, side: str, model: str, num_threads: int, cpu_time: bool) -> None:
    clock = time.process_time if cpu_time else time.perf_counter
    try:
        answer = _answerer(side, model, num_threads, clock)
    except NotInstalled as error:
        connection.send(str(error))
        return
    connection.send(None)
    while (workload := connection.recv()) is not None:
        connection.send(answer(workload))


def _answerer(side: str, model_name: str, num_threads: int, clock: Clock) -> Callable[[Workload], Machine | float]:
    """What a side does with a workload: tokens in a second, or what the machine can do."""
    if side == _MACHINE:
        measure = machine(num_threads, clock)
        return lambda workload: measure()
    model = open_model(model_name)
    generate = _generate(side, model, num_threads, clock)
    num_new = _NEW_TOKENS_WHOLE if side == "mindformers" else _NEW_TOKENS

    def speed(workload: Workload) -> float:
        shape = (workload.batch, workload.prompt_len)
        prompts = np.random.default_rng(1).integers(3, model.config.vocab_size, shape, np.int32)
        first_s = generate(prompts, 1)
        if not workload.decode:
            return workload.batch * workload.prompt_len / first_s
        return workload.batch * (num_new - 1) / (generate(prompts, num_new) - first_s)

    return speed


def _generate(side: str, model: Model, num_threads: int, clock: Clock) -> Generate:
    if side == "hf":
        return theirs(model, num_threads, clock)
    if side in openvino_side.FORMATS:
        return openvino_side.generator(side, model, num_threads, clock is time.process_time)
    if side in _EIGHT_BITS:
        return ours("numba_llama", EightBits(model.name, _EIGHT_BITS[side]), num_threads, clock)
    return ours(side, model, num_threads, clock)


class EightBits(Model):
    """A float model whose linears, the head included, are given in 8 bits."""

    def __init__(self, spec: str, kind: Kind) -> None:
        opened = sources.open_weights(spec, sources.How(strict=False))
        super().__init__(opened.name, opened.config, opened.tokenizer_path, Tensors(opened.tensors))
        self._kind = kind

    def linear(self, name: str) -> Linear:
        """Each row by its largest number; activations by a scale for about normal ones."""
        weight = self.tensor(f"{name}.weight")
        scale = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127, 1e-8).astype(np.float32)
        rounded = np.rint(weight / scale).astype(np.int8)
        if self._kind == "W8A16":
            return W8A16(weight=rounded, weight_scale=scale, weight_offset=np.zeros_like(scale))
        return W8A8(
            weight=rounded,
            input_scale=_INPUT_SCALE,
            input_offset=0,
            quant_bias=np.zeros(len(weight), np.int32),
            deq_scale=scale[:, 0] * np.float32(_INPUT_SCALE),
        )


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


def _table(
    workload: Workload,
    machines: list[Machine],
    limits: list[float],
    speeds: dict[str, list[float]],
    targets: list[float],
) -> str:
    """A line for the limit, and one for each side with its ratios."""
    reads = statistics.median(each.reads for each in machines) / 1e9
    multiplications = 2 * statistics.median(each.multiplications for each in machines) / 1e9
    limit = f"{reads:.0f} GB/s read, {multiplications:.0f} GFLOP/s multiplied"
    lines = [workload.name, f"  {'limit':<16} {statistics.median(limits):7.0f}   {limit}"]
    bases: dict[str, list[tuple[str, float | None]]] = {}
    for (side, base), goal in zip(TARGETS, targets, strict=True):
        if side in speeds and base in speeds:
            bases.setdefault(side, []).append((base, goal))
    for base in list(speeds)[:1]:
        for side in speeds:
            if side != base:
                bases.setdefault(side, [(base, None)])
    for side, values in speeds.items():
        line = f"  {side:<16} {statistics.median(values):7.0f}   {_middle(values, limits):4.0%} of the limit"
        for base, target in bases.get(side, []):
            line += f"   {_compared(values, speeds[base], base, target)}"
        lines.append(line)
    return "\n".join(lines)


def _compared(values: list[float], others: list[float], base: str, target: float | None) -> str:
    """`0.83 x numpy_llama (0.81 to 0.85); target 0.8: met`."""
    ratios = [value / other for value, other in zip(values, others, strict=True)]
    text = f"{statistics.median(ratios):.2f} x {base} ({min(ratios):.2f} to {max(ratios):.2f})"
    if target is None:
        return text
    return f"{text}; target {target}: {'met' if statistics.median(ratios) >= target else 'missed'}"


def _middle(values: list[float], others: list[float]) -> float:
    """The median of the ratios of the same rounds."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:110m")
    parser.add_argument(
        "--sides",
        default="hf,numpy_llama,mindspore_llama,mindformers",
        help="engines and hf; a ratio without a target is to the first",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time; says the same with --threads 1 only")
    parser.add_argument("--only", default="", help="only the workloads with this in their names")
    return parser.parse_args()


if __name__ == "__main__":
    main()
