"""`llmbench maxload`: the highest rate at which a serving stack keeps its objectives, with an interval."""

from pathlib import Path
from typing import Annotated

import typer

from llmbench.cli._typed import typed
from llmbench.cli.plan import DATASET_HELP, CacheOption, IgnoreEosOption
from llmbench.cli.report import AllowOption


def maxload(  # the names are those of `_maxload.Search` and of `_perf.Settings`
    context: typer.Context,
    slo: Annotated[str, typer.Option(metavar="LIST", help="Objectives, as in ttft:p99<500ms,tpot:p95<40ms,e2el<2s.")],
    start: Annotated[
        float | None, typer.Option(min=1e-6, help="First rate to try.  [default: that of one user who never waits]")
    ] = None,
    min_rate: Annotated[float, typer.Option(min=1e-6, help="Go no lower, requests per second.")] = 0.01,
    max_rate: Annotated[float, typer.Option(min=1e-6, help="Go no higher, requests per second.")] = 1000.0,
    precision: Annotated[float, typer.Option(min=0.001, help="Stop when the bounds are within this share.")] = 0.1,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the answer about each rate.")] = 0.95,
    rounds: Annotated[int, typer.Option(min=1, help="A rate is sent so often at most, until there is an answer.")] = 3,
    round_time_s: Annotated[
        float, typer.Option("--round-time", min=1.0, help="Seconds of a round; longer when too few requests are in it.")
    ] = 20.0,
    budget_s: Annotated[
        float, typer.Option("--budget", min=1.0, help="Start no round after so many seconds.")
    ] = 1800.0,
    url: Annotated[str | None, typer.Option(help="Without it: --port, or the bundled stack.")] = None,
    port: Annotated[int, typer.Option("-P", "--port", help="Port on this machine; see --url.")] = 8835,
    dialect: Annotated[str | None, typer.Option(help="HTTP dialect of the server.  [default: contest]")] = None,
    served_model: Annotated[str | None, typer.Option(help="Model name for the server.")] = None,
    dataset: Annotated[str, typer.Option(help=DATASET_HELP)] = "alpaca_5010",
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model that counts the tokens to ask for.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to ask for, of every request.")] = None,
    ignore_eos: IgnoreEosOption = False,
    cache: CacheOption = "any",
    seed: Annotated[int, typer.Option(min=0, help="Of the first round; each round has its own.")] = 0,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds that one request may take.")] = 60.0,
    allow: AllowOption = None,
    model: Annotated[str | None, typer.Option(help="Model of the launched stack.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine of the launched stack.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file of the launched stack.")] = None,
    results: Annotated[Path, typer.Option(help="Where the folders of runs are.")] = Path("results"),
    settings: Annotated[
        Path | None, typer.Option(help="YAML file of perf's other settings, as in configs/perf.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="SEARCH", help="Go on with a search that broke off, from its folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Search for the highest Poisson rate at which all objectives hold, and say between which rates it lies.

    \b
    llmbench maxload --slo "ttft:p99<500ms"
    llmbench maxload --slo "ttft:p90<150ms" --url http://host:8000 --dialect openai_chat --max-rate 50

    Exit status 0: found to the precision, 1: no rate in the range holds, 3: the client cannot measure that load, 4: the
    bounds are still wider than the precision.
    """
    from llmbench.cli import _maxload

    raise typer.Exit(_maxload.command(dict(context.params), typed(context)))
