"""What a sweep measures of one case, and the figures of it: those of the ATB speed test, and those of every step.

The ATB speed test times two passes: `first_token_time` is all of a pass for one new token, and with `total` of a pass
for all n of them, its own prefill included,

    avg_token_time = (total - first_token_time) / (n - 1)      0 for n = 1
    avg TPS        = batch / avg_token_time
    E2E TPS        = batch * n / total

On a small model the difference of two passes is mostly noise; the figures of the steps of the second pass stand beside
it: how long until every sequence had its first token, and how long each step after it.
"""

from collections.abc import Sequence
from typing import Literal

import msgspec

from llmbench.metrics.summary import percentile

Outcome = Literal["measured", "does not fit", "failed"]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """So many prompts of `input_len` tokens at once, each answered with `output_len`."""

    batch: int
    input_len: int
    output_len: int

    def __str__(self) -> str:
        return f"batch {self.batch}, {self.input_len} in, {self.output_len} out"


class Pass(msgspec.Struct, frozen=True, kw_only=True):
    """One batch from its prompts to its last token, in seconds.

    `first_s` is until every sequence has its first token. `steps_s` are the steps after it, one for each further token;
    over HTTP the mean over the streams. `prefill_s` are the steps before it, which an engine in this process has;
    `streams_s` the instants of the tokens of each stream, which HTTP has.
    """

    total_s: float
    first_s: float
    steps_s: list[float]
    prefill_s: list[float] = []
    streams_s: list[list[float]] = []


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """The two passes of a case: for one new token, and for all."""

    first: Pass
    whole: Pass


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a case; `seconds` is how long it took, warm-up included."""

    case: Case
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0
    rounds: list[Round] = []


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Of the middle one of a case's rounds. In seconds, and tokens per second of all sequences together.

    The first five are those of the two passes, the others of the steps; there is no step for one new token.
    """

    total_s: float
    first_token_s: float
    avg_token_s: float
    avg_tokens_per_s: float
    e2e_tokens_per_s: float
    ttft_s: float
    """Until every sequence has its first token, in the pass for all tokens."""
    step_s: float | None
    """Mean of the steps after it."""
    step_p50_s: float | None
    step_max_s: float | None
    decode_tokens_per_s: float | None
    """batch / mean step."""


def figures(measured: Measured) -> Figures | None:
    """The figures of a case; None of one that was not measured."""
    if not measured.rounds:
        return None
    case, middle = measured.case, median_round(measured.rounds)
    total_s, first_s, steps = middle.whole.total_s, middle.first.total_s, middle.whole.steps_s
    avg_s = (total_s - first_s) / (case.output_len - 1) if case.output_len > 1 else 0.0
    step_s = sum(steps) / len(steps) if steps else None
    return Figures(
        total_s=total_s,
        first_token_s=first_s,
        avg_token_s=avg_s,
        avg_tokens_per_s=case.batch / avg_s if avg_s else 0.0,
        e2e_tokens_per_s=case.batch * case.output_len / total_s,
        ttft_s=middle.whole.first_s,
        step_s=step_s,
        step_p50_s=percentile(sorted(steps), 50),
        step_max_s=max(steps, default=None),
        decode_tokens_per_s=case.batch / step_s if step_s else None,
    )


def median_round(rounds: Sequence[Round]) -> Round:
    """The one with the middle total of its pass for all tokens; of an even number the faster of the middle two."""
    return sorted(rounds, key=lambda each: each.whole.total_s)[(len(rounds) - 1) // 2]


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """A batch that a search tried; `step_s` is its mean decode step, None where it was not measured."""

    batch: int
    step_s: float | None
    within: bool
    reason: str = ""


class Largest(msgspec.Struct, frozen=True, kw_only=True):
    """The largest batch within a limit, for one pair of lengths; None when not even the lowest is.

    `next` is the smallest one that was tried above it, None when all were within it. `monotone` is whether no larger
    batch had steps shorter by a tenth or more, as the search takes it.
    """

    input_len: int
    output_len: int
    limit_s: float
    batch: int | None
    next: int | None
    monotone: bool
    probes: list[Probe]

    def step_s(self, batch: int | None) -> float | None:
        """The mean decode step of a batch that was tried."""
        return next((probe.step_s for probe in self.probes if probe.batch == batch), None)
