"""A calibrated model as int8: its linears, the scales of its KV cache, the files, and a report of all of it."""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from llmbench.errors import ConfigError, InputError
from llmbench.quantize import choose, linears, sparse
from llmbench.quantize.calibrate import Calibration, versions
from llmbench.quantize.choose import Choice
from llmbench.quantize.forward import POINTS
from llmbench.quantize.sparse import Figures, Knobs
from llmbench.weights import convert, export, quantised
from llmbench.weights.convert import Progress, Target
from llmbench.weights.export import Form, Quantised
from llmbench.weights.guide import FLOAT_FOLDER as ANTI_WEIGHT
from llmbench.weights.model import Model, of_weights
from llmbench.weights.quantised import DeqForm, Kind, KVScales, Linear
from llmbench.weights.sources import EMBEDDING, How, Opened, open_weights
from llmbench.weights.tensors import Tensor, cast

REPORT = "quantisation.json"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What is made: `sparse` is how W8A8S is; `asymmetric` is of W8A16's weights, `dtype` of what stays float, None for
    as it is.
    """

    kind: Kind = "W8A8"
    sparse: Knobs | None = None
    choice: Choice = Choice()
    kv_cache: Literal["int8"] | None = None
    asymmetric: bool = False
    form: Form = "modelslim"
    dtype: str | None = None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a linear. `low` and `high` are the range of its input, `score` that of the input's outliers, see
    observers.Score; `relative_error` is |y' - y| / |y| on rows of calibration; None where it stays float, `why` then
    says the reason. `sparse` is of W8A8S.
    """

    name: str
    kind: str
    score: float
    low: float
    high: float
    relative_error: float | None = None
    sparse: Figures | None = None
    why: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`quantisation.json`: what was made, out of what, by what. `model_sha256` is of the weights before, `data_sha256`
    of the calibration's token ids.
    """

    model: str
    model_sha256: str
    method: str
    alpha: float | None
    observer: str
    seed: int
    data: str
    data_description: str
    data_sha256: str
    num_samples: int
    num_tokens: int
    settings: dict[str, Any]
    float_layers: list[int]
    """Decoder layers with a linear that stays float: FLOAT_LAYERS of the ATB guide."""
    linears: list[Row]
    bytes_before: int
    bytes_after: int
    """Of all tensors, whatever lies beside them."""
    versions: dict[str, str]


def check(settings: Settings, opened: Opened) -> None:
    """Raise ConfigError or InputError for what cannot be made, before anything is computed."""
    if opened.config.quantised:
        raise InputError(f"model {opened.name}: it is quantised already; take the float model that it was made of")
    if settings.asymmetric and settings.kind != "W8A16":
        raise ConfigError(f"--asymmetric: of the weights of W8A16; those of {settings.kind} are symmetric")
    if settings.sparse is not None:
        if settings.kind != "W8A8S":
            raise ConfigError(
                "--fraction, --sigma-factor, --nonuniform, --no-compensate: of W8A8S,"
                f" not {settings.kind}; add --sparse"
            )
        sparse.check(settings.sparse)
    choose.check(settings.choice, opened.config.num_layers)


def quantise(calibration: Calibration, settings: Settings, out: Path, progress: Progress) -> Report:
    """Write the quantised model into a new folder, with its report, and with the smoothed float model inside.

    Raises InputError when nothing is left to quantise, or when the folder cannot be written.
    """
    kept = choose.floats(settings.choice, calibration.records)
    everything = choose.names(len(calibration.records))
    if len(kept) == len(everything):
        raise ConfigError(choose.NOTHING_LEFT)
    aside = calibration.journal.folder / "out"
    shutil.rmtree(aside, ignore_errors=True)
    rows: list[Row] = []
    opened = _floats(calibration, settings)
    model = Quantised(
        kinds={name: settings.kind for name in everything if name not in kept},
        linears=_made(calibration, settings, kept, rows),
        kv=_kv(calibration, settings),
    )
    # as msmodelslim stores it for models of 16 bits of either kind
    deq_scale: DeqForm = "float32" if opened.tensors[EMBEDDING].dtype == "bfloat16" else "int64"
    export.write(aside, opened, model, settings.form, deq_scale, progress)
    made = open_weights(str(aside), How(strict=False))
    report = _report(calibration, settings, rows, _num_bytes(made.tensors))
    if calibration.settings.method != "none" and not (aside / ANTI_WEIGHT).exists():
        target = Target(layout="hf", dtype=settings.dtype or "float32")
        convert.convert(calibration.opened, aside / ANTI_WEIGHT, target, progress)
    try:
        (aside / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, out)
    except OSError as error:
        raise InputError(f"{error.filename or out}: cannot write ({error.strerror})") from error
    return report


def _made(
    calibration: Calibration, settings: Settings, kept: dict[str, str], rows: list[Row]
) -> Iterator[tuple[str, Linear]]:
    """The linears that are quantised, one after another; a row is added for each, those that stay float among them."""
    model = of_weights(calibration.opened)
    for layer, record in enumerate(calibration.records):
        for point in POINTS:
            seen = record.points[point]
            ends = linears.activation(seen.low, seen.high)
            for name in choose.of_point(layer, point):
                row = Row(name=name, kind="FLOAT", score=seen.score, low=seen.low, high=seen.high, why=kept.get(name))
                if row.why is None:
                    weight, bias = model.tensor(f"{name}.weight"), _bias(model, name)
                    seen_by, judged_by = _apart(calibration.rows(layer, point), settings)
                    found, figures = _linear(name, weight, bias, ends, settings, seen_by)
                    error = linears.relative_error(found, weight, bias, judged_by)
                    row = msgspec.structs.replace(row, kind=settings.kind, relative_error=error, sparse=figures)
                    yield name, found
                rows.append(row)


def _apart(rows: linears.Float32, settings: Settings) -> tuple[linears.Float32, linears.Float32]:
    """Inputs that a linear is made with, and those that it is judged by: others, where it learns from the former."""
    if settings.kind != "W8A8S" or len(rows) < 8:
        return rows, rows
    is_judged = np.arange(len(rows)) % 4 == 3
    return rows[~is_judged], rows[is_judged]


def _linear(
    name: str,
    weight: linears.Float32,
    bias: linears.Float32 | None,
    ends: tuple[float, int],
    settings: Settings,
    inputs: linears.Float32,
) -> tuple[Linear, Figures | None]:
    """A linear of the kind that is wanted, and what became of the weight of a W8A8S."""
    if settings.kind == "W8A16":
        return linears.w8a16(weight, bias, asymmetric=settings.asymmetric), None
    if settings.kind == "W8A8":
        return linears.w8a8(name, weight, bias, *ends), None
    found = sparse.quantised(weight, settings.sparse or Knobs(), inputs)
    made = linears.w8a8(name, weight, bias, *ends, as_int8=(found.values, found.scale))
    return made, sparse.figures(weight, found)


def _bias(model: Model, name: str) -> linears.Float32 | None:
    return model.tensor(f"{name}.bias") if f"{name}.bias" in model.names() else None


def _kv(calibration: Calibration, settings: Settings) -> dict[int, KVScales]:
    """The scales of each layer's cache, where there are to be some."""
    found = {}
    for layer, record in enumerate(calibration.records if settings.kv_cache else []):
        key_scale, key_offset = linears.channel_activations(*map(np.array, record.channels["keys"]))
        value_scale, value_offset = linears.channel_activations(*map(np.array, record.channels["values"]))
        found[layer] = KVScales(
            key_scale=key_scale, key_offset=key_offset, value_scale=value_scale, value_offset=value_offset
        )
    return found


