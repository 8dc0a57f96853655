"""`llmbench plan`: seal a load before it is sent, and look into one."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Sealed plans: make one to send again and again, look into one.")

INVALID = 3
ARRIVALS_HELP = (
    "NAME[:KEY=VALUE,...]: poisson, constant, burst, contest, gamma:shape=0.5, ramp:from=1,to=10,seconds=60,"
    "shape=linear|exponential, steps:rates=30x1+30x5, trace:path=times.jsonl,field=timestamp,scale=1, "
    "closed:users=8,think=exponential:2."
)
DATASET_HELP = (
    "Name, Alpaca JSON file, or KIND[:KEY=VALUE,...]: sharegpt:path=F, jsonl:path=F,prompt=question,output=answer, "
    "synthetic:prompt=lognormal:128:96,output=uniform:16:256, prefix:groups=8,shared=256,own=64, "
    "multiturn:path=F,think=exponential:2."
)
_SEED = typer.Option(min=0, show_default=False, help="Instead of the one of --seed.")
SeedOption = Annotated[int | None, _SEED]
ShuffleOption = Annotated[bool, typer.Option("--shuffle", help="Samples (conversations) in random order.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Above 0, each request has a sampling seed.")]
IgnoreEosOption = Annotated[bool, typer.Option("--ignore-eos", help="Ask for answers of exactly the planned length.")]

CacheOption = Annotated[
    str, typer.Option(help="Prefix cache: any, cold (a nonce before each prompt), or warm (each prompt sent before).")
]


@app.command("make")
def make(
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path("plan.jsonl.gz"),
    qps: Annotated[float, typer.Option("-X", "--qps", help="Requests per second.")] = 5.0,
    test_time: Annotated[
        float | None, typer.Option("-T", "--test-time", help="Seconds to send for.  [default: 10, or all of a ramp]")
    ] = None,
    num_requests: Annotated[int | None, typer.Option("-n", "--num-requests", min=1, help="Instead of X * T.")] = None,
    dataset: Annotated[str, typer.Option(help=DATASET_HELP)] = "alpaca_5010",
    arrivals: Annotated[str, typer.Option(help=ARRIVALS_HELP)] = "poisson",
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model that counts.  [default: embedded]")] = None,
    dialect: Annotated[str, typer.Option(help="HTTP dialect of the server.")] = "contest",
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to ask for, of every request.")] = None,
    shuffle: ShuffleOption = False,
    temperature: TemperatureOption = 0.0,
    ignore_eos: IgnoreEosOption = False,
    cache: CacheOption = "any",
    seed: Annotated[int, typer.Option(min=0, help="Gives the four seeds below.")] = 0,
    seed_schedule: SeedOption = None,
    seed_prompts: SeedOption = None,
    seed_lengths: SeedOption = None,
    seed_sampling: SeedOption = None,
) -> None:
    """Write a plan: due times, prompts, lengths, sampling seeds; `llmbench perf --plan FILE` sends it.

    \b
    llmbench plan make -X 5 -T 300 -o plan.jsonl.gz
    llmbench plan make --arrivals ramp:from=1,to=10,seconds=60 --dataset synthetic:prompt=lognormal:128:96
    """
    from llmbench.cli import _plan
    from llmbench.workload import plan as plans

    wanted = _plan.Wanted(
        qps=qps,
        test_time_s=test_time,
        num_requests=num_requests,
        dataset=dataset,
        tokenizer=tokenizer,
        arrivals=arrivals,
        dialect=dialect,
        seed=seed,
        seed_schedule=seed_schedule,
        seed_prompts=seed_prompts,
        seed_lengths=seed_lengths,
        seed_sampling=seed_sampling,
        max_new_tokens=max_new_tokens,
        shuffle=shuffle,
        temperature=temperature,
        ignore_eos=ignore_eos,
        cache=cache,
    )
    made = _plan.make(wanted, lambda text: typer.echo(text, err=True))
    plans.save(made, out)
    typer.echo(f"{out}: {_plan.line(made)}")


@app.command("inspect")
def inspect(
    plan: Annotated[Path, typer.Argument(metavar="PLAN|RUN", help="A plan's file, or the folder of a run.")],
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model that counts.  [default: embedded]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test the schedule against what it declares; show lengths, prefix sharing, duration. Exit status 3: it lies."""
    from llmbench.cli import _inspect
    from llmbench.report.terminal import Terminal
    from llmbench.tokenizer import Tokenizer, embedded_path

    found = _inspect.inspect(plan, Tokenizer.from_file(tokenizer or embedded_path()))
    if as_json:
        typer.echo(_inspect.json(found))
    else:
        _inspect.show(Terminal(), found)
    if not found.ok:
        raise typer.Exit(INVALID)
