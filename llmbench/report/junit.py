"""JUnit XML, which CI servers show: a suite of checks, each passed, failed, broken or skipped."""

from collections.abc import Sequence
from typing import Literal
from xml.etree import ElementTree

import msgspec

Outcome = Literal["passed", "failure", "error", "skipped"]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One check. `message` says why it did not pass."""

    name: str
    outcome: Outcome
    message: str = ""


def junit(suite: str, cases: Sequence[Case], seconds: float = 0.0) -> bytes:
    """The file. Characters that XML cannot hold are replaced."""
    counts = {
        name: str(sum(case.outcome == outcome for case in cases))
        for name, outcome in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
    }
    about = {"name": _clean(suite), "tests": str(len(cases)), "time": f"{seconds:.3f}", **counts}
    root = ElementTree.Element("testsuite", about)
    for case in cases:
        element = ElementTree.SubElement(root, "testcase", classname=_clean(suite), name=_clean(case.name))
        if case.outcome != "passed":
            ElementTree.SubElement(element, case.outcome, message=_clean(case.message))
    ElementTree.indent(root)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


def _clean(text: str) -> str:
    """Text without the characters that XML 1.0 forbids."""
    return "".join(c if c in "\t\n\r" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" else "\ufffd" for c in text)
