"""The screen: the verdict first, what stands against it, the numbers, the run in words."""

import msgspec
import pytest

from llmbench.metrics.checks import Check
from llmbench.metrics.definitions import vllm
from llmbench.metrics.summary import summarise
from llmbench.metrics.windows import Window, due_in, traffic
from llmbench.report import console, words
from llmbench.report.terminal import Terminal
from tests.report.conftest import START_NS, load, records, view


def failed(number: int, allowed: bool = False) -> Check:
    return Check(
        id=f"check-{number}",
        name=f"thing {number}",
        value=2.0,
        limit=1.0,
        unit="s",
        verdict="failed",
        remedy=f"do {number}",
        allowed=allowed,
    )


def test_the_first_line_has_the_verdict_and_what_has_no_answer() -> None:
    lines = console.text(view(records())).splitlines()
    assert lines[0].startswith("INVALID  1 failed of 2 requests; 1 check not passed")
    assert "without an answer: 1 x HTTP 503: full, come back" in lines
    assert "  FAILED  requests without an answer: 1 (limit 0) -> " in "\n".join(lines)
    assert "inf" in next(line for line in lines if line.startswith("E2EL"))


def test_the_screen_of_a_valid_run_says_so_and_ends_in_words() -> None:
    lines = console.text(view(records()[:1])).splitlines()
    assert lines[0] == "VALID  all 1 requests answered"
    assert lines[1].startswith("plan 0123456789abcdef: 1 requests of alpaca_521")
    assert "51.0" in next(line for line in lines if line.startswith("TTFT "))
    assert lines[-1].startswith("Answered 16.4 requests/s for 0.061 s; half of the users saw their first token within ")
    assert any(line.startswith("  ok: answered") for line in lines)


@pytest.mark.parametrize("num_failed", [0, 5, 9])
def test_the_screen_is_no_longer_than_25_lines_with_what_perf_prints_below_it(num_failed: int) -> None:
    shown = view(load(300, lost=0.1), start_ns=START_NS, observed=True)
    shown = msgspec.structs.replace(
        shown, checks=[failed(n) for n in range(num_failed)], instrument="instrument error: TTFT ± 0.4 ms"
    )
    assert len(console.text(shown).splitlines()) <= 23


def test_only_five_checks_are_shown_and_the_rest_is_counted_allowed_ones_last() -> None:
    checks = [failed(0, allowed=True), *(failed(n) for n in range(1, 8))]
    text = console.text(msgspec.structs.replace(view(records()), checks=checks))
    assert text.count("FAILED") == 5
    assert "thing 5" in text
    assert "thing 0" not in text
    assert "and 3 more, see summary.json" in text


def test_percentiles_of_too_few_requests_are_starred_and_the_star_is_explained_once() -> None:
    text = console.text(view(load(20), start_ns=START_NS))
    assert "*" in next(line for line in text.splitlines() if line.startswith("TTFT "))
    assert text.count("too few requests for this percentile") == 1
    assert "too few" not in console.text(view(load(400), start_ns=START_NS))


def test_gaps_between_tokens_are_left_out_where_every_read_brought_one() -> None:
    assert "ITL" not in console.text(view(records()))
    merged = records()
    merged[0].tokens, merged[0].num_tokens = [1, 3], 4
    assert "ITL" in console.text(view(merged))


def test_a_part_of_a_run_says_that_the_verdict_is_of_all() -> None:
    traces = load(300, lost=0.1)
    part = Window(from_s=10, to_s=20)
    inside = due_in(traces, START_NS, part)
    shown = msgspec.structs.replace(
        view(traces, start_ns=START_NS),
        numbers=summarise(inside),
        whole=summarise(traces),
        traces=inside,
        window=part,
        traffic=traffic(traces, START_NS, part),
    )
    text = console.text(shown)
    assert "of 300 requests" in text.splitlines()[0]
    assert f"only the {len(inside)} requests due from 10 s to 20 s; verdict and checks are of all" in text
    assert "requests in flight" in text


def test_the_steady_part_is_shown_beside_the_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    console.show(Terminal(width=120), view(load(400), start_ns=START_NS), steadily=True)
    out = capsys.readouterr().out
    assert "steady part, the " in out
    assert sum(line.startswith("E2EL ") for line in out.splitlines()) == 2
    console.show(Terminal(width=120), view(load(20), start_ns=START_NS), steadily=True)
    assert "no steady part: 20 requests were sent; it takes 50" in capsys.readouterr().out


def test_a_run_without_an_answer_is_shown_too() -> None:
    text = console.text(view(load(40, lost=1.1), start_ns=START_NS))
    assert text.startswith("INVALID  ")
    assert text.splitlines()[-1] == "No request was answered."


def test_what_another_tool_would_have_printed_has_its_names_and_units(capsys: pytest.CaptureFixture[str]) -> None:
    shown = view(load(20), start_ns=START_NS)
    console.show_figures(Terminal(width=120), shown, vllm.TOOL, vllm.figures(shown.traces), vllm.__doc__ or "")
    out = capsys.readouterr().out
    assert out.startswith(("VALID", "INVALID"))
    assert "in the definitions of vllm bench serve" in out
    assert "Median TTFT" in out


def test_no_colours_where_nobody_would_see_them(capsys: pytest.CaptureFixture[str]) -> None:
    console.show(Terminal(), view(records()))
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value_s", "shown"),
    [(0.0039, "3.9 ms"), (0.0000125, "12.5 µs"), (12.3456, "12.3 s"), (1.0, "1 s"), (1234.5, "1,234 s"), (None, "-")],
)
def test_a_time_has_the_unit_that_suits_it(value_s: float | None, shown: str) -> None:
    assert words.time(value_s) == shown


@pytest.mark.parametrize(
    ("times_s", "unit"),
    [([0.01, 0.05, 2.0], "ms"), ([1e-5, 4e-4], "µs"), ([1e-5, 4e-4, 0.5], "ms"), ([12.0, 30.0, 40.0], "s"), ([], "ms")],
)
def test_a_table_has_one_unit(times_s: list[float], unit: str) -> None:
    assert words.unit(times_s)[0] == unit
