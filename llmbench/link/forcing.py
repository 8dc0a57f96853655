"""Teacher forcing: sequences are given the tokens that a base has for them, whatever the engine would choose.

The step itself is the served one, with the same kernels, batches and cache; only what goes on from it is the base's. So
every row of a capture has the text before it that the base's row has, and stays comparable.
"""

import logging
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.engines import Batch, Int32, StepResult
from llmbench.errors import InputError
from llmbench.link import frames
from llmbench.link.capture import prompt_hash
from llmbench.link.extras import Extra
from llmbench.logits import policy
from llmbench.logits.store import Store, located

Bools = npt.NDArray[np.bool_]
FREE = -1
_log = logging.getLogger(__name__)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a base answered: `tokens` int32 by step. The prompt is that of a sequence by its length and hash."""

    tokens: Int32
    prompt_len: int
    prompt: int

    def is_of(self, admitted: frames.Admitted) -> bool:
        """Whether this sequence asks what the base was asked; a hash of 0 is not known."""
        ids = admitted.prompt_ids
        return len(ids) == self.prompt_len and self.prompt in (0, prompt_hash(ids))


class Forcing:
    """Which token each sequence is to get. What the base does not know runs free, and is counted.

    That is: a request that it does not have, one that has another prompt there, and what comes behind its last token.
    """

    def __init__(self, answers: dict[str, Answer], source: str) -> None:
        self._answers = answers
        self._source = source
        self._in_slot: dict[int, Answer | None] = {}
        self._seen: dict[tuple[str, float], str] = {}  # what is known of each sequence: forced, unknown, other prompt
        self._num_tokens = 0
        self._num_beyond = 0

    def admit(self, admitted: list[frames.Admitted]) -> None:
        """Sequences that take a slot with this step."""
        for sequence in admitted:
            answer = self._answers.get(sequence.request_id)
            state = "unknown" if answer is None else "forced" if answer.is_of(sequence) else "other prompt"
            self._seen[sequence.request_id, sequence.arrival_s] = state
            self._in_slot[sequence.slot] = answer if state == "forced" else None

    def tokens(self, batch: Batch, slots: Int32) -> Int32:
        """int32 [n]: the token that each sequence of the step gets; FREE where it wants none or chooses itself."""
        given = np.full(len(slots), FREE, np.int32)
        for i in np.flatnonzero(batch.wants_token).tolist():
            answer = self._in_slot.get(int(slots[i]))
            if answer is None:
                continue
            step = int(batch.context_lens[i]) - answer.prompt_len
            if step < len(answer.tokens):
                given[i] = answer.tokens[step]
                self._num_tokens += 1
            else:
                self._num_beyond += 1
        return given

    def close(self) -> None:
        """Say what was forced, and what was not."""
        states = list(self._seen.values())
        free = [
            f"{states.count('unknown')} requests that it does not have",
            f"{states.count('other prompt')} that have another prompt there",
            f"{self._num_beyond} tokens behind the end of its answers",
        ]
        said = f"{self._num_tokens} tokens of {states.count('forced')} requests forced to those of {self._source}"
        _log.info("%s; free ran %s", said, ", ".join(free))


def open_forcing(base: str, vocab_size: int) -> Forcing:
    """The answers of a base, a store or the folder of a run that has one.

    Raises InputError when there is none, when it is of another vocabulary, or lacks steps.
    """
    store = Store(located(Path(base)))
    if store.vocab_size != vocab_size:
        raise InputError(f"--force {base}: it has {store.vocab_size} token ids, the model {vocab_size}")
    return Forcing(answers(store), base)


def answers(store: Store) -> dict[str, Answer]:
    """The answers in a store by request id. Raises InputError unless every row of every answer is there, once."""
    order = np.lexsort((store.table["step"], store.table["request"]))
    table = store.table[order]
    found: dict[str, Answer] = {}
    for rows in np.split(table, np.flatnonzero(np.diff(table["request"].astype(np.int64))) + 1):
        if not len(rows):  # an empty store
            continue
        request = store.requests[int(rows["request"][0])]
        if request.id in found:
            raise InputError(f"--force {store.folder}: request {request.id} is there twice; which answer counts?")
        if (rows["step"] != np.arange(len(rows))).any() or (rows["token"] < 0).any():
            raise InputError(
                f"--force {store.folder}: not every step of {request.id} is there{_policy(store)}; capture the base "
                "with every row (--every 1, rate 1)"
            )
        found[request.id] = Answer(
            tokens=rows["token"].astype(np.int32), prompt_len=request.prompt_len, prompt=request.prompt
        )
    return found


def _policy(store: Store) -> str:
    """Why there may be only a part of the rows."""
    found = policy.read(store.folder)
    return "" if found is None else f" (every {found.every}, rate {found.rate:g})"


def give(batch: Batch, result: StepResult, tokens: Int32) -> None:
    """Put the given tokens, int32 [n], into the result in place. Its logits stay the model's; they must be there."""
    rows = np.flatnonzero(tokens != FREE)
    if not len(rows):
        return
    assert result.logits is not None, "the engine was asked for logits"
    row_of = np.cumsum(batch.wants_token) - 1  # of each sequence, in result.logits
    result.token_ids[rows] = tokens[rows]
    result.chosen_logits[rows] = result.logits[row_of[rows], tokens[rows]]


def without_choice(extras: list[Extra], tokens: Int32) -> list[Extra]:
    """What is asked besides the next token; where that is given, penalties and bans have nothing to choose."""
    return [
        msgspec.structs.replace(extra, penalties=None, banned=[]) if tokens[extra.row] != FREE else extra
        for extra in extras
    ]
