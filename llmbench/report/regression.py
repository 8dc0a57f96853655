"""A comparison of two builds for people and for CI: the screen, Markdown, annotations, JUnit cases, one line."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.metrics.compare import Comparison, Effect, Verdict, select
from llmbench.report import words
from llmbench.report.junit import Case
from llmbench.report.markdown import plain, table

_STYLES: dict[Verdict, str] = {"regression": "bold red", "no regression": "bold green", "inconclusive": "bold yellow"}
_WIDTH = 116
_HEAD = ("metric", "A", "B", "change", "bounds", "delta", "")
THRESHOLD = "one run on a side: the change is held against delta, chance and all; make three runs or more of each"


def show(console: Console, found: Comparison, a: str, b: str) -> None:
    """Print: the verdict, a line for each metric, what would decide."""
    console.print(Text(headline(found), style=_STYLES[found.verdict]), soft_wrap=True, highlight=False)
    console.print(Text(f"A {a}\nB {b}"), soft_wrap=True, highlight=False)
    shown = Table(*_HEAD, box=None, pad_edge=False)
    for column in shown.columns[1:6]:
        column.justify = "right"
    for each in found.effects:
        shown.add_row(*_cells(each), Text(each.verdict, style=_STYLES[each.verdict]))
    console.print(shown, width=max(console.width, _WIDTH))  # a figure that is broken over two lines is none
    for note in notes(found):
        console.print(Text(note), soft_wrap=True, highlight=False)


def headline(found: Comparison) -> str:
    """The verdict, and the metrics that made it."""
    return f"{found.verdict.upper()}: {sentence(found)}"


def sentence(found: Comparison) -> str:
    """What the verdict rests on, in words."""
    wrong = [each for each in found.effects if each.verdict == found.verdict]
    if found.verdict == "no regression":
        better = [each for each in found.effects if each.improved]
        text = f"none of {len(found.effects)} metrics is worse by its delta"
        return f"{text}; better: {', '.join(map(said, better))}" if better else text
    return "; ".join(map(said, wrong))


def said(each: Effect) -> str:
    """`tpot:mean +5.3 % [+3.9 %, +6.8 %]`."""
    return f"{each.metric} {_percent(each.change)} {_bounds(each)}".rstrip()


def notes(found: Comparison) -> list[str]:
    """What the figures rest on, and what would decide an open question."""
    if found.method == "threshold":
        return [THRESHOLD]
    first = found.effects[0]
    lines = [
        f"{first.method} over {first.num_a} and {first.num_b} runs, bounds {1 - first.level:.2%} one-sided",
        f"a regression holds after Holm's correction for {len(found.effects)} metrics",
    ]
    if found.verdict == "inconclusive":
        more = found.num_more
        wanted = "more than 100 further runs" if more is None else f"about {more} further runs"
        lines.append(f"{wanted} of each side would decide, if they were like these; or ask for a larger delta")
    return lines


def one_line(found: Comparison) -> str:
    """For a badge: the verdict and the largest change for the worse."""
    known = [each for each in found.effects if each.change is not None]
    if not known:
        return found.verdict
    worst = max(known, key=lambda each: (each.change or 0.0) * (1 if each.better == "lower" else -1))
    return f"{found.verdict} ({worst.metric} {_percent(worst.change)})"


def markdown(found: Comparison, a: str, b: str) -> str:
    """For a pull request."""
    rows = [[plain(cell) for cell in (*_cells(each), each.verdict)] for each in found.effects]
    rest = "\n".join(f"* {plain(note)}" for note in notes(found))
    about = f"A: {plain(a)}, B: {plain(b)}"
    return f"## {plain(headline(found))}\n\n{about}\n\n{table(_HEAD, rows)}\n\n{rest}\n"


def annotations(found: Comparison) -> str:
    """GitHub's workflow commands: an error for each regression, a warning for what is open, a notice when all is fine.

    Format: https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    """
    kinds: dict[Verdict, str] = {"regression": "error", "inconclusive": "warning"}
    lines = [
        annotation(kinds[each.verdict], each.verdict, _finding(each)) for each in found.effects if each.verdict in kinds
    ]
    return "\n".join(lines or [annotation("notice", found.verdict, sentence(found))]) + "\n"


def annotation(kind: str, title: str, message: str) -> str:
    """One workflow command: `::error title=…::…`."""
    return (
        f"::{kind} title={_escaped(f'llmbench: {title}').replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"
    )


def cases(found: Comparison) -> list[Case]:
    """A JUnit case for each metric; what is open is skipped, since nothing failed."""
    outcomes: dict[Verdict, str] = {"regression": "failure", "no regression": "passed", "inconclusive": "skipped"}
    return [
        Case(
            name=f"{each.metric} is not worse by {each.delta:.3g}",
            outcome=outcomes[each.verdict],  # type: ignore[arg-type]
            message=_finding(each),
        )
        for each in found.effects
    ]


def _finding(each: Effect) -> str:
    return f"{said(each)}, delta {each.delta:.1%}, {each.num_a} and {each.num_b} runs: {each.verdict}"


def _cells(each: Effect) -> Sequence[str]:
    unit = select.unit(each.metric)
    values = [words.quantity(value, unit) for value in (each.a, each.b)]
    return (each.metric, *values, _percent(each.change), _bounds(each) or each.method, f"{each.delta:.1%}")


def _bounds(each: Effect) -> str:
    return "" if each.low is None else f"[{_percent(each.low)}, {_percent(each.high)}]"


def _percent(change: float | None) -> str:
    return words.DASH if change is None else f"{change:+.1%}"


def _escaped(text: str) -> str:
    """As GitHub wants the message of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
