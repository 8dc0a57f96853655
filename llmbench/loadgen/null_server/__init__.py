"""A server whose emission times are known exactly, with faults to plant: the oracle that a load generator is held to.

It computes nothing. Every answer has as many tokens as were asked for, and the text of a token is the instant at which
it was handed to the socket, on the clock that all processes of a machine share (`clock.now_ns`); the first token also
has the instant at which the complete request had been read:

    " R<received_ns> <emitted_ns>"  " <emitted_ns>"  " <emitted_ns>" ...      each number in 19 digits

So the truth rides in the stream, a run's own records hold it (`truth(record.text)`), and nothing has to be joined.

    python -m llmbench.loadgen.null_server --port 8100 --ttft-s 0.05 --gap-s 0.01 --error-share 0.02
"""

import re
import sys
from contextlib import AbstractContextManager
from typing import Annotated

import msgspec

from llmbench.errors import InvalidMeasurement
from llmbench.processes import Child, child

READY = "llmbench null server: ready on "
_GOODBYE_S = 5.0
_TEXT = re.compile(r" R(\d{19})((?: \d{19})+)")

Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wrong with the server; by default nothing.

    A share is the probability that a request has the fault, drawn from the seed and the number of the request in order
    of arrival, so that a run can be repeated. "After n tokens" is before token n is sent, the first being token 0.
    Stamps are of the instant before the faulty way begins: a buffering proxy delays what was stamped in time.
    """

    # the way to the client
    tokens_per_event: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Tokens merged into one event; they have one stamp."""
    flush_s: Seconds = 0.0
    """A proxy that writes what has gathered every so many seconds, counted from the request."""
    drip_bytes: Count = 0
    """Every event is cut into writes of so many bytes; 0: not cut."""
    drip_gap_s: Seconds = 0.0
    """Between two such writes."""
    drop_share: Share = 0.0
    """The connection is closed without an answer when the request has come."""
    refuse_share: Share = 0.0
    """Of connections, by their number: reset as soon as they are made. The very first is spared."""
    abort_share: Share = 0.0
    """The connection is reset in the middle of the answer, after `abort_after` tokens."""
    abort_after: Count = 1
    # the server
    error_share: Share = 0.0
    """Answered with the status `error_status`."""
    error_status: Annotated[int, msgspec.Meta(ge=400, le=599)] = 503
    hang_share: Share = 0.0
    """The answer never goes on after `hang_after` tokens."""
    hang_after: Count = 1
    stall_every: Count = 0
    """Every so manieth request stops for `stall_s` after `stall_after` tokens; 0: none."""
    stall_after: Count = 1
    stall_s: Seconds = 0.0
    stall_at_s: float = -1.0
    """So long after the first request the whole server stops for `stall_s`; negative: never."""
    slow_down: Annotated[float, msgspec.Meta(gt=-1)] = 0.0
    """All times are longer by this share: 0.05 is 5 %."""
    # what it says and counts
    truncate_share: Share = 0.0
    """The answer has only the share `truncate_to` of the tokens that were asked for, and still ends with `length`."""
    truncate_to: Share = 0.5
    usage_off_by: int = 0
    """Added to the number of new tokens that `usage` says; dialects that count their own events do not lie."""
    cache_speed: Share = 1.0
    """A prompt that was seen before is answered in this share of the time; 1: there is no cache."""
    cache_counted: bool = False
    """Such an answer's `usage` says that its prompt came from the cache."""
    tenant_rate: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Requests per second of other clients in `/metrics`; nobody sends them."""
    tenant_slow_down: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Other clients make a request's times longer by up to this share, evenly drawn."""
    clock_jump_after: Count = 0
    """From the request of this number on, the server's wall clock (Date, `created`) is off by `clock_jump_s`."""
    clock_jump_s: float = 0.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a sound server of this kind behaves, and its faults."""

    ttft_s: Seconds = 0.05
    """From the complete request (with `slots`: from the free slot) to the first token."""
    gap_s: Seconds = 0.01
    """Between tokens; 0 sends as fast as it can."""
    num_tokens: Annotated[int, msgspec.Meta(ge=1)] = 64
    """Where a request does not say how many it wants; such an answer ends by itself."""
    prompt_token_s: Seconds = 0.0
    """Added to the time to first token for every token of the prompt."""
    slots: Count = 0
    """How many requests are answered at once, the others wait in line; 0: all."""
    crowding: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Each request beside one makes its gaps longer by this share, as a growing batch does."""
    spread: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """Times of a request are multiplied by exp(spread * z), z normal, drawn by its number."""
    tokenizer: str = ""
    """A tokenizer.model that counts prompts; without it a word is a token."""
    seed: int = 0
    faults: Faults = Faults()


class Truth(msgspec.Struct, frozen=True):
    """When a request was there and when each of its tokens was handed to the socket, in ns of `clock.now_ns`."""

    received_ns: int
    emitted_ns: list[int]


def truth(text: str) -> Truth:
    """The instants in an answer's text. Raises InvalidMeasurement when it is not a whole answer of a null server."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise InvalidMeasurement(f"not an answer of the null server: {text[:60]!r}")
    return Truth(int(found[1]), [int(number) for number in found[2].split()])


NullServer = Child
"""A null server that answers, in a process of its own."""


def flags(settings: Settings) -> list[str]:
    """The command line that says these settings: `--flag value` for each one that is not the default."""
    given: list[str] = []
    for part, default in ((settings, Settings()), (settings.faults, Faults())):
        for field in msgspec.structs.fields(type(part)):
            value = getattr(part, field.name)
            if field.name == "faults" or value == getattr(default, field.name):
                continue
            flag = f"--{field.name.replace('_', '-')}"
            given += [flag] if value is True else [f"{flag}={value}"]
    return given


def launched(settings: Settings = Settings()) -> AbstractContextManager[NullServer]:  # noqa: B008 (frozen)
    """A null server on a free port, in a process of its own; ended on leaving, and should this process be killed.

    Raises ConfigError when it refuses its settings, ServingError when it does not start; its message is on stderr.
    """
    command = [sys.executable, "-m", "llmbench.loadgen.null_server", "--until-stdin-closes", *flags(settings)]
    return child(command, READY, "the null server", _GOODBYE_S)
