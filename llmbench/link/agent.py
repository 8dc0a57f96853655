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
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from llmbench import clock, engines
from llmbench.engines import Engine
from llmbench.errors import AgentDied, LlmbenchError
from llmbench.link import binding, extras, forcing, frames
from llmbench.link.arena import Arena, Dimensions, StepArrays
from llmbench.link.capture import Recorder, open_recorder
from llmbench.link.collective import Collective
from llmbench.link.forcing import Forcing
from llmbench.logits import contest
from llmbench.weights.model import open_model

TOKEN_VARIABLE = "LLMBENCH_AGENT_TOKEN"
HOLLOW_TOKEN_ID = 300  # behind the bytes that a sentencepiece vocabulary begins with: it has text


class Held(NamedTuple):
    """What an agent has loaded: a recorder where rows are captured, a forcing where tokens are given.

    `fingerprint` is of the weights, "" where nothing is captured: it takes reading them all.
    """

    engine: Engine
    recorder: Recorder | None = None
    forced: Forcing | None = None
    fingerprint: str = ""

    def close(self) -> None:
        """Write what was taken, and give back what is held."""
        self.engine.close()
        if self.recorder is not None:
            self.recorder.close()
        if self.forced is not None:
            self.forced.close()


def run_step(
    engine: Engine,
    arrays: StepArrays,
    step: frames.Step,
    recorder: Recorder | None = None,
    forced: Forcing | None = None,
) -> frames.Done:
    """One step from the arena and back into it; the recorder keeps what it is to write."""
    agent_start_ns = clock.now_ns()
    batch, asked, slots = arrays.batch(step.num_sequences, step.num_tokens), step.extras, arrays.slots
    capture, given = False, None
    if recorder is not None:
        recorder.admit(step.admitted)
        capture = recorder.wants(batch, slots[: step.num_sequences])
    if forced is not None:
        forced.admit(step.admitted)
        given = forced.tokens(batch, slots[: step.num_sequences])
        asked = forcing.without_choice(asked, given)
        capture |= bool((given != forcing.FREE).any())
    if asked:
        batch = extras.wanted(batch, asked)
    if capture and not batch.want_logits:
        batch = msgspec.structs.replace(batch, want_logits=True)
    start_ns = clock.now_ns()
    result = engine.step(batch)
    engine_ns = clock.now_ns() - start_ns
    if given is not None:
        forcing.give(batch, result, given)
    scored = extras.apply(batch, result, asked) if asked else []
    arrays.store(result)
    if recorder is not None:
        recorder.take(result, None if given is None else given != forcing.FREE)
    return frames.Done(engine_ns=engine_ns, agent_ns=clock.now_ns() - agent_start_ns, scored=scored)


def run_hollow_step(arrays: StepArrays, step: frames.Step, step_time_s: float) -> frames.Done:
    """The same token for everybody, when the declared time has passed."""
    if step_time_s:
        time.sleep(step_time_s)
    n = step.num_sequences
    arrays.out_token_ids[:n] = np.where(arrays.wants_token[:n], HOLLOW_TOKEN_ID, -1)
    arrays.out_logits[:n] = 0
    return frames.Done(engine_ns=0)


def take_part(
    group: Collective,
    held: Held,
    arrays: StepArrays,
    step: frames.Step,
    hollow_time_s: float | None,
) -> frames.Done | frames.Refused | None:
    """One step as one rank of several: the answer at rank 0, None at the others.

    An error that all ranks meet alike, or rank 0 alone behind its last exchange, is an answer; after any other the
    ranks no longer fit together, and AgentDied ends the group.
    """
    answer: frames.Done | frames.Refused | None = None
    failed = False
    try:
        if group.rank:
            if hollow_time_s is None:
                held.engine.step(extras.wanted(arrays.batch(step.num_sequences, step.num_tokens), step.extras))
        elif hollow_time_s is None:
            answer = run_step(held.engine, arrays, step, held.recorder, held.forced)
        else:
            answer = run_hollow_step(arrays, step, hollow_time_s)
    except AgentDied:
        raise
    except LlmbenchError as error:
        failed = True
        answer = None if group.rank else _refused(error)
    group.end_step(failed)
    return answer


