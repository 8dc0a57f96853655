"""Rows of logits that were captured during a load: in how large batches they were computed, and the load itself."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmbench.metrics import ledger
from llmbench.metrics.evidence import Scrape

Int64 = NDArray[np.int64]


HALF = 0.5
"""Of the load's mean batch: a row below it was not computed under that load."""
_FAIR = 0.9


class Captured(msgspec.Struct, frozen=True, kw_only=True):
    """What was captured of a run. `batches`: pairs of a batch size and how many rows were computed in such a batch."""

    tier: str
    decode: str
    """free, or forced: fed with the tokens of a base."""
    num_rows: int
    num_tokens: int
    """That the load's answers have, by the journal."""
    batches: tuple[tuple[int, int], ...]
    load_batch: float | None
    """Mean batch of the load; None where nobody counted."""
    share_at_load: float | None
    """Of the rows, computed at half the load's mean batch or more; see `at_load`."""

    @property
    def share_of_tokens(self) -> float:
        """Rows for each token that was generated."""
        return self.num_rows / self.num_tokens if self.num_tokens else 0.0

    @property
    def spread(self) -> tuple[int, int, int]:
        """The smallest, the median and the largest batch of a row; zeros without rows."""
        sizes = np.repeat([size for size, _ in self.batches], [count for _, count in self.batches]).astype(np.int64)
        return (int(sizes[0]), int(sizes[len(sizes) // 2]), int(sizes[-1])) if len(sizes) else (0, 0, 0)


def captured(tier: str, decode: str, batches: Int64, num_tokens: int, scrapes: Sequence[Scrape]) -> Captured:
    """What the batch sizes int [n] of rows, the load's tokens and the server's counters say."""
    load_batch = mean_batch(scrapes)
    sizes, counts = np.unique(batches, return_counts=True)
    return Captured(
        tier=tier,
        decode=decode,
        num_rows=len(batches),
        num_tokens=num_tokens,
        batches=tuple(zip(sizes.tolist(), counts.tolist(), strict=True)),
        load_batch=load_batch,
        share_at_load=None if load_batch is None or not len(batches) else at_load(batches, load_batch),
    )


def mean_batch(scrapes: Sequence[Scrape]) -> float | None:
    """Tokens that the server generated during the load / its steps: what the server itself counts, not the capture."""
    ordered = sorted(scrapes, key=lambda scrape: scrape.at_ns)
    tokens, steps = ledger.increase(ordered, "generation_tokens"), ledger.increase(ordered, "steps")
    return tokens / steps if tokens and steps else None


def at_load(batches: Int64, load_batch: float) -> float:
    """The share of rows, by their batch sizes int [n], that were computed at half the load's mean batch or more.

    It is 1 when they are a fair sample of the load, however uneven that was: a step with b sequences gives b rows, so
    that the harmonic mean of the rows' batches is the mean batch of the steps.
    """
    known = np.asarray(batches, np.float64)
    if not len(known) or known.min() <= 0:
        return float((known >= HALF * load_batch).mean()) if len(known) else 0.0
    own = len(known) / float((1 / known).sum())
    return 1.0 if own >= _FAIR * load_batch else float((known >= HALF * load_batch).mean())
