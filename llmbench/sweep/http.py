"""A server behind HTTP as a bench: each case's prompts sent at once, in any dialect, with loadgen's client.

Prompts are texts of exactly so many tokens, other ones each time, so that no cache has them. Answers are asked to go on
behind eos where the dialect can ask for that; their lengths are looked at in any case.
"""

from collections.abc import Sequence
from itertools import chain, pairwise, repeat

import numpy as np

from llmbench.clock import seconds
from llmbench.errors import InputError, RequestError, ServingError
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.driver import Driver
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import interrupts, new_loop, sender
from llmbench.loadgen.target import Target
from llmbench.metrics.sweep import Case, Pass
from llmbench.protocols import ClientHalf
from llmbench.tokenizer import Tokenizer
from llmbench.types import Request, Sampling
from llmbench.workload.exact import Writer
from llmbench.workload.plan import PlannedRequest

_PROBE_LEN = 32
_TOO_MANY = 429


class HttpBench:
    """Runs cases against a server; `tokenizer` is the one that its model has."""

    def __init__(
        self, target: Target, dialect: ClientHalf, tokenizer: Tokenizer, timeouts: Timeouts, *, seed: int = 0
    ) -> None:
        self._target = target
        self._dialect = dialect
        self._timeouts = timeouts
        self._writer = Writer(tokenizer, np.random.default_rng(seed))
        self._sampling = _endless(dialect)
        self._num_around = 1  # the begin-of-sequence id
        self._number = 0

    @property
    def what(self) -> str:
        """The server, for people."""
        return f"{self._dialect.name} at {self._target.url}"

    def probe(self) -> str:
        """Ask how many tokens the server puts around a text, by one request; what it said, for people.

        Raises ServingError when the server does not answer, RequestError when it refuses.
        """
        self._num_around = 0
        (record,) = self._sent(1, _PROBE_LEN, 1)
        self._num_around = 1
        told = record.server_prompt_tokens
        if told is None:
            return "the server does not say how many tokens a prompt has: lengths are those of the tokenizer here"
        self._num_around = told - _PROBE_LEN
        if not self._num_around >= 0:
            raise InputError(
                f"the server counts {told} tokens in a text of {_PROBE_LEN}: give its tokenizer.model with --tokenizer"
            )
        return f"the server puts {self._num_around} tokens around a text"

    def unfit(self, case: Case) -> str:
        """Only the server knows; but a prompt must have room for what is put around it."""
        if case.input_len <= self._num_around:
            return f"{self._num_around} tokens of a prompt are not its text"
        return ""

    def run(self, case: Case, num_new: int) -> Pass:
        """All prompts at once. Raises RequestError, ServingError."""
        records = self._sent(case.batch, case.input_len, num_new)
        for record in records:
            self._check(record, case.input_len, num_new)
        return timed(records)

    def close(self) -> None:
        """Connections are closed behind each pass."""

    def _sent(self, num: int, input_len: int, num_new: int) -> list[Record]:
        """Send the prompts of one pass and wait for all answers. Raises RequestError, ServingError."""
        planned = [self._planned(index, input_len, num_new) for index in range(num)]
        loop = new_loop()
        try:
            records = loop.run_until_complete(self._drive(planned))
        finally:
            loop.close()
        for record in records:
            if record.status != "answered":
                refused = 400 <= record.http_status < 500 and record.http_status != _TOO_MANY
                raise (RequestError if refused else ServingError)(record.reason)
        return records

    def _planned(self, index: int, input_len: int, num_new: int) -> PlannedRequest:
        self._number += 1
        request = Request(
            prompt=self._writer.text(input_len - self._num_around),
            max_new_tokens=num_new,
            sampling=self._sampling,
            request_id=f"sweep-{self._number:07d}",
        )
        return PlannedRequest(index=index, due_s=0.0, request=request)

    async def _drive(self, planned: Sequence[PlannedRequest]) -> list[Record]:
        records: list[Record] = []
        client = sender(self._target, self._dialect, self._timeouts)
        driver = Driver(planned, client, records.append, drain_s=0.0)
        try:
            with interrupts(driver.interrupt):
                await driver.run()
        finally:
            await client.close()
        if driver.interrupted:
            raise KeyboardInterrupt
        return records

    def _check(self, record: Record, input_len: int, num_new: int) -> None:
        """Raise ServingError when a prompt or an answer has not the length that was asked for."""
        told = record.server_prompt_tokens
        if told is not None and told != input_len:
            raise ServingError(
                f"the server counts {told} tokens in a prompt of {input_len}: give its tokenizer.model with --tokenizer"
            )
        if record.num_tokens != num_new or not record.stamps_ns:
            why = "" if self._sampling.ignore_eos else f"; the {self._dialect.name} dialect cannot ask to ignore eos"
            raise ServingError(f"an answer has {record.num_tokens} tokens, {num_new} were asked for{why}")


def _endless(dialect: ClientHalf) -> Sampling:
    """Greedy, and behind eos where the dialect can ask for that."""
    asked = Sampling(ignore_eos=True)
    try:
        dialect.encode(Request(prompt="a", max_new_tokens=1, sampling=asked))
    except RequestError:
        return Sampling()
    return asked


def timed(records: Sequence[Record]) -> Pass:
    """A pass from its records: instants count from the first one sent. A read stands for all tokens that it brought."""
    start_ns = min(record.sent_ns or 0 for record in records)
    streams = [
        [seconds(start_ns, at_ns) for at_ns in chain.from_iterable(map(repeat, record.stamps_ns, record.tokens))]
        for record in records
    ]
    gaps = zip(*([after - before for before, after in pairwise(stream)] for stream in streams), strict=False)
    return Pass(
        total_s=seconds(start_ns, max(record.done_ns or 0 for record in records)),
        first_s=max(stream[0] for stream in streams),
        steps_s=[sum(step) / len(step) for step in gaps],
        streams_s=streams,
    )
