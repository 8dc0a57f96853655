"""Samples flow through a float model layer by layer; what goes into each linear is observed, and outliers are moved.

A layer is gone through twice: as it is, to learn its channels and to smooth it; then smoothed, to learn the ranges of
int8 and to get the hidden states in front of the next one. What is held is one layer and the hidden states of all
samples, so that models larger than the memory can be calibrated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import __version__, engines
from llmbench.errors import InputError
from llmbench.quantize import forward, observers, smooth
from llmbench.quantize.forward import POINTS, Layer, See, Tensors
from llmbench.quantize.journal import Journal, Observed, Record
from llmbench.quantize.samples import Samples
from llmbench.weights.config import expected_shapes
from llmbench.weights.model import Model, of_weights
from llmbench.weights.sources import EMBEDDING, Opened
from llmbench.weights.tensors import Tensor, of, widen

Float32 = npt.NDArray[np.float32]
Intp = npt.NDArray[np.intp]
Progress: TypeAlias = Callable[[int, int, str], None]
"""Is told how many samples are through, of how many over all layers, and what is being done."""

NUM_ROWS = 1024  # inputs of each linear that are kept: to make up for errors by, and to measure them on
NUM_SMOOTHING_ROWS = 256  # of them, those by which scales are searched


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How is observed and smoothed; `alpha` None is the method's own."""

    method: smooth.Method = "m1"
    alpha: float | None = None
    observer: observers.Method = "min-max"
    seed: int = 0


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What is known behind it: the smoothed float model, not read; what was observed of each layer; rows of inputs."""

    opened: Opened
    settings: Settings
    samples: Samples
    identity: str
    """sha256 of the weights before."""
    before: dict[str, Tensor]
    """The tensors as they were, not read."""
    records: list[Record]
    journal: Journal

    def rows(self, layer: int, point: str) -> Float32:
        """float32 [n, width]: what went into the linears of a point, some of it."""
        arrays, name = self.journal.arrays(layer), _rows(point)
        return widen(arrays.rows(name, 0, arrays.shape(name)[0]))


def calibrate(opened: Opened, samples: Samples, settings: Settings, folder: Path, progress: Progress) -> Calibration:
    """Calibrate a model, its state in a folder: one that is there is taken up.

    Raises InputError when the folder is of another calibration, or when what flows is NaN or infinite.
    """
    model = of_weights(opened)
    identity = model.identity()
    journal = Journal(folder, _header(identity, samples, settings))
    flow = _Flow(model, samples, settings, journal, progress)
    for layer in range(len(journal.records), model.config.num_layers):
        flow.through(layer)
    return Calibration(
        opened=_smoothed(opened, journal),
        settings=settings,
        samples=samples,
        identity=identity,
        before=opened.tensors,
        records=journal.records,
        journal=journal,
    )


def _header(identity: str, samples: Samples, settings: Settings) -> dict[str, Any]:
    """All that decides what comes out."""
    return {
        "model": identity,
        "samples": samples.sha256,
        "settings": msgspec.to_builtins(settings),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What computed."""
    return {"llmbench": __version__, "numpy": np.__version__}


