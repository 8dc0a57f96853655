"""`llmbench sweep`: how fast are prefill and decode at each batch size, input length and output length."""

from pathlib import Path
from typing import Annotated

import typer

from llmbench.cli._typed import typed
from llmbench.cli.serve import ENGINE_HELP, MODEL_HELP

app = typer.Typer(
    help="Time batch x input length x output length, as the ATB speed test does and step by step: an engine in this "
    "process, or with --url a server in any dialect.\n\n"
    "\b\n"
    "llmbench sweep --batch 1,4,16 --exps 5:11\n"
    "llmbench sweep --url http://host:8000 --dialect vllm --tokenizer tokenizer.model --batch 1,8\n"
    "llmbench sweep --max-batch --limit-ms 50 --input 256 --output 256\n\n"
    "Each case is warmed up, then timed twice: for one new token, and for all of them with every step apart. Lengths "
    "are exact: prompts are made to measure, answers go on behind eos. Cases that do not fit are kept with the reason, "
    "and the sweep goes on. Exit 0: done, 1: no batch is within the limit, 3: a case failed."
)

_NUMBERS = "numbers, powers, half-open ranges of exponents: 1,4,16, 2^7, 2^5..2^11 (32 to 1024)."
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.callback(invoke_without_command=True)
def sweep(  # the names are those of `_sweep.Settings`
    context: typer.Context,
    batch: Annotated[str, typer.Option(help=f"Batch sizes: {_NUMBERS}")] = "1,4,8,16,32",
    input: Annotated[str, typer.Option(help="Input lengths, in tokens; likewise.")] = "128",  # noqa: A002
    output: Annotated[str, typer.Option(help="Output lengths, in tokens; likewise.")] = "128",
    exps: Annotated[
        str | None, typer.Option(metavar="LOW:HIGH", help="Input and output lengths 2^LOW to before 2^HIGH, as 5:11.")
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="The n-th input length goes with the n-th output length, with no other.")
    ] = False,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Times of each case; the middle one counts.  [default: 1, --max-batch: 3]")
    ] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "embedded",
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    model_cfg_path: Annotated[
        str | None, typer.Option(help="Predict YAML of MindFormers, for --engine mindformers.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --url: the server's tokenizer.model.  [default: the embedded one]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine; default: all cores.")] = None,
    tokens_per_step: Annotated[int, typer.Option(min=1, help="Prompt tokens that the engine takes in one step.")] = 512,
    step_time: Annotated[float, typer.Option(min=0.0, help="Seconds that a step of --engine stub takes.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts.")] = 0,
    url: Annotated[str | None, typer.Option(help="Measure a server instead of an engine in this process.")] = None,
    dialect: Annotated[str, typer.Option(help="HTTP dialect of the server.")] = "openai_completions",
    dialect_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the dialect, as in `llmbench perf`.")
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="Model name for the server.  [default: the first of its /v1/models]")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="LLMBENCH_API_KEY", help="As Authorization: Bearer; is not written down.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one request may take.")] = 1800.0,
    max_batch: Annotated[
        bool, typer.Option("--max-batch", help="Search for the largest batch within --limit-ms instead, for each pair.")
    ] = False,
    limit_ms: Annotated[
        float | None, typer.Option(min=0.001, help="With --max-batch: the longest mean decode step.")
    ] = None,
    within: Annotated[str, typer.Option("--range", metavar="LOW:HIGH", help="With --max-batch: batches to try.")] = (
        "1:2000"
    ),
    model_name: Annotated[str | None, typer.Option(help="In the CSV's name.  [default: the model]")] = None,
    device: Annotated[int, typer.Option(min=0, help="In the CSV's name.")] = 0,
    results: Annotated[Path, typer.Option(help="Where the folders of runs are.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with a sweep that broke off; takes its settings.")
    ] = None,
    json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Run the cases, or search for the largest batch."""
    if context.invoked_subcommand is not None:
        return
    from llmbench.cli import _sweep

    raise typer.Exit(_sweep.command(dict(context.params), typed(context)))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
    json: Json = False,
) -> None:
    """Write a sweep's files again from its journal, and print its table: CSV, JSON with raw steps, Markdown, HTML."""
    from llmbench.cli import _sweep

    raise typer.Exit(_sweep.report(folder, json=json))
