"""Numbers as people read them: units that fit, verdicts and runs in a sentence."""

import math
from collections.abc import Iterable

from llmbench.metrics.captured import Captured
from llmbench.metrics.summary import Distribution, Summary
from llmbench.report.view import View

_UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
DASH = "-"


def unit(times_s: Iterable[float | None]) -> tuple[str, float]:
    """One unit for several times, and what seconds are multiplied with: the middle one is between 1 and 10,000 of it.

    µs only where all are below a millisecond.
    """
    known = sorted(value for value in times_s if value is not None and math.isfinite(value) and value > 0)
    if not known:
        return _UNITS[1]
    if known[len(known) // 2] >= 10:
        return _UNITS[0]
    return _UNITS[1] if known[-1] >= 1e-3 else _UNITS[2]


def number(value: float | None) -> str:
    """Three digits or more: 0.123, 12.3, 1234."""
    if value is None:
        return DASH
    if math.isinf(value):
        return "inf"
    if value == 0:
        return "0"
    return f"{value:.{max(0, min(4, 2 - math.floor(math.log10(abs(value)))))}f}"


def time(value_s: float | None) -> str:
    """`3.9 ms`, each in the unit that suits it."""
    if value_s is None or math.isinf(value_s):
        return DASH if value_s is None else "for ever"
    name, factor = unit([value_s]) if value_s < 1 else _UNITS[0]
    return f"{_short(value_s * factor)} {name}"


def size(num_bytes: float) -> str:
    """`5.51 MB`: at most four digits, units of a thousand."""
    for name in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.4g} {name}"
        num_bytes /= 1000
    return f"{num_bytes:.4g} GB"


def quantity(value: float | None, its_unit: str) -> str:
    """A check's value: times in the unit that suits them."""
    if value is None:
        return DASH
    if its_unit == "s":
        return "inf" if math.isinf(value) else "0 ms" if value == 0 else time(value)
    shown = f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else number(value)
    return shown + (its_unit and f" {its_unit}")


def verdict(view: View) -> str:
    """The first line: the verdict, and how many requests have no answer."""
    numbers = view.whole or view.numbers
    if view.verdict is None:
        return f"not judged: {view.not_judged}"
    counts = ((numbers.num_failed, "failed"), (numbers.num_unfinished, "unfinished"))
    lost = [f"{count} {word}" for count, word in counts if count]
    requests = f"{', '.join(lost)} of" if lost else "all"
    answered = "" if lost else " answered"
    against = sum(check.verdict in ("failed", "inconclusive") and not check.allowed for check in view.checks)
    why = "" if not against else f"; {against} check{'' if against == 1 else 's'} not passed, see below"
    return f"{view.verdict}  {requests} {numbers.num_planned} requests{answered}{why}"


def notes(view: View) -> list[str]:
    """What has to be said beside the numbers."""
    first = view.numbers.requests["ttft"]
    whole = view.numbers.num_answered and first.num == first.num_infinite and not view.not_judged
    return [*(["no TTFT: the answers came in one piece"] if whole else []), *view.notes]


def sentence(view: View) -> str:
    """The run in words: what was sustained, and what half and nearly all of the users saw."""
    numbers = view.numbers
    rate, took_s = numbers.run.get("requests_per_s"), numbers.run.get("exec_time")
    if view.not_judged and numbers.num_answered:
        return _told(numbers)
    if not numbers.num_answered or rate is None or took_s is None:
        return "No request was answered." if numbers.num_planned else "There is no request in it."
    parts = [f"Answered {_short(rate)} requests/s for {_short(took_s)} s"]
    if view.window is not None and view.traffic is not None:
        parts = [f"From {view.window} {_short(view.traffic.answers_per_s)} answers/s; of the requests due then"]
    first, whole = numbers.requests["ttft"], numbers.requests["e2el"]
    if first.num > first.num_infinite:
        parts += [_share(first, "half of the users saw their first token"), _share(whole, "half had the whole answer")]
    elif whole.num:
        parts.append(_share(whole, "half of the users had their answer"))
    return "; ".join(parts).replace("then; ", "then ") + "."


def _told(numbers: Summary) -> str:
    """Of a run of another tool: times from the instant of sending are what most of them have."""
    first, whole = numbers.requests["ttft_from_sent"], numbers.requests["service_time"]
    parts = [f"{numbers.num_answered} answers"]
    if first.num:
        parts.append(_share(first, "from being sent, half began"))
    if whole.num:
        parts.append(_share(whole, "half ended"))
    return "; ".join(parts) + "."


def _share(spread: Distribution, what: str) -> str:
    """`half of the users saw their first token within 3.9 ms, 99 % within 12 ms`."""
    return f"{_within(what, spread.p50)}, {_within('99 %', spread.p99)}"


def _within(what: str, value_s: float | None) -> str:
    if value_s is None:
        return f"{what} at a time that is not told"
    if math.isinf(value_s):
        return "more than 1 % not at all" if what == "99 %" else f"{what} not at all"
    return f"{what} within {time(value_s)}"


def _short(value: float) -> str:
    """At most three digits: 5, 0.25, 312."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def captured(found: Captured) -> str:
    """The captured rows: how many, of how much of the load, and in what batches beside the load's."""
    forced = ", fed with the tokens of a base" if found.decode == "forced" else ""
    share = f"{found.share_of_tokens:.1%} of the {found.num_tokens} tokens of the answers"
    if not found.num_rows:
        return f"no rows of logits were captured, of {found.num_tokens} tokens"
    smallest, median, largest = found.spread
    said = (
        f"{found.num_rows} rows of logits captured ({found.tier}{forced}), {share}, in batches of {smallest} to "
        f"{largest}, median {median}"
    )
    if found.load_batch is None or found.share_at_load is None:
        return f"{said}; the load's mean batch is not known: the server's counters were not read"
    return (
        f"{said}; the load's mean batch was {number(found.load_batch)} (tokens / steps by the server's counters), "
        f"{found.share_at_load:.1%} of the rows stand for it"
    )
