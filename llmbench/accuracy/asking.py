"""Requests of our own making, sent in their order, so many at once; what came back, with its log-probabilities."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from llmbench.accuracy import replay
from llmbench.loadgen.client import Target
from llmbench.loadgen.driver import Counts
from llmbench.loadgen.listening import Listening
from llmbench.loadgen.record import Record
from llmbench.protocols import ClientHalf
from llmbench.types import Request, TokenLogprob
from llmbench.workload.plan import Plan, PlannedRequest, PlanSettings, hash_of


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one request; `new` and `prompt` are empty unless log-probabilities were asked for."""

    record: Record
    new: tuple[TokenLogprob, ...]
    prompt: tuple[TokenLogprob, ...]


class Asker:
    """Asks one server, one round of requests after the other; `progress` is told how many were answered so far."""

    def __init__(self, target: Target, dialect: ClientHalf, progress: Callable[[int], None] | None = None) -> None:
        self._target = target
        self._dialect = dialect
        self._progress = progress
        self._num_answered = 0

    def ask(self, requests: Sequence[Request], concurrency: int | None = None) -> list[Answer]:
        """Send the requests, all at once or `concurrency` at a time; the answers in their order.

        Raises InvalidMeasurement when one was not answered.
        """
        heard = Listening(self._dialect)
        with tempfile.TemporaryDirectory() as scratch:
            journal = Path(scratch) / "journal.jsonl"
            at_once = concurrency or len(requests)
            outcome = replay.replay(_plan(requests), self._target, heard, at_once, journal, self._tick())
        self._num_answered += len(requests)
        return [
            Answer(record=record, new=tuple(said.new), prompt=tuple(said.prompt))
            for record in sorted(outcome.records, key=lambda record: record.index)
            for said in [heard.take(record.request_id)]
        ]

    def _tick(self) -> Callable[[Counts], None] | None:
        if (progress := self._progress) is None:
            return None
        return lambda counts: progress(self._num_answered + counts.finished)


def _plan(requests: Sequence[Request]) -> Plan:
    """All requests due at once, in this order."""
    planned = tuple(PlannedRequest(index=i, due_s=0.0, request=request) for i, request in enumerate(requests))
    settings = PlanSettings(dataset="made up", num_samples=len(requests), arrivals="burst", qps=0.0, rate=None, seed=0)
    return Plan(settings=settings, requests=planned, sha256=hash_of(planned))
