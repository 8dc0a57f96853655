"""BoolQ (Clark et al. 2019, https://arxiv.org/abs/1905.10044): a passage and a question to answer with yes or no.

Zero shots. The reference (ascend-formats section 5.3) compares the log-probabilities of the last token of the prompt
with " yes" and with " no" behind it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmbench.evals import Ask, Item, Mark, Marked, Options, Reply, _choices, _lines

ABOUT = "BoolQ, yes-or-no questions to a passage; folder with dev.jsonl (question, title, passage, answer)"
MODES = ("logprob", "next", "first_word")
SPLITS = ("dev", "train")
SHOTS = (0,)

ANSWERS = ("yes", "no")
MAX_NEW_TOKENS = 8


def evaluation(options: Options) -> "BoolQ":
    """BoolQ with everything chosen."""
    return BoolQ(options)


class BoolQ:
    """The reference's protocol; from the next token's likeliest, for servers without echo; or from text."""

    name = "boolq"

    def __init__(self, options: Options) -> None:
        self.mode = options.mode or MODES[0]
        self.split = options.split or SPLITS[0]
        self.max_new_tokens = (options.max_new_tokens or MAX_NEW_TOKENS) if self.mode == "first_word" else 1
        self.protocol: Mapping[str, Any] = {
            "eval": self.name,
            "version": 1,
            "mode": self.mode,
            "split": self.split,
            "shots": 0,
            "max_new_tokens": self.max_new_tokens,
        }

    def items(self, folder: Path) -> list[Item]:
        """Every line of the file."""
        return [self._item(line) for line in _lines.read(folder / f"{self.split}.jsonl")]

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        """The likelier of yes and no, or the first of these words in a text."""
        if self.mode == "first_word":
            predicted, scores = _lines.first_word(replies[0].text, ANSWERS), {}
        else:
            scores = self._scores(replies)
            predicted = _choices.likeliest(scores)
        return Mark(predicted=predicted, correct=predicted == item.truth, scores=scores)

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        """None."""
        return {}

    def _scores(self, replies: Sequence[Reply]) -> dict[str, float]:
        if self.mode == "next":
            return _choices.spelled(replies[0].top, {word: (f" {word}", word) for word in ANSWERS})
        last = {word: reply.tokens[-1][1] for word, reply in zip(ANSWERS, replies, strict=True) if reply.tokens}
        return {word: score for word, score in last.items() if score is not None}

    def _item(self, line: _lines.Line) -> Item:
        question, passage = line.text("question"), line.text("passage")
        title = line.text("title", "")
        prompt = f"{title} -- {passage}\nQuestion: {question}?\nAnswer:"
        return Item(
            id=f"{self.name}/{line.number}",
            group=self.name,
            category=self.name,
            truth=ANSWERS[0] if line.flag("answer") else ANSWERS[1],
            asks=self._asks(prompt),
        )

    def _asks(self, prompt: str) -> tuple[Ask, ...]:
        if self.mode == "logprob":
            return tuple(Ask(prompt=f"{prompt} {word}", want="prompt") for word in ANSWERS)
        if self.mode == "next":
            return (Ask(prompt=prompt, want="next"),)
        return (Ask(prompt=prompt, max_new_tokens=self.max_new_tokens),)
