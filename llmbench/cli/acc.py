"""`llmbench acc`: capture logits, compare them with base logits, say where they differ."""

from pathlib import Path
from typing import Annotated

import typer

from llmbench.cli import acc_run

app = typer.Typer(
    help="Check the logits of a stack against base logits: `acc --base DIR` replays and compares, `acc dump` makes a "
    "base, `acc run` checks the rows of a timed load, `acc compare` compares two captures, `acc show` looks at a row, "
    "`acc bisect` names the layer in which they part, `acc threeway` judges errors by those of the dtype. Without a "
    "base: `acc batchvar`, `acc determinism`, `acc selfcheck`, `acc calibrate`.\n\n"
    "\b\n"
    "llmbench acc dump -o base -n 40\n"
    "llmbench acc --base base -n 40 -c 16\n\n"
    "Exit 0: passed, 1: values differ, 3: rows are missing or broken, 4: inconclusive."
)

Number = Annotated[int, typer.Option("-n", "--num-requests", min=1, help="The first so many samples.")]
Concurrency = Annotated[int, typer.Option("-c", "--concurrency", min=1, help="Requests at once.")]
Every = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Keep rows whose last input token has an index divisible by this.  [default: contest: 100, else 1]",
    ),
]
Dataset = Annotated[str, typer.Option(help="Dataset name or file.")]
TokenizerFile = Annotated[Path | None, typer.Option(help="tokenizer.model that counts the tokens to ask for.")]
ModelSpec = Annotated[str | None, typer.Option(help="Model of the stack: embedded (default), random:PRESET, a folder.")]
EngineName = Annotated[str | None, typer.Option(help="Engine of the stack.")]
Config = Annotated[Path | None, typer.Option(help="Settings file of the stack.")]
Results = Annotated[Path, typer.Option(help="Where the folders of runs are.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the comparison there as well.")]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens of an answer.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides prompts, lengths and order.")]
ProfileName = Annotated[
    str | None, typer.Option(help="How much may differ, or a file.  [default: by what the engine computes in]")
]
Url = Annotated[str | None, typer.Option(help="Server to ask.  [default: launch the bundled stack]")]
ServedModel = Annotated[str | None, typer.Option(help="Model that a request names.  [default: the server's first]")]
ApiKey = Annotated[str | None, typer.Option(envvar="LLMBENCH_API_KEY", help="Key of the server at --url.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of an engine in this process; default: all cores.")]
Profile = Annotated[
    str | None,
    typer.Option(help="How much may differ: bitwise, contest, fp32, fp16, bf16, w8, w4, serving, or a .yaml file."),
]

NUM_REQUESTS, EVERY, DATASET = 500, 100, "alpaca_521"  # as the contest


@app.callback(invoke_without_command=True)
def acc(
    context: typer.Context,
    base: Annotated[
        Path | None, typer.Option(help="Base logits: a capture, a run with one, or a folder of contest files.")
    ] = None,
    num_requests: Number = NUM_REQUESTS,
    concurrency: Concurrency = 1,
    every: Annotated[int | None, typer.Option(min=1, help="As in `acc dump`; default: as the base.")] = None,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
    force: Annotated[
        bool, typer.Option("--force/--no-force", help="Feed the base's tokens, so that every row stays comparable.")
    ] = False,
    profile: Profile = None,
    results: Results = Path("results"),
    json: Json = None,
) -> None:
    """Replay the accuracy requests against the bundled stack and compare its logits with a base."""
    if context.invoked_subcommand is not None:
        return
    if base is None:
        raise typer.BadParameter("give the folder of base logits with --base, or make one: llmbench acc dump -o DIR")
    from llmbench.accuracy.compare import Options
    from llmbench.cli import _acc
    from llmbench.cli._acc_files import Outputs

    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    load = _acc.Load(num_requests=num_requests, concurrency=concurrency, dataset=dataset)
    options = Options(profile=profile)
    raise typer.Exit(_acc.check(base, load, stack, every, results, Outputs(json=json), options, forced=force))


