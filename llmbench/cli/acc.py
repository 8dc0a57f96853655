"""`llmbench acc`: capture logits, compare them with base logits, say where they differ."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Check the logits of a stack against base logits: `acc --base DIR` replays and compares, `acc dump` makes a "
    "base, `acc compare` compares two folders. Exit 0: passed, 1: values differ, 3: rows are missing or broken."
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
    base: Annotated[Path, typer.Argument(help="Folder of base logits.")],
    new: Annotated[Path, typer.Argument(help="Folder of the logits to check.")],
    json: Json = None,
) -> None:
    """Compare two folders of logits, ours or the contest's."""
    from llmbench.cli import _acc

    raise typer.Exit(_acc.compare_folders(base, new, json))
