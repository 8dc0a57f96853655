"""Groups of prompts that begin alike: what a cache of prefixes is for."""

import numpy as np

from llmbench.workload import spread
from llmbench.workload.exact import Writer
from llmbench.workload.plan import Turn
from llmbench.workload.sources import Need
from llmbench.workload.sources import Source as Base


class Source(Base, frozen=True):
    """`groups` beginnings of `shared` tokens, each followed by `own` tokens of the request alone.

    `own` and `output` are spreads of token numbers. A request's group is drawn; group k is as likely as k ** -`skew`,
    so that 0 makes all alike.
    """

    groups: int = 8
    shared: int = 256
    own: str = "64"
    output: str = "64"
    skew: float = 0.0

    def __post_init__(self) -> None:
        spread.check("own", self.own)
        spread.check("output", self.output)
        if self.groups < 1 or self.shared < 1 or not self.skew >= 0:
            raise ValueError("groups and shared must be 1 or more, and skew not below 0")

    def samples(self, need: Need) -> list[Turn]:
        """One sample for each request."""
        own = spread.parse(self.own).whole(need.lengths, need.number, 1, 1_000_000)
        outputs = spread.parse(self.output).whole(need.lengths, need.number, 1, 1_000_000)
        writer = Writer(need.tokenizer, need.prompts)
        beginnings = [writer.text(self.shared) for _ in range(self.groups)]
        weights = np.exp(-self.skew * np.log(np.arange(1.0, self.groups + 1)))
        groups = need.prompts.choice(self.groups, need.number, p=weights / weights.sum())
        return [
            Turn(prompt=writer.text(tokens, after=beginnings[group]), output_tokens=output)
            for group, tokens, output in zip(groups, own, outputs, strict=True)
        ]
