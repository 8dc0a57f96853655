"""Captured rows beside their load: the load's mean batch, and which rows stand for it."""

import numpy as np
import pytest

from llmbench.loadgen.record import Scrape
from llmbench.metrics.captured import at_load, captured, mean_batch


def scrape(at_ns: int, tokens: float, steps: float) -> Scrape:
    values = {"vllm:generation_tokens_total": tokens, "generation_tokens_total": tokens, "llmbench:steps_total": steps}
    return Scrape(at_ns=at_ns, values=values)


def rows_of(steps: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The batch of each row of a load whose steps had so many sequences."""
    return np.repeat(steps, steps)


def test_the_mean_batch_is_tokens_over_steps_since_the_first_reading() -> None:
    assert mean_batch([scrape(3, 620.0, 30.0), scrape(1, 20.0, 10.0), scrape(2, 300.0, 18.0)]) == 30.0
    assert mean_batch([scrape(1, 20.0, 10.0), scrape(2, 20.0, 10.0)]) is None  # nothing ran
    assert mean_batch([]) is None
    assert mean_batch([Scrape(at_ns=1, values={"vllm:generation_tokens_total": 5.0})]) is None  # another server


def test_rows_alone_do_not_stand_for_a_load_of_many() -> None:
    assert at_load(np.full(100, 1), 32.0) == 0.0
    assert at_load(np.array([64] * 80 + [1] * 20), 60.0) == pytest.approx(0.8)
    assert at_load(np.array([64] * 95 + [1] * 5), 60.0) == pytest.approx(0.95)


@pytest.mark.parametrize(
    "steps",
    [
        [32] * 100,
        [*range(1, 64), *range(64, 0, -1)],  # a ramp
        [2] * 900 + [60] * 100,  # bursts: a fourth of the rows run at a quarter of the mean batch
        [1, 2, 3] * 50,
        [1] * 10,
    ],
)
def test_every_row_of_a_load_stands_for_it_however_uneven_it_was_and_so_does_a_fair_share(steps: list[int]) -> None:
    rows, mean = rows_of(steps), sum(steps) / len(steps)
    assert at_load(rows, mean) == 1.0
    share = np.random.default_rng(7).choice(rows, max(10, len(rows) // 3), replace=False)
    assert at_load(share, mean) == 1.0


def test_rows_whose_batch_nobody_knows_stand_for_no_load() -> None:
    assert at_load(np.zeros(5, np.int64), 4.0) == 0.0
    assert at_load(np.zeros(0, np.int64), 4.0) == 0.0


def test_what_is_shown_of_rows() -> None:
    found = captured("topk", "free", np.array([4, 1, 4, 2, 4]), 20, [scrape(1, 0.0, 0.0), scrape(2, 20.0, 5.0)])
    assert found.batches == ((1, 1), (2, 1), (4, 3))
    assert (found.num_rows, found.share_of_tokens, found.spread) == (5, 0.25, (1, 4, 4))
    assert found.load_batch == 4.0
    assert found.share_at_load == pytest.approx(0.8)
    nothing = captured("topk", "free", np.zeros(0, np.int64), 0, [])
    assert (nothing.share_of_tokens, nothing.spread, nothing.share_at_load) == (0.0, (0, 0, 0), None)
