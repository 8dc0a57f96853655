"""A6: was it one server, with one model and one configuration, from before the warm-up until the end?

Our server says so at `/identity`; of any other with Prometheus' own process metrics, the instant at which its process
started is known, and the models that it lists. What a server says of itself it may make up: that is what A1 is for.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.loadgen import scrape
from llmbench.loadgen.target import Target

_STARTED = "process_start_time_seconds"
_SHOWN = 12
_SAME_PROCESS = ("pid", "agent_pids", "started_s", "capture", "force", _STARTED)


class Session(msgspec.Struct, frozen=True, kw_only=True):
    """What a server said of itself, by name; `source` is the page that said it."""

    source: str
    says: dict[str, Any]


class Looked(msgspec.Struct, frozen=True, kw_only=True, tag="session", tag_field="kind"):
    """What the server said it is; None when it said nothing."""

    attempt: int
    at_s: float
    when: str
    session: Session | None


def read(target: Target) -> Session | None:
    """Ask a server what it is; None when it does not say, or is behind a proxy."""
    if target.way.proxy is not None:
        return None
    return asyncio.run(_read(msgspec.structs.replace(target, prefix="")))


async def _read(target: Target) -> Session | None:
    told = _object(await scrape.page(target, "/identity", timeout_s=120.0))  # it may have to hash its weights first
    if "pid" in told:
        return Session(source="/identity", says=told)
    metrics = await scrape.page(target, "/metrics")
    values = {} if metrics is None else scrape.parse(metrics)
    if _STARTED not in values:
        return None
    models = _object(await scrape.page(target, "/v1/models")).get("data")
    names = [model.get("id") for model in models if isinstance(model, dict)] if isinstance(models, list) else []
    return Session(source="/metrics", says={_STARTED: values[_STARTED], "models": names})


def _object(page: bytes | None) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(page or b"{}")
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def one_session(looked: Sequence[Looked], now: Session | None = None) -> Finding:
    """The sessions of a run against its first one; that of the live server, if any, in all but its process."""
    told = [line.session for line in looked if line.session is not None]
    if not looked:
        return not_applicable("A6", "the run did not note the server's session: measure with perf --audit")
    if not told:
        return not_applicable("A6", f"the server has neither /identity nor {_STARTED} in /metrics")
    first = told[0]
    wrong = [f"{line.when} (attempt {line.attempt}): it says nothing any more" for line in looked if not line.session]
    for line in looked:
        if line.session is not None:
            changed = differences(first.says, line.session.says)
            wrong += [f"{line.when} (attempt {line.attempt}): {name} {was}, now {is_}" for name, was, is_ in changed]
    if now is not None:
        changed = differences(first.says, now.says)
        wrong += [f"today: {name} {was}, now {is_}" for name, was, is_ in changed if name not in _SAME_PROCESS]
    return Finding(
        test="A6",
        what="the server's process, settings and weights, before the warm-up and after the run",
        verdict="failed" if wrong else "passed",
        value=f"{len(wrong)} differences in {len(looked) + (now is not None)} sessions; {_about(first)}",
        limit="0",
        why=wrong[0] if wrong else "",
        tier="what the server says",
        figures={"differences": len(wrong)},
    )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Names whose values are not the same in both, with both values, shortened."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return [(name, _short(one.get(name)), _short(other.get(name))) for name in names]


def _about(session: Session) -> str:
    says = session.says
    known = [
        f"{name} {_short(says[name])}" for name in ("pid", "model", "fingerprint", "config", _STARTED) if name in says
    ]
    return ", ".join(known)


def _short(value: Any) -> str:
    """A hash by its first digits, a name as it is."""
    text = str(value)
    return text[:_SHOWN] if len(text) == 64 and text.isalnum() else text
