"""The one load loop: pace (the plan's offsets), limit (slots) and stop (count, or an interrupt) in any combination.

Targets are absolute: start + offset. A late request is sent at once and its lateness recorded; the plan is never
moved to fit. A request that waits for another one's end (the next turn, the next of a closed loop) gets its instant
when that has ended.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any

import msgspec

from llmbench.clock import now_ns
from llmbench.errors import LlmbenchError
from llmbench.loadgen._pacer import alarm
from llmbench.loadgen.client import Pending, Sender
from llmbench.loadgen.record import Record, Status
from llmbench.workload.plan import PlannedRequest

_LEAD_NS = 20_000_000  # between the decision to start and the first instant, so that the first request is not late
_MAX_SENDS_IN_A_ROW = 32  # then the loop may read: a burst must not hold back the stamps of its own first answers


class Counts(msgspec.Struct):
    """How far a run is."""

    planned: int
    sent: int = 0
    answered: int = 0
    failed: int = 0
    unfinished: int = 0

    @property
    def finished(self) -> int:
        return self.answered + self.failed + self.unfinished

    def add(self, status: Status) -> None:
        """Count one final record."""
        self.answered += status == "answered"
        self.failed += status == "failed"
        self.unfinished += status == "unfinished"


class Driver:
    """Sends a plan through a client; every planned request ends in exactly one record, given to `finished`.

    An LlmbenchError that `finished` raises ends the run.
    """

    def __init__(
        self,
        requests: Sequence[PlannedRequest],
        client: Sender,
        finished: Callable[[Record], None],
        concurrency: int | None = None,
        drain_s: float = 5.0,
    ) -> None:
        self.counts = Counts(planned=len(requests))
        self.interrupted = False
        self._requests = {planned.index: planned for planned in requests}
        self._client = client
        self._on_finished = finished
        self._concurrency = concurrency or len(requests)
        self._drain_s = drain_s
        self._payloads = {planned.index: client.prepare(planned.request) for planned in requests}
        self._ahead: list[tuple[int, int]] = []  # a heap of (due, index): what has an instant that is not over
        self._turns: defaultdict[int, list[int]] = defaultdict(list)  # by the request they wait for
        self._closed: deque[int] = deque()  # due when a user is free
        self._waiting: deque[int] = deque()  # due, but all slots are taken
        self._exchanges: dict[int, Pending] = {}
        self._records: dict[int, Record] = {}

    async def run(self, start_ns: int | None = None) -> None:
        """Send everything, wait for everything."""
        start_ns = start_ns or now_ns() + _LEAD_NS
        self._records = {planned.index: _record(planned, start_ns) for planned in self._requests.values()}
        self._line_up()
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._loop.set_exception_handler(self._broken)
        self._alarm = alarm(self._loop, self._tick)
        try:
            if self.interrupted:
                self._stop_sending()
            else:
                self._alarm.set(self._ahead[0][0])
            await self._over
        finally:
            self._alarm.close()

    def interrupt(self) -> None:
        """Send nothing more and wait briefly for what is under way; the second time, do not wait."""
        first, self.interrupted = not self.interrupted, True
        if not first:
            self._abandon()
        elif self._records:  # it has begun
            self._stop_sending()

    def _stop_sending(self) -> None:
        unsent = [record for record in self._records.values() if record.released_ns is None]
        for queue in (self._waiting, self._closed, self._turns, self._ahead):
            queue.clear()
        for record in unsent:
            record.reason = "not sent: interrupted"
            self._settle(record)
        if not self._over.done():
            self._loop.call_later(self._drain_s, self._abandon)

    def _tick(self) -> None:
        """Release what is due, then sleep until the next instant."""
        for _ in range(_MAX_SENDS_IN_A_ROW):
            if not self._ahead:
                return
            if self._ahead[0][0] > now_ns():
                break
            due_ns, index = heappop(self._ahead)
            self._release(index, due_ns)
        if self._ahead:
            self._alarm.set(self._ahead[0][0])

    def _line_up(self) -> None:
        """Sort the requests by what they wait for: an instant, a request of this driver, or a free user."""
        for planned in self._requests.values():
            if planned.after == "slot":
                self._closed.append(planned.index)
            elif planned.after is None or planned.after not in self._requests:
                heappush(self._ahead, (self._records[planned.index].due_ns, planned.index))
            else:
                self._turns[planned.after].append(planned.index)
        if self._closed and not self._ahead:  # the rest of a plan whose users had all begun
            index = self._closed.popleft()
            heappush(self._ahead, (self._records[index].due_ns, index))

    def _follow(self, record: Record) -> None:
        """Give an instant to what waited for the end of this request: its next turn, else the next of a closed loop."""
        followers = self._turns.pop(record.index, None) or ([self._closed.popleft()] if self._closed else [])
        for index in followers:
            next_ = self._records[index]
            ended_ns = record.done_ns or now_ns()
            next_.due_ns = max(next_.due_ns, ended_ns + round(self._requests[index].think_s * 1e9))
            heappush(self._ahead, (next_.due_ns, index))
        if followers and not self._over.done():
            self._tick()

    def _release(self, index: int, due_ns: int) -> None:
        if len(self._exchanges) >= self._concurrency:
            self._waiting.append(index)
        else:
            self._send(index, due_ns)

    def _send(self, index: int, released_ns: int) -> None:
        record = self._records[index]
        record.released_ns = released_ns
        request = self._requests[index].request
        self.counts.sent += 1
        self._exchanges[index] = self._client.start(self._payloads[index], request, record, self._finished)

    def _finished(self, record: Record) -> None:
        del self._exchanges[record.index]
        if self._waiting:
            self._send(self._waiting.popleft(), now_ns())
        self._follow(record)
        self._settle(record)

    def _settle(self, record: Record) -> None:
        """Count a final record and hand it on."""
        self.counts.add(record.status)
        try:
            self._on_finished(record)
        except LlmbenchError as error:  # a full disk
            self._fail(error)
        if self.counts.finished == self.counts.planned and not self._over.done():
            self._over.set_result(None)

    def _fail(self, error: Exception) -> None:
        """End the run with an error."""
        if not self._over.done():
            self._over.set_exception(error)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An error inside a callback is a fault of ours: it ends the run instead of letting it wait for ever."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self._fail(error)
        else:
            loop.default_exception_handler(context)

    def _abandon(self) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.give_up("no answer before the interrupted run ended")


def _record(planned: PlannedRequest, start_ns: int) -> Record:
    return Record(
        index=planned.index,
        request_id=planned.request.request_id,
        due_ns=start_ns + round(planned.due_s * 1e9),
        num_prompt_tokens=planned.num_prompt_tokens,
        expected_tokens=planned.expected_tokens,
    )
