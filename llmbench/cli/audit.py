"""`llmbench audit`: are the answers of a timed run the declared model's own, and is its evidence as it was?"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmbench.cli.perf import ApiKeyOption, HeaderOption

_RUN = "run"


class _Runs(TyperGroup):
    """`audit RUN` is short for `audit run RUN`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is neither a command nor a call for help is for the command `run`."""
        if args and args[0] not in (*self.commands, "--help"):
            args = [_RUN, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Runs,
    no_args_is_help=True,
    help="Are the answers of a timed run the declared model's own? `llmbench audit RUN` (short for `audit run RUN`) "
    "tests a run that was made with `perf --audit`; `audit verify RUN` recomputes its evidence offline. "
    "Exit 0: passed, 1: a test failed, 3: the evidence is missing or broken, 4: it cannot be told.",
)

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of the run, in results/.")]
Head = Annotated[
    str | None, typer.Option(help="What the run said that it was sealed with, or its first digits (8 or more).")
]


@app.command(_RUN)
def run(
    folder: RunFolder,
    url: Annotated[
        str | None, typer.Option(help="Live server, for A3 and A9.  [default: the run's, or the bundled stack again]")
    ] = None,
    trusted_model: Annotated[
        str | None,
        typer.Option(help="embedded, random:PRESET or a folder; scores the answers.  [default: what the server named]"),
    ] = None,
    trusted_engine: Annotated[str, typer.Option(help="What computes it, in this process.")] = "numpy_llama",
    trusted_url: Annotated[
        str | None,
        typer.Option(
            help="Server to score with instead, by log-probabilities of the prompt; idle, OpenAI completions."
        ),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model, for a model that brings none.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16: what the server computes in.  [default: as it says]")
    ] = None,
    requests: Annotated[int, typer.Option("-n", "--requests", min=1, help="At most so many are scored (A1).")] = 300,
    bad_requests: Annotated[
        float, typer.Option(min=0.001, max=1, help="Share of bad requests that must not go unseen (A1).")
    ] = 0.05,
    replays: Annotated[int, typer.Option("-k", "--replays", min=1, help="Requests to send again (A9).")] = 20,
    rounds: Annotated[int, typer.Option(min=6, help="Of repeated and new prompts (A3).")] = 12,
    base: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Reference run: its mean length counts (A4).")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Logit rows of the timed run (A2).  [default: RUN/rows, if they are there]")
    ] = None,
    head: Head = None,
    only: Annotated[str | None, typer.Option(metavar="A1,A4", help="Only these tests.")] = None,
    header: HeaderOption = None,
    api_key: ApiKeyOption = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the findings there.")] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write them there as JUnit XML.")] = None,
) -> None:
    """Test whether the answers of a run are the declared model's own.

    A1 its tokens scored by a trusted model, A2 its logit rows, A3 caches, A4 streams and lengths, A5 questions with
    known answers, A6 one server, A9 requests sent again, A10 the sealed evidence.
    """
    from llmbench.cli import _audit, _perf

    options = _audit.Options(
        folder=folder,
        url=url,
        trusted_model=trusted_model,
        trusted_engine=trusted_engine,
        trusted_url=trusted_url,
        tokenizer=tokenizer,
        dtype=dtype,
        requests=requests,
        bad_requests=bad_requests,
        replays=replays,
        rounds=rounds,
        base=base,
        rows=rows,
        head=head,
        only=only,
        headers=_perf.headers_of(header or (), api_key),
    )
    raise typer.Exit(_audit.main(options, json, junit))


@app.command()
def verify(folder: RunFolder, head: Head = None) -> None:
    """Recompute a run's evidence offline: its chain, its commitments, its plan, and the files made of its journals.

    The first file and line that does not fit is named. Exit 0: all fits, 3: it does not, or there is none.
    """
    from llmbench.cli import _audit

    raise typer.Exit(_audit.verify(folder, head))
