"""`llmbench generate`: an engine in this process goes on with prompts, and says how fast."""

from pathlib import Path
from typing import Annotated

import typer

from llmbench.cli.serve import ENGINE_HELP, MODEL_HELP


def generate(  # the names are those of `_generate.Settings`
    prompt: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Texts to go on with; - is all of stdin.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Prompts: .jsonl, one object a line; else text, one prompt a line; - is text on stdin."),
    ] = None,
    field: Annotated[str, typer.Option(help="Which field of a .jsonl file is the prompt.")] = "prompt",
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "embedded",
    engine: Annotated[str | None, typer.Option(help=ENGINE_HELP)] = None,
    model_cfg_path: Annotated[
        str | None, typer.Option(help="Predict YAML of MindFormers, for --engine mindformers.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="A tokenizer.model, for models that bring none.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine; default: all cores.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are computed at once; the rest waits.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens.  [default: 128]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=2, help="Longest prompt and answer together, instead of --max-new-tokens.")
    ] = None,
    do_sample: Annotated[
        bool | None, typer.Option("--do-sample/--no-do-sample", help="Draw tokens; a temperature of 1 unless given.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0 (default) takes the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Draw from so many likeliest tokens; 0 is all.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest that have this probability.")] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1: tokens that were there before become less likely.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same draws again, whatever the batch.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on behind the model's own end.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="Prompts are messages to answer, in the model's chat template.")
    ] = False,
    echo: Annotated[bool, typer.Option("--echo", help="Print each prompt in front of its answer.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.jsonl", help="Write a line for each answer as well, as it ends.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print answers and speed as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the answers only.")] = False,
) -> None:
    """Go on with prompts, without a server: `llmbench generate "I love Beijing, because" --max-new-tokens 30`.

    A single answer is printed as it comes. Speeds go to stderr: prefill and decode apart, and beside them what loading
    the model and compiling graphs took. `from llmbench import LLM` does the same from Python.
    """
    from llmbench.cli import _generate

    sampling = {
        "do_sample": do_sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
        "ignore_eos": ignore_eos,
    }
    settings = _generate.Settings(
        model=model,
        engine=engine,
        model_cfg_path=model_cfg_path,
        tokenizer=tokenizer,
        threads=threads,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        max_length=max_length,
        sampling={name: value for name, value in sampling.items() if value is not None},
        chat=chat,
    )
    prompts = _generate.prompts(prompt or [], file, field)
    _generate.main(prompts, settings, _generate.Show(echo=echo, out=out, json=json, quiet=quiet))
