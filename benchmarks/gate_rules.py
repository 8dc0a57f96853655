"""How often rules for comparing two builds are wrong, in virtual time: ours, and those that other tools use.

    python benchmarks/gate_rules.py [--experiments 2000] [--slower 0.05] [--most 16]

An experiment is an A/B of `--most` pairs of runs at most, made in turn (ABBA). A run is 120 requests of a server with
one queue: Poisson arrivals at 60 % of what it can do, lognormal lengths, step times that are autocorrelated within the
run. The machine drifts from run to run (autocorrelated, 1 %) and each run has luck of its own (1 %); both sides of a
pair get the same plan. Prints for each rule the share of A/A experiments called a regression (false alarms), and of
those in which every step of B is slower by `--slower` the share called a regression (found) and called none (missed).
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from llmbench.metrics.compare import Comparison, Pair, Primary, Verdict, compare
from llmbench.metrics.compare.effects import Float64, Measured, Settings
from llmbench.metrics.compare.looks import looks

NUM_REQUESTS = 120
STEP_S = 0.02
MEAN_TOKENS = 40
UTILISATION = 0.6
DRIFT, LUCK = 0.01, 0.01  # standard deviations of the logarithm
DRIFT_MEMORY, STEP_MEMORY, STEP_SPREAD = 0.8, 0.6, 0.05

PRIMARIES = (Primary(metric="tpot:mean", better="lower"), Primary(metric="e2el:mean", better="lower"))


class Run(msgspec.Struct, frozen=True):
    """What each request of a run took: float64 [NUM_REQUESTS], seconds."""

    tpot: Float64
    e2el: Float64


class Experiment(msgspec.Struct, frozen=True):
    """Runs of both sides, the i-th of A beside the i-th of B."""

    a: list[Run]
    b: list[Run]


def _memory(noise: Float64, share: float) -> Float64:
    """An autocorrelated series of the same variance from independent noise, along the last axis (AR(1))."""
    series: Float64 = noise.copy()
    for i in range(1, noise.shape[-1]):
        series[..., i] = share * series[..., i - 1] + np.sqrt(1 - share**2) * noise[..., i]
    return series


def experiment(rng: np.random.Generator, slower: float, most: int) -> Experiment:
    """`most` pairs of runs in virtual time, B slower by this share in every step."""
    drift = DRIFT * _memory(rng.standard_normal(2 * most), DRIFT_MEMORY)
    luck = LUCK * rng.standard_normal(2 * most)
    gaps = rng.exponential(STEP_S * MEAN_TOKENS / UTILISATION, (most, NUM_REQUESTS))
    tokens = np.maximum(2.0, np.round(rng.lognormal(np.log(MEAN_TOKENS) - 0.125, 0.5, (most, NUM_REQUESTS))))
    noise = STEP_SPREAD * _memory(rng.standard_normal((2 * most, NUM_REQUESTS)), STEP_MEMORY)
    steps = STEP_S * np.exp(drift[:, None] + luck[:, None] + noise)
    found = Experiment([], [])
    for pair in range(most):
        first, second = (found.a, found.b) if pair % 2 == 0 else (found.b, found.a)
        for at, side in ((2 * pair, first), (2 * pair + 1, second)):
            slowed = steps[at] * (1 + slower) if side is found.b else steps[at]
            side.append(_served(gaps[pair], tokens[pair], slowed))
    return found


def _served(gaps: Float64, tokens: Float64, steps: Float64) -> Run:
    """One after the other (Lindley's recursion, solved by a running minimum)."""
    service = steps * tokens
    balance = np.concatenate([[0.0], np.cumsum(service[:-1] - gaps[1:])])
    waits = balance - np.minimum.accumulate(balance)
    return Run(tpot=steps, e2el=waits + service)


Rule = Callable[[Experiment], Verdict]


def ours(num_resamples: int, seed: int = 0) -> Rule:
    """The gate: looks after 3, 4, 5, … pairs, until there is a verdict."""

    def rule(found: Experiment) -> Verdict:
        verdict: Verdict = "inconclusive"
        for look in looks(len(found.a), Settings().alpha):
            verdict = at_look(found, look.num_runs, look.level, num_resamples, seed).verdict
            if verdict != "inconclusive":
                break
        return verdict

    return rule


def at_look(found: Experiment, num: int, level: float, num_resamples: int, seed: int) -> Comparison:
    """The comparison of the first so many pairs."""
    pairs = [
        Pair(
            primary=primary,
            a=_measured(primary.metric, found.a[:num]),
            b=_measured(primary.metric, found.b[:num]),
        )
        for primary in PRIMARIES
    ]
    return compare(pairs, Settings(num_resamples=num_resamples, seed=seed), level=level, paired=True)


def _measured(metric: str, runs: list[Run]) -> Measured:
    requests = tuple(_of(metric, run) for run in runs)
    return Measured(values=tuple(float(each.mean()) for each in requests), requests=requests, statistic=_mean)


def _mean(values: Float64) -> Float64:
    means: Float64 = values.mean(axis=-1)
    return means


def _of(metric: str, run: Run) -> Float64:
    return run.tpot if metric.startswith("tpot") else run.e2el


def fixed_threshold(num: int) -> Rule:
    """The mean of so many runs of each side, called a regression when it is more than 5 % worse in any metric."""

    def rule(found: Experiment) -> Verdict:
        for primary in PRIMARIES:
            a, b = (np.mean([_of(primary.metric, run).mean() for run in side[:num]]) for side in (found.a, found.b))
            if b > 1.05 * a:
                return "regression"
        return "no regression"

    return rule


def over_requests(num: int) -> Rule:
    """Welch's t over the requests of so many runs, one-sided at 5 %, as if requests were independent."""

    def rule(found: Experiment) -> Verdict:
        for primary in PRIMARIES:
            a, b = (np.concatenate([_of(primary.metric, run) for run in side[:num]]) for side in (found.a, found.b))
            if stats.ttest_ind(b, a, equal_var=False, alternative="greater").pvalue < 0.05:
                return "regression"
        return "no regression"

    return rule


RULES: dict[str, Callable[[int], Rule]] = {
    "ours, up to the most runs": lambda resamples: ours(resamples),
    "5 % threshold, 1 run": lambda _: fixed_threshold(1),
    "5 % threshold, 3 runs": lambda _: fixed_threshold(3),
    "Welch over requests, 1 run": lambda _: over_requests(1),
    "Welch over requests, 3 runs": lambda _: over_requests(3),
}


def experiments(num: int, slower: float, most: int, seed: int) -> Iterator[Experiment]:
    """So many, each from a seed of its own."""
    for child in np.random.SeedSequence(seed).spawn(num):
        yield experiment(np.random.default_rng(child), slower, most)


def tally(num: int, slower: float, most: int, num_resamples: int, seed: int = 0) -> dict[str, Counter[Verdict]]:
    """The verdicts of every rule on the same experiments."""
    rules = {name: make(num_resamples) for name, make in RULES.items()}
    counts: dict[str, Counter[Verdict]] = {name: Counter() for name in rules}
    for found in experiments(num, slower, most, seed):
        for name, rule in rules.items():
            counts[name][rule(found)] += 1
    return counts


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("--slower", type=float, default=0.05)
    parser.add_argument("--most", type=int, default=16)
    parser.add_argument("--resamples", type=int, default=1000)
    given = parser.parse_args()
    alike = tally(given.experiments, 0.0, given.most, given.resamples, seed=1)
    slower = tally(given.experiments, given.slower, given.most, given.resamples, seed=2)
    table = Table("rule", "A/A: false alarms", f"{given.slower:.0%} slower: found", "missed", "inconclusive")
    for name in RULES:
        found = slower[name]
        shares = (alike[name]["regression"], found["regression"], found["no regression"], found["inconclusive"])
        table.add_row(name, *(f"{count / given.experiments:.2%}" for count in shares))
    Console().print(table)


if __name__ == "__main__":
    main()
