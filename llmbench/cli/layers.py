"""`llmbench layers`."""

from pathlib import Path
from typing import Annotated

import typer


def layers(
    concurrency: Annotated[int, typer.Option("-c", "--concurrency", min=1, help="Streams at once.")] = 16,
    num_requests: Annotated[int, typer.Option("-n", "--num-requests", min=1, help="Requests at each level.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 128,
    model: Annotated[str, typer.Option(help="Model of the full stack.")] = "embedded",
    engine: Annotated[str | None, typer.Option(help="Engine of the full stack.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.model, for models that bring none.")] = None,
    step_time: Annotated[float, typer.Option(min=0.0, help="Seconds that a stub's step takes.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where a token's time goes: the same load at every stub level, from HTTP alone to the full stack.

    Each level has all parts of the one before and one more; the difference is what that part costs. The contest's
    teams made this table by hand with RUN_LEVEL.
    """
    from llmbench.cli import _layers

    load = _layers.Load(concurrency=concurrency, num_requests=num_requests, max_new_tokens=max_new_tokens)
    stack = _layers.Stack(model=model, engine=engine, tokenizer=tokenizer, step_time_s=step_time)
    _layers.main(load, stack, json)
