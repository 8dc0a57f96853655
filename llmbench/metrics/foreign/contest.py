"""The contest's `result_X_x.json`: for each answer its text and two times, and no instants.

Requests that failed are not in it; answers that begin with "Error" and a status are failures that its client took for
answers (sample 1309 of a result that was handed in is one).
"""

import re
from typing import Any

import msgspec

from llmbench.metrics import per_run
from llmbench.metrics.foreign import Told, without
from llmbench.metrics.foreign._answer import Answer, ns
from llmbench.metrics.summary import summarise

_UNKNOWN = ("ttft", "e2el", "tpot", "client_wait", "connect", "lateness", "slot_wait", "icl", "itl")


class _Row(msgspec.Struct):
    input: str
    resp_text: str
    res_time: float
    first_token_time: float | None = None


def recognises(value: Any) -> bool:
    """A list of objects with `res_time`."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and "res_time" in value[0]


def read(value: Any, name: str) -> list[Told]:
    """Service times and times to the first token, both from the instant of sending."""
    rows = msgspec.convert(value, list[_Row])
    answers = [_answer(index, row) for index, row in enumerate(rows)]
    rate = re.search(r"result_(.*)_x", name)
    return [
        Told(
            tool="the contest's client",
            numbers=without(summarise(answers), *_UNKNOWN, *(metric.name for metric in per_run.METRICS)),
            load=f"X = {rate[1]} requests per second" if rate else "",
            not_judged="the file does not tell when requests were due or sent, nor which ones were lost",
            notes=[
                "unknown: times from the due instant, rates, throughput, tokens; requests that failed are not in it"
            ],
        )
    ]


def _answer(index: int, row: _Row) -> Answer:
    if re.match(r"Error ?\d{3}", row.resp_text):
        return Answer(index=index, status="failed", reason=row.resp_text[:200], sent_ns=0)
    first = [] if row.first_token_time is None else [ns(row.first_token_time)]
    return Answer(index=index, sent_ns=0, stamps_ns=first, tokens=[0] * len(first), done_ns=ns(row.res_time))
