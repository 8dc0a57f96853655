"""`llmbench weights`: look at weights, and write them anew for another stack or for several ranks."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Weights: inspect them, convert them between Hugging Face and MindSpore, cut them into ranks and merge those. "
    "Nothing is unpickled; a model larger than the memory is written block by block.",
)

_LAYOUTS = "hf, legacy, qkv-concat, qkv-concat-mg, mcore, mcore-1.6"
Model = Annotated[
    str,
    typer.Argument(
        help="A Hugging Face folder, a .ckpt or .safetensors file or folder for MindSpore, a folder with Meta's "
        "consolidated.*.pth, a folder of ranks, the ATB guide's dictionaries; embedded, random:PRESET."
    ),
]
RankFolder = Annotated[str, typer.Argument(metavar="RANKS", help="A folder with rank_0, rank_1, … and strategy.json.")]
Out = Annotated[Path, typer.Argument(help="Folder to write; must be new or empty.")]
NumRanks = Annotated[int, typer.Option("--ranks", min=1, help="How many ranks to cut into.")]
To = Annotated[str, typer.Option(help=f"Names and order of rows to write: {_LAYOUTS}.")]
Format = Annotated[str, typer.Option(help="safetensors, or MindSpore's ckpt.")]
RankFormat = Annotated[
    str,
    typer.Option(
        "--format",
        help="safetensors, MindSpore's ckpt, or npy: of a quantised model the ATB guide's part_model/0, …",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="float32, float16, bfloat16, or fp32, fp16, bf16.  [default: as it is, to the bit]", show_default=False
    ),
]
Vocabulary = Annotated[
    str, typer.Option(help="Embeddings and head: cut (as `serve --ranks` does), or whole on each rank.")
]
From = Annotated[
    str | None, typer.Option("--from", help="Layout to read, where the names leave it open: qkv-concat-mg, …")
]
Config = Annotated[Path | None, typer.Option(help="config.json of the model, where it lies elsewhere.")]
StrategyFile = Annotated[
    str | None, typer.Option(help="strategy.json, where it lies elsewhere; auto: as the shapes of the parts show.")
]
Drop = Annotated[list[str], typer.Option(help="Leave out tensors whose names match this regular expression.")]
MaxShard = Annotated[str, typer.Option("--max-shard-size", help="Largest safetensors file of a whole model.")]
AllowNonfinite = Annotated[bool, typer.Option("--allow-nonfinite", help="Take over NaN and infinity.")]
DeqScale = Annotated[
    str | None,
    typer.Option(
        "--deq-scale",
        help="Of a quantised model: int64 (the bits of float32, for 310P, float16), or float32.  [default: as it is]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON: what became of each tensor.")]


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="As of `convert`, or a single rank's folder.")],
    layout: From = None,
    config: Config = None,
    strategy: StrategyFile = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without the fingerprint, which reads all values.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show format, family, dtypes, sizes, ranks, and a fingerprint that is the same in every layout."""
    from llmbench.cli import _weights

    _weights.inspect(_weights.Source(model, layout, config, strategy), quick, json)


@app.command()
def convert(
    model: Model,
    out: Out,
    to: To,
    format: Format = "safetensors",  # noqa: A002 - the name of the flag
    dtype: Dtype = None,
    layout: From = None,
    config: Config = None,
    strategy: StrategyFile = None,
    drop: Drop = [],  # noqa: B006 - typer copies it
    max_shard_size: MaxShard = "5GB",
    allow_nonfinite: AllowNonfinite = False,
    deq_scale: DeqScale = None,
    json: Json = False,
) -> None:
    """Write a whole model under other names, in another format or dtype."""
    from llmbench.cli import _weights

    source = _weights.Source(model, layout, config, strategy, tuple(drop))
    target = _weights.target(to, format, dtype, max_shard_size, allow_nonfinite, deq_scale)
    _weights.convert(source, out, target, json)


@app.command()
def shard(
    model: Model,
    out: Out,
    ranks: NumRanks,
    to: To = "hf",
    format: RankFormat = "safetensors",  # noqa: A002
    dtype: Dtype = None,
    vocabulary: Vocabulary = "cut",
    layout: From = None,
    config: Config = None,
    drop: Drop = [],  # noqa: B006
    allow_nonfinite: AllowNonfinite = False,
    deq_scale: DeqScale = None,
    json: Json = False,
) -> None:
    """Cut a model, quantised or not, into folders rank_0, rank_1, … with a strategy.json that says how."""
    from llmbench.cli import _weights

    source = _weights.Source(model, layout, config, None, tuple(drop))
    if format == "npy":
        wanted = _weights.target(to, "safetensors", dtype, None, False, deq_scale)
        _weights.shard_dictionaries(source, out, ranks, wanted, json)
        return
    target = _weights.target(to, format, dtype, None, allow_nonfinite, deq_scale)
    _weights.shard(source, out, ranks, target, vocabulary, json)


