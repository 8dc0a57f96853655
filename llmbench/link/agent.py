"""The agent process: holds the model and the logits, runs one step for each frame.

Started by the server as `python -m llmbench.link.agent HOST PORT` with LLMBENCH_AGENT_TOKEN in its environment; it ends
when the server says so or has gone. Only token ids go back; captured rows are written from here.
"""

import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path

import msgspec
import numpy as np

from llmbench import clock, engines
from llmbench.engines import Batch, Engine, StepResult
from llmbench.errors import LlmbenchError
from llmbench.link import extras, frames
from llmbench.link.arena import Arena, Dimensions, StepArrays
from llmbench.logits import contest
from llmbench.weights.model import open_model

TOKEN_VARIABLE = "LLMBENCH_AGENT_TOKEN"
HOLLOW_TOKEN_ID = 300  # behind the bytes that a sentencepiece vocabulary begins with: it has text
_log = logging.getLogger(__name__)


class Recorder:
    """Writes the rows that are to be captured; knows which sequence sits in which slot."""

    def __init__(self, writer: contest.Writer) -> None:
        self._writer = writer
        self._in_slot: dict[int, frames.Admitted] = {}

    def admit(self, admitted: list[frames.Admitted]) -> None:
        self._in_slot.update((sequence.slot, sequence) for sequence in admitted)

    def wants(self, batch: Batch) -> bool:
        """Whether any row of this step is to be captured."""
        return bool(np.any(batch.wants_token & ((batch.context_lens - 1) % self._writer.every == 0)))

    def record(self, batch: Batch, slots: list[int], result: StepResult) -> None:
        """Write the rows of this step that are due."""
        assert result.logits is not None, "the engine was asked for logits"
        for row, i in zip(result.logits, np.flatnonzero(batch.wants_token).tolist(), strict=True):
            index = int(batch.context_lens[i]) - 1
            if not self._writer.wants(index):
                continue
            sequence = self._in_slot[slots[i]]
            self._writer.write(
                row,
                head=sequence.head,
                arrival_s=sequence.arrival_s,
                request_id=sequence.request_id,
                index=index,
                prefill=index == sequence.prompt_len - 1,
                token_id=int(result.token_ids[i]),
                batch_size=len(slots),
            )

    def close(self) -> None:
        self._writer.close()


def run_step(engine: Engine, arrays: StepArrays, step: frames.Step, recorder: Recorder | None) -> frames.Done:
    """One step from the arena and back into it."""
    agent_start_ns = clock.now_ns()
    batch = arrays.batch(step.num_sequences, step.num_tokens)
    if step.extras:
        batch = extras.wanted(batch, step.extras)
    capture = False
    if recorder is not None:
        recorder.admit(step.admitted)
        capture = recorder.wants(batch)
    if capture and not batch.want_logits:
        batch = msgspec.structs.replace(batch, want_logits=True)
    start_ns = clock.now_ns()
    result = engine.step(batch)
    engine_ns = clock.now_ns() - start_ns
    scored = extras.apply(batch, result, step.extras) if step.extras else []
    arrays.store(result)
    if recorder is not None and capture:
        recorder.record(batch, arrays.slots[: step.num_sequences].tolist(), result)
    return frames.Done(engine_ns=engine_ns, agent_ns=clock.now_ns() - agent_start_ns, scored=scored)


def run_hollow_step(arrays: StepArrays, step: frames.Step, step_time_s: float) -> frames.Done:
    """The same token for everybody, when the declared time has passed."""
    if step_time_s:
        time.sleep(step_time_s)
    n = step.num_sequences
    arrays.out_token_ids[:n] = np.where(arrays.wants_token[:n], HOLLOW_TOKEN_ID, -1)
    arrays.out_logits[:n] = 0
    return frames.Done(engine_ns=0)


def load(message: frames.Load) -> tuple[Engine, Recorder | None]:
    """The engine, and the recorder when rows are to be captured."""
    model = open_model(message.model)
    engine = engines.get(message.engine, model, message.settings)
    if message.capture is None:
        return engine, None
    header = contest.Header(
        every=message.capture.every,
        model=message.model,
        fingerprint=model.fingerprint(),
        engine=engine.name,
        dtype=engine.dtype,
        vocab_size=model.config.vocab_size,
    )
    return engine, Recorder(contest.Writer(Path(message.capture.folder), header))


def serve(channel: frames.Channel) -> None:
    """Answer frames until the server stops this agent or has gone."""
    engine: Engine | None = None
    recorder: Recorder | None = None
    hollow_time_s: float | None = None
    arena: Arena | None = None
    try:
        while (message := channel.receive()) is not None:
            try:
                if isinstance(message, frames.Step):
                    assert engine is not None, "a step came before the model"
                    assert arena is not None, "a step came before the arena"
                    if hollow_time_s is None:
                        channel.send(run_step(engine, arena.arrays, message, recorder))
                    else:
                        channel.send(run_hollow_step(arena.arrays, message, hollow_time_s))
                elif isinstance(message, frames.Load):
                    engine, recorder = load(message)
                    hollow_time_s = message.settings.step_time_s if message.hollow else None
                    channel.send(frames.Loaded(capacity=engine.capacity(), engine=engine.name, dtype=engine.dtype))
                elif isinstance(message, frames.Attach):
                    size = Dimensions(
                        max_batch=message.max_batch, max_tokens=message.max_tokens, max_blocks=message.max_blocks
                    )
                    arena = Arena.attach(Path(message.path), size)
                    channel.send(frames.Ok())
                else:
                    return
            except LlmbenchError as error:
                channel.send(frames.Refused(message=str(error), exit_code=error.exit_code))
            except MemoryError:
                channel.send(frames.Refused(message="out of memory", exit_code=3))
    finally:
        if engine is not None:
            engine.close()
        if recorder is not None:
            recorder.close()


def main(host: str, port: int) -> None:
    """Connect to the server and serve it. Ctrl-C is the server's business: it stops its agents."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.create_connection((host, port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        channel = frames.Channel(connection)
        channel.send(frames.Hello(token=os.environ.pop(TOKEN_VARIABLE, ""), pid=os.getpid()))
        serve(channel)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(levelname)s %(message)s")
    main(sys.argv[1], int(sys.argv[2]))
