"""A target, a trusted engine in the target's dtype, and a reference in float64: is the target worse than its dtype?

How far rounding to a dtype carries the logits depends on the model and the text, so no fixed limit fits. The trusted
engine, computing in the same dtype, shows it: the target passes when its errors from float64 are spread no wider than
that engine's, or are distributed alike (AWS Neuron's logit_validation: ratio of standard deviations, Bhattacharyya
coefficient).
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy import lane
from llmbench.accuracy.lane import Lane, Logits
from llmbench.accuracy.sides import StoreSide
from llmbench.errors import InputError
from llmbench.logits.store import Store
from llmbench.tokenizer import Tokenizer
from llmbench.weights.model import Model
from llmbench.workload.plan import Sample

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]

TRUSTED = "numpy_llama"
OVERLAP = 0.99
"""Neuron's limit. Of two normal distributions around 0 that overlap so much, one is up to 1.22 times as wide."""
SLACK = {"float32": 3.0}
"""How much wider than the trusted engine's errors may be, by dtype; 0 in others, as Neuron has it. In 16 bits rounding
what is kept outweighs all else. In float32 the order of the sums is all there is, and that is an engine's to choose:
transformers' errors were found 1.3 to 2.5 times as wide as the NumPy engine's, MindSpore's 1.9 to 2.6 times.
"""
_NUM_BINS = 200
_WIDTH = 5.0  # standard deviations on each side that the bins cover; the outermost hold the rest
_LONGEST_ANSWER = 32  # tokens, of a dataset's sample


class Text(NamedTuple):
    """A prompt and tokens of its answer: `ids`, the first `num_prompt` of them are the prompt. `steps` int64 [m] are
    those whose rows are looked at: 0 is the row behind the prompt. `numbers` int64 [m] are they in a store; empty else.
    """

    name: str
    ids: tuple[int, ...]
    num_prompt: int
    steps: Int64
    numbers: Int64


class Target(NamedTuple):
    """The rows to judge, of each text [m, k] those of its `steps`: values, and of which ids int64 [m, k] they are; None
    for all of the vocabulary. `dtype` is what they were computed in.
    """

    name: str
    dtype: str
    rows: list[tuple[Logits, Int64 | None]]


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Logits less those in float64, less the mean of that in each row, which softmax does not see. `p99` and `max` are
    of the magnitude.
    """

    mean: float
    sd: float
    p99: float
    max: float


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; `worst` is where the target's largest error is, request and step."""

    verdict: Literal["passed", "failed"]
    target: str
    dtype: str
    model: str
    num_texts: int
    num_rows: int
    num_values: int
    num_left_out: int
    """Rows that could not be computed again, since not all tokens before them are known."""
    target_errors: Errors
    trusted_errors: Errors
    sigma_ratio: float
    sigma_limit: float
    overlap: float
    overlap_limit: float
    worst: tuple[str, int]
    seconds: float


def of_store(opened: Store, num_requests: int) -> tuple[list[Text], int]:
    """The first requests of a capture, and how many of their rows have tokens before them that are not known.

    Raises InputError when the store keeps too little of its rows, or knows no prompts.
    """
    if opened.manifest.tier == "fp":
        raise InputError(f"{opened.folder}: tier fp keeps too little of a row; capture with tier topk or full16")
    if not any(request.ids for request in opened.requests):
        raise InputError(f"{opened.folder}: it does not know the prompts of its requests; capture again")
    texts, num_left_out = [], 0
    for at, request in enumerate(opened.requests[:num_requests]):
        tokens = lane.answer(opened, at)
        numbers = np.flatnonzero(opened.table["request"] == at)
        steps = opened.table["step"][numbers].astype(np.int64)
        known = steps <= (len(tokens) if request.ids else -1)
        num_left_out += int((~known).sum())
        if known.any():
            ids = (*request.ids, *tokens[: int(steps[known].max())])
            texts.append(Text(request.id, ids, request.prompt_len, steps[known], numbers[known]))
    if not texts:
        raise InputError(
            f"{opened.folder}: none of its rows can be computed again, since the tokens before them are missing; "
            "capture every row (--capture-rate 1, no --capture-every)"
        )
    return texts, num_left_out


def of_samples(samples: Sequence[Sample], tokenizer: Tokenizer, num_requests: int) -> list[Text]:
    """The first samples of a dataset, each with the beginning of its own answer."""
    texts = []
    for i, sample in enumerate(samples[:num_requests]):
        prompt = tokenizer.encode(sample.prompt)
        tokens = tokenizer.encode(sample.output, bos=False)[:_LONGEST_ANSWER]
        steps = np.arange(len(tokens) + 1, dtype=np.int64)
        texts.append(Text(f"sample {i}", (*prompt, *tokens), len(prompt), steps, np.zeros(0, np.int64)))
    return texts


def captured(side: StoreSide, texts: Sequence[Text]) -> Target:
    """A store's rows."""
    found: list[tuple[Logits, Int64 | None]] = []
    for text in texts:
        if side.whole(text.numbers).all():
            out = np.empty((len(text.numbers), side.vocab_size), np.float32)
            side.read(text.numbers, out, np.empty(out.shape, np.uint16))
            found.append((out, None))
        else:
            top = side.store.top(text.numbers)
            values, ids = np.concatenate([top.values, top.tail], 1), np.concatenate([top.ids, top.tail_ids], 1)
            found.append((values, ids))
    return Target(str(side.path), side.store.manifest.dtype, found)


