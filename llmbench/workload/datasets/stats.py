"""Token lengths of a dataset."""

from collections.abc import Sequence

import msgspec
import numpy as np

from llmbench.tokenizer import Tokenizer
from llmbench.workload.datasets.alpaca import Sample


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """How long one kind of text is, in tokens; `total` counts prompt, output and the begin-of-sequence id."""

    kind: str
    count: int
    min: int
    mean: float
    median: float
    p90: float
    p99: float
    max: int
    sum: int


def lengths(samples: Sequence[Sample], tokenizer: Tokenizer) -> list[Row]:
    """One row each for prompts, outputs and totals."""
    prompts = np.array([len(tokenizer.encode(sample.prompt, bos=False)) for sample in samples])
    outputs = np.array([len(tokenizer.encode(sample.output, bos=False)) for sample in samples])
    return [_row("prompt", prompts), _row("output", outputs), _row("total", 1 + prompts + outputs)]


def _row(kind: str, values: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> Row:
    median, p90, p99 = (float(value) for value in np.quantile(values, (0.5, 0.9, 0.99)))
    return Row(
        kind=kind,
        count=len(values),
        min=int(values.min()),
        mean=round(float(values.mean()), 2),
        median=median,
        p90=round(p90, 2),
        p99=round(p99, 2),
        max=int(values.max()),
        sum=int(values.sum()),
    )
