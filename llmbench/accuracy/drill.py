"""One row, or the rows of one request, looked at closely: what each side held to be likely."""

from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.sides import Side, StoreSide, open_side
from llmbench.errors import InputError

Float64 = npt.NDArray[np.float64]
_NUM_SHOWN = 12


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A vocabulary id: its logit and its probability on each side; None where a side does not know it."""

    vocab_id: int
    base: float | None
    new: float | None
    p: float | None
    q: float | None


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """A row on both sides: the ids that either holds likeliest, and the one that differs most (`worst`)."""

    request_id: str
    step: int | None
    index: int
    base_token: int
    new_token: int | None
    batch_size: int
    worst: int | None
    entries: tuple[Entry, ...]


def look(base: Path, new: Path | None, request_id: str, step: int | None = None) -> list[Look]:
    """The rows of a request, of one step if given, in a capture and perhaps another one.

    `step` is an index where the capture is a contest folder. Raises InputError when there are none.
    """
    theirs = open_side(base)
    ours = None if new is None else open_side(new)
    try:
        numbers = _rows_of(theirs, request_id, step)
        if not numbers:
            raise InputError(f"{base}: no row of request {request_id!r}{'' if step is None else f', step {step}'}")
        found = []
        for number in numbers:
            far = [] if ours is None else _rows_of(ours, request_id, _place(theirs, number))
            found.append(at(theirs, number, ours if far else None, far[0] if far else 0))
        return found
    finally:
        for side in (theirs, ours):
            if side is not None:
                side.close()


def at(base: Side, number: int, new: Side | None, new_number: int) -> Look:
    """One row by its numbers."""
    ids, z, lse_z = _values(base, number)
    far_ids, y, lse_y = (None, None, 0.0) if new is None else _values(new, new_number)
    base_of = dict(zip(ids.tolist(), z.tolist(), strict=True))
    new_of = {} if far_ids is None or y is None else dict(zip(far_ids.tolist(), y.tolist(), strict=True))
    shown = [token for token, _ in sorted(base_of.items(), key=lambda item: -item[1])[:_NUM_SHOWN]]
    shown += [token for token, _ in sorted(new_of.items(), key=lambda item: -item[1])[:_NUM_SHOWN]]
    both = base_of.keys() & new_of.keys()
    worst = max(both, key=lambda token: (abs(base_of[token] - new_of[token]), -token)) if both else None
    if worst is not None:
        shown.append(worst)
    step = int(base.rows["step"][number])
    return Look(
        request_id=base.request_id(number) or "",
        step=step if step >= 0 else None,
        index=int(base.rows["position"][number]),
        base_token=max(base_of, key=lambda token: base_of[token]),
        new_token=max(new_of, key=lambda token: new_of[token]) if new_of else None,
        batch_size=int((base if new is None else new).rows["batch"][number if new is None else new_number]),
        worst=worst,
        entries=tuple(
            Entry(
                vocab_id=token,
                base=base_of.get(token),
                new=new_of.get(token),
                p=_probability(base_of.get(token), lse_z),
                q=_probability(new_of.get(token), lse_y),
            )
            for token in dict.fromkeys(shown)
        ),
    )


def _probability(logit: float | None, lse: float) -> float | None:
    return None if logit is None else float(np.exp(logit - lse))


def _values(side: Side, number: int) -> tuple[npt.NDArray[np.int64], Float64, float]:
    """The ids that a side knows of a row, their logits, and the log of the sum of all exponentials."""
    numbers = np.array([number])
    if side.whole(numbers)[0]:
        row = np.empty((1, side.vocab_size), np.float32)
        problems = side.read(numbers, row, np.empty(row.shape, np.uint16))
        if problems:
            raise InputError(problems[0].message)
        values = row[0].astype(np.float64)
        top = float(values.max())
        return np.arange(len(values)), values, top + float(np.log(np.exp(values - top).sum()))
    assert isinstance(side, StoreSide), "contest files are whole"
    known = side.known(numbers)
    return known.ids[0], known.values[0].astype(np.float64), float(side.statistics(numbers)["lse"][0])


def _place(side: Side, number: int) -> int:
    """The step of a row; its index where steps are not known."""
    step = int(side.rows["step"][number])
    return step if step >= 0 else int(side.rows["position"][number])


def _rows_of(side: Side, request_id: str, step: int | None) -> list[int]:
    numbers = [i for i in range(len(side.rows)) if side.request_id(i) == request_id]
    return [i for i in numbers if step is None or _place(side, i) == step]
