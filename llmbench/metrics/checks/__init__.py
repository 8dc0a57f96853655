"""Whether a run may be believed. Each check is one function from the evidence to a value, its limit and a way out.

One file for each theme; a new check is one function and its name in CHECKS, and a line in docs/checks.md. INVALID says
that the numbers are not those of what was asked, or cannot be trusted; INCONCLUSIVE that nobody can tell.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import msgspec

from llmbench.errors import InputError
from llmbench.metrics.checks.answers import all_answered, instants_in_order, output_lengths
from llmbench.metrics.checks.cache import as_declared, repeats
from llmbench.metrics.checks.client import busy, client_bound, instrument_error, stalled
from llmbench.metrics.checks.pace import arrivals_as_declared, in_one_piece, own_lateness, rate_kept
from llmbench.metrics.checks.server import CHECKS as SERVER
from llmbench.metrics.checks.settled import keeps_up, under_load, warmed_up
from llmbench.metrics.checks.stream import not_coalesced, streams_at_all, tokens_counted
from llmbench.metrics.evidence import Check, Evidence, Verdict

__all__ = ["CHECKS", "EXIT", "Check", "Evidence", "RunVerdict", "Verdict", "check", "verdict"]

RunVerdict = Literal["VALID", "INVALID", "INCONCLUSIVE"]
EXIT: dict[RunVerdict, int] = {"VALID": 0, "INVALID": 3, "INCONCLUSIVE": 4}

CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    all_answered,
    output_lengths,
    instants_in_order,
    tokens_counted,
    streams_at_all,
    not_coalesced,
    own_lateness,
    rate_kept,
    arrivals_as_declared,
    in_one_piece,
    as_declared,
    repeats,
    keeps_up,
    under_load,
    warmed_up,
    stalled,
    busy,
    instrument_error,
    client_bound,
    *SERVER,
)


def check(run: Evidence, allow: Collection[str] = ()) -> list[Check]:
    """All checks of a run; those whose ids are in `allow` are marked so. Raises InputError for an id that is none."""
    refuse_unknown(allow)
    outcomes = [function(run) for function in CHECKS]
    return [msgspec.structs.replace(outcome, allowed=True) if outcome.id in allow else outcome for outcome in outcomes]


def refuse_unknown(allow: Collection[str]) -> None:
    """Raise InputError for an id that is none, so that it is known before a run and not after it."""
    known = [function(Evidence(traces=[])).id for function in CHECKS] if allow else []
    if unknown := set(allow) - set(known):
        raise InputError(f"--allow {min(unknown)}: there is no such check; the checks are {', '.join(known)}")


def verdict(checks: Sequence[Check]) -> RunVerdict:
    """INVALID when a check failed, else INCONCLUSIVE when one could not tell; allowed ones do not count."""
    found = {outcome.verdict for outcome in checks if not outcome.allowed}
    return "INVALID" if "failed" in found else "INCONCLUSIVE" if "inconclusive" in found else "VALID"
