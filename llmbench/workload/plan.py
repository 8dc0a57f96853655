"""The sealed plan of a run: which request is due when, hashed, so that two runs can prove they did the same work."""

import gzip
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from itertools import count as integers
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.types import Request, Sampling
from llmbench.workload.arrivals import Arrivals

MOST_REQUESTS = 10_000_000
"""Of a plan: some GB."""


class Sample(Protocol):
    """What the plan needs of one sample of a dataset."""

    @property
    def prompt(self) -> str: ...

    @property
    def output(self) -> str: ...


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """A sample that says more: how long its answer is to be, and whether it goes on with the sample before it.

    `output_tokens` None means as many as `output` has. `think_s` None begins a conversation; a number makes it the next
    turn, due so many seconds after the answer to the turn before.
    """

    prompt: str
    output: str = ""
    output_tokens: int | None = None
    think_s: float | None = None


class PlannedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request of a run. `num_prompt_tokens` counts the begin-of-sequence id; None where nobody counted.

    It is due `due_s` after the start, and not before `think_s` after the end of what it waits for: nothing (None), the
    request of that index (the turn before), or the next conversation that ends and leaves its user free ("slot", in a
    closed loop). `expected_tokens` is the length that the answer has unless the model ends it earlier; None leaves it
    to the server.
    """

    index: int
    due_s: float
    request: Request
    after: int | Literal["slot"] | None = None
    think_s: float = 0.0
    num_prompt_tokens: int | None = None
    expected_tokens: int | None = None


class Seeds(msgspec.Struct, frozen=True, kw_only=True):
    """One seed for each thing that is drawn, so that asking for other prompts does not move the schedule."""

    schedule: int
    prompts: int
    lengths: int
    sampling: int


class PlanSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a plan comes from, for people and for reports."""

    dataset: str
    num_samples: int
    arrivals: str
    qps: float
    rate: float | None
    """Requests per second that the arrival process offers in the long run; None where answers or nothing pace it."""
    seed: int
    seeds: Seeds | None = None
    """None for those that `seed` gives."""
    dialect: str = ""
    """The HTTP dialect that the requests are meant for; empty for any."""
    tokenizer_sha256: str = ""
    """Of the vocabulary that counted the tokens; empty where none did."""
    cache: Literal["any", "cold", "warm"] = "any"
    """What is declared of the server's prefix cache: prompts with nonces (see `salt`), or each sent once before."""
    seed_nonces: int | None = None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All requests of a run in the order they are due; those that wait for others stand behind them.

    `sha256` is of the requests alone: plans that offer the same work have the same hash, however they were asked for.
    """

    settings: PlanSettings
    requests: tuple[PlannedRequest, ...]
    sha256: str

    def split(self, num_workers: int) -> "list[Plan]":
        """Parts for so many workers, in turn by index; each request is in one part, with its index and due time.

        A conversation stays together, and in a closed loop so do the requests of a user. A part carries the hash of the
        whole plan that it is of.
        """
        parts: list[list[PlannedRequest]] = [[] for _ in range(num_workers)]
        for planned, worker in zip(self.requests, _workers(self.requests, num_workers), strict=True):
            parts[worker].append(planned)
        return [msgspec.structs.replace(self, requests=tuple(part)) for part in parts]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    """First line of a plan's file; `seal` is the hash of what the line says, so that no setting can be changed either.

    It names the hash of the requests too.
    """

    kind: Literal["llmbench plan 2"] = "llmbench plan 2"
    settings: PlanSettings
    num_requests: int
    sha256: str
    seal: str


def seeds(seed: int, **given: int | None) -> Seeds:
    """Four independent seeds of one `--seed`; those that are given by name take their place.

    Each is one 32-bit word of its own child of `SeedSequence(seed)`.
    """
    children = np.random.SeedSequence(seed).spawn(4)
    derived = [int(child.generate_state(1)[0]) for child in children]
    names = ("schedule", "prompts", "lengths", "sampling")
    return Seeds(**dict(zip(names, derived, strict=True)) | {key: n for key, n in given.items() if n is not None})


def check_number(number: int) -> None:
    """Raise InputError for a number of requests that no plan can have: it is held in memory."""
    if not 1 <= number <= MOST_REQUESTS:
        raise InputError(
            f"--num-requests: from 1 to {MOST_REQUESTS:,}, got {number:,} requests; with --qps and --test-time it is"
            " their product"
        )


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


def number(arrivals: Arrivals, test_time_s: float | None, default_s: float = 10.0) -> int:
    """How many requests a test time means; without one, a process that ends by itself is sent to its end."""
    if arrivals.duration_s is None:
        return count(default_s if test_time_s is None else test_time_s, arrivals.qps)
    return max(1, round(arrivals.expected(arrivals.duration_s if test_time_s is None else test_time_s)))


def make_plan(
    samples: Sequence[Sample],
    arrivals: Arrivals,
    num_requests: int,
    settings: PlanSettings,
    tokenizer: Tokenizer | None,
    max_new_tokens: int | None = None,
    shuffle: bool = False,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> Plan:
    """Samples in order (or shuffled), from the first again when they run out, each due when the arrivals say.

    A conversation is due as one sample, its later turns after the answers before them. An answer may be as long as the
    sample's own `output` in tokens, or `max_new_tokens` for all; an empty output, or no tokenizer, leaves the length to
    the server. Sampling that is not greedy gets a seed of its own in each request. Raises InputError without samples.
    """
    if not samples:
        raise InputError(f"dataset {settings.dataset}: there is no sample in it")
    own = settings.seeds or seeds(settings.seed)
    picks = _picks(samples, num_requests, np.random.default_rng(own.prompts) if shuffle else None)
    lengths = {pick: _lengths(samples[pick], tokenizer, max_new_tokens) for pick in dict.fromkeys(picks)}
    timings = _timings([samples[pick] for pick in picks], arrivals, np.random.default_rng(own.schedule))
    chances = _sampling_seeds(sampling, np.random.default_rng(own.sampling), num_requests)
    requests = tuple(
        PlannedRequest(
            index=index,
            due_s=timing.due_s,
            after=timing.after,
            think_s=timing.think_s,
            request=Request(
                prompt=samples[pick].prompt,
                max_new_tokens=lengths[pick][1],
                sampling=chance,
                request_id=f"plan-{index:05d}",
            ),
            num_prompt_tokens=lengths[pick][0],
            expected_tokens=lengths[pick][1],
        )
        for index, (pick, timing, chance) in enumerate(zip(picks, timings, chances, strict=True))
    )
    return Plan(settings=settings, requests=requests, sha256=hash_of(requests))


def save(plan: Plan, path: Path) -> None:
    """Write `plan.jsonl.gz`: a header, then one request per line; the same plan gives the same bytes."""
    header = _Header(
        settings=plan.settings,
        num_requests=len(plan.requests),
        sha256=plan.sha256,
        seal=_seal(plan.settings, plan.sha256),
    )
    lines = msgspec.json.Encoder().encode_lines([header, *plan.requests])
    try:
        path.write_bytes(gzip.compress(lines, mtime=0))
    except OSError as error:
        raise InputError(f"{path}: cannot write the plan ({error.strerror})") from error


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
    if hash_of(requests) != header.sha256 or _seal(header.settings, header.sha256) != header.seal:
        raise InputError(f"{path}: the plan was changed after it was made; its hash is not {header.sha256[:12]}")
    return Plan(settings=header.settings, requests=requests, sha256=header.sha256)


def _lengths(sample: Sample, tokenizer: Tokenizer | None, max_new_tokens: int | None) -> tuple[int | None, int | None]:
    """Tokens of the prompt, and of the answer to ask for."""
    own = sample.output_tokens if isinstance(sample, Turn) else None
    if tokenizer is None:
        return None, max_new_tokens or own
    answer = max_new_tokens or own or len(tokenizer.encode(sample.output, bos=False)) or None
    return len(tokenizer.encode(sample.prompt)), answer


def hash_of(requests: Sequence[PlannedRequest]) -> str:
    """sha256 of the requests as JSON, the fields of each in the order in which they are declared."""
    return hashlib.sha256(msgspec.json.encode(requests)).hexdigest()


def _seal(settings: PlanSettings, sha256: str) -> str:
    return hashlib.sha256(msgspec.json.encode((settings, sha256))).hexdigest()


class _Timing(msgspec.Struct, frozen=True):
    due_s: float
    after: int | Literal["slot"] | None = None
    think_s: float = 0.0


def _think_s(sample: Sample) -> float | None:
    return sample.think_s if isinstance(sample, Turn) else None


def _picks(samples: Sequence[Sample], num_requests: int, shuffle: np.random.Generator | None) -> list[int]:
    """Which samples are sent, in order: whole conversations one after another, the last perhaps cut off."""
    starts = [index for index, sample in enumerate(samples) if index == 0 or _think_s(sample) is None]
    ends = [*starts[1:], len(samples)]
    chosen: list[int] = np.resize(np.arange(len(starts)), num_requests).tolist()
    if shuffle is not None:
        chosen = shuffle.permutation(chosen).tolist()
    return list(islice(chain.from_iterable(range(starts[n], ends[n]) for n in chosen), num_requests))


def _timings(samples: Iterable[Sample], arrivals: Arrivals, rng: np.random.Generator) -> Iterator[_Timing]:
    """When each request is due: conversations by the arrivals or by a free user, turns by the turn before."""
    offsets, thinks = arrivals.offsets(rng), arrivals.thinks(rng)
    started, due_s = 0, 0.0
    for index, sample in enumerate(samples):
        think_s = _think_s(sample)
        if index and think_s is not None:
            yield _Timing(due_s, index - 1, think_s)
            continue
        if arrivals.users is None or started < arrivals.users:
            due_s = next(offsets)
            yield _Timing(due_s)
        else:
            due_s = 0.0
            yield _Timing(due_s, "slot", next(thinks))
        started += 1


def _sampling_seeds(sampling: Sampling, rng: np.random.Generator, num_requests: int) -> list[Sampling]:
    """The sampling of each request, with a seed of its own (31 bits, as servers take them) unless it is greedy."""
    if sampling.greedy or sampling.seed is not None:
        return [sampling] * num_requests
    drawn = rng.integers(2**31, size=num_requests).tolist()
    return [msgspec.structs.replace(sampling, seed=seed) for seed in drawn]


def _workers(requests: Sequence[PlannedRequest], num_workers: int) -> Iterator[int]:
    """The worker of each request: conversations, or the users of a closed loop, are dealt in turn."""
    users = sum(planned.after is None for planned in requests)  # in an open loop: the number of conversations
    places = integers()
    worker_of: dict[int, int] = {}
    for planned in requests:
        if isinstance(planned.after, int):
            worker_of[planned.index] = worker_of[planned.after]
        else:
            worker_of[planned.index] = next(places) % users % num_workers
        yield worker_of[planned.index]