@app.command()
def dump(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new or empty.")],
    num_requests: Number = NUM_REQUESTS,
    concurrency: Concurrency = 1,
    tier: Annotated[
        str, typer.Option(help="What is kept: contest files, or a capture: fp, topk, full16, full32.")
    ] = "contest",
    every: Every = None,
    force: Annotated[
        Path | None,
        typer.Option(metavar="BASE", help="Feed the tokens of this capture, or run with one; not for contest files."),
    ] = None,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
) -> None:
    """Make a base: replay the accuracy requests against the bundled stack and keep its logits.

    \b
    llmbench acc dump -o file_npy_base
    llmbench acc dump -o base -n 100 --tier topk --model path/to/hf-folder
    """
    from llmbench.cli import _acc

    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    load = _acc.Load(num_requests=num_requests, concurrency=concurrency, dataset=dataset)
    _acc.dump(out, load, stack, _acc.Taking(tier=tier, every=every or (EVERY if tier == "contest" else 1), force=force))


@app.command()
def compare(
    base: Annotated[Path, typer.Argument(help="Base logits: a capture, a run with one, or a folder of contest files.")],
    new: Annotated[Path, typer.Argument(help="The logits to check; those of a run stand for its load.")],
    profile: Profile = None,
    load: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="The run for whose load the rows stand.  [default: NEW, if it is one]"),
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
    """Compare two captures, ours or the contest's.

    \b
    llmbench acc compare base rows --profile fp16 --html page.html
    llmbench acc compare file_npy_base file_npy --legacy

    Exit 0: passed, 1: failed, 3: not comparable, 4: inconclusive.
    """
    from llmbench.accuracy.compare import Options
    from llmbench.cli import _acc
    from llmbench.cli._acc_files import Outputs

    options = Options(
        profile=profile,
        allow_missing=allow_missing,
        allow_copy=allow_copy,
        load_batch=load_batch,
        server={} if config is None else {"config": config},
        ulp=ulp,
    )
    outputs = Outputs(json=json, junit=junit, markdown=markdown, html=html, rows=rows)
    raise typer.Exit(_acc.compare_folders(base, new, outputs, options, load=load, with_legacy=legacy))


@app.command()
def show(
    capture: Annotated[
        Path, typer.Argument(help="A capture, a run with one, or a folder of contest files with its manifest.")
    ],
    request: Annotated[str, typer.Argument(help="The id of a request.")],
    step: Annotated[int | None, typer.Option(help="One step of it; in contest folders, an index.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another capture, beside it.")] = None,
) -> None:
    """Show the likeliest tokens of a request's rows, in one capture or in two."""
    from llmbench.cli import _acc

    _acc.show_rows(capture, against, request, step)


