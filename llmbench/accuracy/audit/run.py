"""The timed run as the audit sees it: each answered request with what was planned, and its tokens."""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from llmbench.accuracy import profiles
from llmbench.loadgen.record import Record
from llmbench.tokenizer import Tokenizer
from llmbench.types import Request
from llmbench.workload.plan import Plan, PlannedRequest

Ids = tuple[int, ...]
_ENDED = ("eos", "stop")


class Answer(NamedTuple):
    """An answered request."""

    planned: PlannedRequest
    record: Record

    @property
    def request(self) -> Request:
        return self.planned.request

    @property
    def id(self) -> str:
        return self.planned.request.request_id

    @property
    def ended_itself(self) -> bool:
        """Whether the server says that the model ended the answer, and not the limit or a stop text."""
        asked = self.request.sampling
        return self.record.finish_reason in _ENDED and not asked.stop and not asked.stop_token_ids


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """A request's prompt and answer as token ids; `from_text` says that the answer's were made of its text."""

    prompt: Ids
    answer: Ids
    from_text: bool = False


class Vocabulary(Protocol):
    """What makes ids of text: the tokenizer of the served model, and the ids that end an answer."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def eos_ids(self) -> Collection[int]: ...


def answers(plan: Plan, records: Sequence[Record]) -> list[Answer]:
    """The answered requests, in the order of the plan."""
    by_index = {record.index: record for record in records if record.status == "answered"}
    return [Answer(each, by_index[each.index]) for each in plan.requests if each.index in by_index]


def spoken(answer: Answer, vocabulary: Vocabulary) -> Spoken | str:
    """The ids of a request and its answer, or why they cannot be had.

    An answer that says that the model ended it, and has no such id, gets one: the model must have wanted to end there.
    """
    prompt = answer.request.prompt
    asked = tuple(vocabulary.tokenizer.encode(prompt)) if isinstance(prompt, str) else prompt
    record = answer.record
    ids, from_text = tuple(record.token_ids), False
    if not ids:
        found = _from_text(answer, asked, vocabulary)
        if found is None:
            return "its text does not give as many tokens as were counted"
        ids, from_text = found, True
    if answer.ended_itself and vocabulary.eos_ids and not set(ids[-1:]) & set(vocabulary.eos_ids):
        ids = (*ids, min(vocabulary.eos_ids))
    return Spoken(prompt=asked, answer=ids, from_text=from_text)


def _from_text(answer: Answer, prompt: Ids, vocabulary: Vocabulary) -> Ids | None:
    """The answer's text as ids, when that gives as many as were counted: as a text of its own, or behind the prompt."""
    record, encode = answer.record, vocabulary.tokenizer.encode
    counts = {record.num_tokens, record.num_tokens - 1} if answer.ended_itself else {record.num_tokens}
    ways = [tuple(encode(record.text, bos=False))]
    if isinstance(answer.request.prompt, str):
        whole = tuple(encode(answer.request.prompt + record.text))
        if whole[: len(prompt)] == prompt:
            ways.insert(0, whole[len(prompt) :])
    return next((ids for ids in ways if len(ids) in counts and (ids or answer.ended_itself)), None)


def tolerance(*computed: tuple[str, str]) -> float:
    """How far apart two logits may be that rounding can have swapped: the widest margin of these precisions."""
    return max(profiles.get(profiles.for_dtype(*each)).margin for each in computed)
