"""How much of the prompts other prompts begin with as well: what a cache of prefixes can save at most."""

from collections.abc import Sequence
from itertools import pairwise, takewhile


def num_shared(prompts: Sequence[tuple[int, ...]]) -> int:
    """Tokens of all prompts that at least one other prompt has at its beginning, in the same places.

    The longest beginning that a prompt has in common with another one is the one with a neighbour in sorted order.
    """
    ordered = sorted(prompts)
    common = [0, *(_common(before, after) for before, after in pairwise(ordered)), 0]
    return sum(max(left, right) for left, right in pairwise(common))


def _common(before: Sequence[int], after: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
