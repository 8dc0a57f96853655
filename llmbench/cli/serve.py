"""`llmbench serve`."""

from pathlib import Path

import typer

MODEL_HELP = "embedded, random:PRESET[,layers=N] (tiny, 110m, llama2-7b, llama2-13b, qwen2-7b), or a folder."
ENGINE_HELP = (
    "What computes: numba_llama, numpy_llama, mindspore_llama, mindformers, stub. Default: the first of these that is"
    " installed and quick on this processor."
)


def serve(
    config: Path | None = typer.Argument(None, help="Settings: a YAML of ours or of llm-serving. Flags win."),
    model: str | None = typer.Option(None, help=MODEL_HELP),
    engine: str | None = typer.Option(None, help=ENGINE_HELP),
    model_cfg_path: str | None = typer.Option(None, help="Predict YAML of MindFormers, for --engine mindformers."),
    tokenizer: str | None = typer.Option(None, help="A tokenizer.model, for models that bring none."),
    host: str | None = typer.Option(None, help="Where to listen; the default is this machine only."),
    port: int | None = typer.Option(None, "--port", "-P", help="Port to listen on; 0 takes a free one. Default 8835."),
    max_batch: int | None = typer.Option(None, help="Sequences that run at once."),
    ranks: int | None = typer.Option(None, help="Agent processes that hold the model together, each a part of it."),
    threads: int | None = typer.Option(None, help="Threads of the engine, of all ranks together; default: all cores."),
    bind_cpu: bool | None = typer.Option(None, envvar="BIND_CPU", help="Give each rank cores of its own. Default: no."),
    data_shape: str | None = typer.Option(
        None, help="Contest streams: `data` as a one-element list (the original) or the object itself: list, object."
    ),
    drop_last_token: bool | None = typer.Option(
        None, help="Contest answers lack the text of their last token, as in the original (default), or are complete."
    ),
    capture: str | None = typer.Option(None, help="Folder to write logit rows into, for `llmbench acc compare`."),
    capture_tier: str | None = typer.Option(
        None, help="How much of a row: fp, topk (default), full16, full32, or contest: the contest's .npy files."
    ),
    capture_every: int | None = typer.Option(
        None, help="Write the rows whose index divides by this. Default 1; of contest files, 100."
    ),
    capture_rate: float | None = typer.Option(None, help="Write this share of the rows, from 0 to 1. Default 1."),
    capture_seed: str | None = typer.Option(None, help="Decides which rows a share takes."),
    force: str | None = typer.Option(
        None, help="With --capture: feed the tokens of this base (a capture, or a run that has one) to its requests."
    ),
    stub: str | None = typer.Option(
        None, help="Replace a part by one that does nothing: model, agent, link, http. See `llmbench layers`."
    ),
    step_time: float | None = typer.Option(None, help="Seconds that a stub's step takes. Default 0."),
    prefix_cache: bool | None = typer.Option(None, help="Reuse the KV blocks of earlier prompts. Default: no."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log more."),
    until_stdin_closes: bool = typer.Option(False, hidden=True, help="End with the process that started this one."),
) -> None:
    """Launch the bundled serving stack: HTTP, queue, continuous batching, and agent processes with the engine.

    \b
    llmbench serve --port 9000
    llmbench serve --model path/to/hf-folder --ranks 2
    llmbench serve configs/serve/embedded.yaml --capture rows

    The line "ready on URL" comes when it can answer. Ctrl-C or SIGTERM ends it and leaves nothing behind.
    """
    from llmbench.cli._logging import configure
    from llmbench.serving import config as settings
    from llmbench.serving import launch, stack

    configure(verbose)
    loaded = settings.load(
        config,
        model=model,
        engine=engine,
        model_cfg_path=model_cfg_path,
        tokenizer=tokenizer,
        host=host,
        port=port,
        ranks=ranks,
        threads=threads,
        bind_cpu=bind_cpu,
        limits=_given(max_batch=max_batch, prefix_cache=prefix_cache),
        stub=stub,
        step_time_s=step_time,
        dialects=_given(contest=_given(data_shape=data_shape, drop_last_token=drop_last_token)),
        capture=_given(
            folder=capture,
            tier=capture_tier,
            every=capture_every,
            rate=capture_rate,
            seed=capture_seed,
            force=force,
        ),
    )
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)

    def on_ready(running: stack.Running) -> None:
        computed = f"{running.dtype}, {running.quantisation}" if running.quantisation else running.dtype
        typer.echo(
            f"{launch.READY}{running.url} (model {running.model}, engine {running.engine} {computed}, "
            f"batch {running.max_batch}, up to {running.max_model_len} tokens, "
            f"{running.num_blocks} blocks of {running.block_size}, agent {', '.join(map(str, running.agent_pids))})"
        )

    stack.serve(loaded.config, on_ready, until_stdin_closes=until_stdin_closes)


def _given(**values: object) -> dict[str, object] | None:
    """What was given on the command line; None when nothing was."""
    return {key: value for key, value in values.items() if value is not None} or None