def _floats(calibration: Calibration, settings: Settings) -> Opened:
    """The model with what stays float as it is to be stored.

    Without a dtype to have, matrices that were moved get back the one that they had; norms and biases, which are
    small, stay float32. So does everything where `anti_weight` is a part of the model.
    """
    opened, before = calibration.opened, calibration.before

    def stored(name: str, tensor: Tensor) -> Tensor:
        own = None if settings.form == "npy" or len(tensor.shape) < 2 else before[name].dtype
        dtype = settings.dtype or own
        return tensor if dtype is None else cast(tensor, dtype, f"{opened.name}: {name}")

    tensors = {name: stored(name, tensor) for name, tensor in opened.tensors.items()}
    return msgspec.structs.replace(opened, tensors=tensors)


def _report(calibration: Calibration, settings: Settings, rows: list[Row], bytes_after: int) -> Report:
    own, samples = calibration.settings, calibration.samples
    return Report(
        model=calibration.opened.name,
        model_sha256=calibration.identity,
        method=own.method,
        alpha=own.alpha,
        observer=own.observer,
        seed=own.seed,
        data=samples.name,
        data_description=samples.description,
        data_sha256=samples.sha256,
        num_samples=len(samples.ids),
        num_tokens=samples.num_tokens,
        settings=msgspec.to_builtins(settings),
        float_layers=quantised.float_layers(
            {row.name: settings.kind for row in rows if row.why is None}, len(calibration.records)
        ),
        linears=rows,
        bytes_before=_num_bytes(calibration.before),
        bytes_after=bytes_after,
        versions=versions(),
    )


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.num_bytes for tensor in tensors.values())
