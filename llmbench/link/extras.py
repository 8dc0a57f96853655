"""What a few sequences ask for besides their next token: penalties, banned ids, log-probabilities.

It is done here, at the agent, on rows of logits that any engine gives, so that engines need to know nothing of it.
"""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Float32, StepResult, pick

TopLogprobs = list[tuple[int, float]]
_LARGEST = float(np.finfo(np.float32).max)


class Penalties(msgspec.Struct, frozen=True, kw_only=True):
    """See types.Sampling. `history` are the ids of prompt and answer, `prompt_len` of them of the prompt."""

    repetition: float
    presence: float
    frequency: float
    history: list[int]
    prompt_len: int


class PromptTargets(msgspec.Struct, frozen=True, kw_only=True):
    """Score these ids, each after the new token at its place, and name the `num_top` likeliest there."""

    token_ids: list[int]
    num_top: int


class Extra(msgspec.Struct, frozen=True, kw_only=True):
    """What sequence `row` of a step asks for. `num_logprobs` None asks for none, 0 for the chosen token's only."""

    row: int
    penalties: Penalties | None = None
    banned: list[int] = []
    num_logprobs: int | None = None
    prompt: PromptTargets | None = None

    @property
    def of_token(self) -> bool:
        """Whether it is about the next token rather than the prompt only."""
        return self.penalties is not None or bool(self.banned) or self.num_logprobs is not None


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """Natural log-probabilities of the model's own logits, before penalties and temperature (as vLLM has them)."""

    row: int
    logprob: float | None = None
    top: TopLogprobs = []
    prompt: list[tuple[float, TopLogprobs]] = []


def wanted(batch: Batch, extras: list[Extra]) -> Batch:
    """The batch, asking the engine for the logits that the extras need."""
    wants_token = batch.wants_token
    changes: dict[str, Any] = {}
    if any(extra.of_token and wants_token[extra.row] for extra in extras):
        changes["want_logits"] = True
    rows = [extra.row for extra in extras if extra.prompt is not None and extra.prompt.token_ids]
    if rows:
        changes["score_prompts"] = np.isin(np.arange(len(wants_token)), rows)
    return msgspec.structs.replace(batch, **changes) if changes else batch


def apply(batch: Batch, result: StepResult, extras: list[Extra]) -> list[Scored]:
    """Choose again where penalties or bans ask for it (in place, in the result), and score."""
    row_of = np.cumsum(batch.wants_token) - 1  # of each sequence, in result.logits
    prompts = iter(result.prompt_logits)
    scored = []
    for extra in extras:
        logprob: float | None = None
        top: TopLogprobs = []
        prompt: list[tuple[float, TopLogprobs]] = []
        if extra.prompt is not None and extra.prompt.token_ids:
            prompt = _score_prompt(next(prompts), extra.prompt)
        if extra.of_token and batch.wants_token[extra.row]:
            assert result.logits is not None, "the engine was asked for logits"
            row = result.logits[row_of[extra.row]]
            _choose(row, extra, batch, result)
            if extra.num_logprobs is not None:
                (logprob, top), *_ = _score(row[None], [int(result.token_ids[extra.row])], extra.num_logprobs)
        if logprob is not None or prompt:
            scored.append(Scored(row=extra.row, logprob=logprob, top=top, prompt=prompt))
    return scored


def _choose(row: Float32, extra: Extra, batch: Batch, result: StepResult) -> None:
    """Choose the token again from changed logits; `row` itself, and the raw logit that is told, stay the model's."""
    if extra.penalties is None and not extra.banned:
        return
    changed = row.copy()
    if extra.penalties is not None:
        _penalise(changed, extra.penalties)
    banned = [token_id for token_id in extra.banned if token_id < len(changed)]  # clients may name any id
    if len(banned) < len(changed):
        changed[banned] = -np.inf
    tokens, _ = pick(changed[None], batch.sampling[extra.row : extra.row + 1])
    result.token_ids[extra.row] = tokens[0]
    result.chosen_logits[extra.row] = row[tokens[0]]


def _penalise(row: Float32, penalties: Penalties) -> None:
    """Change logits [vocab] in place, by the formulas in types.Sampling."""
    history = np.array(penalties.history, np.intp)
    if penalties.repetition != 1.0:
        seen = np.unique(history)
        values = row[seen].astype(np.float64)
        with np.errstate(over="ignore"):
            values = np.where(values > 0, values / penalties.repetition, values * penalties.repetition)
        row[seen] = np.clip(values, -_LARGEST, _LARGEST)  # an infinite logit would fail the step of everybody
    answer, counts = np.unique(history[penalties.prompt_len :], return_counts=True)
    row[answer] -= penalties.presence + penalties.frequency * counts


def _score_prompt(logits: Float32, targets: PromptTargets) -> list[tuple[float, TopLogprobs]]:
    """Scores of the prompt's tokens from logits [query_len, vocab]; the last row has no target in the last piece."""
    return _score(logits[: len(targets.token_ids)], targets.token_ids, targets.num_top)


def _score(logits: Float32, token_ids: list[int], num_top: int) -> list[tuple[float, TopLogprobs]]:
    """Log-probability of an id in each row of [m, vocab], and the likeliest ids, likeliest first."""
    logprobs = logits - _logsumexp(logits)[:, None]
    top = _top(logits, num_top)
    return [
        (float(logprobs[i, token_id]), [(int(j), float(logprobs[i, j])) for j in top[i]])
        for i, token_id in enumerate(token_ids)
    ]


def _logsumexp(logits: Float32) -> npt.NDArray[np.float64]:
    best: npt.NDArray[np.float64] = logits.max(axis=1).astype(np.float64)
    best += np.log(np.exp(logits - best[:, None]).sum(axis=1))
    return best


def _top(logits: Float32, count: int) -> npt.NDArray[np.intp]:
    """Ids [m, count] of the largest logits, largest first; the lower id first where two are equal."""
    count = min(count, logits.shape[1])
    if not count:
        return np.empty((len(logits), 0), np.intp)
    candidates = np.sort(np.argpartition(-logits, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(logits, candidates, axis=1), axis=1, kind="stable")
    return np.take_along_axis(candidates, order, axis=1)
