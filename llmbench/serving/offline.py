"""The engine in this process, without server or link: `LLM(model).generate(prompts)`."""

import secrets
from collections.abc import Sequence as Sequences

import msgspec
import numpy as np

from llmbench import engines
from llmbench.engines import EngineSettings, Float32, StepResult
from llmbench.errors import PromptEmpty
from llmbench.link import extras
from llmbench.link.arena import Dimensions, StepArrays
from llmbench.serving.blocks import BlockPool
from llmbench.serving.loop import place, step_extras, step_rows
from llmbench.serving.scheduler import Limits, Plan, Scheduler
from llmbench.serving.sequence import Sequence
from llmbench.serving.stack import open_tokenizer
from llmbench.serving.stops import StopTexts
from llmbench.tokenizer import Detokenizer
from llmbench.types import Sampling
from llmbench.weights.model import open_model


class LLM:
    """A model and an engine, driven by the scheduler of the serving stack.

    `model` is `embedded`, `random:PRESET` or a folder; `engine` None takes the default one; `tokenizer` is for models
    that bring none. Raises InputError when model or engine cannot be opened.
    """

    def __init__(
        self,
        model: str = "embedded",
        engine: str | None = None,
        *,
        tokenizer: str | None = None,
        batch_size: int = 32,
        threads: int | None = None,
    ) -> None:
        opened = open_model(model)
        self.tokenizer = open_tokenizer(opened, tokenizer)
        self._eos_ids = frozenset(opened.config.eos_ids)
        self._limits = Limits(max_batch=batch_size, max_tokens_per_step=max(512, batch_size))
        settings = EngineSettings(max_batch=batch_size, threads=threads)
        self._engine = engines.get(engine or "numpy_llama", opened, settings)
        capacity = self._engine.capacity()
        self._scheduler = Scheduler(
            self._limits, BlockPool(capacity.num_blocks, capacity.block_size), capacity.max_model_len
        )
        self._arrays = StepArrays.private(
            Dimensions(
                max_batch=batch_size,
                max_tokens=self._limits.max_tokens_per_step,
                max_blocks=-(-capacity.max_model_len // capacity.block_size),
            )
        )

    def generate(
        self,
        prompts: str | Sequences[str],
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        *,
        joined: bool = False,
    ) -> list[str]:
        """The answers, in the order of the prompts, batched as they fit. Raises PromptTooLong before anything runs.

        `joined` keeps the space between a prompt and its answer, as servers do that continue a text.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        sequences = [self._sequence(self.tokenizer.encode(prompt), max_new_tokens, sampling) for prompt in prompts]
        self._run(sequences)
        return [self._text(sequence, joined) for sequence in sequences]

    def logits(self, token_ids: Sequences[int]) -> Float32:
        """The logits after each token, float32 [len, vocab], in one prefill. Raises PromptEmpty, PromptTooLong."""
        if not token_ids:
            raise PromptEmpty("no tokens to compute logits for")
        pieces: list[Float32] = []
        self._run([self._sequence(list(token_ids), 0, None)], pieces)
        return np.concatenate(pieces)

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _sequence(self, prompt_ids: list[int], max_new_tokens: int, sampling: Sampling | None) -> Sequence:
        sampling = sampling or Sampling()
        return Sequence(
            request_id="",
            prompt_ids=prompt_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            eos_ids=self._eos_ids,
        )

    def _text(self, sequence: Sequence, joined: bool) -> str:
        """The text of an answer; one that has a stop text is generated to its end all the same."""
        asked = sequence.sampling
        if not asked.stop and not joined:
            return self.tokenizer.decode(sequence.output_ids)
        stops, text = StopTexts(asked.stop, asked.include_stop), ""
        detokenizer = Detokenizer(self.tokenizer, after=sequence.prompt_ids[-1] if joined else None)
        for i, token_id in enumerate(sequence.output_ids):
            piece = detokenizer.push(token_id)
            if i == len(sequence.output_ids) - 1:
                piece += detokenizer.flush()
            piece, found = stops.push(piece, armed=i >= asked.min_new_tokens)
            text += piece
            if found is not None:
                return text
        return text + stops.flush()

    def _run(self, sequences: list[Sequence], pieces: list[Float32] | None = None) -> None:
        """Run sequences to their end. `pieces` gets the logits of every prompt token, float32 [n, vocab] each."""
        try:
            for sequence in sequences:
                self._scheduler.add(sequence)
            while (plan := self._scheduler.plan()) is not None:
                result = self._step(plan, score_prompts=pieces is not None)
                if pieces is not None:
                    pieces += result.prompt_logits
                self._scheduler.commit(plan, result.token_ids.tolist(), result.chosen_logits.tolist())
        finally:
            for sequence in sequences:
                self._scheduler.cancel(sequence)  # only after an error: what has ended is not there any more

    def _step(self, plan: Plan, score_prompts: bool) -> StepResult:
        place(self._arrays, plan)
        rows, steps = step_rows(plan)
        num_tokens = self._arrays.write(rows, steps)
        batch = self._arrays.batch(len(rows), num_tokens)
        if score_prompts:
            return self._engine.step(msgspec.structs.replace(batch, score_prompts=np.ones(len(rows), np.bool_)))
        asked = step_extras(plan)
        result = self._engine.step(extras.wanted(batch, asked))
        extras.apply(batch, result, asked)
        return result
