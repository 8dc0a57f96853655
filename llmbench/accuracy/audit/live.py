"""Asking a live server for an audit: one request after another, with the load's own client, so that times compare."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import protocols
from llmbench.accuracy.audit.run import Ids
from llmbench.errors import InvalidMeasurement
from llmbench.loadgen.client import Timeouts
from llmbench.loadgen.listening import Listening
from llmbench.loadgen.record import Record
from llmbench.loadgen.run import drive
from llmbench.loadgen.target import Target
from llmbench.protocols import ClientHalf
from llmbench.types import Request, Sampling, TokenLogprob
from llmbench.workload.plan import PlannedRequest

Float64 = npt.NDArray[np.float64]


def ask(
    target: Target,
    dialect: ClientHalf,
    requests: Sequence[Request],
    first_number: int,
    timeouts: Timeouts,
    done: Callable[[int], None] = lambda _: None,
) -> list[Record]:
    """The records of these requests in their order, each sent when the one before has ended.

    They are named as those of a plan that goes on at `first_number`: their ids must not tell that they are an audit's.
    """
    planned = [
        PlannedRequest(
            index=index,
            due_s=0.0,
            request=msgspec.structs.replace(request, request_id=f"plan-{first_number + index:05d}"),
        )
        for index, request in enumerate(requests)
    ]
    records: list[Record] = []

    def finished(record: Record) -> None:
        records.append(record)
        done(len(records))

    if planned:
        asyncio.run(drive(planned, target, dialect, timeouts, finished, concurrency=1))
    return sorted(records, key=lambda record: record.index)


class ServerScorer:
    """A server that scores the tokens of a prompt, as OpenAI's completions do with `echo`: prefill only.

    The difference of two log-probabilities at one place is that of the logits.
    """

    tier = "T2"

    def __init__(self, target: Target, timeouts: Timeouts) -> None:
        self._target = target
        self._timeouts = timeouts

    def gaps(self, prompt: Ids, answer: Ids) -> Float64:
        """float64 [len(answer)]: the likeliest token's log-probability less the token's own, at each of the answer.

        Raises InvalidMeasurement when the server does not score prompts.
        """
        dialect = Listening(protocols.get("openai_completions"))
        request = Request(
            prompt=(*prompt, *answer),
            max_new_tokens=1,
            sampling=Sampling(num_logprobs=1, prompt_logprobs=1),
            stream=False,
            joined=True,
        )
        (record,) = ask(self._target, dialect, [request], 0, self._timeouts)
        scored = dialect.take(record.request_id).prompt
        if record.status != "answered" or len(scored) != len(prompt) + len(answer):
            why = record.reason or "no scores"
            raise InvalidMeasurement(f"--trusted-url {self._target.url}: it scores no prompts of token ids ({why})")
        return np.array([_gap(token) for token in scored[len(prompt) :]], np.float64)


def _gap(token: TokenLogprob) -> float:
    own = token.logprob if token.logprob is not None else 0.0
    return max([own, *(value for _, value in token.top)]) - own
