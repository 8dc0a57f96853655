"""Between HTTP and the scheduler: text becomes ids on the way in, ids become text on the way out."""

import asyncio
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from llmbench import clock
from llmbench.errors import LlmbenchError, Overloaded, PromptEmpty, PromptTooLong, TimedOut
from llmbench.serving.observe import Observer
from llmbench.serving.scheduler import Emission, Limits, Scheduler
from llmbench.serving.sequence import Score, Sequence
from llmbench.serving.stops import AnswerText
from llmbench.tokenizer import Tokenizer
from llmbench.types import Delta, FinishReason, Request, TokenLogprob

_DEFAULT_NEW_TOKENS = 300  # as the contest's stack


@dataclass(slots=True, eq=False)
class Mailbox:
    """What a waiting HTTP handler holds: the pieces of its answers arrive here, with the index of the request."""

    pieces: "asyncio.Queue[tuple[int, Delta | LlmbenchError]]" = field(default_factory=asyncio.Queue)
    sequences: list[Sequence] = field(default_factory=list)

    async def next(self) -> tuple[int, Delta]:
        """The next piece. Raises the error that ended a request."""
        index, piece = await self.pieces.get()
        if isinstance(piece, LlmbenchError):
            raise piece
        return index, piece


@dataclass(slots=True, eq=False)
class _Ticket:
    """A request under way: where its pieces go."""

    mailbox: Mailbox
    index: int
    text: AnswerText
    arrival_ns: int
    first_token_ns: int = 0

    def put(self, piece: Delta | LlmbenchError) -> None:
        self.mailbox.pieces.put_nowait((self.index, piece))