app.command("run", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(acc_run.run)


@app.command()
def batchvar(
    needles: Annotated[int, typer.Option("-n", "--needles", min=1, help="Requests that are looked at.")] = 4,
    batches: Annotated[str, typer.Option(help="Sizes of the batches that they run in.")] = "2,8,32",
    repeats: Annotated[int, typer.Option(min=1, help="Batches of each size for each needle.")] = 3,
    max_new_tokens: NewTokens = 16,
    seed: Seed = 0,
    profile: ProfileName = None,
    bitwise: Annotated[bool, typer.Option("--bitwise", help="The engine claims to give the same bits.")] = False,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """Hold requests in random batches against themselves alone, prefix cache cold and hot; a control must fail.

    Exit 0: passed, 1: rows differ, 3: the control passed, so that the check is worth nothing, 4: inconclusive.
    """
    from llmbench.accuracy.batchvar import Settings
    from llmbench.cli import _acc, _acc_batchvar

    if bitwise and profile not in (None, "bitwise"):
        raise typer.BadParameter("--bitwise is a profile of its own; leave --profile out")
    settings = Settings(
        num_needles=needles,
        batch_sizes=_acc_batchvar.batch_sizes(batches),
        num_repeats=repeats,
        num_new_tokens=max_new_tokens,
        seed=seed,
    )
    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    raise typer.Exit(_acc_batchvar.main(settings, stack, dataset, "bitwise" if bitwise else profile, json))


@app.command()
def determinism(
    prompts: Annotated[int, typer.Option("-n", "--prompts", min=1, help="Prompts that are repeated.")] = 4,
    idle: Annotated[int, typer.Option(min=0, help="Repeats of each, one request at a time.")] = 20,
    load: Annotated[int, typer.Option(min=0, help="Repeats of each, among as many other requests.")] = 200,
    concurrency: Annotated[int, typer.Option("-c", "--concurrency", min=2, help="Requests at once under load.")] = 16,
    level: Annotated[
        str | None, typer.Option(help="What is declared: bitwise, text, profile.  [default: profile, with --url text]")
    ] = None,
    max_new_tokens: NewTokens = 16,
    seed: Seed = 0,
    profile: ProfileName = None,
    url: Url = None,
    dialect: Annotated[str, typer.Option(help="HTTP dialect of the server at --url.")] = "openai_completions",
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """Ask the same again and again, greedily, idle and under load; where do answers part, which rows have other bits?

    Exit 0: as declared, 1: not, 3: not measured, 4: inconclusive.
    """
    from llmbench.accuracy.determinism import Settings
    from llmbench.cli import _acc, _acc_determinism, _acc_modes

    settings = Settings(
        num_prompts=prompts,
        num_idle=idle,
        num_load=load,
        concurrency=concurrency,
        num_new_tokens=max_new_tokens,
        seed=seed,
    )
    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    server = _acc_modes.server(stack, url, dialect, served_model, api_key)
    raise typer.Exit(_acc_determinism.main(settings, stack, server, dataset, level, profile, json))


@app.command()
def selfcheck(
    prompts: Annotated[int, typer.Option("-n", "--prompts", min=1, help="Prompts that are answered.")] = 16,
    concurrency: Annotated[int, typer.Option("-c", "--concurrency", min=1, help="Requests at once.")] = 8,
    max_new_tokens: NewTokens = 32,
    seed: Seed = 0,
    profile: ProfileName = None,
    url: Url = None,
    served_model: ServedModel = None,
    api_key: ApiKey = None,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """Score a server's answers again by prefill: does it decode what it would compute at once? No base is needed.

    --url takes a server of OpenAI's completions with `logprobs` and `echo`; with --tokenizer answers go back as ids,
    if it tells them. Exit 0: passed, 1: it does not, 3: not measured, 4: inconclusive.
    """
    from llmbench.accuracy.selfcheck import Settings
    from llmbench.cli import _acc, _acc_modes, _acc_selfcheck

    settings = Settings(num_prompts=prompts, num_new_tokens=max_new_tokens, concurrency=concurrency, seed=seed)
    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    server = _acc_modes.server(stack, url, "openai_completions", served_model, api_key)
    raise typer.Exit(_acc_selfcheck.main(settings, stack, server, dataset, profile, json))


@app.command()
def calibrate(
    out: Annotated[Path, typer.Option("-o", "--out", help="The profile to write, a .yaml file.")],
    num_requests: Annotated[int, typer.Option("-n", "--num-requests", min=1, help="Requests of each run.")] = 16,
    batch: Annotated[int, typer.Option(min=2, help="Requests at once in the third run.")] = 16,
    factor: Annotated[float, typer.Option("-k", "--factor", min=1.0, help="A limit is the noise times this.")] = 10.0,
    max_new_tokens: NewTokens = 24,
    seed: Seed = 0,
    dataset: Dataset = DATASET,
    tokenizer: TokenizerFile = None,
    model: ModelSpec = None,
    engine: EngineName = None,
    config: Config = None,
    json: Json = None,
) -> None:
    """Run a base three times, alone, again, and in a batch; make a profile of how far its rows are apart.

    `acc compare --profile FILE` judges by it. Exit 0: made, 3: not measured.
    """
    from llmbench.accuracy.calibrate import Settings
    from llmbench.cli import _acc, _acc_calibrate

    settings = Settings(
        num_requests=num_requests, batch_size=batch, num_new_tokens=max_new_tokens, factor=factor, seed=seed
    )
    stack = _acc.Stack(model=model, engine=engine, config=config, tokenizer=tokenizer)
    raise typer.Exit(_acc_calibrate.main(settings, stack, dataset, out, json))


@app.command()
def bisect(
    base: Annotated[Path | None, typer.Argument(help="Base capture, from serve --capture.")] = None,
    new: Annotated[Path | None, typer.Argument(help="The capture that differs from it.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Model of the base; default: the capture's.")] = None,
    base_engine: Annotated[str | None, typer.Option(help="Its engine; default: the capture's, or numpy_llama.")] = None,
    new_model: Annotated[str | None, typer.Option(help="Model to look into; default: the capture's.")] = None,
    new_engine: Annotated[str | None, typer.Option(help="Its engine; default: the capture's, or numpy_llama.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Without captures: a text to compute in both models.")] = None,
    num_new: Annotated[int, typer.Option(min=0, help="With --prompt: tokens of the base's answer behind it.")] = 8,
    profile: Annotated[str | None, typer.Option(help="What makes a row bad; as in `acc compare`.")] = None,
    request: Annotated[str | None, typer.Option(help="Look at this request instead of the first bad one.")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="And at this step of it.")] = None,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Name the first bad request, step and layer of two captures, or of two models. Exit 0: nothing bad, 1: found."""
    from llmbench.cli import _acc_bisect

    asked = _acc_bisect.Asked(
        base=base,
        new=new,
        base_model=base_model,
        base_engine=base_engine,
        new_model=new_model,
        new_engine=new_engine,
        prompt=prompt,
        num_new=num_new,
        profile=profile,
        request=request,
        step=step,
        threads=threads,
    )
    raise typer.Exit(_acc_bisect.run(asked, json))


@app.command()
def threeway(
    target: Annotated[str, typer.Argument(help="A capture from serve --capture, or the name of an engine.")],
    model: Annotated[str | None, typer.Option(help="Model to judge by; default: the capture's, or embedded.")] = None,
    target_model: Annotated[str | None, typer.Option(help="With an engine: its model, if it is another.")] = None,
    num_requests: Annotated[int, typer.Option("-n", "--num-requests", min=1, help="The first so many.")] = 16,
    dataset: Dataset = DATASET,
    slack: Annotated[
        float | None,
        typer.Option(min=0, help="How much wider errors may be, 0.1 is 10 %; default: 3 in float32, else 0."),
    ] = None,
    threads: Threads = None,
    json: Json = None,
) -> None:
    """Judge errors from float64 by those of a trusted engine in the same dtype. Exit 0: no worse than it, 1: worse."""
    from llmbench.cli import _acc_threeway

    asked = _acc_threeway.Asked(
        target=target,
        model=model,
        target_model=target_model,
        num_requests=num_requests,
        dataset=dataset,
        slack=slack,
        threads=threads,
    )
    raise typer.Exit(_acc_threeway.run(asked, json))


@app.command("convert-pickle")
def convert_pickle(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Contest folder whose .npy files hold pickles.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")],
) -> None:
    """Make plain arrays of .npy files that hold pickled mindspore Tensors, in a process that can do nothing else."""
    from llmbench.logits import pickles

    num_pickles, num_plain = pickles.convert(source, out)
    typer.echo(f"{out}: {num_pickles} pickles made plain, {num_plain} were plain already")
