"""A quantised model written linear by linear, as each is computed: for MindIE, vllm-mindspore, or the ATB guide."""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from llmbench.errors import InputError
from llmbench.weights import convert, files, guide, quantised, shard
from llmbench.weights.config import ModelConfig, check_shapes, expected_shapes
from llmbench.weights.convert import Meter, Progress, Target
from llmbench.weights.quantised import W8A16, DeqForm, Float32, Kind, KVScales, Linear
from llmbench.weights.sources import Opened
from llmbench.weights.tensors import STORED, Bits, held

Form = Literal["modelslim", "npy"]
FORMS: tuple[Form, ...] = ("modelslim", "npy")
"""modelslim: safetensors with a description beside them, as MindIE and vllm-mindspore read; npy: the dictionaries of
the ATB guide, and anti_weight with all that is float."""

_RANKS = "part_model"
_DTYPES = {"weight": "int8", "input_offset": "int8", "quant_bias": "int32"}  # the others are float32


class Quantised(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a float model: the kind of each quantised linear, and the linears, each once, in any order.

    `floats` are tensors that are to be others than in the float model, such as norms and their biases; `kv` has the
    scales of the keys and values of every layer, or of none.
    """

    kinds: Mapping[str, Kind]
    linears: Iterable[tuple[str, Linear]]
    floats: Mapping[str, Float32] = {}
    kv: Mapping[int, KVScales] = {}


def write(
    out: Path,
    opened: Opened,
    model: Quantised,
    form: Form = "modelslim",
    deq_scale: DeqForm = "int64",
    progress: Progress = lambda done, total, name: None,
) -> ModelConfig:
    """Write a quantised model into a new folder, holding one linear at a time; gives its config.

    `opened` is the float model that was quantised. Raises InputError for linears that are not those of `kinds`, and
    then leaves nothing behind.
    """
    if opened.config.quantised:
        raise InputError(f"model {opened.name}: it is quantised already")
    plain = _with(opened, model.floats)
    config = msgspec.structs.replace(plain.config, quantised=dict(model.kinds), kv_cache="int8" if model.kv else None)
    writer = _write_modelslim if form == "modelslim" else _write_npy
    with convert.new_folder(out, _num_bytes(plain, config, deq_scale, form)) as folder:
        writer(folder, plain, config, model, deq_scale, progress)
    return config


def cut(
    out: Path,
    opened: Opened,
    num_ranks: int,
    deq_scale: DeqForm = "int64",
    progress: Progress = lambda done, total, name: None,
) -> None:
    """Write the dictionaries of each rank's part of a quantised model into part_model/0, … of a new folder.

    So the ATB guide's tool leaves them, but for quant_bias behind a sum over the ranks, which rank 0 has alone. What is
    float is not among them. Raises InputError for a float model, ConfigError for ranks that do not fit.
    """
    config = opened.config
    if not config.quantised:
        raise InputError(f"model {opened.name}: nothing of it is quantised; --format safetensors")
    shard.check(opened.name, config, num_ranks)
    how = shard.cuts(config, num_ranks)
    kv = [name for name in opened.tensors if name.endswith(quantised.KV_PARTS)]
    meter = Meter(progress, sum(opened.tensors[f"{name}.weight"].num_bytes for name in config.quantised))
    with convert.new_folder(out, meter.total) as folder:
        for rank in range(num_ranks):
            tensors = shard.pieces(opened.tensors, how, rank, num_ranks)
            home = folder / _RANKS / str(rank)
            home.mkdir(parents=True)
            with guide.Writer(home, deq_scale) as writer:
                writer.put_kv({name: tensors[name].rows(0, tensors[name].shape[0]) for name in kv})
                for name, kind in config.quantised.items():
                    weight = tensors[f"{name}.weight"]
                    meter.begin(name, weight.num_bytes)
                    writer.put(name, quantised.linear(tensors, name, kind, 0, weight.shape[0]))


def _with(opened: Opened, floats: Mapping[str, Float32]) -> Opened:
    """The float model with some tensors replaced or added."""
    added = {name: held(np.asarray(values, np.float32)) for name, values in floats.items()}
    return msgspec.structs.replace(
        opened,
        tensors=opened.tensors | added,
        moved=opened.moved | {name: (name,) for name in floats},
        config=msgspec.structs.replace(
            opened.config, norm_bias=opened.config.norm_bias or any(name.endswith("layernorm.bias") for name in floats)
        ),
    )


def _places(plain: Opened, config: ModelConfig, deq_scale: DeqForm) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each tensor. Raises InputError for one that the float model has not."""
    found = {}
    for name, shape in expected_shapes(config).items():
        linear, _, part = name.rpartition(".")
        if linear in config.quantised or part in quantised.KV_PARTS:
            dtype = deq_scale if part == "deq_scale" else _DTYPES.get(part, "float32")
        elif name in plain.tensors:
            dtype = plain.tensors[name].dtype
        else:
            raise InputError(f"model {plain.name}: tensor {name} is missing")
        found[name] = (dtype, shape)
    return found


def _num_bytes(plain: Opened, config: ModelConfig, deq_scale: DeqForm, form: Form) -> int:
    """About how much is to be written."""
    places = _places(plain, config, deq_scale)
    floats = sum(tensor.num_bytes for tensor in plain.tensors.values()) if form == "npy" else 0
    return floats + sum(math.prod(shape) * STORED[dtype].itemsize for dtype, shape in places.values())


def _write_modelslim(
    folder: Path, plain: Opened, config: ModelConfig, model: Quantised, deq_scale: DeqForm, progress: Progress
) -> None:
    places = _places(plain, config, deq_scale)
    head, starts = files.head(places, "pt")
    meter = Meter(progress, sum(math.prod(shape) * STORED[dtype].itemsize for dtype, shape in places.values()))
    with (folder / f"{quantised.weights_stem(config.quantised)}.safetensors").open("wb") as file:
        file.write(head)

        def put(name: str, values: Bits, row: int = 0) -> None:
            dtype, shape = places[name]
            stored = np.ascontiguousarray(values, STORED[dtype])
            meter.begin(name, stored.nbytes)
            file.seek(starts[name] + row * math.prod(shape[1:]) * stored.itemsize)
            file.write(stored.data.cast("B"))

        for name in places:
            if name in plain.tensors and name.rpartition(".")[0] not in config.quantised:
                for row, block in plain.tensors[name].blocks():
                    put(name, block, row)
        for name, values in _kv(model, config).items():
            put(name, values)
        for linear, found in _announced(plain.name, model, config):
            for name, values in quantised.stored(linear, found, deq_scale).items():
                put(name, values)
    convert.write_rest(folder, plain, config)


def _write_npy(
    folder: Path, plain: Opened, config: ModelConfig, model: Quantised, deq_scale: DeqForm, progress: Progress
) -> None:
    check_shapes(plain.name, expected_shapes(plain.config), {name: one.shape for name, one in plain.tensors.items()})
    convert.convert(plain, folder / guide.FLOAT_FOLDER, Target(layout="hf"), progress)
    with guide.Writer(folder, deq_scale) as writer:
        writer.put_kv(_kv(model, config))
        for name, found in _announced(plain.name, model, config):
            writer.put(name, found)
    kinds, num_layers = config.quantised, config.num_layers
    layers = {
        "FLOAT_LAYERS": quantised.float_layers(kinds, num_layers),
        "float_linears": quantised.float_linears(kinds, num_layers),
    }
    convert.write_json(folder / guide.FLOAT_LAYERS, layers)


def _kv(model: Quantised, config: ModelConfig) -> dict[str, Bits]:
    """The tensors of the scales of all keys and values. Raises InputError when a layer has none."""
    missing = [i for i in range(config.num_layers) if i not in model.kv]
    if model.kv and missing:
        raise InputError(f"layer {missing[0]}: no scales for its keys and values, though other layers have some")
    found: dict[str, Bits] = {}
    for layer, scales in model.kv.items():
        found |= quantised.stored_kv(layer, scales)
    return found


def _linear(name: str) -> str:
    """The linear that a tensor is part of; the scales of keys and values are of none."""
    linear, _, part = name.rpartition(".")
    return "" if part in quantised.KV_PARTS else linear


def _announced(source: str, model: Quantised, config: ModelConfig) -> Iterator[tuple[str, Linear]]:
    """The linears. Raises InputError for one that is not among `kinds`, is twice there or missing, or does not fit."""
    expected = expected_shapes(config)
    ranges: dict[str, tuple[float, int]] = {}
    left = dict(model.kinds)
    for name, found in model.linears:
        kind = left.pop(name, None)
        if kind is None or isinstance(found, W8A16) != (kind == "W8A16"):
            raise InputError(f"{source}: {name}: this linear was announced as {kind or 'float, or is there twice'}")
        parts = {own: values.shape for own, values in quantised.stored(name, found).items()}
        wanted = {own: shape for own, shape in expected.items() if _linear(own) == name}
        if parts != wanted:
            raise InputError(f"{source}: {name}: {parts}, but the model has {wanted}")
        if not isinstance(found, W8A16):
            ranges[name] = found.input_scale, found.input_offset
            quantised.check_shared(source, ranges)
        yield name, found
    if left:
        raise InputError(f"{source}: {next(iter(left))}: this linear was announced, but there is none")