def load(message: frames.Load, group: Collective | None) -> Held:
    """The engine, and what watches its steps. Raises InputError, as for a base that cannot force."""
    settings = message.settings
    if group is not None:
        num_threads = settings.threads or len(binding.available_cores())
        settings = msgspec.structs.replace(settings, threads=max(1, num_threads // group.size))
    if message.bind_cpu:
        binding.bind(*((0, 1) if group is None else (group.rank, group.size)))
    model = open_model(message.model)
    capture = None if group is not None and group.rank else message.capture
    forced = None
    if capture is not None and capture.force:  # before the weights are read: it may be no base
        forced = forcing.open_forcing(capture.force, model.config.vocab_size)
    engine = engines.get(message.engine, model, settings, group)
    if capture is None:
        return Held(engine)
    header = contest.Header(
        every=capture.every or contest.EVERY,
        model=message.model,
        fingerprint=model.fingerprint(),
        engine=engine.name,
        dtype=engine.dtype,
        quantisation=model.config.quantisation,
        vocab_size=model.config.vocab_size,
    )
    return Held(engine, open_recorder(capture, header), forced, header.fingerprint)


def _loaded(held: Held) -> frames.Loaded:
    engine = held.engine
    return frames.Loaded(
        capacity=engine.capacity(), engine=engine.name, dtype=engine.dtype, fingerprint=held.fingerprint
    )


def _refused(error: LlmbenchError) -> frames.Refused:
    return frames.Refused(message=str(error), exit_code=error.exit_code)


def serve(channel: frames.Channel) -> None:
    """Answer frames until the server stops this agent or has gone.

    Ends the process when its group is broken, captured rows cannot be written, or anything else is wrong. It says so
    before it leaves its group and its connection: the server then kills all ranks, this one too.
    """
    held: Held | None = None
    hollow_time_s: float | None = None
    arena: Arena | None = None
    group: Collective | None = None
    try:
        while (message := _next(channel, held)) is not None:
            try:
                if isinstance(message, frames.Step):
                    assert held is not None, "a step came before the model"
                    assert arena is not None, "a step came before the arena"
                    if group is not None:
                        answer = take_part(group, held, arena.arrays, message, hollow_time_s)
                        if answer is not None:
                            channel.send(answer)
                    elif hollow_time_s is None:
                        channel.send(run_step(held.engine, arena.arrays, message, held.recorder, held.forced))
                    else:
                        channel.send(run_hollow_step(arena.arrays, message, hollow_time_s))
                    if held.recorder is not None:  # while the server hands out the tokens
                        written(held.recorder.write)
                elif isinstance(message, frames.Load):
                    if (member := message.member) is not None:
                        group = Collective.join(Path(member.path), member.rank, member.size)
                    held = load(message, group)
                    hollow_time_s = message.settings.step_time_s if message.hollow else None
                    channel.send(_loaded(held))
                elif isinstance(message, frames.Attach):
                    size = Dimensions(
                        max_batch=message.max_batch, max_tokens=message.max_tokens, max_blocks=message.max_blocks
                    )
                    arena = Arena.attach(Path(message.path), size)
                    channel.send(frames.Ok())
                else:
                    return
            except AgentDied:
                raise
            except LlmbenchError as error:
                channel.send(_refused(error))
            except MemoryError:
                if group is not None:  # the others wait where this rank does not come any more
                    raise
                channel.send(frames.Refused(message="out of memory", exit_code=3))
    except AgentDied as error:
        print(f"agent {os.getpid()} ends: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    except Exception:
        logging.exception("agent %d ends", os.getpid())
        sys.exit(1)
    finally:
        if group is not None:
            group.leave()
        if held is not None:
            held.close()


def _next(channel: frames.Channel, held: Held | None) -> frames.Frame | None:
    """The next frame; what the recorder still keeps is written when there is time."""
    recorder = None if held is None else held.recorder
    return channel.receive(None if recorder is None else lambda: written(recorder.flush))


def written(write: Callable[[], None]) -> None:
    """Write captured rows. Raises AgentDied when that cannot be done: the step is answered already, and a second answer
    to it would be taken for the next one's.
    """
    try:
        write()
    except (LlmbenchError, OSError) as error:
        raise AgentDied(f"the captured rows cannot be written: {error}") from error


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
