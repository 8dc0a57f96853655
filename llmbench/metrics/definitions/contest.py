"""The contest's own load client and its count.py: all from the instant of sending; failed requests are not there.

Tokens are those of our journal; count.py counted them again from the text, which can differ by a token or two.
"""

from collections.abc import Sequence

from llmbench.metrics import Trace
from llmbench.metrics.definitions import Figure
from llmbench.metrics.definitions._streams import duration, mean, spread, streams

TOOL = "test_serving_performance.py and count.py of the contest"
FORMULAS = {
    "Exec Time": "first sent - last end",
    "res_time": "end of the answer - sent",
    "first_token_time": "first token - sent",
    "latencyAvg": "mean of res_time / max(tokens, 1)",
}


def figures(traces: Sequence[Trace]) -> list[Figure]:
    """The last line of its log, the means of its result file, the one of its table."""
    found = streams(traces)
    latencies = [stream.end / max(stream.num_tokens, 1) for stream in found]
    return [
        Figure(name="Exec Time", value=duration(traces), unit="s"),
        Figure(name="results", value=len(found)),
        *spread("res_time, {}", (stream.end for stream in found), "s", (("mean", mean),)),
        *spread("first_token_time, {}", (stream.first for stream in found), "s", (("mean", mean),)),
        Figure(name="latencyAvg", value=mean(latencies), unit="s"),
    ]
