"""Captures made up for tests: stores, and folders as the contest's, of the same rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.compare import Comparison, Options, compare
from llmbench.link.capture import prompt_hash
from llmbench.logits import contest
from llmbench.logits.store import INDEX, Manifest, Tier, Writer

Float32 = npt.NDArray[np.float32]
VOCAB = 256
MANIFEST = Manifest(
    model="m", fingerprint="weights", engine="e", dtype="float16", vocab_size=VOCAB, tier="full32", k=16, num_tail=16
)
CONTEST_HEADER = contest.Header(
    every=100, model="m", fingerprint="weights", engine="e", dtype="float16", vocab_size=VOCAB
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One row of a made-up capture; the values of a row depend on its prompt and step unless they are given."""

    request: str = "r1"
    step: int = 0
    prompt: tuple[int, ...] = (1, 20355, 915, 278)
    batch: int = 1
    token: int | None = None
    prefix: int | None = None
    arrival_s: float = 1000.0
    values: Float32 | None = None

    @property
    def index(self) -> int:
        return len(self.prompt) - 1 + self.step

    def logits(self) -> Float32:
        """float32 [V] with float16 values up to 20 or so; the top one stands out."""
        if self.values is not None:
            return self.values
        rng = np.random.default_rng([self.step, *self.prompt])
        row = rng.normal(0, 5, VOCAB).astype(np.float16).astype(np.float32)
        row[row.argmax()] += 4
        return row

    def but(self, **changes: object) -> "Row":
        return msgspec.structs.replace(self, **changes)

    def moved(self, by: float, at: int | None = None) -> "Row":
        """The same row with one value (or all) moved."""
        values = self.logits().copy()
        values[slice(None) if at is None else at] += np.float32(by)
        return self.but(values=values)


def answers(
    requests: Sequence[str], steps: int, batch: int = 1, prompts: Mapping[str, tuple[int, ...]] | None = None
) -> list[Row]:
    """Every step of some requests, each with a prompt of its own."""
    return [
        Row(
            request=name,
            step=step,
            batch=batch,
            prompt=(prompts or {}).get(name, (1, 100 + i, 7, 9)),
            arrival_s=1000.0 + i,
        )
        for i, name in enumerate(requests)
        for step in range(steps)
    ]


def store(folder: Path, rows: Sequence[Row], tier: Tier = "full32", **changes: object) -> Path:
    """A store of rows, written one by one; prefixes follow the tokens."""
    writer = Writer(folder, msgspec.structs.replace(MANIFEST, tier=tier, **changes))
    numbers: dict[str, int] = {}
    said: dict[str, tuple[int, ...]] = {}
    for row in rows:
        if row.request not in numbers:
            prompt = hash_of(row.prompt)
            numbers[row.request] = writer.request(row.request, len(row.prompt), head_of(row), prompt)
            said[row.request] = row.prompt
        values = row.logits()
        token = int(values.argmax()) if row.token is None else row.token
        meta = np.zeros(1, INDEX)
        meta["request"], meta["step"], meta["position"] = numbers[row.request], row.step, row.index
        meta["token"], meta["batch"], meta["prefill"] = token, row.batch, row.step == 0
        meta["prefix"] = hash_of(said[row.request]) if row.prefix is None else row.prefix
        said[row.request] += (token,)
        writer.write(values.reshape(1, -1), meta)
    writer.close()
    return folder


def head_of(row: Row) -> list[int]:
    """As many ids as a contest name is made from."""
    return [*row.prompt, *range(1000, 1020)]


def hash_of(ids: Sequence[int]) -> int:
    """The hash of ids, as captures have it."""
    return prompt_hash(list(ids))


def files(folder: Path, rows: Sequence[Row], manifest: bool = False, every: int = 1) -> Path:
    """A folder of contest files, of the rows whose index divides by `every`."""
    writer = contest.Writer(folder, msgspec.structs.replace(CONTEST_HEADER, every=every))
    for row in rows:
        if row.index % every == 0:
            writer.write(
                row.logits(),
                head=head_of(row),
                arrival_s=row.arrival_s,
                request_id=row.request,
                index=row.index,
                prefill=row.step == 0,
                token_id=int(row.logits().argmax()) if row.token is None else row.token,
                batch_size=row.batch,
            )
    writer.close()
    if not manifest:
        contest.manifest_path(folder).unlink()
    return folder


def compared(base: Path, new: Path, **options: object) -> Comparison:
    """The comparison of two captures."""
    return compare(base, new, Options(**options))[0]  # type: ignore[arg-type]