class _Flow:
    """The hidden states of all samples, on their way through the model."""

    def __init__(
        self, model: Model, samples: Samples, settings: Settings, journal: Journal, progress: Progress
    ) -> None:
        self._model, self._settings, self._journal, self._progress = model, settings, journal, progress
        self._ends = np.cumsum([len(ids) for ids in samples.ids])
        self._starts = self._ends - [len(ids) for ids in samples.ids]
        self._turns = engines.rotations(model.config, max(map(len, samples.ids)))
        rng = np.random.default_rng(settings.seed)
        total = int(self._ends[-1])
        drawn = rng.permutation(total)
        self._kept, self._few = (np.sort(drawn[:num]) for num in (NUM_ROWS, NUM_SMOOTHING_ROWS))
        found = journal.hidden()
        self._hidden = _embedded(model, np.concatenate(samples.ids)) if found is None else found

    def through(self, layer: int) -> None:
        """One layer, and its record."""
        own = forward.tensors(self._model, layer)
        before = dict(own)
        if self._settings.method != "none":
            seen = self._channels(layer, own)
            smooth.smooth(self._settings.method, self._settings.alpha, own, seen, self._model.config)
        changed = {forward.prefix(layer) + name: x for name, x in own.items() if before.get(name) is not x}
        ranges, rows = self._ranges(layer, own)
        record = msgspec.structs.replace(ranges, changed=list(changed))
        self._journal.append(record, changed | {_rows(point): x for point, x in rows.items()}, self._hidden)

    def _channels(self, layer: int, own: Tensors) -> smooth.Seen:
        """The channels in front of each linear, as the layer is."""
        watches = {point: observers.ChannelWatch(width) for point, width in _widths(own).items()}

        def see(sample: int, point: str, x: Float32) -> None:
            if point in watches:
                watches[point].see(x, self._rows_of(sample, self._few))

        self._each(layer, own, see, f"layer {layer}: looking for outliers", first=True)
        return {point: watch.channels() for point, watch in watches.items()}

    def _ranges(self, layer: int, own: Tensors) -> tuple[Record, dict[str, Float32]]:
        """What int8 has to stand for in the layer as it is now, and rows; moves the hidden states behind it."""
        widths = _widths(own)
        ranges = {point: observers.OBSERVERS[self._settings.observer]() for point in POINTS}
        scores = {point: observers.Score(widths[point]) for point in POINTS}
        width = len(own["self_attn.k_proj.weight"])
        cached = {
            "keys": observers.CacheRange(width, self._model.config.head_dim),
            "values": observers.CacheRange(width),
        }
        rows: dict[str, list[Float32]] = {point: [] for point in POINTS}

        def see(sample: int, point: str, x: Float32) -> None:
            if point in cached:
                cached[point].see(x)
                return
            ranges[point].see(x)
            scores[point].see(x)
            rows[point].append(x[self._rows_of(sample, self._kept)])

        self._each(layer, own, see, f"layer {layer}: observing", first=False)
        points = {}
        for point in POINTS:
            low, high = ranges[point].range()
            points[point] = Observed(low=low, high=high, score=scores[point].score())
        channels = {name: (watch.low.tolist(), watch.high.tolist()) for name, watch in cached.items()}
        record = Record(points=points, channels=channels, changed=[])
        return record, {point: np.concatenate(found) for point, found in rows.items()}

    def _each(
        self, layer: int, own: Tensors, see: Callable[[int, str, Float32], None], what: str, *, first: bool
    ) -> None:
        """Every sample through the layer; only the last time do the hidden states move on."""
        compute = Layer(self._model.config, own, self._turns)
        num, passes = len(self._ends), 1 if self._settings.method == "none" else 2
        done = num * (passes * layer + (0 if first else passes - 1))
        for sample, (start, end) in enumerate(zip(self._starts.tolist(), self._ends.tolist(), strict=True)):
            self._progress(done + sample, passes * num * self._model.config.num_layers, what)
            behind = compute(self._hidden[start:end], self._looking(layer, sample, see))
            if not first:
                self._hidden[start:end] = behind

    def _looking(self, layer: int, sample: int, see: Callable[[int, str, Float32], None]) -> See:
        def look(point: str, x: Float32) -> None:
            if not np.isfinite(x.sum(dtype=np.float64)):
                raise InputError(
                    f"model {self._model.name}: NaN or infinity at {point} of layer {layer}, in sample {sample}: its"
                    " weights are damaged, or too large for float32"
                )
            see(sample, point, x)

        return look

    def _rows_of(self, sample: int, kept: Intp) -> Intp:
        """Which tokens of a sample are among those that are kept."""
        low, high = np.searchsorted(kept, [self._starts[sample], self._ends[sample]])
        found: Intp = kept[low:high] - self._starts[sample]
        return found


def _rows(point: str) -> str:
    """The name of a point's rows among a layer's arrays."""
    return f"rows.{point}"


def _widths(own: Tensors) -> dict[str, int]:
    """How many channels go into the linears of each point."""
    return {name: own[f"{point.linears[0]}.weight"].shape[1] for name, point in POINTS.items()}


def _embedded(model: Model, ids: Intp) -> Float32:
    """float32 [T, hidden]: the embeddings of tokens, read block by block."""
    found = np.empty((len(ids), model.config.hidden_size), np.float32)
    for start, block in model.blocks(EMBEDDING):
        own = (ids >= start) & (ids < start + len(block))
        found[own] = block[ids[own] - start]
    return found


def _smoothed(opened: Opened, journal: Journal) -> Opened:
    """The model with what was changed in place of what there was."""
    changed: dict[str, Tensor] = {}
    for layer, record in enumerate(journal.records):
        arrays = of(journal.arrays(layer))
        changed |= {name: arrays[name] for name in record.changed}
    own = opened.tensors | changed
    config = msgspec.structs.replace(opened.config, norm_bias=any(name.endswith("layernorm.bias") for name in own))
    return msgspec.structs.replace(
        opened,
        config=config,
        tensors={name: own[name] for name in expected_shapes(config)},
        moved={name: (name,) for name in changed} | opened.moved,
    )