@app.command()
def merge(
    ranks: RankFolder,
    out: Out,
    to: To = "hf",
    format: Format = "safetensors",  # noqa: A002
    dtype: Dtype = None,
    config: Config = None,
    layout: From = None,
    strategy: StrategyFile = None,
    drop: Drop = [],  # noqa: B006
    max_shard_size: MaxShard = "5GB",
    allow_nonfinite: AllowNonfinite = False,
    json: Json = False,
) -> None:
    """Put the ranks of a model together; copies must agree, and files be those that were written."""
    from llmbench.cli import _weights

    source = _weights.Source(ranks, layout, config, strategy, tuple(drop), of_ranks=True)
    target = _weights.target(to, format, dtype, max_shard_size, allow_nonfinite)
    _weights.convert(source, out, target, json)


@app.command()
def reshard(
    source: Annotated[str, typer.Argument(metavar="RANKS", help="A folder with rank_0, rank_1, … and strategy.json.")],
    out: Out,
    ranks: NumRanks,
    to: To = "hf",
    format: Format = "safetensors",  # noqa: A002
    dtype: Dtype = None,
    vocabulary: Vocabulary = "cut",
    config: Config = None,
    layout: From = None,
    strategy: StrategyFile = None,
    drop: Drop = [],  # noqa: B006
    allow_nonfinite: AllowNonfinite = False,
    json: Json = False,
) -> None:
    """Cut a model that lies on ranks into another number of them, without writing it whole."""
    from llmbench.cli import _weights

    read = _weights.Source(source, layout, config, strategy, tuple(drop), of_ranks=True)
    target = _weights.target(to, format, dtype, None, allow_nonfinite)
    _weights.shard(read, out, ranks, target, vocabulary, json)


@app.command()
def compress(
    folder: Annotated[Path, typer.Argument(help="W8A8S weights: a folder, or one of ranks that `shard` cut.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new or empty.")],
    all_: Annotated[bool, typer.Option("--all", help="Compress W8A8 as well, not only W8A8S.")] = False,
    disable_layers: Annotated[
        list[str], typer.Option(help="Leave these linears as they are (in blocks): a name, or a pattern with *.")
    ] = [],  # noqa: B006 - typer copies it
    pseudo_sparse: Annotated[
        float | None, typer.Option(help="Keep this share of the values, others become 0: to measure the codec alone.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of --pseudo-sparse.")] = 0,
    parts: Annotated[
        bool, typer.Option("--parts", help="Call the ranks' folders part0-of-2 …, as MindIE does.")
    ] = False,
    codec: Annotated[
        str,
        typer.Option(help="llmbench: our own, not for hardware. cann: of an Atlas 300I. auto: cann if it is there."),
    ] = "auto",
    cann: Annotated[
        Path | None, typer.Option(metavar="PATH", help="CANN's compress_excutor, or a folder that has it.")
    ] = None,
    json: Json = False,
) -> None:
    """Compress the matrices of a W8A8S model without loss, and show what that gains.

    llmbench weights compress model-w8a8s -o model-w8a8sc

    The codec is llmbench's own, which an Atlas 300I (310P) cannot unzip: CANN's, called where it is installed, is for
    that. `decompress` gives the folder back, bit by bit.
    """
    from llmbench.cli import _compress

    wanted = _compress.wanted(all_, disable_layers, pseudo_sparse, seed, parts, _compress.tool(codec, cann))
    _compress.compress(folder, out, wanted, json)


@app.command()
def decompress(
    folder: Annotated[Path, typer.Argument(help="A folder that `compress` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write; must be new or empty.")],
    json: Json = False,
) -> None:
    """Write the folder that was compressed, bit by bit; a folder that was damaged since is refused.

    llmbench weights decompress model-w8a8sc -o model-w8a8s
    """
    from llmbench.cli import _compress

    _compress.decompress(folder, out, json)


@app.command()
def sizes(
    models: Annotated[list[str], typer.Argument(help="Forms of one model: as of `convert`, or what `compress` wrote.")],
    json: Json = False,
) -> None:
    """Show how many bytes several forms of a model take, each beside the first.

    llmbench weights sizes model model-w8a8 model-w8a8s model-w8a8sc
    """
    from llmbench.cli import _compress

    _compress.show_sizes(models, json)
