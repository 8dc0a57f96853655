"""Making a sealed plan from what the user asks for, and what it declares."""

import hashlib
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from llmbench import protocols
from llmbench.errors import InputError
from llmbench.metrics import arrivals as tests
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.types import Sampling
from llmbench.workload import arrivals, salt, sources
from llmbench.workload import plan as plans

Say = Callable[[str], None]
Mix = Callable[[plans.Plan, Tokenizer], plans.Plan]
FILE = "plan.jsonl.gz"
"""The plan in the folder of a run."""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan is to be made of, as the user gives it."""

    qps: float
    test_time_s: float | None
    num_requests: int | None
    dataset: str
    tokenizer: Path | None
    arrivals: str
    dialect: str | None
    seed: int
    seed_schedule: int | None
    seed_prompts: int | None
    seed_lengths: int | None
    seed_sampling: int | None
    max_new_tokens: int | None
    shuffle: bool
    temperature: float
    ignore_eos: bool
    cache: str = "any"


def make(wanted: Wanted, say: Say, mix: Mix | None = None) -> plans.Plan:
    """The plan that is asked for, and what it is made of is said; `mix` may change prompts before nonces come."""
    cache = _cache(wanted.cache)
    process = arrivals.get(wanted.arrivals, wanted.qps)
    number = plans.number(process, wanted.test_time_s) if wanted.num_requests is None else wanted.num_requests
    plans.check_number(number)
    path = wanted.tokenizer or embedded_path()
    tokenizer = Tokenizer.from_file(path)
    seeds = plans.seeds(
        wanted.seed,
        schedule=wanted.seed_schedule,
        prompts=wanted.seed_prompts,
        lengths=wanted.seed_lengths,
        sampling=wanted.seed_sampling,
    )
    dataset = sources.load(wanted.dataset, sources.need(number, tokenizer, seeds))
    settings = plans.PlanSettings(
        dataset=dataset.name,
        num_samples=len(dataset.samples),
        arrivals=wanted.arrivals,
        qps=wanted.qps,
        rate=process.rate if math.isfinite(process.rate) else None,
        seed=wanted.seed,
        seeds=seeds,
        dialect=protocols.get(wanted.dialect or "contest").name,
        tokenizer_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        cache=cache,
    )
    say(f"dataset: {dataset.description}")
    say(f"tokenizer: {path}, for the number of tokens to ask for")
    sampling = Sampling(temperature=wanted.temperature, ignore_eos=wanted.ignore_eos)
    plan = plans.make_plan(
        dataset.samples, process, number, settings, tokenizer, wanted.max_new_tokens, wanted.shuffle, sampling
    )
    plan = plan if mix is None else mix(plan, tokenizer)
    return salt.salted(plan, secrets.randbits(32), tokenizer) if cache == "cold" else plan


def _cache(word: str) -> Literal["any", "cold", "warm"]:
    """What may be declared of the server's prefix cache. Raises InputError."""
    words: dict[str, Literal["any", "cold", "warm"]] = {"any": "any", "cold": "cold", "warm": "warm"}
    if word not in words:
        raise InputError(f"--cache {word}: declare any, cold or warm")
    return words[word]


def line(plan: plans.Plan) -> str:
    """A plan in one line."""
    paced = "paced by the answers" if any(planned.after == "slot" for planned in plan.requests) else "all at once"
    rate = f"{plan.settings.rate:.4g} per second" if plan.settings.rate else paced
    return (
        f"{len(plan.requests)} requests, {plan.settings.arrivals} arrivals, {rate}, seed {plan.settings.seed}, "
        f"sha256 {plan.sha256[:16]}"
    )


def declaration(plan: plans.Plan) -> tests.Declaration | None:
    """The arrival process that a plan declares; None where nothing of it is left to chance."""
    if plan.settings.rate is None:
        return None
    process = arrivals.get(plan.settings.arrivals, plan.settings.qps)
    if process.unit_gaps(np.array([0.0, 1.0])) is None:
        return None
    return tests.Declaration(unit_gaps=process.unit_gaps, due_s=due(plan))


def due(plan: plans.Plan) -> dict[int, float]:
    """When the requests are due that wait for no other one, by index."""
    return {planned.index: planned.due_s for planned in plan.requests if planned.after is None}
