"""The engine in this process, without server or link: `LLM(model).generate(prompts)`."""

import math
import secrets
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Sequences
from typing import Any, NamedTuple

import msgspec
import numpy as np

from llmbench import clock, config, engines, plugins
from llmbench.engines import EngineSettings, Float32, StepResult
from llmbench.errors import InputError, PromptEmpty, PromptTooLong
from llmbench.link import extras
from llmbench.link.arena import Dimensions, StepArrays
from llmbench.serving import chat as chats
from llmbench.serving.blocks import BlockPool
from llmbench.serving.loop import place, step_extras, step_rows
from llmbench.serving.scheduler import Emission, Limits, Plan, Scheduler
from llmbench.serving.sequence import Sequence
from llmbench.serving.stack import open_tokenizer
from llmbench.serving.stops import AnswerText
from llmbench.types import FinishReason, Sampling
from llmbench.weights.model import open_model

Prompt = str | Sequences[int]
"""Text, or token ids that are used as they are."""

_SCORES = ("num_logprobs", "prompt_logprobs")  # of Sampling: an Answer has no place for them
_DRAWS = ("top_k", "top_p")
_DEFAULT_NEW_TOKENS = 128


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one answer: from the call to its first step, from there to its first token, from there to its last.

    What the engine compiled meanwhile is not in them, see `Speed.compiled_s`.
    """

    queued_s: float
    prefill_s: float
    decode_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one prompt. `token_ids` are those of the answer, eos and stop texts included, the text is without.

    `stop_reason` is the stop text or id that ended it.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: str | int | None
    prompt_token_ids: list[int]
    timing: Timing


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the answer to prompt `index`; the last part has the whole `answer`."""

    index: int
    text: str
    answer: Answer | None


class Speed(msgspec.Struct, kw_only=True):
    """What the steps of an LLM have taken so far, without compiling.

    A step in which a prompt has a part counts as prefill, also for the sequences that decode beside it; the tokens of
    all other steps are decoded ones.
    """

    num_prompt_tokens: int = 0
    prefill_s: float = 0.0
    num_decoded_tokens: int = 0
    decode_s: float = 0.0
    compiled_s: float = 0.0

    @property
    def prefill_tokens_per_s(self) -> float | None:
        """Prompt tokens per second of prefill steps; None before the first."""
        return self.num_prompt_tokens / self.prefill_s if self.prefill_s else None

    @property
    def decode_tokens_per_s(self) -> float | None:
        """New tokens per second of decode steps; None before the first."""
        return self.num_decoded_tokens / self.decode_s if self.decode_s else None


