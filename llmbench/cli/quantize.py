"""`llmbench quantize MODEL -o OUT`: a model of 8 bits, calibrated, its outliers moved first."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llmbench.cli._typed import typed

_MAKE = "make"


class _Quantize(TyperGroup):
    """What is not the name of another command is the model to quantise."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in front of what stands there without one."""
        if not args or args[0] not in self.commands:
            args = [_MAKE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_Quantize, help="Make a model of 8 bits (`quantize MODEL -o OUT`).")


@app.command(_MAKE)
def make(
    model: Annotated[str, typer.Argument(help="embedded, random:PRESET, or a folder: a float Llama or Qwen2.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write; must be new or empty.")],
    calib: Annotated[
        str,
        typer.Option(
            help="What flows through the model: a dataset, an Alpaca file, .jsonl (also with inputs_pretokenized), "
            "synthetic:..., ceval:FOLDER and other sets of `eval`, or random (token ids)."
        ),
    ] = "alpaca_521",
    num_samples: Annotated[int, typer.Option("-n", "--num-samples", min=1, help="Samples, drawn by --seed.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a sample at most.")] = 512,
    kind: Annotated[str, typer.Option(help="w8a8, or w8a16: weights only.")] = "w8a8",
    sparse: Annotated[
        bool, typer.Option("--sparse", help="W8A8S: w8a8 with weights on a grid of 4 bits but for outliers.")
    ] = False,
    fraction: Annotated[
        float | None,
        typer.Option(help="Of --sparse: share of a channel's weights that keep 8 bits.  [default: 0.011]"),
    ] = None,
    sigma_factor: Annotated[
        float | None, typer.Option(help="Of --sparse: those beyond so many standard deviations; 3 to 4.")
    ] = None,
    nonuniform: Annotated[
        bool, typer.Option("--nonuniform", help="Of --sparse: a power-law grid, finer where weights are more.")
    ] = False,
    compensate: Annotated[
        bool, typer.Option(help="Of --sparse: what a weight loses is made up for by others (GPTQ).")
    ] = True,
    anti: Annotated[
        str,
        typer.Option(
            help="Outliers are moved into the weights by: none, m1 (SmoothQuant), m2 (shift and scale), m3 (AWQ), m4 "
            "(iterative), m6 (searched)."
        ),
    ] = "m1",
    alpha: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share that is moved.  [default: m1, m2: 0.5, m4: 0.9]")
    ] = None,
    act: Annotated[str, typer.Option(help="Range of an input: min-max (1), histogram (2), auto (3).")] = "min-max",
    disable_level: Annotated[
        str, typer.Option(metavar="L0…", help="The so many inputs with the worst outliers stay float.")
    ] = "L0",
    float_layers: Annotated[str, typer.Option(help="Decoder layers that stay float, as 0,1,30.")] = "",
    float_linears: Annotated[
        list[str], typer.Option(metavar="REGEX", help="Linears that stay float, by name; may be given again.")
    ] = [],  # noqa: B006 - typer copies it
    rollback_down: Annotated[
        bool | None,
        typer.Option(
            "--rollback-down/--no-rollback-down",
            help="Every down_proj stays float, as msmodelslim has it for Llama.  [default: with w8a8]",
        ),
    ] = None,
    whole_layers: Annotated[
        bool, typer.Option("--whole-layers", help="A layer with one float linear stays float, as for FLOAT_LAYERS.")
    ] = False,
    kv: Annotated[str, typer.Option(help="float, or int8: scales for a cache of 8 bits as well.")] = "float",
    asymmetric: Annotated[bool, typer.Option("--asymmetric", help="Weights of w8a16 with an offset.")] = False,
    form: Annotated[
        str, typer.Option(help="modelslim: safetensors with their description; npy: the ATB guide's dictionaries.")
    ] = "modelslim",
    dtype: Annotated[
        str | None,
        typer.Option(help="Of what stays float: float32, float16, bfloat16.  [default: as it is]", show_default=False),
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model, for models that bring none.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which samples are taken.")] = 0,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew what was broken off.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Make a model of 8 bits: calibrate a float model, move its outliers, quantise its linears.

    \b
    llmbench quantize embedded -o w8a8
    llmbench quantize LLAMA2_7B -o OUT --no-rollback-down --disable-level L6 --calib ceval:CEVAL -n 50
    llmbench quantize QWEN2 -o OUT --kind w8a16 --anti m3 --calib prompts.jsonl
    llmbench quantize DIR -o OUT --sparse --fraction 0.05
    llmbench serve --model w8a8
    llmbench quantize search --help    (tries forms of a model, and shows the front of size, speed and accuracy)

    The float model goes through layer by layer, so that it may be larger than the memory. What is broken off goes on
    when the same command is given again. OUT is a model for every --model, with anti_weight/ (the float model whose
    outliers are moved) and quantisation.json (what became of each linear).
    """
    from llmbench.cli import _quantize

    source = _quantize.Source(
        model=model,
        calib=calib,
        num_samples=num_samples,
        max_tokens=max_tokens,
        tokenizer=tokenizer,
        anti=anti,
        alpha=alpha,
        act=act,
        seed=seed,
    )
    wanted = _quantize.Wanted(
        kind=kind,
        sparse=sparse,
        fraction=fraction,
        sigma_factor=sigma_factor,
        nonuniform=nonuniform,
        compensate=compensate,
        disable_level=disable_level,
        float_layers=float_layers,
        float_linears=tuple(float_linears),
        rollback_down=rollback_down,
        whole_layers=whole_layers,
        kv=kv,
        asymmetric=asymmetric,
        form=form,
        dtype=dtype,
    )
    _quantize.main(source, wanted, out, restart=restart, json=json)


@app.command()
def search(  # the names are those of `_quantize_search.Settings`
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(help="embedded, random:PRESET, or a folder: a float Llama or Qwen2.", show_default=False),
    ] = None,
    budget: Annotated[int, typer.Option(min=1, help="Forms to try.")] = 20,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Begin no form after so long.")] = None,
    calib: Annotated[str, typer.Option(help="Texts to calibrate with, as of `quantize`.")] = "alpaca_521",
    num_samples: Annotated[int, typer.Option("-n", "--num-samples", min=1, help="How many of them.")] = 32,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of a text at most.")] = 512,
    held_out: Annotated[
        str | None, typer.Option(help="Texts to judge by.  [default: others of --calib]", show_default=False)
    ] = None,
    num_held_out: Annotated[int, typer.Option(min=1, help="How many of them at most.")] = 32,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.model, for models that bring none.")] = None,
    kinds: Annotated[str, typer.Option(help="Of linears, with commas between.")] = "w8a8,w8a16,w8a8s",
    methods: Annotated[str, typer.Option(help="Against outliers, as --anti.")] = "none,m1,m2,m3,m4",
    engine: Annotated[
        str | None,
        typer.Option(help="What computes and is timed.  [default: numba_llama where it is quick, else numpy_llama]"),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine; default: all cores.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at once, where forms are timed.")] = 8,
    input: Annotated[int, typer.Option(min=1, help="Their prompts' tokens.")] = 64,  # noqa: A002
    output: Annotated[int, typer.Option(min=2, help="Their answers' tokens.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Times of each, in turn with the float model.")] = 5,
    eval: Annotated[  # noqa: A002
        str | None, typer.Option(metavar="SET", help="Also ask the questions of a set of `llmbench eval`, as mmlu.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of that set.  [default: its own in datasets/]")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions of each subject.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides which texts are taken.")] = 0,
    results: Annotated[Path, typer.Option(help="Where the folders of runs are.")] = Path("results"),
    resume: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Go on with a search; takes its settings.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    """Try kinds, methods, levels and float sets, and show which forms nothing beats in size, speed and accuracy.

    \b
    llmbench quantize search embedded --budget 20
    llmbench quantize search DIR --minutes 60 --kinds w8a8,w8a8s --methods m1,m4 --eval mmlu --limit 5
    llmbench quantize search --resume results/WHEN-search --budget 40

    No text is both calibrated with and judged by. Exit 0: done, 3: no form could be made.
    """
    from llmbench.cli import _quantize_search

    raise typer.Exit(_quantize_search.command(dict(context.params), typed(context)))