def computed(
    model: Model, engine: str, texts: Sequence[Text], threads: int | None = None, progress: Progress | None = None
) -> Target:
    """The rows that an engine computes, in steps as a server would."""
    dtype, rows = _computed(model, engine, None, texts, threads, progress)
    return Target(f"{engine} with {model.name}", dtype, [(each, None) for each in rows])


def threeway(
    target: Target,
    model: Model,
    texts: Sequence[Text],
    *,
    num_left_out: int = 0,
    slack: float | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Found:
    """Judge a target's rows of these texts by the trusted engine and the reference; one engine at a time is held.

    `slack` None is that of the target's dtype.
    Raises InputError when the trusted engine has no such dtype, or the target's rows are of another vocabulary.
    """
    start = time.perf_counter()
    _, exact = _computed(model, TRUSTED, "float64", texts, threads, progress)
    _, trusted = _computed(model, TRUSTED, target.dtype, texts, threads, progress)
    theirs, ours = [], []
    for (rows, ids), same, truth in zip(target.rows, trusted, exact, strict=True):
        if ids is None and rows.shape != truth.shape:
            raise InputError(f"{target.name}: rows of {rows.shape[1]} logits; model {model.name} has {truth.shape[1]}")
        if ids is not None:
            same, truth = np.take_along_axis(same, ids, 1), np.take_along_axis(truth, ids, 1)
        ours.append(errors_of(rows, truth))
        theirs.append(errors_of(same, truth))
    found, base = _flat(ours), _flat(theirs)
    sigma_ratio, shared = ratio(found, base), overlap(found, base)
    sigma_limit = 1 + (SLACK.get(target.dtype, 0.0) if slack is None else slack)
    largest = np.concatenate([np.abs(each).max(axis=1) for each in ours])
    places = [(text.name, int(step)) for text in texts for step in text.steps]
    return Found(
        verdict="passed" if sigma_ratio <= sigma_limit or shared >= OVERLAP else "failed",
        target=target.name,
        dtype=target.dtype,
        model=model.name,
        num_texts=len(texts),
        num_rows=len(places),
        num_values=len(found),
        num_left_out=num_left_out,
        target_errors=_summary(found),
        trusted_errors=_summary(base),
        sigma_ratio=sigma_ratio,
        sigma_limit=sigma_limit,
        overlap=shared,
        overlap_limit=OVERLAP,
        worst=places[int(largest.argmax())],
        seconds=time.perf_counter() - start,
    )


def _computed(
    model: Model, engine: str, dtype: str | None, texts: Sequence[Text], threads: int | None, progress: Progress | None
) -> tuple[str, list[Logits]]:
    """The dtype of an engine, and its rows [m, vocab] of each text."""
    found = []
    with Lane(model, engine, max(len(text.ids) for text in texts), dtype=dtype, threads=threads) as own:
        for i, text in enumerate(texts):
            if progress is not None:
                progress(f"{engine} {own.dtype}", i, len(texts))
            first = text.num_prompt - 1
            found.append(own.run(text.ids, lane.served(text.num_prompt, len(text.ids)), first)[text.steps])
        return own.dtype, found


def errors_of(rows: Logits, exact: Logits) -> Float32:
    """float32 [m, k]: rows less those in float64, without the mean of each row; infinite for what is no number."""
    with np.errstate(invalid="ignore", over="ignore"):
        d = rows.astype(np.float64) - exact
        d -= d.mean(axis=1, keepdims=True)
    return np.where(np.isfinite(d), d, np.inf).astype(np.float32)


def ratio(errors: Float32, base: Float32) -> float:
    """The standard deviation of errors over that of others; 1 where both are 0, infinite for errors without one."""
    with np.errstate(invalid="ignore"):
        ours, theirs = (float(each.std(dtype=np.float64)) for each in (errors, base))
    if math.isnan(ours):
        return math.inf
    return ours / theirs if theirs else 1.0 if ours == 0 else math.inf


def overlap(errors: Float32, base: Float32) -> float:
    """The Bhattacharyya coefficient of two samples, sum of sqrt(p q) over bins: 1 for the same distribution.

    200 bins cover 5 standard deviations (the root of both variances' mean) on each side of 0.
    """
    if not (np.isfinite(errors).all() and np.isfinite(base).all()):
        return 0.0
    spread = math.sqrt((float(errors.var(dtype=np.float64)) + float(base.var(dtype=np.float64))) / 2)
    if not spread:
        return 1.0
    limit = _WIDTH * spread
    p, q = (
        np.histogram(np.clip(each, -limit, limit), _NUM_BINS, (-limit, limit))[0] / len(each) for each in (errors, base)
    )
    return float(np.sqrt(p * q).sum())


def _flat(pieces: Sequence[Float32]) -> Float32:
    return np.concatenate([piece.reshape(-1) for piece in pieces])


def _summary(errors: Float32) -> Errors:
    magnitudes = np.abs(errors)
    with np.errstate(invalid="ignore"):
        return Errors(
            mean=float(errors.mean(dtype=np.float64)),
            sd=float(errors.std(dtype=np.float64)),
            p99=float(np.quantile(magnitudes, 0.99, method="higher")),
            max=float(magnitudes.max()),
        )
