"""Which latencies are shown, and in which order: on the screen, on the page, in Markdown."""

from llmbench.metrics import per_request
from llmbench.metrics.summary import Summary

LABELS = {metric.name: metric.label for metric in (*per_request.METRICS, *per_request.GAPS)}

_HEADLINE = ("ttft", "ttfot", "tpot", "icl", "itl", "e2el")
_SERVICE = ("ttft_from_sent", "service_time", "client_wait")


def shown(numbers: Summary) -> list[str]:
    """What users wait, then what the server took and what the client added; names as in the summary.

    Those that nobody has are left out, and ITL where every read brought one token: it is ICL then.
    """
    names = [name for name in (*_HEADLINE, *_SERVICE) if numbers.requests[name].num]
    if "itl" in names and numbers.requests["icl"] == numbers.requests["itl"]:
        names.remove("itl")
    return names
