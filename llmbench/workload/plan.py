"""The sealed plan of a run: which request is due when, hashed, so that two runs can prove they did the same work."""

import gzip
import hashlib
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.types import Request, Sampling
from llmbench.workload.arrivals import Arrivals


class Sample(Protocol):
    """What the plan needs of one sample of a dataset."""

    @property
    def prompt(self) -> str: ...

    @property
    def output(self) -> str: ...


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a run. `num_prompt_tokens` counts the begin-of-sequence id; None where nobody counted.

    `expected_tokens` is the length that the answer has unless the model ends it earlier; None leaves it to the server.
    """

    index: int
    due_s: float
    request: Request
    num_prompt_tokens: int | None = None
    expected_tokens: int | None = None


class PlanSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plan comes from, for people and for reports."""

    dataset: str
    num_samples: int
    arrivals: str
    qps: float
    rate: float | None
    """Requests per second that the arrival process offers in the long run; None for all at once."""
    seed: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All requests of a run in the order they are due.

    `sha256` is of the requests alone: plans that offer the same work have the same hash, however they were asked for.
    """

    settings: PlanSettings
    requests: tuple[PlannedRequest, ...]
    sha256: str


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a plan's file."""

    kind: str = "llmbench plan 1"
    settings: PlanSettings
    num_requests: int
    sha256: str


class Generators(msgspec.Struct, frozen=True):
    """Independent streams of random numbers, so that asking for other prompts does not move the schedule."""

    schedule: np.random.Generator
    prompts: np.random.Generator


def generators(seed: int) -> Generators:
    """The generators of one `--seed`."""
    schedule, prompts = np.random.SeedSequence(seed).spawn(2)
    return Generators(np.random.default_rng(schedule), np.random.default_rng(prompts))


def count(test_time_s: float, qps: float) -> int:
    """int(T * X) requests, as the contest counts them, but 0.57 * 100 is 57. Raises InputError when that is none.

    In floats 0.57 * 100 is 56.99999999999999: the product is at most a few units in the last place (1e-16 of it) away
    from the one that people mean, so it is raised by 1e-12 of itself before the fraction is cut off.
    """
    if not (math.isfinite(test_time_s) and math.isfinite(qps) and test_time_s > 0 and qps > 0):
        raise InputError(f"--test-time and --qps: must be above 0 and finite, got {test_time_s} and {qps}")
    number = int(test_time_s * qps * (1 + 1e-12))
    if number == 0:
        raise InputError(
            f"{test_time_s} s at {qps} requests per second is not one request: "
            f"use --test-time {math.ceil(1 / qps)} or more, or say how many with --num-requests"
        )
    return number


def make_plan(
    samples: Sequence[Sample],
    arrivals: Arrivals,
    num_requests: int,
    settings: PlanSettings,
    tokenizer: Tokenizer | None,
    max_new_tokens: int | None = None,
    shuffle: bool = False,
) -> Plan:
    """Samples in order (or shuffled), from the first again when they run out, each due when the arrivals say.

    An answer may be as long as the sample's own `output` in tokens, or `max_new_tokens` for all; an empty output, or
    no tokenizer, leaves the length to the server. Raises InputError without samples.
    """
    if not samples:
        raise InputError(f"dataset {settings.dataset}: there is no sample in it")
    streams = generators(settings.seed)
    picks: list[int] = np.resize(np.arange(len(samples)), num_requests).tolist()
    if shuffle:
        picks = streams.prompts.permutation(picks).tolist()
    lengths = {pick: _lengths(samples[pick], tokenizer, max_new_tokens) for pick in dict.fromkeys(picks)}
    due = islice(arrivals.offsets(streams.schedule), num_requests)
    requests = tuple(
        PlannedRequest(
            index=index,
            due_s=due_s,
            request=Request(
                prompt=samples[pick].prompt,
                max_new_tokens=lengths[pick][1],
                sampling=Sampling(),
                request_id=f"plan-{index:05d}",
            ),
            num_prompt_tokens=lengths[pick][0],
            expected_tokens=lengths[pick][1],
        )
        for index, (pick, due_s) in enumerate(zip(picks, due, strict=True))
    )
    return Plan(settings=settings, requests=requests, sha256=hash_of(requests))


def save(plan: Plan, path: Path) -> None:
    """Write `plan.jsonl.gz`: a header, then one request per line; the same plan gives the same bytes."""
    header = _Header(settings=plan.settings, num_requests=len(plan.requests), sha256=plan.sha256)
    lines = msgspec.json.Encoder().encode_lines([header, *plan.requests])
    path.write_bytes(gzip.compress(lines, mtime=0))


def load(path: Path) -> Plan:
    """Read a saved plan. Raises InputError when it is missing, something else, or not what its hash says."""
    try:
        first, *rest = gzip.decompress(path.read_bytes()).splitlines()
        header = msgspec.json.decode(first, type=_Header)
        decoder = msgspec.json.Decoder(PlannedRequest)
        requests = tuple(decoder.decode(line) for line in rest)
    except OSError as error:  # gzip.BadGzipFile is one too, without a strerror
        raise InputError(f"{path}: cannot read the plan ({error.strerror or error})") from error
    except (EOFError, ValueError, msgspec.DecodeError) as error:
        raise InputError(f"{path}: not a plan of llmbench ({error})") from error
    if hash_of(requests) != header.sha256:
        raise InputError(f"{path}: the plan was changed after it was made; its hash is not {header.sha256[:12]}")
    return Plan(settings=header.settings, requests=requests, sha256=header.sha256)


def _lengths(sample: Sample, tokenizer: Tokenizer | None, max_new_tokens: int | None) -> tuple[int | None, int | None]:
    """Tokens of the prompt, and of the answer to ask for."""
    if tokenizer is None:
        return None, max_new_tokens
    answer = max_new_tokens or len(tokenizer.encode(sample.output, bos=False)) or None
    return len(tokenizer.encode(sample.prompt)), answer


def hash_of(requests: Sequence[PlannedRequest]) -> str:
    """sha256 of the requests as JSON, the fields of each in the order in which they are declared."""
    return hashlib.sha256(msgspec.json.encode(requests)).hexdigest()