class Frontend:
    """Turns Requests into Sequences and Emissions into Deltas."""

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        eos_ids: frozenset[int],
        pad_id: int | None,
        wake: asyncio.Event,
        observer: Observer,
    ) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._pad_id = pad_id
        self._wake = wake
        self._observer = observer
        self.stopping = False
        """Whether new requests are refused because the server is about to end."""
        self._tickets: dict[Sequence, _Ticket] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._last_arrival_s = 0.0

    def submit(self, requests: Iterable[Request]) -> Mailbox:
        """Queue the requests of one HTTP request.

        Raises PromptEmpty, PromptTooLong or Overloaded, and then none is queued: a refused request is answered at once.
        """
        if self.stopping:
            raise Overloaded("the server is stopping")
        mailbox = Mailbox()
        try:
            for index, request in enumerate(requests):
                self._submit(request, mailbox, index)
        except LlmbenchError:
            self.cancel(mailbox)
            raise
        self._wake.set()
        return mailbox

    def _submit(self, request: Request, mailbox: Mailbox, index: int) -> None:
        self._observer.num_received += 1
        prompt = request.prompt
        if isinstance(prompt, str):
            self._check_characters(prompt)
            prompt_ids = self._tokenizer.encode(prompt)
        else:
            prompt_ids = list(prompt)
        if not prompt_ids or self._pad_id in prompt_ids:
            raise PromptEmpty(f"the prompt has no tokens, or the padding id {self._pad_id} among them")
        limits = self._scheduler.limits
        if limits.max_prompt_len is not None and len(prompt_ids) > limits.max_prompt_len:
            raise PromptTooLong(f"the prompt has {len(prompt_ids)} tokens, {limits.max_prompt_len} are allowed")
        if len(self._scheduler.waiting) >= limits.max_waiting:
            raise Overloaded(f"{limits.max_waiting} requests are waiting already; try again later")
        sequence = Sequence(
            request_id=request.request_id or secrets.token_hex(8),
            prompt_ids=prompt_ids,
            max_new_tokens=_num_new_tokens(request, limits),
            sampling=request.sampling,
            seed=secrets.randbits(64) if request.sampling.seed is None else request.sampling.seed,
            eos_ids=self._eos_ids,
            arrival_s=self._arrival_s(),
        )
        self._scheduler.add(sequence)
        text = AnswerText(self._tokenizer, sequence, request.joined)
        self._tickets[sequence] = _Ticket(mailbox, index, text, clock.now_ns())
        self._idle.clear()
        mailbox.sequences.append(sequence)

    def _check_characters(self, prompt: str) -> None:
        """Refuse what cannot fit, before it holds up the event loop: a token stands for so many characters at most."""
        most = self._tokenizer.longest_piece * self._scheduler.max_model_len
        if len(prompt) > most:
            raise PromptTooLong(f"the prompt has {len(prompt)} characters, {most} are the most that can fit")

    def cancel(self, mailbox: Mailbox) -> None:
        """The client has gone: its blocks are free at once. Nothing happens when the answers were complete."""
        for sequence in mailbox.sequences:
            if ticket := self._forget(sequence):
                self._scheduler.cancel(sequence)
                self._finished("cancelled", ticket, clock.now_ns())

    def deliver(self, emissions: list[Emission]) -> None:
        """Detokenise a step's tokens and hand them to those who wait for them."""
        if not emissions:
            return
        now_ns = clock.now_ns()
        self._observer.num_generated_tokens += len(emissions)
        for emission in emissions:
            ticket = self._tickets.get(emission.sequence)
            if ticket is None:
                continue
            if not ticket.text.num_given:
                self._first_token(ticket, emission.sequence, now_ns)
            delta = self._delta(ticket, *emission)
            ticket.put(delta)
            if delta.finish_reason is not None:
                self._forget(emission.sequence)
                if emission.finish_reason is None:  # a stop text ended it, of which the scheduler knows nothing
                    self._scheduler.cancel(emission.sequence)
                self._finished(delta.finish_reason, ticket, now_ns)

    def admitted(self, sequences: list[Sequence]) -> None:
        """These begin to run now."""
        for sequence in sequences:
            if ticket := self._tickets.get(sequence):
                self._observer.queue.observe(clock.seconds(ticket.arrival_ns, clock.now_ns()))

    async def all_answered(self) -> None:
        """Until no request is under way."""
        await self._idle.wait()

    def _forget(self, sequence: Sequence) -> _Ticket | None:
        """This request is over; its ticket, unless it was over before."""
        ticket = self._tickets.pop(sequence, None)
        if not self._tickets:
            self._idle.set()
        return ticket

    def expire(self, older_than_s: float) -> None:
        """End the requests that came longer ago than that."""
        now_ns = clock.now_ns()
        late = [
            each for each, ticket in self._tickets.items() if clock.seconds(ticket.arrival_ns, now_ns) > older_than_s
        ]
        for sequence in late:
            self._scheduler.cancel(sequence)
        self.fail(late, TimedOut(f"no complete answer within {older_than_s:g} s"))

    def _first_token(self, ticket: _Ticket, sequence: Sequence, now_ns: int) -> None:
        ticket.first_token_ns = now_ns
        ttft_s = clock.seconds(ticket.arrival_ns, now_ns)
        self._observer.first_token(ttft_s, len(sequence.prompt_ids), sequence.num_hits)

    def _finished(self, reason: FinishReason, ticket: _Ticket, now_ns: int) -> None:
        e2e_s = clock.seconds(ticket.arrival_ns, now_ns)
        ttft_s = clock.seconds(ticket.arrival_ns, ticket.first_token_ns or now_ns)
        self._observer.finished(reason, e2e_s, ttft_s, ticket.text.num_given)

    def _delta(
        self, ticket: _Ticket, sequence: Sequence, token_id: int, logit: float, reason: FinishReason | None
    ) -> Delta:
        """One token as its client gets it."""
        first, scores_only = ticket.text.num_given == 0, not sequence.max_new_tokens
        text, reason, stop_reason = ticket.text.push(token_id, reason)
        delta = Delta(
            text=text,
            token_ids=() if scores_only else (token_id,),
            logits=() if scores_only else (logit,),
            num_tokens=0 if scores_only else 1,
            finish_reason=reason,
        )
        if reason is None and sequence.plain:
            return delta
        last = reason is not None
        return msgspec.structs.replace(
            delta,
            stop_reason=stop_reason,
            num_prompt_tokens=len(sequence.prompt_ids) if last else None,
            num_cached_tokens=sequence.num_hits if last else None,
            logprobs=self._logprobs(sequence, token_id),
            prompt=self._prompt(sequence) if first and sequence.sampling.prompt_logprobs is not None else (),
        )

    def _logprobs(self, sequence: Sequence, token_id: int) -> tuple[TokenLogprob, ...]:
        """The scores of the token that is being delivered, when they were asked for."""
        return (self._scored(token_id, sequence.scores.pop(0)),) if sequence.scores else ()

    def _prompt(self, sequence: Sequence) -> tuple[TokenLogprob, ...]:
        first, *rest = sequence.prompt_ids
        scored = (self._scored(token, score) for token, score in zip(rest, sequence.prompt_scores, strict=True))
        return (TokenLogprob(token_id=first, text=self._tokenizer.piece(first), logprob=None), *scored)

    def _scored(self, token_id: int, score: Score) -> TokenLogprob:
        logprob, top = score
        piece = self._tokenizer.piece
        return TokenLogprob(
            token_id=token_id,
            text=piece(token_id),
            logprob=logprob,
            top=tuple((piece(other), value) for other, value in top),
        )

    def fail(self, sequences: list[Sequence], error: LlmbenchError) -> None:
        """End these requests with an error."""
        for sequence in sequences:
            if ticket := self._forget(sequence):
                ticket.put(error)
                self._observer.num_failed += 1

    def fail_all(self, error: LlmbenchError) -> None:
        """End every request, also those that wait."""
        self._scheduler.fail_running()
        self._scheduler.waiting.clear()
        self.fail(list(self._tickets), error)

    def _arrival_s(self) -> float:
        """Wall time, but later than that of every request before, so that it orders them."""
        self._last_arrival_s = max(time.time(), self._last_arrival_s + 1e-6)
        return self._last_arrival_s


def _num_new_tokens(request: Request, limits: Limits) -> int:
    wanted = _DEFAULT_NEW_TOKENS if request.max_new_tokens is None else request.max_new_tokens
    return wanted if limits.max_new_tokens is None else min(wanted, limits.max_new_tokens)
