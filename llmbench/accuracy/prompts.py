"""Prompts of wanted lengths, made of a dataset's texts: the checks want to say how long, not only what."""

from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer

Ids = tuple[int, ...]
SHORTEST = 4  # tokens: the begin-of-sequence id, and something to tell one prompt from another


class Prompts:
    """Token ids of the texts one behind the other, in an order that `rng` gives, cut to length.

    As long as there are texts left, each prompt begins with another one, so that no two share more than the
    begin-of-sequence id. `longest` is the most tokens that a prompt may have.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer, rng: np.random.Generator, longest: int) -> None:
        if longest < SHORTEST:
            raise InputError(f"prompts of {longest} tokens at most: a model that holds more is needed")
        self._texts = texts
        self._tokenizer = tokenizer
        self._order: Iterator[int] = cycle(rng.permutation(len(texts)).tolist())
        self._longest = longest

    def take(self, num_tokens: int) -> Ids:
        """A prompt of so many tokens, the begin-of-sequence id among them; fewer where so many do not fit."""
        wanted = max(SHORTEST, min(num_tokens, self._longest))
        ids: list[int] = [self._tokenizer.bos_id]
        while len(ids) < wanted:
            ids += self._tokenizer.encode(self._texts[next(self._order)], bos=False)
        return tuple(ids[:wanted])


def changed(prompt: Ids, other: Ids) -> Ids:
    """The prompt with one token in its middle taken from another prompt, as from a neighbour's place in the cache."""
    at = len(prompt) // 2
    different = (token for token in other[1:] if token != prompt[at])
    return (*prompt[:at], next(different, other[0]), *prompt[at + 1 :])
