"""How numbers are spread: a number alone, or `kind:number:number`, the same for think times and for token lengths."""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray

from llmbench.plugins import unknown

# kind: (what its numbers are)
KINDS = {
    "constant": ("value",),
    "exponential": ("mean",),
    "uniform": ("low", "high"),
    "normal": ("mean", "sd"),
    "lognormal": ("mean", "sd"),
    "zipf": ("exponent", "most"),
}


class Spread(msgspec.Struct, frozen=True):
    """A distribution; mean and standard deviation of `lognormal` are those of the numbers, not of their logarithms.

    `zipf` gives the whole numbers k from 1 to `most` with a probability proportional to k ** -exponent.
    """

    kind: str
    numbers: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The expected number, before anything is rounded or cut off."""
        if self.kind == "uniform":
            return sum(self.numbers) / 2
        if self.kind == "zipf":
            weights = _zipf(*self.numbers)
            return float(weights @ np.arange(1, len(weights) + 1))
        return self.numbers[0]

    def draw(self, rng: np.random.Generator, size: int) -> NDArray[np.float64]:
        """So many independent numbers, never below 0."""
        first, second = (*self.numbers, 0.0)[:2]
        if self.kind == "constant":
            return np.full(size, first)
        if self.kind == "exponential":
            return rng.exponential(first, size)
        if self.kind == "uniform":
            return rng.uniform(first, second, size)
        if self.kind == "normal":
            return np.maximum(0.0, rng.normal(first, second, size))
        if self.kind == "lognormal":
            variance = math.log1p((second / first) ** 2)
            return rng.lognormal(math.log(first) - variance / 2, math.sqrt(variance), size)
        weights = _zipf(first, second)
        return rng.choice(np.arange(1.0, len(weights) + 1), size, p=weights)

    def whole(self, rng: np.random.Generator, size: int, least: int, most: int) -> list[int]:
        """Token lengths: rounded, and moved to the nearer end where they are outside of least..most.

        A uniform spread of whole numbers gives each from low to high the same chance.
        """
        if self.kind == "uniform":
            low, high = (round(number) for number in self.numbers)
            numbers = rng.integers(low, high + 1, size)
        else:
            numbers = np.rint(self.draw(rng, size)).astype(np.int64)
        return [int(number) for number in np.clip(numbers, least, most)]


def parse(text: str) -> Spread:
    """`2`, `exponential:2`, `uniform:10:200`, ... Raises ValueError that says what is wrong with it."""
    kind, *words = text.split(":")
    if not words:
        kind, words = "constant", [kind]
    if kind not in KINDS:
        raise ValueError(unknown("distribution", kind, list(KINDS)))
    form = ":".join((kind, *(name.upper() for name in KINDS[kind])))
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        raise ValueError(f"{text!r} is not a number or a distribution such as {form}") from None
    if len(numbers) != len(KINDS[kind]):
        raise ValueError(f"{text!r} should be {form}")
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"{text!r}: the numbers must be finite and not below 0")
    if kind == "uniform" and numbers[0] > numbers[1]:
        raise ValueError(f"{text!r}: LOW is above HIGH")
    if (kind == "lognormal" and numbers[0] == 0) or (kind == "zipf" and numbers[1] < 1):
        raise ValueError(f"{text!r}: {'MEAN must be above 0' if kind == 'lognormal' else 'MOST must be 1 or more'}")
    return Spread(kind, numbers)


def check(key: str, text: str) -> None:
    """Raise the ValueError of `parse` with the key in front."""
    try:
        parse(text)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _zipf(exponent: float, most: float) -> NDArray[np.float64]:
    weights = np.exp(-exponent * np.log(np.arange(1.0, int(most) + 1)))
    return np.asarray(weights / weights.sum())
