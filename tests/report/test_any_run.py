"""Whatever a run leaves, there is a screen, a page and Markdown of it, and every tool's numbers."""

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.loadgen.record import Record, Status
from llmbench.metrics import definitions
from llmbench.metrics.summary import summarise
from llmbench.metrics.windows import Window, due_in, traffic, whole
from llmbench.report import console, files, html, markdown
from tests.report.conftest import view

INSTANTS = st.integers(0, 10**10)
STATUS: list[Status] = ["answered", "failed", "unfinished"]


@st.composite
def any_records(draw: st.DrawFn) -> Record:
    """A record as the journals can hold it: each instant no earlier than the one before it, from some on none."""
    due, sent, *stamps, done = sorted(draw(st.lists(INSTANTS, min_size=3, max_size=12)))
    status = draw(st.sampled_from(STATUS))
    was_sent = status == "answered" or draw(st.booleans())
    was_done = status == "answered" or (was_sent and draw(st.booleans()))
    tokens = draw(st.lists(st.integers(1, 5), min_size=len(stamps), max_size=len(stamps)))
    return Record(
        index=draw(st.integers(0, 50)),
        status=status,
        reason="" if status == "answered" else draw(st.text(max_size=20)),
        due_ns=due,
        released_ns=due if was_sent else None,
        sent_ns=sent if was_sent else None,
        connected_ns=sent if was_sent else None,
        stamps_ns=stamps if was_sent else [],
        tokens=tokens if was_sent else [],
        num_tokens=sum(tokens),
        num_prompt_tokens=draw(st.none() | st.integers(0, 100)),
        done_ns=done if was_done else None,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(any_records(), max_size=12), st.text(max_size=30))
def test_whatever_a_run_leaves_can_be_shown(traces: list[Record], prompt: str) -> None:
    shown = view(traces, prompt=prompt, observed=bool(traces))
    assert html.page(shown).endswith("</html>\n")
    assert console.text(shown)
    assert markdown.page(shown).startswith("## ")
    json.loads(files.as_json(files.summary(shown)), parse_constant=lambda name: 1 / 0)
    for name in definitions.names():
        definitions.get(name).figures(traces)


@settings(max_examples=40, deadline=None)
@given(st.lists(any_records(), min_size=1, max_size=12), st.floats(0, 9), st.floats(0.001, 5))
def test_any_part_of_a_run_can_be_shown(traces: list[Record], from_s: float, length_s: float) -> None:
    part = Window(from_s=from_s, to_s=from_s + length_s)
    inside = due_in(traces, 0, part)
    shown = msgspec.structs.replace(
        view(traces),
        numbers=summarise(inside),
        whole=summarise(traces),
        traces=inside,
        around=traces,
        window=part,
        traffic=traffic(traces, 0, part),
    )
    assert html.page(shown)
    assert console.text(shown)
    assert whole(traces, 0).to_s > 0


@settings(max_examples=40, deadline=None)
@given(st.lists(any_records(), max_size=12))
def test_the_parts_of_a_run_hold_all_of_it_once(traces: list[Record]) -> None:
    parts = [Window(from_s=n, to_s=n + 1) for n in range(12)]
    assert sum(len(due_in(traces, 0, part)) for part in parts) == len(traces)
    answered = [trace for trace in traces if trace.status == "answered"]
    tokens = sum(traffic(traces, 0, part).output_tokens_per_s for part in parts)
    assert round(tokens) == sum(sum(trace.tokens) for trace in answered)
