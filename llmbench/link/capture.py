"""The agent's capture: which rows of a step are kept, whose they are, and what was said before them.

Rows are boiled down after the answer has gone to the server, while that hands out the tokens; they are written a few
steps at once, which takes less time than one after the other. What is kept for that an agent that is killed loses.
"""

import hashlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, StepResult
from llmbench.link import frames
from llmbench.logits import contest, digest, policy, quick, store

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
_HEAD = 20  # ids of a prompt that a contest name is made from, and that a person knows it again by
_MOST_STEPS, _MOST_ROWS = 4, 64  # a store is written when so many steps, or rows, are there
_SPREAD = np.uint64(0x9E3779B97F4A7C15)  # odd: different tokens stay different


class Recorder(Protocol):
    """What a step is shown to, in this order."""

    def admit(self, admitted: list[frames.Admitted]) -> None:
        """Sequences that take a slot with this step."""
        ...

    def wants(self, batch: Batch, slots: npt.NDArray[np.int32]) -> bool:
        """Whether any row of this step is to be captured."""
        ...

    def take(self, result: StepResult, forced: Bools | None = None) -> None:
        """The step's result; with logits if they were wanted. `write` is called before there is another.

        `forced` bool [n]: the sequences whose token was given, not chosen; None for none.
        """
        ...

    def write(self) -> None:
        """Write what was taken, if there is enough of it."""
        ...

    def flush(self) -> None:
        """Write all that was taken."""
        ...

    def close(self) -> None:
        """Write all that was taken, and end."""
        ...


class ContestRecorder:
    """Writes contest files."""

    def __init__(self, writer: contest.Writer) -> None:
        self._writer = writer
        self._in_slot: dict[int, frames.Admitted] = {}
        self._rows: list[tuple[int, int, int]] = []  # the row in the result, its slot, its index
        self._batch_size = 0
        self._taken: StepResult | None = None
        self._token_ids: Int64 = np.zeros(0, np.int64)

    def admit(self, admitted: list[frames.Admitted]) -> None:
        self._in_slot.update((sequence.slot, sequence) for sequence in admitted)

    def wants(self, batch: Batch, slots: npt.NDArray[np.int32]) -> bool:
        indices = batch.context_lens[batch.wants_token] - 1
        chosen = np.flatnonzero(indices % self._writer.every == 0)
        self._rows = list(
            zip(chosen.tolist(), slots[batch.wants_token][chosen].tolist(), indices[chosen].tolist(), strict=True)
        )
        self._batch_size = len(slots)
        self._wanted = batch.wants_token.copy()
        return bool(self._rows)

    def take(self, result: StepResult, forced: Bools | None = None) -> None:
        assert forced is None, "contest files do not say that a token was forced; the settings refuse it"
        if self._rows:
            self._taken = result
            self._token_ids = result.token_ids[self._wanted].astype(np.int64)

    def write(self) -> None:
        self.flush()

    def flush(self) -> None:
        taken, self._taken = self._taken, None
        if taken is None:
            return
        assert taken.logits is not None, "the engine was asked for logits"
        for i, slot, index in self._rows:
            sequence = self._in_slot[slot]
            self._writer.write(
                taken.logits[i],
                head=sequence.prompt_ids[:_HEAD],
                arrival_s=sequence.arrival_s,
                request_id=sequence.request_id,
                index=index,
                prefill=index == len(sequence.prompt_ids) - 1,
                token_id=int(self._token_ids[i]),
                batch_size=self._batch_size,
            )

    def close(self) -> None:
        self.flush()
        self._writer.close()


class _Kept(NamedTuple):
    """The rows of a step until they are written, n of them, and what their records say.

    `requests`, `positions` and `tokens` are integers [n], `prefixes` uint64 [n], `forced` bool [n] or False for none;
    `batch_size` is of the step.
    """

    boiled: store.Boiled
    requests: Int64
    positions: Int64
    tokens: npt.NDArray[np.int32]
    prefixes: npt.NDArray[np.uint64]
    forced: Bools | bool
    batch_size: int


