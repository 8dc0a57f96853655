"""ShareGPT files: the first question of each conversation, with the answer that was given to it."""

from pathlib import Path

from llmbench.workload.datasets import _talks
from llmbench.workload.plan import Turn
from llmbench.workload.sources import Need
from llmbench.workload.sources import Source as Base


class Source(Base, frozen=True):
    """Conversations in which nobody is answered are left out; for all turns use `multiturn`."""

    path: Path

    def samples(self, need: Need) -> list[Turn]:
        """One sample per conversation."""
        return [Turn(prompt=talk[0][0], output=talk[0][1]) for talk in _talks.read(self.path)]
