"""A model against the float model over whole texts: the figures against their definitions, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from llmbench.accuracy import heldout
from llmbench.accuracy.lane import Lane
from llmbench.errors import InputError
from llmbench.weights.model import open_model

TEXTS = [tuple(range(3, 20)), (5, 9, 2, 40, 41, 42)]


def nothing(*_: object) -> None:
    """No progress."""


def test_a_model_is_at_no_distance_from_itself(tmp_path: Path) -> None:
    model = open_model("random:tiny")
    heldout.keep(model, "numpy_llama", TEXTS, tmp_path, 1, nothing)
    found = heldout.distance(model, "numpy_llama", TEXTS, tmp_path, 1, nothing)
    assert found == heldout.Distance(num_rows=23, kld=0.0, top1=1.0, delta_p_rms=0.0, profile="w8")


def test_the_figures_are_those_of_the_definitions(tmp_path: Path) -> None:
    base, new = open_model("random:tiny"), open_model("random:tiny,seed=1")
    heldout.keep(base, "numpy_llama", TEXTS, tmp_path, 1, nothing)
    found = heldout.distance(new, "numpy_llama", TEXTS, tmp_path, 1, nothing)
    klds, same, moved = [], [], []
    with Lane(base, "numpy_llama", 20, threads=1) as theirs, Lane(new, "numpy_llama", 20, threads=1) as ours:
        for ids in TEXTS:
            z, y = (lane.run(ids, [len(ids)]).astype(np.float64) for lane in (theirs, ours))
            log_p, log_q = (rows - np.log(np.exp(rows).sum(axis=1, keepdims=True)) for rows in (z, y))
            klds += (np.exp(log_p) * (log_p - log_q)).sum(axis=1).tolist()
            same += (z.argmax(axis=1) == y.argmax(axis=1)).tolist()
            chosen = [*ids[1:], int(z[-1].argmax())]  # behind the last token of a text: the likeliest
            moved += [np.exp(q[i]) - np.exp(p[i]) for p, q, i in zip(log_p, log_q, chosen, strict=True)]
    assert found.kld == pytest.approx(np.mean(klds), rel=1e-5)
    assert found.top1 == pytest.approx(np.mean(same))
    assert found.delta_p_rms == pytest.approx(np.sqrt(np.mean(np.square(moved))), rel=1e-4)
    assert found.profile == ""


def test_rows_that_are_kept_are_not_computed_again(tmp_path: Path) -> None:
    model = open_model("random:tiny")
    told: list[int] = []
    heldout.keep(model, "numpy_llama", TEXTS, tmp_path, 1, lambda done, _: told.append(done))
    (tmp_path / "rows-00001.npy").unlink()
    heldout.keep(model, "numpy_llama", TEXTS, tmp_path, 1, lambda done, _: told.append(done))
    heldout.keep(model, "numpy_llama", TEXTS, tmp_path, 1, lambda done, _: told.append(done))
    assert told == [0, 1, 1]


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows-00000.npy", np.zeros((len(TEXTS[0]), 100), np.float32))
    with pytest.raises(InputError, match="rows of 2048 logits, the base has 100"):
        heldout.distance(open_model("random:tiny"), "numpy_llama", TEXTS, tmp_path, 1, nothing)
