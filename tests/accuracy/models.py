"""Models for tests of what computes them: copies with one tensor changed, and captures of them made in this process."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from llmbench.accuracy import lane
from llmbench.accuracy.lane import Lane
from llmbench.logits.store import INDEX, Manifest, Tier, Writer
from llmbench.tokenizer import embedded_path
from llmbench.weights.model import Model, open_model

PROMPTS = ((1, 300, 41, 77, 5, 1200, 33, 8), (1, 9, 17, 1001, 64), (1, 500, 501, 502, 503, 504, 505, 506, 507, 2, 9, 4))


def perturbed(folder: Path, source: Path, tensor: str, by: float = 1e-3) -> Model:
    """A copy of a model's folder with each weight of a tensor changed by a random share of this standard deviation."""
    model = open_model(str(source))
    weights = {name: model.tensor(name) for name in model.names()}
    rng = np.random.default_rng(3)
    weights[tensor] = (weights[tensor] * (1 + by * rng.standard_normal(weights[tensor].shape))).astype(np.float32)
    folder.mkdir()
    for name in ("config.json", "tokenizer.model"):
        if (source / name).exists():
            shutil.copy(source / name, folder)
    save_file(weights, folder / "model.safetensors")
    return open_model(str(folder))


def embedded() -> Path:
    """The folder of the embedded model."""
    return embedded_path().parent


def captured(folder: Path, model: Model, tier: Tier = "full32", engine: str = "numpy_llama", num_new: int = 6) -> Path:
    """A store of the greedy answers to a few prompts, computed as a server would."""
    manifest = Manifest(
        model=model.name,
        fingerprint=model.fingerprint(),
        engine=engine,
        dtype="float32",
        vocab_size=model.config.vocab_size,
        tier=tier,
    )
    writer = Writer(folder, manifest)
    with Lane(model, engine, 64, threads=1) as own:
        for i, prompt in enumerate(PROMPTS):
            ids = [token % model.config.vocab_size for token in prompt]
            number = writer.request(f"r{i}", len(ids), ids[:20], i + 1, ids)
            answer = lane.greedy(own, ids, num_new)
            rows = own.run([*ids, *answer[:-1]], lane.served(len(ids), len(ids) + num_new - 1), len(ids) - 1)
            writer.write(rows, _meta(number, len(ids), answer, i + 1))
    writer.close()
    return folder


def _meta(number: int, num_prompt: int, answer: Sequence[int], prefix: int) -> npt.NDArray[np.void]:
    meta = np.zeros(len(answer), INDEX)
    meta["request"], meta["step"] = number, np.arange(len(answer))
    meta["position"], meta["token"], meta["batch"] = num_prompt - 1 + np.arange(len(answer)), answer, 1
    meta["prefix"] = [hash((prefix, *answer[:step])) % (1 << 62) + 1 for step in range(len(answer))]
    return meta
