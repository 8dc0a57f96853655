"""`llmbench data`: the datasets that there are, what is in them, and how to add the real ones."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from llmbench.errors import CheckFailed

app = typer.Typer(no_args_is_help=True, help="Datasets: make the stand-ins, list, measure, verify, add the real ones.")


@app.command("make")
def make(
    folder: Annotated[Path | None, typer.Option(help="Where to write.  [default: the datasets folder]")] = None,
) -> None:
    """Make the synthetic stand-ins and their manifest; the same bytes every time."""
    from llmbench.workload import datasets

    for path in datasets.make(folder or datasets.folder()):
        typer.echo(path)


@app.command("list")
def show() -> None:
    """Name each dataset, and say which file stands for it."""
    from llmbench.workload import datasets

    rows = [*((name, datasets.resolve(name)) for name in datasets.names()), (datasets.MMLU, datasets.mmlu())]
    _table(("name", "what", "file"), [(name, found.description, str(found.path)) for name, found in rows])


@app.command("stats")
def stats(
    name: Annotated[str, typer.Argument(help="Name of a dataset, or path of an Alpaca-style file.")] = "alpaca_5010",
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model to count with.  [default: embedded]")] = None,
    first: Annotated[int | None, typer.Option(min=1, help="Only the first so many samples.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Token lengths of prompts, outputs and totals (with the begin-of-sequence id)."""
    import msgspec

    from llmbench.tokenizer import Tokenizer, embedded_path
    from llmbench.workload import datasets
    from llmbench.workload.datasets.stats import lengths

    dataset = datasets.load(name)
    rows = lengths(dataset.samples[:first], Tokenizer.from_file(tokenizer or embedded_path()))
    if as_json:
        report = {"name": dataset.name, "path": dataset.path, "description": dataset.description, "lengths": rows}
        sys.stdout.write(msgspec.json.encode(report, enc_hook=str).decode() + "\n")
        return
    typer.echo(f"{dataset.description}: {dataset.path}")
    fields = rows[0].__struct_fields__
    _table(("tokens", *fields[1:]), [tuple(str(value) for value in msgspec.structs.astuple(row)) for row in rows])


@app.command("verify")
def verify() -> None:
    """Compare the files with the hashes of the manifest; exit code 1 when one differs."""
    from llmbench.workload import datasets

    verdicts = datasets.verify()
    words = {True: "ok", False: "differs", None: "not there"}
    _table(("file", "sha256", "licence"), [(v.entry.file, words[v.ok], v.entry.licence) for v in verdicts])
    wrong = [str(verdict.path) for verdict in verdicts if verdict.ok is False]
    if wrong:
        raise CheckFailed(f"not what the manifest says: {', '.join(wrong)}")


@app.command("add")
def add(file: Annotated[Path, typer.Argument(help="alpaca_5010.json or alpaca_521.json of the contest.")]) -> None:
    """Copy a real file, known by its sha256, into the datasets folder."""
    from llmbench.workload import datasets

    typer.echo(datasets.add(file))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(width=500)).maximum)
    console.print(table, soft_wrap=True)
