"""Checks of our book against the server's: requests, tokens, times and queue, where it has a page of counters."""

from collections.abc import Callable

from llmbench.metrics import ledger, per_run
from llmbench.metrics.evidence import TOLERANCE, Check, Evidence, Verdict, up_to
from llmbench.metrics.ledger import Ledger

_OFF = "or leave the counters alone with --metrics-url off"
_SIGMA = 3.3  # one in 1,000 readings of a mean lies further off, with many readings
_TTFT_SLACK_S = 0.001
_HELD_S = 0.01


def not_alone(run: Evidence) -> Check:
    """Requests that the server finished during the run and that can be none of ours.

    Ours are those that were answered; those that were sent and have no answer may be counted or not. The server is read
    when nothing of ours is under way, so that there is nothing to be wrong by. Fewer than ours say that somebody else
    answered: another replica behind the same address, or a cache before the server.
    """
    book = _book(run)
    others = None if book is None else book.num_others
    verdict: Verdict = "not applicable"
    remedy = "other clients use this server: measure it alone"
    if others is not None:
        verdict = "failed" if others > 0 else "inconclusive" if others < 0 else "ok"
    if others is not None and others < 0:
        remedy = f"the counters are not of the server that answered: give its own page to --metrics-url, {_OFF}"
    return Check(
        id="ledger-requests",
        name="requests of others that the server finished",
        value=others,
        limit=0,
        unit="",
        verdict=verdict,
        remedy=remedy,
    )


def generated_tokens_agree(run: Evidence) -> Check:
    """|generated tokens of the server / ours - 1|.

    A server may or may not count the end of an answer as a token: one of each answer is forgiven, and 2 %. Without
    meaning where requests were lost, whose tokens the server has counted, or where the requests do not agree.
    """
    book = _book(run, alone=True)
    value = None
    if book is not None and book.server_generation_tokens is not None and book.generation_tokens:
        off = abs(book.server_generation_tokens - book.generation_tokens)
        value = max(0.0, off - book.num_answered) / book.generation_tokens
    return Check(
        id="ledger-tokens-server",
        name="generated tokens, server's count off ours by",
        value=value,
        limit=TOLERANCE,
        unit="",
        verdict=up_to(value, TOLERANCE),
        remedy="answers are counted in other tokens than the server generated: throughput and TPOT are of these",
    )


def prompts_agree(run: Evidence) -> Check:
    """|prompt tokens of the server / the plan's - 1|, from the answers' `usage`, or else from the server's counters.

    2 %, and 16 tokens of each prompt for what a chat template puts around it. Total throughput counts the plan's.
    """
    planned, counted = _prompt_tokens(run)
    value = None
    if planned and counted is not None:
        num = sum(trace.status == "answered" for trace in run.traces)
        forgiven = 16 * num if counted > planned else 0
        value = max(0.0, abs(counted - planned) - forgiven) / planned
    return Check(
        id="ledger-prompts",
        name="prompt tokens, server's count off the plan's by",
        value=value,
        limit=TOLERANCE,
        unit="",
        verdict=up_to(value, TOLERANCE, "inconclusive"),
        remedy="the plan counts in another vocabulary: give the server's own with --tokenizer",
    )


def first_tokens_agree(run: Evidence) -> Check:
    """Mean TTFT from sent minus the server's own mean TTFT: network, HTTP on both sides and the client.

    It cannot be below 0. Both are means of the same requests, exact to 1 ms and 2 %; below that the server's times are
    of something else.
    """
    book = _book(run, alone=True)
    value = None if book is None else ledger.network_s(book)
    limit = -_TTFT_SLACK_S - TOLERANCE * ((book and book.server_ttft_s) or 0.0)
    return Check(
        id="ledger-ttft",
        name="mean TTFT, ours - the server's, at least",
        value=value,
        limit=limit,
        unit="s",
        verdict="not applicable" if value is None else "ok" if value >= limit else "inconclusive",
        remedy=f"its first tokens came after we had them, it says: give its own page to --metrics-url, {_OFF}",
    )


def queues_agree(run: Evidence) -> Check:
    """Mean of (requests running and waiting at the server - ours in flight) over the readings during the load.

    Requests on their way make it negative, which is no fault. The limit is half a request, 3.3 standard errors of the
    mean, and by Little's law rate * 10 ms: what a server may hold of answers whose last byte we have. Needs five
    readings. It sees whoever shares the server, even if none of theirs is finished when the run ends.
    """
    book = _book(run)
    found = None if book is None else ledger.mean_difference(book.in_flight)
    rate = per_run.requests_per_s.of(run.traces) or 0.0
    value, limit = (None, None) if found is None else (found[0], 0.5 + _SIGMA * found[1] + _HELD_S * rate)
    return Check(
        id="ledger-queue",
        name="requests at the server beyond ours, mean",
        value=value,
        limit=limit,
        unit="",
        verdict="not applicable" if value is None or limit is None else "ok" if value <= limit else "failed",
        remedy="other clients use this server, or it still works on requests that were given up: measure it alone",
    )


def _book(run: Evidence, alone: bool = False) -> Ledger | None:
    """Both books; None where nobody read the server, or could not all the time.

    With `alone`, only where the server has finished exactly our requests.
    """
    if run.seams_s:
        return None
    book = ledger.ledger(run.traces, run.scrapes)
    if alone and (book is None or book.num_others != 0 or book.num_lost):
        return None
    return book


def _prompt_tokens(run: Evidence) -> tuple[int, float | None]:
    """Prompt tokens of the plan and of the server, of the same requests."""
    said = [
        (trace.num_prompt_tokens, trace.server_prompt_tokens)
        for trace in run.traces
        if trace.status == "answered" and trace.num_prompt_tokens is not None and trace.server_prompt_tokens is not None
    ]
    if said:
        return sum(ours for ours, _ in said), sum(theirs for _, theirs in said)
    book = _book(run, alone=True)
    if book is None or book.prompt_tokens is None:
        return 0, None
    return book.prompt_tokens, book.server_prompt_tokens


CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    not_alone,
    generated_tokens_agree,
    prompts_agree,
    first_tokens_agree,
    queues_agree,
)
