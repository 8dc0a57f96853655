"""Writes docs/metrics.md from the declarations: `python -m tools.write_metrics_doc`. A test holds the two together."""

from pathlib import Path

from llmbench.metrics import definitions, stalls, steady
from llmbench.report import markdown

PATH = Path(__file__).parents[1] / "docs" / "metrics.md"

_HEAD = """# Metrics

This page is written by `python -m tools.write_metrics_doc`, from the declarations in `llmbench/metrics`.

## Instants

Every number is made of these, in nanoseconds on the monotonic clock of the measuring process:

| instant | what |
| --- | --- |
| due | when the plan wanted the request sent |
| released | from when on nothing but ourselves held it back: due, or when a slot became free |
| sent | just before a connection is looked for; the request's bytes were ready before |
| connected | a connection is ready; the same as sent for one that was kept |
| stamps | each read that brought tokens, stamped before anything in it is parsed |
| done | the read that ended the response |

## Our metrics

Times count from *due*, which is what a user of an open system waits, whoever held the request up. The rows from *sent*
are what the server took, and `client_wait` is the difference: TTFT = client wait + TTFT from sent. A request that was
sent and has no answer counts as infinite in `ttft` and `e2el`, so that a server that drops its slowest requests gets no
better percentiles; means leave it out.
"""

_PERCENTILES = """## Percentiles

Linear between neighbours. Each has 95 % bounds from order statistics (`bounds` in `summary.json`): the true
percentile is below `low` in at most 5 % of cases, and above `high` in at most 5 %. Where there are too few requests
for an upper bound the percentile is starred: 5 for the median, 29 for p90, 59 for p95, 299 for p99. The bounds of
gaps count answers, not gaps. Two runs differ by more than the bounds of one say.
"""

_PARTS = """## Parts of a run

`llmbench report RUN --from S --to S` takes the requests that were due between two seconds of the plan. The tokens
and answers per second of a part are counted by their own instants, whichever requests they belonged to. Verdict and
checks stay those of the whole run.

`--steady` finds the part without the filling and the emptying of the server. {steady}

## Stalls

A gap of more than {times} times the median gap of its answer (of five gaps or more), and of 1 ms at least. A stream
freezes when one of its gaps is longer than {freeze:g} s.
"""

_OTHERS = """## Other tools

`llmbench report RUN --definition TOOL` prints what that tool would have printed of the same traces. All of them
count from *sent* and drop requests without an answer. The formulas were read in the code of the version named.
"""


def page() -> str:
    """The whole page."""
    parts = _PARTS.format(steady=_steady(), times=stalls.TIMES_THE_MEDIAN, freeze=stalls.FREEZE_S)
    return "\n".join(
        [_HEAD, markdown.metrics(), "", _PERCENTILES, parts, _OTHERS, *map(_definition, definitions.names())]
    )


def _steady() -> str:
    """The docstring that says how it is found, without its title."""
    text = (steady.__doc__ or "").partition("\n\n")[2]
    formula = "sum((z - mean(z))**2) / (n - d)**2"
    return " ".join(text.split()).replace(formula, f"`{formula}`")


def _definition(name: str) -> str:
    definition = definitions.get(name)
    rows = [(markdown.plain(figure), markdown.plain(formula)) for figure, formula in definition.FORMULAS.items()]
    about = " ".join((definition.__doc__ or "").split())
    return f"### `{name}`: {definition.TOOL}\n\n{about}\n\n{markdown.table(('name there', 'what it is'), rows)}\n"


if __name__ == "__main__":
    PATH.write_text(page(), encoding="utf-8")
