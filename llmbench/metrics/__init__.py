"""What the instants of a run mean: pure functions of traces. Each metric is declared once, with unit and direction.

Screen, JSON, CSV and comparison read the declarations; a new metric is one function in `per_request` or `per_run` and
its name in the tuple at the end of that file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

Of = TypeVar("Of")
Gives = TypeVar("Gives")


class Trace(Protocol):
    """What the metrics need of one request; instants in ns on one monotonic clock, None where it never came to that."""

    index: int
    status: Literal["answered", "failed", "unfinished"]
    reason: str
    due_ns: int
    released_ns: int | None
    sent_ns: int | None
    connected_ns: int | None
    done_ns: int | None
    first_answer_ns: int | None
    """The first token after the model's reasoning; None where it did not reason."""
    stamps_ns: list[int]
    """The reads that brought tokens."""
    tokens: list[int]
    """How many tokens each of them brought."""
    num_pieces: int
    """Events that brought tokens; several may come in one read."""
    exact_tokens: bool
    """Whether `tokens` are known, not assumed."""
    num_tokens: int
    num_prompt_tokens: int | None
    """As the plan counted them; the two below as the server did."""
    server_prompt_tokens: int | None
    cached_tokens: int | None
    expected_tokens: int | None
    finish_reason: Literal["eos", "length", "stop", "error", "cancelled"] | None


@dataclass(frozen=True)
class Metric(Generic[Of, Gives]):
    """A declared metric; its formula is the docstring of the function that computes it."""

    name: str
    label: str
    unit: str
    better: Literal["lower", "higher"]
    formula: str
    of: Callable[[Of], Gives]


def metric(
    label: str, unit: str, better: Literal["lower", "higher"]
) -> Callable[[Callable[[Of], Gives]], Metric[Of, Gives]]:
    """Declare a function as the metric of its name."""

    def declare(function: Callable[[Of], Gives]) -> Metric[Of, Gives]:
        return Metric(function.__name__, label, unit, better, function.__doc__ or "", function)

    return declare