class StoreRecorder:
    """Writes a store. Follows every token, also those of rows that are not kept, so that each row that is kept knows a
    hash of the text before it.
    """

    def __init__(self, writer: store.Writer, watched: policy.Watched) -> None:
        self._writer = writer
        self._watched = watched
        self._numbers: dict[tuple[str, float], int] = {}
        self._ids: list[str] = []
        self._prompt_lens = np.zeros(0, np.int64)
        self._prefixes = np.zeros(0, np.uint64)
        self._in_slot = np.zeros(0, np.int64)
        self._requests: Int64 = np.zeros(0, np.int64)  # of the rows that want a token in this step
        self._positions: Int64 = np.zeros(0, np.int64)
        self._batch_size = 0
        self._chosen: Bools = np.zeros(0, bool)
        self._wanted: Bools = np.zeros(0, bool)
        self._kept: list[_Kept] = []
        self._taken: tuple[StepResult, Bools | None] | None = None

    def admit(self, admitted: list[frames.Admitted]) -> None:
        for sequence in admitted:
            key = sequence.request_id, sequence.arrival_s
            if key not in self._numbers:  # one that was preempted comes again, and goes on
                self._numbers[key] = self._register(sequence)
            if sequence.slot >= len(self._in_slot):
                self._in_slot = np.concatenate([self._in_slot, np.zeros(sequence.slot + 64, np.int64)])
            self._in_slot[sequence.slot] = self._numbers[key]

    def _register(self, sequence: frames.Admitted) -> int:
        ids = sequence.prompt_ids
        prefix = prompt_hash(ids)
        number = self._writer.request(sequence.request_id, len(ids), ids[:_HEAD], prefix, ids)
        if number >= len(self._prompt_lens):
            self._prompt_lens = np.concatenate([self._prompt_lens, np.zeros(number + 64, np.int64)])
            self._prefixes = np.concatenate([self._prefixes, np.zeros(number + 64, np.uint64)])
        self._ids.append(sequence.request_id)
        self._prompt_lens[number] = len(ids)
        self._prefixes[number] = prefix
        return number

    def wants(self, batch: Batch, slots: npt.NDArray[np.int32]) -> bool:
        self._wanted = batch.wants_token.copy()
        self._requests = self._in_slot[slots[self._wanted]]
        self._positions = batch.context_lens[self._wanted].astype(np.int64) - 1
        self._batch_size = len(slots)
        in_force = self._watched.now()
        ids = [self._ids[number] for number in self._requests.tolist()] if in_force.looks_at_requests else []
        self._chosen = in_force.select(ids, self._steps(self._requests, self._positions), self._positions)
        return bool(self._chosen.any())

    def _steps(self, requests: Int64, positions: Int64) -> Int64:
        """int64 [n]: the steps of rows at these positions."""
        steps: Int64 = positions - self._prompt_lens[requests] + 1
        return steps

    def take(self, result: StepResult, forced: Bools | None = None) -> None:
        self._taken = result, forced

    def write(self) -> None:
        self._settle()  # at once, while there is time; to write it takes less for a few steps together
        if len(self._kept) >= _MOST_STEPS or sum(len(step.tokens) for step in self._kept) >= _MOST_ROWS:
            self.flush()

    def flush(self) -> None:
        self._settle()
        kept, self._kept = self._kept, []
        if kept:
            self._writer.append([step.boiled for step in kept], self._records(kept))

    def _settle(self) -> None:
        """Follow the tokens of the step that was taken, and boil down those of its rows that are chosen."""
        if self._taken is None:
            return
        (result, forced), self._taken = self._taken, None
        tokens = result.token_ids[self._wanted]
        before = self._prefixes[self._requests]
        after = digest.splitmix(before ^ ((tokens.astype(np.uint64) + np.uint64(1)) * _SPREAD))
        self._prefixes[self._requests] = np.where(before == 0, before, after)
        if not self._chosen.any():
            return
        assert result.logits is not None, "the engine was asked for logits"
        chosen = slice(None) if self._chosen.all() else self._chosen
        self._kept.append(
            _Kept(
                boiled=self._writer.boil(result.logits[chosen]),
                requests=self._requests[chosen],
                positions=self._positions[chosen],
                tokens=tokens[chosen],
                prefixes=before[chosen],
                forced=False if forced is None else forced[self._wanted][chosen],
                batch_size=self._batch_size,
            )
        )

    def _records(self, kept: Sequence[_Kept]) -> store.Records:
        """INDEX [n] of all rows that are kept, as far as they are known here."""
        ends = np.cumsum([len(step.tokens) for step in kept]).tolist()
        records = np.zeros(ends[-1], store.INDEX)
        for step, end in zip(kept, ends, strict=True):
            own = records[end - len(step.tokens) : end]
            own["request"], own["position"], own["token"] = step.requests, step.positions, step.tokens
            own["prefix"], own["forced"], own["batch"] = step.prefixes, step.forced, step.batch_size
        requests = records["request"].astype(np.int64)
        records["step"] = self._steps(requests, records["position"].astype(np.int64))
        records["prefill"] = records["step"] == 0
        return records

    def close(self) -> None:
        self.flush()
        self._writer.close()


def prompt_hash(ids: list[int]) -> int:
    """64 bits of a prompt's ids, by which captures of two runs tell whether a request was the same one."""
    return int.from_bytes(hashlib.blake2b(array("q", ids).tobytes(), digest_size=8).digest(), "little")


def open_recorder(capture: frames.Capture, about: contest.Header) -> Recorder:
    """The recorder of a capture; `about` is what the agent knows of its model and engine. Raises InputError."""
    folder = Path(capture.folder)
    if capture.tier == "contest":
        return ContestRecorder(contest.Writer(folder, about))
    manifest = store.Manifest(
        model=about.model,
        fingerprint=about.fingerprint,
        tokenizer=capture.tokenizer,
        config=capture.config,
        engine=about.engine,
        engine_version=capture.version,
        dtype=about.dtype,
        quantisation=about.quantisation,
        vocab_size=about.vocab_size,
        decode="forced" if capture.force else "free",
        tier=capture.tier,
    )
    writer = store.Writer(folder, manifest, quick.boiler(manifest.vocab_size))
    chosen = policy.Policy(every=capture.every or 1, rate=capture.rate, seed=capture.seed)
    return StoreRecorder(writer, policy.Watched(folder, chosen))