class LLM:
    """A model and an engine in this process, driven by the scheduler of the serving stack.

    `model` is `embedded`, `random:PRESET` or a folder; `engine` None takes the default one; `tokenizer` is for models
    that bring none, `model_cfg_path` a predict YAML for the engine `mindformers`. So many as `batch_size` are computed
    at once, the rest waits. `speed` says what the steps have taken. Raises InputError when model or engine cannot be
    opened.

    >>> with LLM("embedded") as llm:
    ...     answers = llm.generate(["Answer in one word. What kind of thing is football?"], max_new_tokens=8)
    >>> answers[0].text, answers[0].finish_reason
    ('sport', 'eos')
    """

    def __init__(
        self,
        model: str = "embedded",
        engine: str | None = None,
        *,
        tokenizer: str | None = None,
        model_cfg_path: str | None = None,
        batch_size: int = 32,
        threads: int | None = None,
    ) -> None:
        opened = open_model(model)
        self.tokenizer = open_tokenizer(opened, tokenizer)
        self.speed = Speed()
        self._model = opened
        self.eos_ids = frozenset(opened.config.eos_ids)
        self._limits = Limits(max_batch=batch_size, max_tokens_per_step=max(512, batch_size))
        settings = EngineSettings(max_batch=batch_size, threads=threads, model_cfg_path=model_cfg_path)
        self._engine = engines.get(engine, opened, settings)
        self.engine, self.dtype = self._engine.name, self._engine.dtype
        self.quantisation = opened.config.quantisation
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
        prompts: str | Sequences[Prompt],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        *,
        max_length: int | None = None,
        joined: bool = False,
        chat: bool = False,
        **options: object,
    ) -> list[Answer]:
        """The answers, in the order of the prompts.

        `max_new_tokens` (128 unless given) are the most of each answer, `max_length` the most of prompt and answer
        together. `sampling`, or its fields by name (`temperature=0.7, top_k=3, seed=1, stop=["."]`), say how tokens
        are chosen: greedily unless given; `do_sample=True` is a temperature of 1, as with transformers. `joined` keeps
        the space between a prompt and its answer, as servers do that continue a text. `chat` makes each text the first
        message of a conversation, by the model's own template. Raises InputError for wrong options, PromptTooLong and
        PromptEmpty, before anything runs.

        >>> with LLM("random:tiny", threads=1) as llm:
        ...     [answer] = llm.generate("I love Beijing, because", max_new_tokens=30, do_sample=True, top_k=3, seed=7)
        >>> len(answer.token_ids)
        30
        """
        asked = self.stream(
            prompts, max_new_tokens, sampling, max_length=max_length, joined=joined, chat=chat, **options
        )
        answers = {piece.index: piece.answer for piece in asked if piece.answer is not None}
        return [answers[index] for index in range(len(answers))]

    def stream(
        self,
        prompts: str | Sequences[Prompt],
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        *,
        max_length: int | None = None,
        joined: bool = False,
        chat: bool = False,
        **options: object,
    ) -> Iterator[Piece]:
        """The same answers piece by piece, a piece for each token, those of all prompts as they come."""
        chosen = sampling_of(sampling, options)
        sequences = []
        for number, prompt in enumerate([prompts] if isinstance(prompts, str) else prompts, 1):
            ids = self._prompt_ids(prompt, chat, f"prompt {number}")
            most = _num_new_tokens(len(ids), max_new_tokens, max_length, f"prompt {number}")
            sequences.append(self._sequence(ids, most, chosen))
        called_s = self._now_s()
        writing = {
            sequence: _Writing(index, sequence, AnswerText(self.tokenizer, sequence, joined), called_s)
            for index, sequence in enumerate(sequences)
        }
        for step in self._steps(sequences):
            for sequence in step.admitted:
                writing[sequence].begun(step.start_s)
            for emission in step.emissions:
                piece = writing[emission.sequence].push(emission, step.end_s)
                if piece.answer is not None and emission.finish_reason is None:
                    self._scheduler.cancel(emission.sequence)  # a stop text, of which the scheduler knows nothing
                yield piece

    def logits(self, token_ids: Sequences[int]) -> Float32:
        """The logits after each token, float32 [len, vocab], in one prefill. Raises PromptEmpty, PromptTooLong."""
        if not token_ids:
            raise PromptEmpty("no tokens to compute logits for")
        pieces: list[Float32] = []
        for _ in self._steps([self._sequence(list(token_ids), 0, Sampling())], pieces):
            pass
        return np.concatenate(pieces)

    def close(self) -> None:
        """Give back what the engine holds."""
        self._engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prompt_ids(self, prompt: Prompt, chat: bool, name: str) -> list[int]:
        if chat:
            if not isinstance(prompt, str):
                raise InputError(f"{name}: a chat's message is text, not token ids")
            text = chats.prompt(self._model, [{"role": "user", "content": prompt}])
            return self.tokenizer.encode(text, bos=False)  # a template writes the first <s> itself
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not ids:
            raise PromptEmpty(f"{name}: it has no tokens")
        return ids

    def _sequence(self, prompt_ids: list[int], max_new_tokens: int, sampling: Sampling) -> Sequence:
        return Sequence(
            request_id="",
            prompt_ids=prompt_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seed=secrets.randbits(64) if sampling.seed is None else sampling.seed,
            eos_ids=self.eos_ids,
        )

    def _steps(self, sequences: list[Sequence], pieces: list[Float32] | None = None) -> "Iterator[_Step]":
        """Run sequences to their end, step by step. `pieces` gets every prompt token's logits, float32 [n, vocab]."""
        try:
            for sequence in sequences:
                self._scheduler.add(sequence)
            while (plan := self._scheduler.plan()) is not None:
                start_s = self._now_s()
                result = self._step(plan, score_prompts=pieces is not None)
                end_s = self._now_s()
                self._count(plan, end_s - start_s)
                if pieces is not None:
                    pieces += result.prompt_logits
                emissions = self._scheduler.commit(plan, result.token_ids.tolist(), result.chosen_logits.tolist())
                yield _Step(plan.admitted, emissions, start_s, end_s)
        finally:
            for sequence in sequences:
                self._scheduler.cancel(sequence)  # after an error or a break: what has ended is not there any more

    def _count(self, plan: Plan, took_s: float) -> None:
        """Add a step that has run, and is not committed yet, to `speed`."""
        speed = self.speed
        speed.compiled_s = self._engine.compiled_s
        num_decoded = sum(bool(work.sequence.output_ids) and work.num_tokens == 1 for work in plan.works)
        if num_decoded == len(plan.works):
            speed.decode_s += took_s
            speed.num_decoded_tokens += num_decoded
        else:
            speed.prefill_s += took_s
            speed.num_prompt_tokens += plan.num_tokens - num_decoded

    def _now_s(self) -> float:
        """Seconds on a clock that stands still while the engine compiles."""
        return clock.now_ns() / 1e9 - self._engine.compiled_s

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


