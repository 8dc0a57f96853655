"""Prompts of our own sentences, composed to lengths that are drawn; the answers' lengths are drawn as well."""

from llmbench.workload import spread
from llmbench.workload.exact import Writer
from llmbench.workload.plan import Turn
from llmbench.workload.sources import Need
from llmbench.workload.sources import Source as Base


class Source(Base, frozen=True):
    """`prompt` and `output` are spreads of token numbers, without the begin-of-sequence id; `most` ends both.

    A number alone, `uniform:LOW:HIGH`, `normal:MEAN:SD`, `lognormal:MEAN:SD`, `exponential:MEAN` or
    `zipf:EXPONENT:MOST`.
    """

    prompt: str = "lognormal:128:96"
    output: str = "lognormal:128:96"
    most: int = 4096

    def __post_init__(self) -> None:
        spread.check("prompt", self.prompt)
        spread.check("output", self.output)
        if self.most < 1:
            raise ValueError(f"most: must be 1 or more, got {self.most}")

    def samples(self, need: Need) -> list[Turn]:
        """One sample for each request, no two alike unless they are too short for it."""
        prompts = spread.parse(self.prompt).whole(need.lengths, need.number, 1, self.most)
        outputs = spread.parse(self.output).whole(need.lengths, need.number, 1, self.most)
        writer = Writer(need.tokenizer, need.prompts)
        return [
            Turn(prompt=writer.text(tokens), output_tokens=output)
            for tokens, output in zip(prompts, outputs, strict=True)
        ]
