"""Rows that a run captured: in every file of the run, beside the batches of its load."""

import json
from html import escape

import msgspec

from llmbench.metrics.captured import Captured
from llmbench.report import console, files, html, markdown
from tests.report.conftest import records, view

FOUND = Captured(
    tier="topk",
    decode="forced",
    num_rows=4,
    num_tokens=8,
    batches=((1, 1), (30, 3)),
    load_batch=31.5,
    share_at_load=0.75,
)
TEXT = (
    "4 rows of logits captured (topk, fed with the tokens of a base), 50.0% of the 8 tokens of the answers, in batches "
    "of 1 to 30, median 30; the load's mean batch was 31.5 (tokens / steps by the server's counters), 75.0% of the "
    "rows stand for it"
)


def test_captured_rows_are_shown_beside_the_batches_of_their_load_in_every_file() -> None:
    shown = msgspec.structs.replace(view(records()), captured=FOUND)
    assert TEXT in console.text(shown)
    assert TEXT in markdown.page(shown).replace("\\", "")
    page = html.page(shown)
    assert escape(TEXT) in page
    assert "<td>30</td><td>3</td><td>75.0%</td>" in page
    assert json.loads(files.as_json(files.summary(shown)))["captured"]["batches"] == [[1, 1], [30, 3]]


def test_a_capture_without_rows_says_so() -> None:
    nothing = msgspec.structs.replace(FOUND, num_rows=0, batches=(), load_batch=None, share_at_load=None)
    shown = msgspec.structs.replace(view(records()), captured=nothing)
    assert "no rows of logits were captured, of 8 tokens" in console.text(shown)
    assert "Rows of logits" in html.page(shown)


def test_a_run_without_a_capture_says_nothing_of_it() -> None:
    shown = view(records())
    assert "rows of logits" not in console.text(shown)
    assert "captured" not in files.summary(shown)
