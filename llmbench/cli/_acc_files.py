"""The files of a comparison: JSON, JUnit, Markdown, a page, and the figures of every row."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from llmbench.accuracy import describe, drill
from llmbench.accuracy.compare import Comparison, Rows
from llmbench.accuracy.judge import GateResult
from llmbench.report import accuracy, files, junit
from llmbench.report.markdown import plain, table

_LOOKS = 5


class Outputs(msgspec.Struct, frozen=True, kw_only=True):
    """Where the comparison is written besides the screen."""

    json: Path | None = None
    junit: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    rows: Path | None = None


def write(outputs: Outputs, found: Comparison, rows: Rows) -> None:
    """Write what was asked for. Raises InputError when a file cannot be written."""
    with files.wanted():
        if outputs.json is not None:
            files.write_json(outputs.json, found)
        if outputs.junit is not None:
            files.write(outputs.junit, junit.junit("llmbench acc", cases(found), found.seconds))
        if outputs.markdown is not None:
            files.write(outputs.markdown, markdown(found).encode())
        if outputs.rows is not None:
            _save_rows(outputs.rows, rows)
        if outputs.html is not None:
            files.write(outputs.html, _page(found, rows).encode())


def cases(found: Comparison) -> list[junit.Case]:
    """A case for each gate, and one for whether the captures could be compared at all."""
    broken = found.verdict == "not comparable"
    comparable = junit.Case(
        name="the captures are comparable",
        outcome="error" if broken else "passed",
        message="; ".join(found.reasons) if broken else "",
    )
    numbers = sum(finding.kind == "not finite" for finding in found.findings)
    finite = junit.Case(
        name="every value is a number",
        outcome="failure" if numbers else "passed",
        message=f"{numbers} rows have others",
    )
    return [comparable, finite, *map(_case, found.gates)]


def _case(gate: GateResult) -> junit.Case:
    if gate.verdict == "passed":
        return junit.Case(name=gate.what, outcome="passed")
    undecided = "error" if gate.verdict == "not decided" and gate.required else "skipped"
    return junit.Case(
        name=gate.what,
        outcome="failure" if gate.verdict == "failed" else undecided,  # type: ignore[arg-type]
        message=f"{gate.verdict}: {describe.interval(gate)}, {gate.bound} {gate.limit:g} is allowed",
    )


def markdown(found: Comparison) -> str:
    """A summary for a pull request."""
    gates = [
        (gate.verdict, plain(gate.what), describe.interval(gate), f"{gate.bound} {gate.limit:g}", plain(gate.source))
        for gate in found.gates
    ]
    said = describe.lines(found)
    rest = [line.text for line in said[1:] if not any(gate.what in line.text for gate in found.gates)]
    return "\n".join(
        (
            f"## {said[0].text}",
            "",
            table(("", "figure", "value", "limit", "source"), gates),
            "",
            *(f"* {plain(text)}" for text in rest),
            "",
        )
    )


def _page(found: Comparison, rows: Rows) -> str:
    told: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(found))
    figures = rows.figures
    columns = {
        "kld": figures["kld"],
        "place": np.where(rows.step >= 0, rows.step, rows.position),
        "batch": rows.batch,
        "request": rows.request,
        "flip": figures["base_top"] != figures["new_top"],
    }
    finite = figures["finite"]
    looks = []
    for row in found.worst_rows[:_LOOKS]:
        if row.request_id:
            place = row.step if row.step is not None else row.index
            looks += drill.look(Path(found.base.path), Path(found.new.path), row.request_id, place)[:1]
    told_looks = [msgspec.to_builtins(look) for look in looks]
    return accuracy.page(told, {name: column[finite] for name, column in columns.items()}, told_looks)


def _save_rows(path: Path, rows: Rows) -> None:
    """`.npz`: a column for each figure, and whose rows they are."""
    columns: dict[str, Any] = {name: rows.figures[name] for name in rows.figures.dtype.names or ()}
    for name in ("request", "step", "position", "batch", "status"):
        columns[name] = getattr(rows, name)
    with path.open("wb") as file:
        np.savez(file, **columns)
