"""What a search over quantised models shows: a table with the front marked, CSV, and a page with the same as plots."""

import csv
import io
from collections.abc import Iterable, Sequence
from html import escape

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmbench.metrics.front import PROFILES, Scored, front
from llmbench.report import html, words
from llmbench.report._charts import Floats, Layer, Scale, figure, scale

_HEAD = ("", "form", "MB", "x", "tok/s", "x", "KLD", "top-1", "profile")
_MORE = ("slowest x", "fastest x", "first token ms", "RMS dp")
_COLOURS = "abcde"
_NOTE = (
    "* nothing found here is smaller, faster and nearer to the float model at once (a speed is another one when all "
    "turns of the one are 5 % faster than all of the other); tok/s are of decoding, x is beside the float model, timed "
    "in turn; MB of W8A8S as `weights compress` leaves it; KLD is the mean over held-out texts, in nats; profile is "
    "the strictest of w8 and w4 that is kept"
)


def csv_text(found: Sequence[Scored]) -> str:
    """A line for each form, all figures as they are, and whether it is on the front."""
    best = {one.name for one in front(found)}
    lines = io.StringIO()
    table = csv.writer(lines, lineterminator="\n")
    fields = [field.name for field in msgspec.structs.fields(Scored) if field.name != "command"]
    table.writerow([*fields, "front", "command"])
    for one in found:
        told = msgspec.structs.asdict(one)
        values = ["" if told[name] is None else told[name] for name in fields]
        table.writerow([*values, one.name in best, one.command])
    return lines.getvalue()


def show(console: Console, title: str, what: str, found: Sequence[Scored]) -> None:
    """The table, the front first, and how to make the smallest form that is near enough."""
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(Text(what), soft_wrap=True)
    head, rows = _table(found)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for one in found:
        if one.failed:
            console.print(Text(f"{one.name}: {one.failed}"), soft_wrap=True)
    console.print(Text(_NOTE, style="dim"), soft_wrap=True)
    console.print(Text(smallest(found)), soft_wrap=True)


def smallest(found: Sequence[Scored]) -> str:
    """The smallest form that keeps the strictest profile, and the command that makes it."""
    known = [one for one in found if one.command and not one.failed]
    for profile in PROFILES:
        kept = [one for one in known if one.profile == profile]
        if kept:
            best = min(kept, key=lambda one: one.num_bytes)
            return f"the smallest that keeps profile {profile}: {best.name}\n{best.command}"
    return "none of them keeps profile w8 or w4"


def page(title: str, what: str, facts: Iterable[tuple[str, str]], found: Sequence[Scored]) -> str:
    """One self-contained page: what is won against what is lost, all forms, and the commands of the front."""
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts if value)
    head, rows = _table(found, more=True)
    commands = "".join(f"<p><code>{escape(one.command)}</code></p>" for one in front(found) if one.command)
    failed = "".join(f'<p class="remedy">{escape(one.name)}: {escape(one.failed)}</p>' for one in found if one.failed)
    body = (
        f'<header><h1>{escape(title)}</h1></header><p class="sentence">{escape(what)}</p><dl class="facts">{lines}</dl>'
        + html.section("What is won against what is lost", f'<div class="charts">{_charts(found)}</div>')
        + html.section("All forms", html.table(head, rows, kind="") + failed + f'<p class="note">{escape(_NOTE)}.</p>')
        + html.section("The front again", commands)
    )
    return html.document(f"search · {title}", body)


def _charts(found: Sequence[Scored]) -> str:
    """KLD over size and over speed; lines through what nothing else beats in these two."""
    known = [one for one in found if not one.failed]
    if not known:
        return ""
    size = np.array([one.num_bytes / 1e6 for one in known])
    speed = np.array([one.speed for one in known])
    return _chart("size", "Distance from the float model over size", "MB of weights", known, size, -1) + _chart(
        "speed", "Distance from the float model over speed", "decode, times the float model", known, speed, 1
    )


def _chart(name: str, title: str, over: str, known: Sequence[Scored], across: Floats, better: int) -> str:
    """`better` is 1 where more is better, else -1."""
    kld = np.array([one.kld for one in known])
    least = kld[kld > 0].min(initial=1.0) / 3  # where the float model is drawn, which has 0
    up = np.log10(np.maximum(kld, least))
    order = np.lexsort((up, -better * across))  # from the best, and what comes nearer than all before
    best = [place for i, place in enumerate(order) if up[place] < up[order[:i]].min(initial=np.inf)]
    layers = [Layer(kind="line", colour="e", name="front", x=across[best], y=up[best])]
    for kind, colour in zip(dict.fromkeys(one.kind for one in known), _COLOURS, strict=False):
        own = np.array([one.kind == kind for one in known])
        layers.append(Layer(kind="dots", colour=colour, name=kind, x=across[own], y=up[own]))
    y = scale(up, low=None)
    room = max(0.1, 0.05 * (y.high - y.low))
    note = "up: log10 of the mean KLD; the float model, whose KLD is 0, lies at the lower edge"
    low = Scale(low=y.low - room, high=y.high + room)
    return figure(name, title, scale(across), low, layers, note=note, over=over, zooms=False)


def _table(found: Sequence[Scored], more: bool = False) -> tuple[list[str], list[list[str]]]:
    """Head and rows: the front by size, then the others by KLD; with `more` columns where there is room for them."""
    best = front(found)
    others = sorted((one for one in found if not one.failed and one not in best), key=lambda one: one.kld)
    known = [*best, *others]
    reference = next((one for one in known if one.kind == "float"), None)
    scored = any(one.score is not None for one in known)
    head = [*_HEAD, *(["score"] if scored else []), *(_MORE if more else ())]
    rows = []
    for one in known:
        row = _cells(one, one in best, reference)
        row += [words.DASH if one.score is None else f"{one.score:.1%}"] if scored else []
        rows.append(row + (_more(one) if more else []))
    return head, rows


def _cells(one: Scored, is_best: bool, reference: Scored | None) -> list[str]:
    return [
        "*" if is_best else "",
        one.name,
        f"{one.num_bytes / 1e6:.4g}",
        _times(one.num_bytes, reference.num_bytes if reference else 0),
        words.number(one.decode_tokens_per_s),
        f"{one.speed:.2f}",
        f"{one.kld:.2e}",
        f"{one.top1:.2%}",
        one.profile or words.DASH,
    ]


def _more(one: Scored) -> list[str]:
    return [
        f"{one.speed_slowest:.2f}",
        f"{one.speed_fastest:.2f}",
        words.number(1e3 * one.ttft_s),
        f"{one.delta_p_rms:.2%}",
    ]


def _times(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else words.DASH
