"""A2: the logit rows that the server's agent kept of the timed requests, against a trusted model's at the same places.

Which rows there must be follows from the policy and its seed, for every token of every answer: one that is not there,
or that nobody asked for, is as wrong as one whose values are others. So is a row whose token is not the one that the
client got.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from llmbench.accuracy import profiles
from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.accuracy.audit.run import Ids, Spoken
from llmbench.accuracy.compare import Comparison, Options, compare
from llmbench.accuracy.join import Asked
from llmbench.logits import policy, store
from llmbench.logits.store import Manifest, Store, Writer

Float32 = npt.NDArray[np.float32]
Rows = dict[str, list[int]]
"""The steps of each request."""

MOST_ROWS = 2000
_HEAD = 20


def expected(said: Mapping[str, Spoken], wanted: policy.Policy) -> Rows:
    """The steps of each answered request whose rows the policy takes."""
    found = {}
    for name, ids in said.items():
        first = len(ids.prompt) - 1
        steps = [step for step in range(len(ids.answer)) if wanted.wants(name, step, first + step)]
        if steps:
            found[name] = steps
    return found


def wrong_rows(rows: Store, said: Mapping[str, Spoken], wanted: Rows) -> list[str]:
    """Rows that are missing, too many, double, or of another token than the client got; those of others' requests,
    as the preflight's, are left alone.
    """
    found: dict[str, dict[int, int]] = {name: {} for name in said}
    wrong = []
    for row in rows.table:
        name, step, token = rows.requests[int(row["request"])].id, int(row["step"]), int(row["token"])
        if name not in found:
            continue
        answer = said[name].answer
        if step in found[name]:
            wrong.append(f"{name} step {step}: is there twice")
        elif step not in wanted.get(name, ()):
            wrong.append(f"{name} step {step}: nobody asked for this row")
        elif token != answer[step]:
            wrong.append(f"{name} step {step}: its token is {token}, the client got {answer[step]}")
        found[name][step] = token
    wrong += [
        f"{name} step {step}: is missing" for name, steps in wanted.items() for step in steps if step not in found[name]
    ]
    return wrong


def chosen(wanted: Rows, order: Sequence[str], most: int = MOST_ROWS) -> Rows:
    """The rows of as many requests, in this order, as have `most` of them together; at least of one."""
    found: Rows = {}
    for name in order:
        if name in wanted and (not found or sum(map(len, found.values())) + len(wanted[name]) <= most):
            found[name] = wanted[name]
    return found


def write_base(
    folder: Path, rows: Store, said: Mapping[str, Spoken], wanted: Rows, logits: Callable[[Ids], Float32], model: str
) -> None:
    """A capture of the same rows by a trusted model, which is given the run's own tokens. `logits` [n, V] of n ids."""
    about = rows.manifest
    manifest = Manifest(
        model=model,
        fingerprint="",
        tokenizer=about.tokenizer,
        engine="trusted",
        dtype=about.dtype,
        quantisation=about.quantisation,
        vocab_size=about.vocab_size,
        decode="forced",
        tier="full32",
        tail_seed=about.tail_seed,
    )
    writer = Writer(folder, manifest)
    try:
        for name, steps in wanted.items():
            ids = said[name]
            number = writer.request(name, len(ids.prompt), ids.prompt[:_HEAD])
            values = logits((*ids.prompt, *ids.answer[: steps[-1]]))[len(ids.prompt) - 1 :]
            meta = np.zeros(len(steps), store.INDEX)
            meta["request"], meta["step"], meta["batch"], meta["forced"] = number, steps, 1, 1
            meta["position"] = len(ids.prompt) - 1 + meta["step"]
            meta["prefill"] = meta["step"] == 0
            meta["token"] = [ids.answer[step] for step in steps]
            writer.write(np.ascontiguousarray(values[steps], np.float32), meta)
    finally:
        writer.close()


def compared(base: Path, rows: Store, wanted: Rows) -> Comparison:
    """The comparison of these requests' rows by the profile of the precision in which they were computed."""
    profile = profiles.for_dtype(rows.manifest.dtype, rows.manifest.quantisation)
    found, _ = compare(base, rows.folder, Options(profile=profile, rows=Asked(only=frozenset(wanted))))
    return found


def finding(found: Comparison | None, wrong: Sequence[str], num_rows: int, about: str, foreseen: bool) -> Finding:
    """`found` is None when there was nothing to compare; `foreseen`: the secret did not choose the rows."""
    if found is None and not wrong:
        return not_applicable("A2", "the policy chose no row of an answered request")
    bad = bool(wrong) or (found is not None and found.verdict in ("failed", "not comparable"))
    unsure = not bad and found is not None and found.verdict == "inconclusive"
    told = [] if found is None else [f"{found.num_compared} compared, top token the same in {found.top1[0]:.2%}"]
    kld = None if found is None else found.distributions.get("kld")
    told += [] if kld is None else [f"mean KLD {kld.mean:.2g}"]
    why = wrong[0] if wrong else found.reasons[0] if found is not None and found.reasons else ""
    if foreseen and not why:
        why = "which rows were kept does not follow from the secret that was committed to; the server may have chosen"
    return Finding(
        test="A2",
        what=f"logit rows of the timed requests against {about}, profile {found.profile if found else '-'}",
        verdict="failed" if bad else "inconclusive" if unsure else "passed",
        value="; ".join([f"{num_rows} rows, {len(wrong)} that should not be so", *told]),
        limit="0; all gates of the profile",
        why=why,
        tier="T3",
        figures={"rows": num_rows, "wrong": len(wrong), "compared": 0 if found is None else found.num_compared},
    )
