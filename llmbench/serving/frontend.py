"""Between HTTP and the scheduler: text becomes ids on the way in, ids become text on the way out."""

import asyncio
import secrets
import time
from dataclasses import dataclass, field

from llmbench.errors import LlmbenchError, Overloaded, PromptEmpty
from llmbench.serving.scheduler import Emission, Scheduler
from llmbench.serving.sequence import Sequence
from llmbench.tokenizer import Detokenizer, Tokenizer
from llmbench.types import Delta, Request

_DEFAULT_NEW_TOKENS = 300  # as the contest's stack


@dataclass(slots=True, eq=False)
class Ticket:
    """What a waiting HTTP handler holds: the pieces of its answer arrive here, an error ends it."""

    sequence: Sequence
    detokenizer: Detokenizer
    pieces: "asyncio.Queue[Delta | LlmbenchError]" = field(default_factory=asyncio.Queue)

    async def next(self) -> Delta:
        """The next piece. Raises the error that ended the request."""
        piece = await self.pieces.get()
        if isinstance(piece, LlmbenchError):
            raise piece
        return piece


class Frontend:
    """Turns Requests into Sequences and Emissions into Deltas."""

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        eos_ids: frozenset[int],
        pad_id: int | None,
        wake: asyncio.Event,
    ) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._pad_id = pad_id
        self._wake = wake
        self._tickets: dict[Sequence, Ticket] = {}
        self._last_arrival_s = 0.0

    def submit(self, request: Request) -> Ticket:
        """Queue a request. Raises PromptEmpty, PromptTooLong or Overloaded: a refused request is answered at once."""
        prompt_ids = self._tokenizer.encode(request.prompt)
        if not prompt_ids or self._pad_id in prompt_ids:
            raise PromptEmpty(f"the prompt has no tokens, or the padding id {self._pad_id} among them")
        if len(self._scheduler.waiting) >= self._scheduler.limits.max_waiting:
            raise Overloaded(f"{self._scheduler.limits.max_waiting} requests are waiting already; try again later")
        sequence = Sequence(
            request_id=request.request_id or secrets.token_hex(8),
            prompt_ids=prompt_ids,
            max_new_tokens=_DEFAULT_NEW_TOKENS if request.max_new_tokens is None else request.max_new_tokens,
            sampling=request.sampling,
            seed=secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed,
            eos_ids=self._eos_ids,
            arrival_s=self._arrival_s(),
        )
        self._scheduler.add(sequence)
        ticket = self._tickets[sequence] = Ticket(sequence, Detokenizer(self._tokenizer))
        self._wake.set()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """The client has gone: its blocks are free at once. Nothing happens when the answer was complete."""
        if self._tickets.pop(ticket.sequence, None):
            self._scheduler.cancel(ticket.sequence)

    def deliver(self, emissions: list[Emission]) -> None:
        """Detokenise a step's tokens and hand them to those who wait for them."""
        for sequence, token_id, logit, reason in emissions:
            ticket = self._tickets.get(sequence)
            if ticket is None:
                continue
            text = ticket.detokenizer.push(token_id)
            if reason is not None:
                text += ticket.detokenizer.flush()
                del self._tickets[sequence]
            ticket.pieces.put_nowait(
                Delta(text=text, token_ids=(token_id,), logits=(logit,), num_tokens=1, finish_reason=reason)
            )

    def fail(self, sequences: list[Sequence], error: LlmbenchError) -> None:
        """End these requests with an error."""
        for sequence in sequences:
            ticket = self._tickets.pop(sequence, None)
            if ticket is not None:
                ticket.pieces.put_nowait(error)

    def fail_all(self, error: LlmbenchError) -> None:
        """End every request, also those that wait."""
        self._scheduler.fail_running()
        self._scheduler.waiting.clear()
        self.fail(list(self._tickets), error)

    def _arrival_s(self) -> float:
        """Wall time, but later than that of every request before, so that it orders them."""
        self._last_arrival_s = max(time.time(), self._last_arrival_s + 1e-6)
        return self._last_arrival_s
