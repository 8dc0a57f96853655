"""What a report shows of a run, whatever it is written as: screen, page, Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llmbench.metrics import Trace
from llmbench.metrics.captured import Captured
from llmbench.metrics.checks import Check, RunVerdict, verdict
from llmbench.metrics.evidence import Sample, Scrape
from llmbench.metrics.steady import Steady
from llmbench.metrics.summary import Summary
from llmbench.metrics.windows import Traffic, Window


class View(msgspec.Struct, frozen=True, kw_only=True):
    """A run, or a part of one, or what another tool has left of one."""

    title: str
    numbers: Summary
    checks: Sequence[Check] = ()
    not_judged: str = ""
    """Why there is no verdict; empty when there is one."""
    traces: Sequence[Trace] = ()
    around: Sequence[Trace] = ()
    """All requests of the run, when only a part of them is shown: the server was busy with them too."""
    start_ns: int = 0
    load: str = ""
    """What was sent, in one line."""
    target: str = ""
    plan_sha256: str = ""
    window: Window | None = None
    """The part that is shown; None for the whole run."""
    whole: Summary | None = None
    """Of the whole run, when a part is shown: the verdict is on it."""
    traffic: Traffic | None = None
    """Of that part."""
    steady: Steady | None = None
    steady_numbers: Summary | None = None
    steady_traffic: Traffic | None = None
    instrument: str = ""
    """What the measuring itself may be wrong by; empty when it was not calibrated."""
    notes: Sequence[str] = ()
    environment: Mapping[str, Any] = {}
    prompts: Sequence[str] = ()
    """By the index of the request."""
    samples: Sequence[Sequence[Sample]] = ()
    scrapes: Sequence[Scrape] = ()
    seams_s: Sequence[float] = ()
    captured: Captured | None = None
    """The rows of logits that were captured in the whole run, if any were."""

    @property
    def verdict(self) -> RunVerdict | None:
        """None when the run cannot be judged."""
        return None if self.not_judged else verdict(self.checks)
