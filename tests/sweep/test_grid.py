"""Which cases are swept: the notations and the order of the ATB speed test."""

import pytest

from llmbench.errors import InputError
from llmbench.sweep import grid

EXPONENTS = [32, 64, 128, 256, 512, 1024]  # the guide's [5,11]


def test_a_range_of_exponents_is_half_open() -> None:
    assert grid.numbers("2^5..2^11", "--input") == EXPONENTS
    assert grid.exponents("5:11", "--exps") == EXPONENTS
    assert grid.numbers("2^0..2^1", "--input") == [1]


def test_numbers_powers_and_ranges_may_stand_side_by_side() -> None:
    assert grid.numbers("1, 4,2^4,2^5..2^7", "--batch") == [1, 4, 16, 32, 64]


def test_ranges_are_crossed_batches_outermost_then_input_lengths() -> None:
    found = grid.cases([1, 4], EXPONENTS, EXPONENTS, pairs=False)
    assert len(found) == 2 * 36
    told = [(case.batch, case.input_len, case.output_len) for case in found]
    assert told[:3] == [(1, 32, 32), (1, 32, 64), (1, 32, 128)]
    assert told[6] == (1, 64, 32)
    assert told[36] == (4, 32, 32)


def test_pairs_are_zipped() -> None:
    found = grid.cases([1, 8], [256, 256, 512, 1024], [64, 256, 512, 1024], pairs=True)
    lengths = [(256, 64), (256, 256), (512, 512), (1024, 1024)]
    assert [(case.batch, case.input_len, case.output_len) for case in found] == [
        (batch, *pair) for batch in (1, 8) for pair in lengths
    ]


def test_pairs_must_be_as_many_on_both_sides() -> None:
    with pytest.raises(InputError, match="--pairs: 3 input lengths and 2 output lengths"):
        grid.cases([1], [1, 2, 3], [1, 2], pairs=True)


def test_a_case_that_is_named_twice_is_measured_once() -> None:
    assert len(grid.cases([1, 1], [32, 32], [8], pairs=False)) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write numbers with commas"),
        ("1,,2", "write numbers with commas"),
        ("1;2", "write numbers with commas"),
        ("-1", "write numbers with commas"),
        ("2.5", "write numbers with commas"),
        ("٣", "write numbers with commas"),
        ("3^2", "write numbers with commas"),
        ("2^5..128", "write numbers with commas"),
        ("2^5..2^5", "there is nothing in it"),
        ("2^8..2^5", "there is nothing in it"),
        ("0", "must be from 1 to"),
        ("2^40", "must be from 1 to"),
        ("99999999999", "must be from 1 to"),
    ],
)
def test_wrong_numbers_are_named_with_their_flag(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        grid.numbers(text, "--input")
    assert str(caught.value).startswith("--input")
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["5", "5:", ":11", "a:b", "11:5", "5..11"])
def test_wrong_exponents_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--exps|2\^"):
        grid.exponents(text, "--exps")
