"""Text of an exact number of tokens, made of the sentences of our own corpus."""

from random import Random

import numpy as np

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer
from llmbench.workload.corpus import words

_SENTENCES = 4096  # so that two texts rarely begin alike: one pair in 16 million has the same two first sentences
_PATTERNS = (*words.PLAIN, *words.ADVICE, *words.STORY, *words.CONTEXT)
_TRIES = 400


class Writer:
    """Writes texts of exact lengths in the tokens of one tokenizer, without the begin-of-sequence id."""

    def __init__(self, tokenizer: Tokenizer, rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._random = Random(int(rng.integers(2**63)))
        sentences = [words.sentence(self._random, self._random.choice(_PATTERNS)) for _ in range(_SENTENCES)]
        self._sentences = [(sentence, self._count(sentence)) for sentence in sentences]
        all_words = sorted({word for slot in words.SLOTS.values() for word in slot})
        self._short = [word for word in all_words if self._count(word) == 1] or ["a"]

    def text(self, num_tokens: int, after: str = "") -> str:
        """A text that adds so many tokens to the one that it is to stand behind, with that in front.

        Raises InputError when the tokenizer does not let it: one that has no single token for a short word.
        """
        parts, left = [after] if after else [], num_tokens
        while left > 0:
            sentence, tokens = self._random.choice(self._sentences)
            if tokens > left:
                sentence, tokens = self._cut(sentence, left)
            if not sentence:
                break
            parts.append(sentence)
            left -= tokens
        return self._trimmed(parts, num_tokens + (self._count(after) if after else 0))

    def _cut(self, sentence: str, most: int) -> tuple[str, int]:
        """The first words of a sentence that are at most so many tokens."""
        kept = sentence.split(" ")
        while kept and self._count(" ".join(kept)) > most:
            kept.pop()
        return " ".join(kept), self._count(" ".join(kept)) if kept else 0

    def _trimmed(self, parts: list[str], target: int) -> str:
        """The parts with short words behind them, as many as make the number right; it is counted over the whole."""
        text = " ".join(parts)
        for _ in range(_TRIES):
            missing = target - self._count(text)
            if missing == 0:
                return text
            if missing < 0:
                text = text.rpartition(" ")[0]
            else:
                more = self._random.choices(self._short, k=missing)
                text = " ".join([text, *more] if text else more)
        raise InputError(f"{self._tokenizer.source}: no text of exactly {target} tokens was found")

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text, bos=False))
