"""The trusted model of an audit: an engine in this process, or another server's log-probabilities."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmbench.accuracy.audit.live import ServerScorer
from llmbench.accuracy.audit.rescore import gaps
from llmbench.accuracy.audit.run import Answer, Ids
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.target import locate
from llmbench.serving.offline import LLM
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.weights.model import open_model

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_NEW_TOKENS = 128


class Trusted:
    """A model and an engine in this process; a Scorer and a Vocabulary."""

    tier = "T0"

    def __init__(self, model: str, engine: str, tokenizer: Path | None) -> None:
        """Raises InputError when it cannot be opened."""
        self._spec = model
        self._llm = LLM(model, engine, tokenizer=None if tokenizer is None else str(tokenizer))
        self.computed = (self._llm.dtype, self._llm.quantisation)
        self.name = f"{model} on {engine} ({', '.join(filter(None, self.computed))})"

    @property
    def tokenizer(self) -> Tokenizer:
        return self._llm.tokenizer

    @property
    def eos_ids(self) -> Collection[int]:
        return self._llm.eos_ids

    @property
    def fingerprint(self) -> str:
        """The hash of its weights, as a server tells it at /identity."""
        return open_model(self._spec).identity()

    def logits(self, ids: Ids) -> Float32:
        """The logits after each id, float32 [n, V]."""
        return self._llm.logits(ids)

    def gaps(self, prompt: Ids, answer: Ids) -> Float64:
        """How far each token of an answer lies below the largest logit, float64 [n]."""
        return gaps(self.logits((*prompt, *answer[:-1])), len(prompt), answer)

    def apart(self, common: Ids, one: int, other: int) -> float:
        """How far below the largest logit the lower of two tokens lies."""
        row = self.logits(common)[-1].astype(np.float64)
        return float(row.max() - min(row[one], row[other]))

    def text(self, answer: Answer) -> str:
        """Its own answer to the same request, in a batch of one."""
        asked = answer.request
        limit = asked.max_new_tokens or _NEW_TOKENS
        return self._llm.generate([asked.prompt], limit, asked.sampling)[0].text

    def close(self) -> None:
        """Give back what the engine holds."""
        self._llm.close()


class TrustedServer:
    """A server that scores prompts of token ids, as OpenAI's completions do with `echo`."""

    tier = "T2"

    def __init__(self, url: str, tokenizer: Path | None) -> None:
        """Raises InputError, ServingError when nobody answers there."""
        self._scorer = ServerScorer(locate(url, flag="--trusted-url"), Timeouts())
        self.tokenizer = Tokenizer.from_file(tokenizer or embedded_path())
        self.eos_ids: Collection[int] = (self.tokenizer.eos_id,)
        self.name = f"the server at {url}"

    def gaps(self, prompt: Ids, answer: Ids) -> Float64:
        """How far each token of an answer lies below the likeliest one, float64 [n]."""
        return self._scorer.gaps(prompt, answer)

    def close(self) -> None:
        """There is nothing to give back."""
