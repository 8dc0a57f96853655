import socket
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.engines import Capacity, EngineSettings
from llmbench.errors import AgentDied
from llmbench.link import frames
from llmbench.link.extras import Extra, Penalties, PromptTargets, Scored
from llmbench.link.frames import Assembler, Channel, Frame

EVERY: tuple[Frame, ...] = (
    frames.Hello(token="0f" * 16, pid=4711),
    frames.Load(
        model="random:tiny",
        engine="numpy_llama",
        settings=EngineSettings(num_blocks=None, max_batch=4, threads=2),
        capture=frames.Capture(folder="/tmp/世界", every=100),
    ),
    frames.Load(model="embedded", engine="stub", settings=EngineSettings()),
    frames.Loaded(
        capacity=Capacity(num_blocks=64, block_size=16, max_model_len=1024), engine="numpy_llama", dtype="float32"
    ),
    frames.Attach(path="/dev/shm/llmbench-1-ab", max_batch=4, max_tokens=512, max_blocks=64),
    frames.Ok(),
    frames.Step(
        num_sequences=2,
        num_tokens=9,
        admitted=[frames.Admitted(slot=1, request_id="r1", arrival_s=1718418290.5565388, prompt_ids=[1, 20355, 915])],
        extras=[
            Extra(
                row=0,
                penalties=Penalties(repetition=1.1, presence=0.5, frequency=0.0, history=[1, 2, 3], prompt_len=2),
                banned=[2],
                num_logprobs=3,
                prompt=PromptTargets(token_ids=[5, 6], num_top=1),
            )
        ],
    ),
    frames.Step(num_sequences=1, num_tokens=1),
    frames.Done(engine_ns=123, scored=[Scored(row=0, logprob=-0.5, top=[(7, -0.5)], prompt=[(-1.5, [(5, -0.1)])])]),
    frames.Refused(message="model 'x': no such folder", exit_code=2),
    frames.Stop(),
)
TOO_LONG = struct.pack("<I", (64 << 20) + 1)
GARBAGE = (
    b"\x00\x00\x00\x00",
    struct.pack("<I", 5) + b"hello",
    struct.pack("<I", 1) + b"\x80",
    b"GET / HTTP/1.1\r\n\r\n",
)


@pytest.mark.parametrize("frame", EVERY, ids=lambda frame: type(frame).__name__)
def test_a_frame_comes_back_as_it_was_at_every_cut(frame: Frame) -> None:
    data = frames.encode(frame)
    for cut in range(len(data) + 1):
        assembler = Assembler()
        assert assembler.feed(data[:cut]) + assembler.feed(data[cut:]) == [frame]


def test_frames_come_in_their_order_however_they_are_cut() -> None:
    data = b"".join(map(frames.encode, EVERY))
    assert Assembler().feed(data) == list(EVERY)
    assembler = Assembler()
    assert [frame for byte in data for frame in assembler.feed(bytes([byte]))] == list(EVERY)


def test_the_length_stands_in_front_in_four_bytes_lowest_first() -> None:
    data = frames.encode(frames.Stop())
    assert struct.unpack("<I", data[:4]) == (len(data) - 4,)


def test_a_frame_that_is_too_long_to_be_ours_is_refused_before_its_body_is_awaited() -> None:
    with pytest.raises(AgentDied, match="a message of 67108865 bytes on the agent link is not one of ours"):
        Assembler().feed(TOO_LONG)


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(AgentDied, match="agent link"):
        Assembler().feed(garbage)


@given(data=st.binary(max_size=60))
def test_random_bytes_give_frames_or_the_error_of_the_link(data: bytes) -> None:
    for body in (data, struct.pack("<I", len(data)) + data):
        try:
            Assembler().feed(body)
        except AgentDied:
            continue


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    return ours, theirs


def test_the_agents_end_reads_frames_that_come_byte_by_byte(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends

    def trickle() -> None:
        for byte in b"".join(map(frames.encode, EVERY)):
            theirs.sendall(bytes([byte]))
        theirs.close()

    thread = threading.Thread(target=trickle)
    thread.start()
    with ours:
        channel = Channel(ours)
        assert [channel.receive() for _ in EVERY] == list(EVERY)
        assert channel.receive() is None
    thread.join()


def test_what_the_agent_sends_the_server_puts_together(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    with ours, theirs:
        for frame in EVERY:
            Channel(ours).send(frame)
        ours.shutdown(socket.SHUT_WR)
        assembler, read = Assembler(), []
        while data := theirs.recv(7):
            read += assembler.feed(data)
    assert read == list(EVERY)


def test_a_server_that_goes_in_the_middle_of_a_frame_has_gone(ends: tuple[socket.socket, socket.socket]) -> None:
    data = frames.encode(EVERY[1])
    ours, theirs = ends
    with ours:
        theirs.sendall(data[: len(data) // 2])
        theirs.close()
        assert Channel(ours).receive() is None


def test_an_agent_has_time_for_something_else_when_nothing_comes(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    asked = 0

    def idle() -> None:
        nonlocal asked
        asked += 1
        theirs.sendall(frames.encode(EVERY[1]))

    ours.settimeout(None)  # as the agent's, so that Python does not wait where it was told not to
    with ours, theirs:
        channel = Channel(ours)
        theirs.sendall(frames.encode(EVERY[0]))
        assert (channel.receive(idle), asked) == (EVERY[0], 0)
        assert (channel.receive(idle), asked) == (EVERY[1], 1)


@pytest.mark.parametrize("wrong", [TOO_LONG, *GARBAGE[1:]])
def test_the_agent_does_not_trust_a_server_that_talks_garbage(
    ends: tuple[socket.socket, socket.socket], wrong: bytes
) -> None:
    ours, theirs = ends
    with ours, theirs:
        theirs.sendall(wrong)
        with pytest.raises(AgentDied):
            Channel(ours).receive()
