"""`llmbench acc`: capture logits, compare them with base logits, say where they differ."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Check the logits of a stack against base logits: `acc --base DIR` replays and compares, `acc dump` makes a "
    "base, `acc compare` compares two captures, `acc show` looks at a row. Exit 0: passed, 1: values differ, 3: rows "
    "are missing or broken, 4: inconclusive."
)

Number = Annotated[int, typer.Option("-n", "--num-requests", min=1, help="The first so many samples.")]
Concurrency = Annotated[int, typer.Option("-c", "--concurrency", min=1, help="Requests at once.")]
Every = Annotated[
    int, typer.Option(min=1, help="Check rows whose last input token has an index divisible by this; contest: 100.")
]
Dataset = Annotated[str, typer.Option(help="Dataset name or file.")]
TokenizerFile = Annotated[Path | None, typer.Option(help="tokenizer.model that counts the tokens to ask for.")]
ModelSpec = Annotated[str | None, typer.Option(help="Model of the stack: embedded (default), random:PRESET, a folder.")]
EngineName = Annotated[str | None, typer.Option(help="Engine of the stack.")]
Config = Annotated[Path | None, typer.Option(help="Settings file of the stack.")]
Results = Annotated[Path, typer.Option(help="Where the folders of runs are.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the comparison there as well.")]

NUM_REQUESTS, EVERY, DATASET = 500, 100, "alpaca_521"  # as the contest


@app.callback(invoke_without_command=True)
def acc(
    context: typer.Context,
    base: Annotated[Path | None, typer.Option(help="Folder of base logits, ours or the contest's.")] = None,
    num_requests: Number = NUM_REQUESTS,
    concurrency: Concurrency = 1,
    every: Annotated[int | None, typer.Option(min=1, help="As in `acc dump`; default: as the base.")] = None,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
    results: Results = Path("results"),
    json: Json = None,
) -> None:
    """Replay the accuracy requests against the bundled stack and compare its logits with a base."""
    if context.invoked_subcommand is not None:
        return
    if base is None:
        raise typer.BadParameter("give the folder of base logits with --base, or make one: llmbench acc dump -o DIR")
    from llmbench.cli import _acc

    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    load = _acc.Load(num_requests=num_requests, concurrency=concurrency, dataset=dataset)
    raise typer.Exit(_acc.check(base, load, stack, every, results, json))


@app.command()
def dump(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new or empty.")],
    num_requests: Number = NUM_REQUESTS,
    concurrency: Concurrency = 1,
    every: Every = EVERY,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
) -> None:
    """Make a base: replay the accuracy requests against the bundled stack and keep its logits."""
    from llmbench.cli import _acc

    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    load = _acc.Load(num_requests=num_requests, concurrency=concurrency, dataset=dataset)
    _acc.dump(out, load, stack, every)


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="Base logits: a capture, or a folder of contest files.")],
    new: Annotated[Path, typer.Argument(help="The logits to check.")],
    profile: Annotated[
        str | None, typer.Option(help="How much may differ: bitwise, contest, fp32, fp16, bf16, w8, w4, serving.")
    ] = None,
    allow_missing: Annotated[int, typer.Option(min=0, help="Rows that may be on one side only.")] = 0,
    allow_copy: Annotated[bool, typer.Option("--allow-copy", help="The new rows may be the base itself.")] = False,
    load_batch: Annotated[float | None, typer.Option(help="Mean batch of the load that the rows stand for.")] = None,
    config: Annotated[str | None, typer.Option(help="Hash of the settings that the load's server ran with.")] = None,
    ulp: Annotated[bool, typer.Option("--ulp", help="Count representable numbers between all values, too.")] = False,
    legacy: Annotated[bool, typer.Option("--legacy", help="Say also what the contest's script would say.")] = False,
    json: Json = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a summary in Markdown there.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page there.")] = None,
    rows: Annotated[Path | None, typer.Option(help="Write the figures of every row there, as .npz.")] = None,
) -> None:
    """Compare two captures, ours or the contest's. Exit 0: passed, 1: failed, 3: not comparable, 4: inconclusive."""
    from llmbench.accuracy.compare import Options
    from llmbench.cli import _acc
    from llmbench.cli._acc_files import Outputs

    options = Options(
        profile=profile,
        allow_missing=allow_missing,
        allow_copy=allow_copy,
        load_batch=load_batch,
        config=config,
        ulp=ulp,
    )
    outputs = Outputs(json=json, junit=junit, markdown=markdown, html=html, rows=rows)
    raise typer.Exit(_acc.compare_folders(base, new, outputs, options, with_legacy=legacy))


@app.command()
def show(
    capture: Annotated[Path, typer.Argument(help="A capture, or a folder of contest files with its manifest.")],
    request: Annotated[str, typer.Argument(help="The id of a request.")],
    step: Annotated[int | None, typer.Option(help="One step of it; in contest folders, an index.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another capture, beside it.")] = None,
) -> None:
    """Show the likeliest tokens of a request's rows, in one capture or in two."""
    from llmbench.cli import _acc

    _acc.show_rows(capture, against, request, step)


@app.command("convert-pickle")
def convert_pickle(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Contest folder whose .npy files hold pickles.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
) -> None:
    """Make plain arrays of .npy files that hold pickled mindspore Tensors, in a process that can do nothing else."""
    from llmbench.logits import pickles

    num_pickles, num_plain = pickles.convert(source, out)
    typer.echo(f"{out}: {num_pickles} pickles made plain, {num_plain} were plain already")