def sampling_of(given: Sampling | None, options: Mapping[str, object]) -> Sampling:
    """How tokens are chosen: the fields that are named over those that are given. Raises InputError, ConfigError."""
    known = [*(name for name in Sampling.__struct_fields__ if name not in _SCORES), "do_sample"]
    for name in options:
        if name not in known:
            raise InputError(plugins.unknown("option of generate", name, known))
    values: dict[str, Any] = {**msgspec.structs.asdict(given or Sampling()), **options}
    sampled = values.pop("do_sample", None)
    if sampled is not None and not isinstance(sampled, bool):
        raise InputError(f"do_sample: must be true or false, got {sampled!r}")
    if sampled is False:
        values["temperature"] = 0.0
    elif sampled and not values["temperature"]:
        if "temperature" in options:
            raise InputError("temperature: 0 is greedy, but do_sample asks for sampling; leave one of them out")
        values["temperature"] = 1.0
    elif sampled is None and not values["temperature"] and (idle := [name for name in _DRAWS if name in options]):
        raise InputError(f"{idle[0]}: has no effect where the likeliest token is taken; ask for do_sample as well")
    if isinstance(values["stop"], str):
        values["stop"] = (values["stop"],)
    found = config.build(values, Sampling, "generate")
    _check(found)
    return found


def _check(sampling: Sampling) -> None:
    """What the types cannot say."""
    limits: tuple[tuple[str, float, bool, str], ...] = (
        ("temperature", sampling.temperature, sampling.temperature >= 0, "0 or more"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, "0 (all) or more"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("repetition_penalty", sampling.repetition_penalty, sampling.repetition_penalty > 0, "above 0"),
        ("min_new_tokens", sampling.min_new_tokens, sampling.min_new_tokens >= 0, "0 or more"),
        ("seed", sampling.seed or 0, 0 <= (sampling.seed or 0) < 2**64, "from 0 to 2^64 - 1"),
    )
    for name, value, fine, wanted in limits:
        if not fine or not math.isfinite(value):
            raise InputError(f"{name}: must be {wanted}, got {value}")
    if "" in sampling.stop:
        raise InputError("stop: a stop text must have a character at least")


def _num_new_tokens(prompt_len: int, max_new_tokens: int | None, max_length: int | None, name: str) -> int:
    """The longest answer, in tokens. Raises InputError, PromptTooLong."""
    if max_length is not None and max_new_tokens is not None:
        raise InputError("max_length counts the prompt and max_new_tokens does not; leave one of them out")
    if max_length is None:
        most = _DEFAULT_NEW_TOKENS if max_new_tokens is None else max_new_tokens
        if most < 0:
            raise InputError(f"max_new_tokens: must be 0 or more, got {most}")
        return most
    if max_length <= prompt_len:
        raise PromptTooLong(
            f"{name}: its {prompt_len} tokens leave no room for an answer within max_length {max_length}"
        )
    return max_length - prompt_len


class _Step(NamedTuple):
    """One step that has run, with its instants."""

    admitted: list[Sequence]
    emissions: list[Emission]
    start_s: float
    end_s: float


class _Writing:
    """One answer under way; instants are `LLM._now_s`."""

    def __init__(self, index: int, sequence: Sequence, text: AnswerText, called_s: float) -> None:
        self._index = index
        self._sequence = sequence
        self._text = text
        self._parts: list[str] = []
        self._called_s = called_s
        self._begun_s: float | None = None
        self._first_s: float | None = None

    def begun(self, now_s: float) -> None:
        """Its first step begins; a sequence that had to give way begins again, which changes nothing."""
        self._begun_s = now_s if self._begun_s is None else self._begun_s

    def push(self, emission: Emission, now_s: float) -> Piece:
        """One more token."""
        text, reason, stop_reason = self._text.push(emission.token_id, emission.finish_reason)
        self._parts.append(text)
        self._first_s = now_s if self._first_s is None else self._first_s
        answer = None if reason is None else self._answer(reason, stop_reason, now_s)
        return Piece(index=self._index, text=text, answer=answer)

    def _answer(self, reason: FinishReason, stop_reason: str | int | None, now_s: float) -> Answer:
        assert self._begun_s is not None, "it was in a step"
        assert self._first_s is not None, "it has a token"
        timing = Timing(
            queued_s=self._begun_s - self._called_s,
            prefill_s=self._first_s - self._begun_s,
            decode_s=now_s - self._first_s,
        )
        return Answer(
            text="".join(self._parts),
            token_ids=list(self._sequence.output_ids),
            finish_reason=reason,
            stop_reason=stop_reason,
            prompt_token_ids=self._sequence.prompt_ids,
            timing=timing,
        )
