"""Whether a timed run's answers are the declared model's own: tests A1 to A10 of accuracy-methods, section 6.

One file for each family of tests, pure functions from evidence to a finding; `live` alone talks to a server.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from llmbench import plugins
from llmbench.errors import InputError

Verdict = Literal["passed", "failed", "broken", "inconclusive", "not applicable"]

TESTS = {
    "A1": "the timed answers' own tokens, scored by a trusted model",
    "A2": "logit rows that the secret seed chose",
    "A3": "repeated prompts against new ones",
    "A4": "streams, ends and lengths",
    "A5": "questions with known answers among the load",
    "A6": "one server session",
    "A9": "requests sent again",
    "A10": "the sealed evidence",
}

EXIT: dict[Verdict, int] = {"passed": 0, "failed": 1, "broken": 3, "inconclusive": 4, "not applicable": 4}

_AGAINST_THE_MODEL = {"A1", "A2"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one test: a value against a limit, or why there is none. `tier` is what it rested on.

    T0: texts and times; T1: log-probabilities of the answer's tokens; T2: of the prompt's tokens; T3: rows of logits.
    """

    test: str
    what: str
    verdict: Verdict
    value: str = ""
    limit: str = ""
    why: str = ""
    tier: str = ""
    figures: dict[str, float] = {}


def not_applicable(test: str, why: str) -> Finding:
    """A test that cannot be done, and why."""
    return Finding(test=test, what=TESTS[test], verdict="not applicable", why=why)


def wanted(only: str | None) -> list[str]:
    """The tests of `--only A1,A4`; all without it. Raises InputError for one that there is not."""
    if only is None:
        return list(TESTS)
    names = [name.strip().upper() for name in only.split(",") if name.strip()]
    for name in names:
        if name not in TESTS:
            raise InputError(f"--only: {plugins.unknown('test', name, list(TESTS))}")
    if not names:
        raise InputError(f"--only: name at least one of {', '.join(TESTS)}")
    return [name for name in TESTS if name in names]


def overall(findings: Iterable[Finding], asked: Sequence[str]) -> tuple[Verdict, str]:
    """The verdict on a run, and in words what it rests on.

    Evidence that is broken outweighs all, a failure what is missing. Without a test against a trusted model nothing is
    known of the answers, and a run is not passed, unless only other tests were asked for.
    """
    found = list(findings)
    for verdict, words in (
        ("broken", "the evidence is missing, or not what was sealed"),
        ("failed", "not passed"),
        ("inconclusive", "cannot be told"),
    ):
        named = list(dict.fromkeys(finding.test for finding in found if finding.verdict == verdict))
        if named:
            return verdict, f"{words}: {', '.join(named)}"  # type: ignore[return-value]
    passed = {finding.test for finding in found if finding.verdict == "passed"}
    if _AGAINST_THE_MODEL & set(asked) and not _AGAINST_THE_MODEL & passed:
        return "inconclusive", "nothing compared the answers with a trusted model"
    return ("passed", "") if passed else ("inconclusive", "no test could be done")
