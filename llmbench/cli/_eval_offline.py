"""The engine in this process as an Answerer of eval questions."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from llmbench.evals import Ask, Reply
from llmbench.exam.http import TOP
from llmbench.serving.offline import LLM


class Offline:
    """The engine in this process as an Answerer: texts batch by batch, log-probabilities from whole prefills."""

    def __init__(self, llm: LLM, batch_size: int = 32) -> None:
        self._llm = llm
        self._batch_size = batch_size

    def answer(self, asks: Sequence[Ask], replied: Callable[[int, Reply], None]) -> None:
        """Answer all; those for texts first."""
        texts = [index for index, ask in enumerate(asks) if ask.want == "text"]
        for start in range(0, len(texts), self._batch_size):
            self._generate(asks, texts[start : start + self._batch_size], replied)
        for index, ask in enumerate(asks):
            if ask.want != "text":
                replied(index, self._scored(ask))

    def _generate(self, asks: Sequence[Ask], batch: Sequence[int], replied: Callable[[int, Reply], None]) -> None:
        longest = max(asks[index].max_new_tokens for index in batch)
        assert all(asks[index].max_new_tokens == longest for index in batch), "a set asks for one length"
        answers = self._llm.generate([asks[index].prompt for index in batch], longest, joined=True)
        for index, answer in zip(batch, answers, strict=True):
            replied(index, Reply(text=answer.text))

    def _scored(self, ask: Ask) -> Reply:
        tokenizer = self._llm.tokenizer
        ids = tokenizer.encode(ask.prompt)
        rows = self._llm.logits(ids)
        if ask.want == "next":
            scores = _log_softmax(rows[-1:])[0]
            likeliest = np.argsort(-scores, kind="stable")[:TOP]
            top: dict[str, float] = {}
            for i in likeliest.tolist():
                top.setdefault(tokenizer.piece(i), float(scores[i]))
            return Reply(top=top)
        chosen = _log_softmax(rows[:-1])[np.arange(len(ids) - 1), ids[1:]].tolist()
        return Reply(tokens=tuple(zip(map(tokenizer.piece, ids), [None, *chosen], strict=True)))


def _log_softmax(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """log(exp(row) / sum(exp(row))) for each row, in float64."""
    shifted = rows.astype(np.float64) - rows.max(axis=-1, keepdims=True)
    scores: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return scores
