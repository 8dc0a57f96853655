"""`llmbench eval SET`: ask a model the questions of a set and count what is right; `eval compare` for two such runs."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmbench import plugins

_SET = "SET"


class _Sets(TyperGroup):
    """Every set of the room `evals` is a command, all with the same flags; the command knows by which name it goes."""

    def list_commands(self, ctx: Any) -> list[str]:
        """The sets, then what else there is."""
        return [*plugins.names("evals"), *(name for name in super().list_commands(ctx) if name != _SET)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The one command for the name of a set."""
        if cmd_name != _SET and cmd_name in plugins.names("evals"):
            return super().get_command(ctx, _SET)
        return None if cmd_name == _SET else super().get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Sets,
    no_args_is_help=True,
    help="Ask a model the questions of a set (MMLU and others) over HTTP or in this process, and count what is right; "
    "compare two such runs item by item.",
)


@app.command(_SET)
def ask(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="The set's folder.  [default: its own in datasets/]")] = None,
    mode: Annotated[str | None, typer.Option(help="How an answer is read; see `eval list`.")] = None,
    split: Annotated[str | None, typer.Option(help="Which questions; see `eval list`.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Answered examples in front of each question.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each subject.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    url: Annotated[str | None, typer.Option(help="Server to ask.  [default: launch the bundled stack]")] = None,
    dialect: Annotated[str, typer.Option(help="HTTP dialect of the server.")] = "openai_completions",
    served_model: Annotated[str, typer.Option(help="Model that a request names, for dialects that name one.")] = "",
    concurrency: Annotated[int, typer.Option("-c", "--concurrency", min=1, help="Requests at once.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one request may take.")] = 1800.0,
    offline: Annotated[bool, typer.Option("--offline", help="Ask the engine in this process, without HTTP.")] = False,
    model: Annotated[str | None, typer.Option(help="embedded (default), random:PRESET, or a folder.")] = None,
    engine: Annotated[str | None, typer.Option(help="What computes.")] = None,
    config: Annotated[Path | None, typer.Option(help="Settings file of the launched stack.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.model that counts prompts, if not the model's.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Share right (micro), 0 to 1; exit 1 below.")] = None,
    allow_exec: Annotated[
        bool, typer.Option("--allow-exec", help="Run the code that a model wrote (humaneval).")
    ] = False,
    resume: Annotated[Path | None, typer.Option(help="Folder of a run that was broken off.")] = None,
    results: Annotated[Path, typer.Option(help="Where the folders of runs are.")] = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Ask all questions, count what is right.

    \b
    llmbench eval mmlu
    llmbench eval mmlu --data hendrycks/data --split test --url http://host:8000 --tokenizer tokenizer.model
    llmbench eval mmlu --offline --model path/to/hf-folder --min-accuracy 0.45

    Exit 0: done, 1: below --min-accuracy, 3: questions were not answered.
    """
    from llmbench.cli import _eval

    settings = _eval.Settings(
        name=context.info_name or "",
        data=data,
        mode=mode,
        split=split,
        shots=shots,
        subjects=subject or [],
        limit=limit,
        max_new_tokens=max_new_tokens,
        url=url,
        dialect=dialect,
        served_model=served_model,
        concurrency=concurrency,
        timeout_s=timeout,
        offline=offline,
        model=model,
        engine=engine,
        config=config,
        tokenizer=tokenizer,
        min_accuracy=min_accuracy,
        allow_exec=allow_exec,
        resume=resume,
        results=results,
    )
    raise typer.Exit(_eval.main(settings, json=json))


@app.command("list")
def show() -> None:
    """Name the sets with their answer modes and splits, the defaults first."""
    from llmbench.cli import _eval_compare

    _eval_compare.show_sets()


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="Folder of the run to compare with.")],
    new: Annotated[Path, typer.Argument(help="Folder of the run to judge.")],
    margin: Annotated[float, typer.Option(min=0, help="Loss that is still acceptable, in points of accuracy.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as JSON.")] = False,
) -> None:
    """Compare two runs of the same questions, item by item: `llmbench eval compare results/BASE results/NEW`.

    Exit 0: the same answers, or not worse by the margin, 1: worse, 3: not comparable, 4: too few questions to tell.
    """
    from llmbench.cli import _eval_compare

    raise typer.Exit(_eval_compare.compare(base, new, margin / 100, seed, json=json))
