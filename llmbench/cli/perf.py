"""`llmbench perf`: send a planned load to a serving stack and say how fast it answered, and whether to believe it."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from llmbench.cli._typed import typed
from llmbench.cli.plan import (
    ARRIVALS_HELP,
    DATASET_HELP,
    CacheOption,
    IgnoreEosOption,
    SeedOption,
    ShuffleOption,
    TemperatureOption,
)
from llmbench.cli.report import AllowOption, SloOption


class Task(str, Enum):
    """The contest's two tasks, named as its client names them."""

    SPEED = "1"
    ACCURACY = "2"


HeaderOption = Annotated[
    list[str] | None, typer.Option(metavar="NAME:VALUE", help="Goes along with every request; is not written down.")
]
ApiKeyOption = Annotated[
    str | None, typer.Option(envvar="LLMBENCH_API_KEY", help="As Authorization: Bearer; is not written down.")
]


def _workers(value: str) -> str | int:
    if value == "auto":
        return value
    if not (value.isdecimal() and int(value) > 0):
        raise typer.BadParameter(f"must be a number above 0, or auto; got {value!r}")
    return int(value)


def perf(  # the names are those of `_perf.Settings`, which is made from all that is given
    context: typer.Context,
    qps: Annotated[float, typer.Option("-X", "--qps", help="Requests per second.")] = 5.0,
    test_time_s: Annotated[
        float | None,
        typer.Option("-T", "--test-time", help="Seconds to send for; X * T requests.  [default: 10, or all of a ramp]"),
    ] = None,
    num_requests: Annotated[int | None, typer.Option("-n", "--num-requests", help="Instead of X * T.")] = None,
    port: Annotated[int, typer.Option("-P", "--port", help="Port on this machine; see --url.")] = 8835,
    url: Annotated[str | None, typer.Option(help="Without it: --port, or the bundled stack.")] = None,
    out_dir: Annotated[Path | None, typer.Option("-O", "--out-dir", help="Where result_X_x.json goes as well.")] = None,
    task: Annotated[Task | None, typer.Option(help="Contest task: 1 is alpaca_5010, 2 is alpaca_521.")] = None,
    dataset: Annotated[str, typer.Option(help=DATASET_HELP)] = "alpaca_5010",
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model that counts the tokens to ask for.")] = None,
    arrivals: Annotated[str, typer.Option(help=ARRIVALS_HELP)] = "poisson",
    dialect: Annotated[
        str | None, typer.Option(help="HTTP dialect of the server.  [default: the plan's, or contest]")
    ] = None,
    dialect_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the dialect, as continuous_usage=true of OpenAI's."),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="Model name for the server.  [default: the first of its /v1/models]")
    ] = None,
    data_shape: Annotated[str | None, typer.Option(help="Contest streams: list or object.  [default: list]")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="At most this many requests at once.")] = None,
    workers: Annotated[
        str,
        typer.Option(callback=_workers, metavar="N|auto", help="Measuring processes; each sends a part of the plan."),
    ] = "1",
    seed: Annotated[int, typer.Option(min=0, help="Gives the four seeds of what is drawn.")] = 0,
    seed_schedule: SeedOption = None,
    seed_prompts: SeedOption = None,
    seed_lengths: SeedOption = None,
    seed_sampling: SeedOption = None,
    shuffle: ShuffleOption = False,
    temperature: TemperatureOption = 0.0,
    ignore_eos: IgnoreEosOption = False,
    cache: CacheOption = "any",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to ask for, of every request.")] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, help="Seconds that one request may take.")
    ] = 1800.0,
    connect_timeout_s: Annotated[
        float, typer.Option("--connect-timeout", min=0.001, help="Seconds until it is connected.")
    ] = 10.0,
    first_token_timeout_s: Annotated[
        float | None, typer.Option("--first-token-timeout", min=0.001, help="Seconds until its first token.")
    ] = None,
    idle_timeout_s: Annotated[
        float | None, typer.Option("--idle-timeout", min=0.001, help="Seconds between two reads of an answer.")
    ] = None,
    header: HeaderOption = None,
    api_key: ApiKeyOption = None,
    cacert: Annotated[Path | None, typer.Option(help="Certificates to trust, of an https server.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Trust any https server.")] = False,
    proxy: Annotated[
        str | None, typer.Option(metavar="URL", help="HTTP proxy; those of the environment are not used.")
    ] = None,
    warm_connections: Annotated[int, typer.Option(min=0, help="Open so many before the first request.")] = 0,
    preflight: Annotated[
        bool, typer.Option("--preflight/--no-preflight", help="Ask for two tokens first, with a prompt of its own.")
    ] = True,
    metrics_url: Annotated[
        str | None, typer.Option(metavar="URL|off", help="The server's own counters.  [default: its /metrics, if any]")
    ] = None,
    calibrate: Annotated[
        bool | None,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Measure the client's own error at this load first, 3 s.  [default: if it lasts 30 s]",
        ),
    ] = None,
    slo: SloOption = None,
    allow: AllowOption = None,
    audit: Annotated[
        bool,
        typer.Option("--audit", help="Commit to a secret, mix questions in, seal the records: for llmbench audit."),
    ] = False,
    canaries: Annotated[
        float | None,
        typer.Option(min=0, max=0.5, help="Share of requests that ask questions with known answers.  [default: 0.05]"),
    ] = None,
    canary_file: Annotated[
        Path | None, typer.Option(help='Questions of your own: JSON lines {"prompt": ..., "answer": ...}.')
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Repeat the plan.jsonl.gz of another run.")] = None,
    capture: Annotated[
        bool, typer.Option("--capture", help="Have the launched stack write its logit rows into RUN/rows.")
    ] = False,
    capture_tier: Annotated[str, typer.Option(help="How much of a row: fp, topk, full16, full32.")] = "topk",
    capture_rate: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows that is written.")] = 1.0,
    capture_seed: Annotated[str, typer.Option(help="Decides which rows a share takes.")] = "",
    force: Annotated[
        Path | None,
        typer.Option(metavar="BASE", help="With --capture: feed the tokens of this capture, or run with one."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the launched stack.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine of the launched stack.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file of the launched stack.")] = None,
    name: Annotated[str, typer.Option(help="Ends the name of the run's folder.")] = "perf",
    results: Annotated[Path, typer.Option(help="Where the folders of runs are.")] = Path("results"),
    settings: Annotated[
        Path | None, typer.Option(help="YAML file of these settings, as in configs/perf; flags override it.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Send what is left of a run that broke off; takes its settings.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the verdict only.")] = False,
) -> None:
    """Measure a serving stack under load: how fast it answered, and whether to believe it.

    \b
    llmbench perf -X 6 -T 10                            (launches the bundled stack)
    llmbench perf --url http://host:8000 --dialect openai_chat -X 10 -T 300 --slo "ttft:p99<500ms"
    llmbench perf --settings configs/perf/openai.yaml
    llmbench perf --resume results/RUN

    Exit status 0: the run is valid, 1: an objective is not kept, 3: the run is not valid, 4: it cannot be told, 130: it
    was interrupted.
    """
    from llmbench.cli import _perf

    raise typer.Exit(_perf.command(dict(context.params), typed(context)))
