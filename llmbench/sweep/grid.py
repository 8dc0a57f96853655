"""Which cases are swept, in the notations and in the order of the ATB speed test."""

import re
from collections.abc import Sequence
from itertools import product

from llmbench.errors import InputError
from llmbench.metrics.sweep import Case

_MOST = 1 << 24
_POWER = re.compile(r"2\^(\d{1,2})")
_RANGE = re.compile(r"2\^(\d{1,2})\.\.2\^(\d{1,2})")


def numbers(text: str, flag: str) -> list[int]:
    """`1,4,16`, powers as in `2^7`, and half-open ranges of exponents: `2^5..2^8` is 32, 64 and 128.

    Raises InputError naming the flag.
    """
    found: list[int] = []
    for item in (part.strip() for part in text.split(",")):
        if between := _RANGE.fullmatch(item):
            low, high = int(between[1]), int(between[2])
            if low >= high:
                raise InputError(f"{flag} {item}: there is nothing in it; 2^5..2^8 is 32, 64 and 128, without 256")
            found += [1 << exponent for exponent in range(low, high)]
        elif power := _POWER.fullmatch(item):
            found.append(1 << int(power[1]))
        elif item.isascii() and item.isdecimal():
            found.append(int(item))
        else:
            raise InputError(f"{flag} {item!r}: write numbers with commas between them, as 1,4,16, 2^7 or 2^5..2^11")
    for number in found:
        if not 1 <= number <= _MOST:
            raise InputError(f"{flag}: must be from 1 to {_MOST}, got {number}")
    return found


def exponents(text: str, flag: str) -> list[int]:
    """`5:11` is 32, 64 ... 1024: two to the exponents from 5 to before 11. Raises InputError."""
    low, sign, high = text.partition(":")
    if not (sign and low.isdecimal() and high.isdecimal()):
        raise InputError(f"{flag} {text}: write two exponents, as 5:11 for 32 to 1024")
    return numbers(f"2^{low}..2^{high}", flag)


def cases(batches: Sequence[int], inputs: Sequence[int], outputs: Sequence[int], *, pairs: bool) -> list[Case]:
    """All of them: batches outermost, then input lengths, then output lengths; with `pairs` the n-th input length goes
    with the n-th output length. Each once. Raises InputError for pairs that are not as many on both sides.
    """
    if pairs and len(inputs) != len(outputs):
        raise InputError(
            f"--pairs: {len(inputs)} input lengths and {len(outputs)} output lengths; give as many of both"
        )
    lengths = list(zip(inputs, outputs, strict=True) if pairs else product(inputs, outputs))
    found = [
        Case(batch=batch, input_len=num_in, output_len=num_out) for batch in batches for num_in, num_out in lengths
    ]
    return list(dict.fromkeys(found))
