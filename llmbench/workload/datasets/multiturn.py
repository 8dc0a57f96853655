"""Conversations turn by turn: the next turn is due a think time after the answer to the one before.

A prompt holds the whole conversation so far with the reference answers of the file, not with what the server has just
said: so the plan is known, counted and hashed before the first request, and is the same for every server.
"""

from pathlib import Path

from llmbench.workload import spread
from llmbench.workload.datasets import _talks
from llmbench.workload.exact import Writer
from llmbench.workload.plan import Turn
from llmbench.workload.sources import Need
from llmbench.workload.sources import Source as Base


class Source(Base, frozen=True):
    """The conversations of a ShareGPT file (`path`), or composed ones: `turns` of `prompt` and `output` tokens.

    `think` is in seconds, `turns`, `prompt` and `output` are in numbers of turns and tokens; each a number or a spread.
    At most `most` turns of a conversation are sent.
    """

    path: Path | None = None
    think: str = "0"
    turns: str = "3"
    prompt: str = "32"
    output: str = "64"
    most: int = 64

    def __post_init__(self) -> None:
        for key, value in (("think", self.think), ("turns", self.turns), ("prompt", self.prompt)):
            spread.check(key, value)
        spread.check("output", self.output)
        if self.most < 1:
            raise ValueError(f"most: must be 1 or more, got {self.most}")

    def samples(self, need: Need) -> list[Turn]:
        """The turns of each conversation, one conversation after another."""
        talks = self._composed(need) if self.path is None else _talks.read(self.path)
        turns = [turn for talk in talks for turn in self._turns(talk[: self.most])]
        thinks = spread.parse(self.think).draw(need.thinks, len(turns)).tolist()
        return [
            Turn(prompt=turn.prompt, output=turn.output, think_s=turn.think_s if turn.think_s is None else think_s)
            for turn, think_s in zip(turns, thinks, strict=True)
        ]

    def _turns(self, talk: list[_talks.Pair]) -> list[Turn]:
        turns: list[Turn] = []
        history = ""
        for question, answer in talk:
            prompt = f"{history}User: {question}\nAssistant:"
            turns.append(Turn(prompt=prompt, output=answer, think_s=0.0 if turns else None))
            history = f"{prompt} {answer}\n"
        return turns

    def _composed(self, need: Need) -> list[list[_talks.Pair]]:
        """Conversations with so many turns together as there will be requests."""
        writer = Writer(need.tokenizer, need.prompts)
        numbers = spread.parse(self.turns).whole(need.lengths, need.number, 1, self.most)
        questions = iter(spread.parse(self.prompt).whole(need.lengths, sum(numbers), 1, 1_000_000))
        answers = iter(spread.parse(self.output).whole(need.lengths, sum(numbers), 1, 1_000_000))
        talks: list[list[_talks.Pair]] = []
        while sum(map(len, talks)) < need.number:
            number = numbers[len(talks)]
            talks.append([(writer.text(next(questions)), writer.text(next(answers))) for _ in range(number)])
        return talks
