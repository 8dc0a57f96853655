"""Control messages between server and agent: a 4-byte little-endian length, then one msgpack struct.

The server speaks first after the agent has said hello; every message of the server but `Stop` has exactly one answer.

    agent   Hello(token)         server  Load(...)
    agent   Loaded(capacity)     server  Attach(arena)
    agent   Ok                   server  Step(...)          one for each step
    agent   Done | Refused       server  Stop
"""

import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from llmbench import clock
from llmbench.engines import Capacity, EngineSettings
from llmbench.errors import AgentDied
from llmbench.link.extras import Extra, Scored

_LENGTH = struct.Struct("<I")
_READ_BYTES = 64 << 10
_AWAKE_NS = 200_000
_IDLE_S = 0.01
_LARGEST_BYTES = 64 << 20  # a longer frame is not ours


CaptureTier = Literal["contest", "fp", "topk", "full16", "full32"]


class Hello(msgspec.Struct, tag=True, frozen=True):
    """The agent proves with the token from its environment that it is the one this server started."""

    token: str
    pid: int


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """Which logit rows the agent writes: those whose last input token has an index divisible by `every`, and of them,
    but for the contest's files, a share of `rate`. `every` None is 100 for the contest's files, else 1.

    `force` is a base whose tokens are fed to the sequences, see link.forcing; "" for none. `tokenizer` and `config` are
    hashes of what the server runs with.
    """

    folder: str
    every: int | None
    tier: CaptureTier = "contest"
    rate: float = 1.0
    seed: str = ""
    force: str = ""
    tokenizer: str = ""
    config: str = ""
    version: str = ""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """An agent's place among `size` of them that hold one model; `path` is the memory through which they exchange."""

    rank: int
    size: int
    path: str


class Load(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What the agent is to run. A `hollow` one answers every step at once, without running anything.

    One that is a `member` of a group takes part in every step, but only rank 0 answers it. `settings.threads` are of
    all ranks together.
    """

    model: str
    engine: str | None
    settings: EngineSettings
    capture: Capture | None = None
    hollow: bool = False
    member: Member | None = None
    bind_cpu: bool = False


class Loaded(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The engine is ready for an arena. `fingerprint` is of the weights, "" where nothing is captured."""

    capacity: Capacity
    engine: str
    dtype: str
    fingerprint: str = ""


class Attach(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Where the arena lies, and its sizes: sequences, new tokens in a step, blocks of one sequence."""

    path: str
    max_batch: int
    max_tokens: int
    max_blocks: int


class Admitted(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that takes a slot with this step; what the capture needs to name its rows and to have them replayed.

    `arrival_s` is wall time, different for every sequence of a server.
    """

    slot: int
    request_id: str
    arrival_s: float
    prompt_ids: list[int]


class Step(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Run what lies in the arena."""

    num_sequences: int
    num_tokens: int
    admitted: list[Admitted] = []
    extras: list[Extra] = []


class Ok(msgspec.Struct, tag=True, frozen=True):
    """Done as asked."""


class Done(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """The step's tokens lie in the arena; `engine_ns` is what the engine took, `agent_ns` all that the agent did."""

    engine_ns: int
    agent_ns: int = 0
    scored: list[Scored] = []


class Refused(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """What was asked could not be done; `exit_code` is that of the error at the agent."""

    message: str
    exit_code: int


class Stop(msgspec.Struct, tag=True, frozen=True):
    """The agent ends."""


Frame: TypeAlias = Hello | Load | Loaded | Attach | Step | Ok | Done | Refused | Stop

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """The bytes of a frame, its length in front."""
    body = _encoder.encode(frame)
    return _LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Frame:
    """The frame in a body. Raises AgentDied when it is none: the other side is not one of ours."""
    try:
        frame: Frame = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise AgentDied(f"a message on the agent link cannot be read ({error})") from error
    return frame


def body_length(head: bytes) -> int:
    """The length of the body that follows a head of 4 bytes."""
    (length,) = _LENGTH.unpack(head)
    if length > _LARGEST_BYTES:
        raise AgentDied(f"a message of {length} bytes on the agent link is not one of ours")
    return int(length)


class Assembler:
    """Puts frames together from bytes in any cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. Raises AgentDied when they are none."""
        data = self._rest + data
        frames, at = [], 0
        while len(data) - at >= _LENGTH.size:
            end = at + _LENGTH.size + body_length(data[at : at + _LENGTH.size])
            if end > len(data):
                break
            frames.append(decode(data[at + _LENGTH.size : end]))
            at = end
        self._rest = data[at:]
        return frames


class Channel:
    """The agent's end: blocking, one thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._assembler = Assembler()
        self._arrived: deque[Frame] = deque()

    def send(self, frame: Frame) -> None:
        self._connection.sendall(encode(frame))

    def receive(self, idle: Callable[[], None] | None = None) -> Frame | None:
        """The next frame; None when the server has gone. `idle` is called when none has come for 10 ms."""
        while not self._arrived:
            data = self._read(idle)
            if not data:
                return None
            self._arrived.extend(self._assembler.feed(data))
        return self._arrived.popleft()

    def _read(self, idle: Callable[[], None] | None) -> bytes:
        """What has come, b"" when the server has gone. Between two steps it does not sleep at once: to be woken
        costs more than the step's frame is away, on a virtual machine above all.
        """
        deadline_ns = clock.now_ns() + _AWAKE_NS
        try:
            while clock.now_ns() < deadline_ns:
                try:
                    return self._connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    os.sched_yield()
            if idle is not None and not select.select([self._connection], [], [], _IDLE_S)[0]:
                idle()
            return self._connection.recv(_READ_BYTES)
        except ConnectionError:
            return b""
