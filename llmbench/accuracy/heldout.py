"""How far a form of a model is from the float model over whole texts: every row of each text, in one prefill of it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy import profiles
from llmbench.accuracy.judge import FIGURES as JUDGED
from llmbench.accuracy.judge import Evidence, judge
from llmbench.accuracy.lane import Lane
from llmbench.accuracy.measure import FIGURES, Figures, Scratch, measure
from llmbench.errors import InputError
from llmbench.logits.store import Pair
from llmbench.metrics.front import PROFILES
from llmbench.weights.model import Model

Float32 = npt.NDArray[np.float32]
Ids = Sequence[int]
Told = Callable[[int, int], None]

_MOST_ROWS = 64  # that are held against each other at once


class Distance(msgspec.Struct, frozen=True, kw_only=True):
    """Over all rows: the figures of `acc compare`, and the strictest of `PROFILES` whose gates they keep, or none."""

    num_rows: int
    kld: float
    top1: float
    delta_p_rms: float
    profile: str


def keep(model: Model, engine: str, texts: Sequence[Ids], folder: Path, threads: int | None, told: Told) -> None:
    """Compute the rows of the base and keep them, float32 [len, vocab] of each text; those that are there stay."""
    missing = [i for i in range(len(texts)) if not _path(folder, i).exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with Lane(model, engine, max(map(len, texts)), threads=threads) as lane:
        for i in missing:
            told(i, len(texts))
            rows = lane.run(texts[i], [len(texts[i])])
            aside = folder / ".part.npy"
            np.save(aside, rows.astype(np.float32, copy=False), allow_pickle=False)
            aside.replace(_path(folder, i))


def distance(
    model: Model, engine: str, texts: Sequence[Ids], folder: Path, threads: int | None, told: Told
) -> Distance:
    """How far the rows of a model are from those that `keep` has of the same texts.

    Raises InputError for a model of another vocabulary, or whose logits are no numbers.
    """
    found = []
    with Lane(model, engine, max(map(len, texts)), threads=threads) as lane:
        for i, ids in enumerate(texts):
            told(i, len(texts))
            base: Float32 = np.load(_path(folder, i), mmap_mode="r", allow_pickle=False)
            new = lane.run(ids, [len(ids)]).astype(np.float32, copy=False)
            if base.shape != new.shape:
                raise InputError(f"model {model.name}: rows of {new.shape[1]} logits, the base has {base.shape[1]}")
            found.append(figures(base, new, ids))
    rows = np.concatenate(found)
    if not rows["finite"].all():
        raise InputError(
            f"model {model.name}: {int((~rows['finite']).sum())} of its rows of logits have NaN or infinity"
        )
    seen = Evidence(rows=rows, batches=np.zeros(len(rows), np.int64), margin=0.0, load_batch=None)
    return Distance(
        num_rows=len(rows),
        kld=JUDGED["kld_mean"][1](seen).low,
        top1=JUDGED["top1"][1](seen).low,
        delta_p_rms=JUDGED["delta_p_rms"][1](seen).low,
        profile=next((name for name in PROFILES if _keeps(name, seen)), ""),
    )


def _keeps(name: str, seen: Evidence) -> bool:
    return all(gate.verdict == "passed" for gate in judge(profiles.get(name), seen))


def figures(base: Float32, new: Float32, ids: Ids) -> Figures:
    """measure.FIGURES [len] of the rows of a text, float32 [len, vocab]; dp is of the text's next token."""
    tokens = np.array([*ids[1:], -1], np.int64)
    out = np.zeros(len(base), FIGURES)
    room = Scratch(min(_MOST_ROWS, len(base)), base.shape[1])
    for start in range(0, len(base), _MOST_ROWS):
        some = slice(start, start + _MOST_ROWS)
        rows = Pair(np.ascontiguousarray(base[some]), np.ascontiguousarray(new[some]))
        measure(rows, tokens[some], room, out[some])
    return out


def _path(folder: Path, number: int) -> Path:
    return folder / f"rows-{number:05d}.npy"
