"""Which cores a rank gets."""

import logging

import pytest

from llmbench.errors import ConfigError
from llmbench.link import binding


@pytest.mark.parametrize(
    ("nodes", "num_ranks", "expected"),
    [
        ([[0, 1]], 1, [[0, 1]]),
        ([[0, 1]], 2, [[0], [1]]),
        ([[0, 1, 2, 3, 4]], 2, [[0, 1], [2, 3]]),
        ([[0, 1, 4, 5], [2, 3, 6, 7]], 2, [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ([[0, 1, 4, 5], [2, 3, 6, 7]], 3, [[0, 1], [4, 5], [2, 3, 6, 7]]),
        ([[0, 1, 4, 5], [2, 3, 6, 7]], 4, [[0, 1], [4, 5], [2, 3], [6, 7]]),
        ([[0, 1], [2, 3]], 1, [[0, 1]]),
    ],
)
def test_ranks_are_spread_over_the_nodes_and_share_the_cores_of_theirs(
    nodes: list[list[int]], num_ranks: int, expected: list[list[int]]
) -> None:
    assert [binding.cores_of(rank, num_ranks, nodes, {}) for rank in range(num_ranks)] == expected


def test_the_number_of_cores_can_be_given() -> None:
    given = {"CPU_BINDING_NUM": "1"}
    assert [binding.cores_of(rank, 2, [[0, 1, 2, 3]], given) for rank in range(2)] == [[0], [1]]


@pytest.mark.parametrize("number", ["-1", "0", "3", "many"])
def test_a_number_of_cores_that_there_are_not_is_an_error(number: str) -> None:
    with pytest.raises(ConfigError, match=f"CPU_BINDING_NUM: {number} cores for each of 2 ranks, of the 4 cores"):
        binding.cores_of(0, 2, [[0, 1, 2, 3]], {"CPU_BINDING_NUM": number})


def test_what_cannot_be_bound_is_said_and_not_fatal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CPU_BINDING_NUM", "100000")
    before = binding.available_cores()
    with caplog.at_level(logging.WARNING):
        binding.bind(0, 1)
    assert "rank 0 is not bound to cores: CPU_BINDING_NUM: 100000 cores" in caplog.text
    assert binding.available_cores() == before


@pytest.mark.parametrize(
    ("text", "cores"), [("0-2,8\n", [0, 1, 2, 8]), ("5\n", [5]), ("\n", []), ("0,2,4-5", [0, 2, 4, 5])]
)
def test_the_kernels_lists_of_cores_are_read(text: str, cores: list[int]) -> None:
    assert binding.parse_cores(text) == cores
