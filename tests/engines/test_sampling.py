"""Picking tokens: greedy and sampled, and that no row knows of another."""

import numpy as np
import numpy.typing as npt
import pytest
import scipy.stats

from llmbench.engines import SAMPLING
from llmbench.engines._sampling import pick
from llmbench.errors import ServingError

LOGITS = np.array([0.0, 1.0, 2.0, -1.0, 1.5, 2.0, -3.0, 0.5], np.float32)


def sampling(num: int, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> npt.NDArray[np.void]:
    """The same settings for all rows, each with a step of its own."""
    made = np.zeros(num, SAMPLING)
    made["temperature"], made["top_k"], made["top_p"] = temperature, top_k, top_p
    made["step"], made["seed"] = np.arange(num), 11
    return made


def draw(num: int, temperature: float, top_k: int = 0, top_p: float = 1.0) -> npt.NDArray[np.int32]:
    return pick(np.tile(LOGITS, (num, 1)), sampling(num, temperature, top_k, top_p))[0]


def assert_distributed(tokens: npt.NDArray[np.int32], weights: npt.NDArray[np.float64]) -> None:
    counts = np.bincount(tokens, minlength=len(weights))
    assert counts[weights == 0].sum() == 0
    expected = (weights / weights.sum() * len(tokens))[weights > 0]
    assert scipy.stats.chisquare(counts[weights > 0], expected).pvalue > 0.01


def test_greedy_takes_the_lowest_id_of_the_largest_logit() -> None:
    tokens, chosen = pick(LOGITS[None], sampling(1))
    assert (tokens.tolist(), chosen.tolist()) == ([2], [2.0])
    assert [str(a.dtype) for a in (tokens, chosen)] == ["int32", "float32"]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_divides_the_logits(temperature: float) -> None:
    assert_distributed(draw(20_000, temperature), np.exp(LOGITS.astype(np.float64) / temperature))


def test_top_k_keeps_the_k_largest() -> None:
    weights = np.exp(LOGITS.astype(np.float64))
    assert_distributed(draw(20_000, 1.0, top_k=3), np.where(LOGITS >= 1.5, weights, 0))


def test_top_k_keeps_what_ties_with_the_last_of_them() -> None:
    assert set(draw(200, 1.0, top_k=2)) == {2, 5}
    assert set(draw(500, 5.0, top_k=100)) == set(range(8))


def test_top_p_keeps_the_fewest_that_reach_it() -> None:
    weights = np.exp(LOGITS.astype(np.float64))
    shares = weights / weights.sum()
    just_three = float(shares[[2, 5, 4]].sum()) - 1e-3
    assert_distributed(draw(20_000, 1.0, top_p=just_three), np.where(LOGITS >= 1.5, weights, 0))


def test_top_p_of_nearly_nothing_keeps_the_largest() -> None:
    logits = np.tile(np.array([0.0, 3.0, 2.0], np.float32), (50, 1))
    assert set(pick(logits, sampling(50, 1.0, top_p=1e-6))[0]) == {1}


def test_top_p_counts_what_top_k_has_left() -> None:
    weights = np.exp(np.array([2.0, 1.5, 1.0, 0.5, 0.0]))
    share_of_three = float(weights[:2].sum() / weights[:3].sum())
    logits = np.tile(np.log(weights).astype(np.float32), (300, 1))
    assert set(pick(logits, sampling(300, 1.0, top_k=3, top_p=share_of_three - 1e-3))[0]) == {0, 1}


def test_top_k_of_one_is_greedy() -> None:
    assert set(draw(50, 2.0, top_k=1)) == {2}


def test_a_row_gives_the_same_token_alone_and_in_any_batch() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((40, 500)).astype(np.float32)
    settings = sampling(40)
    settings["temperature"] = rng.choice([0.0, 0.7, 1.3], 40)
    settings["top_k"], settings["top_p"] = rng.choice([0, 5, 50], 40), rng.choice([1.0, 0.8], 40)
    settings["seed"] = rng.integers(0, 2**63, 40)
    together, chosen = pick(logits, settings)
    for i in range(40):
        alone, its = pick(logits[i : i + 1], settings[i : i + 1])
        assert (alone[0], its[0]) == (together[i], chosen[i])
    turned = np.random.default_rng(1).permutation(40)
    assert pick(logits[turned], settings[turned])[0].tolist() == together[turned].tolist()


def test_greedy_rows_do_not_mind_sampled_ones_beside_them() -> None:
    logits = np.tile(LOGITS, (6, 1))
    settings = sampling(6)
    settings["temperature"][1::2] = 100.0
    assert pick(logits, settings)[0][::2].tolist() == [2, 2, 2]


def test_seed_and_step_both_change_the_token() -> None:
    logits = np.zeros((1, 1000), np.float32)
    found = set()
    for seed, step in [(1, 0), (2, 0), (1, 1), (2**64 - 1, 0)]:
        settings = sampling(1, 1.0)
        settings["seed"], settings["step"] = seed, step
        found.add(int(pick(logits, settings)[0][0]))
    assert len(found) == 4


def test_the_chosen_logit_of_a_sampled_row_is_the_raw_one() -> None:
    tokens, chosen = pick(np.tile(LOGITS, (100, 1)), sampling(100, 2.0, top_k=4, top_p=0.9))
    assert chosen.tolist() == LOGITS[tokens].tolist()


def test_the_logits_are_not_changed() -> None:
    logits = np.tile(LOGITS, (4, 1))
    pick(logits, sampling(4, 0.7, top_k=2, top_p=0.5))
    assert (logits == LOGITS).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_row_that_is_not_finite_is_named(wrong: float) -> None:
    logits = np.tile(LOGITS, (3, 1))
    logits[1, 7] = wrong
    with pytest.raises(ServingError, match=r"row 1 have the maximum (nan|inf) \(1 such rows of 3\)"):
        pick(logits, sampling(3))
