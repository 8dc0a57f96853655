"""GSM8K (Cobbe et al. 2021, https://arxiv.org/abs/2110.14168): word problems whose answer is a number.

As the reference (ascend-formats section 5.3): zero shots, the question alone, 512 tokens, the last number of the reply
against the one behind "####", equal within 1e-4.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmbench.evals import NO_ANSWER, Ask, Item, Mark, Marked, Options, Reply, _lines

ABOUT = "GSM8K, word problems with a number as the answer; folder with test.jsonl (question, answer)"
MODES = ("last_number",)
SPLITS = ("test", "train")
SHOTS = (0,)

MAX_NEW_TOKENS = 512
TOLERANCE = 1e-4

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def evaluation(options: Options) -> "Gsm8k":
    """GSM8K with everything chosen."""
    return Gsm8k(options)


class Gsm8k:
    """The last number counts."""

    name = "gsm8k"

    def __init__(self, options: Options) -> None:
        self.split = options.split or SPLITS[0]
        self.max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
        self.protocol: Mapping[str, Any] = {
            "eval": self.name,
            "version": 1,
            "mode": MODES[0],
            "split": self.split,
            "shots": 0,
            "max_new_tokens": self.max_new_tokens,
        }

    def items(self, folder: Path) -> list[Item]:
        """Every line of the file."""
        return [self._item(line) for line in _lines.read(folder / f"{self.split}.jsonl")]

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        """The last number of the reply."""
        predicted = last_number(replies[0].text)
        right = predicted != NO_ANSWER and math.isclose(
            float(predicted), float(item.truth), rel_tol=0.0, abs_tol=TOLERANCE
        )
        return Mark(predicted=predicted, correct=right)

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        """None."""
        return {}

    def _item(self, line: _lines.Line) -> Item:
        answer = line.text("answer")
        truth = last_number(answer.rpartition("####")[2])
        if truth == NO_ANSWER:
            raise line.error("answer", "a number behind ####", answer)
        return Item(
            id=f"{self.name}/{line.number}",
            group=self.name,
            category=self.name,
            truth=truth,
            asks=(Ask(prompt=line.text("question"), max_new_tokens=self.max_new_tokens),),
        )


def last_number(text: str) -> str:
    """The last number of a text without its thousands' commas; NO_ANSWER when there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else NO_ANSWER
