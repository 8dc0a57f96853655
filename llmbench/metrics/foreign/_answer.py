"""One request of another tool's file, as a trace."""

from typing import Literal

import msgspec


class Answer(msgspec.Struct, kw_only=True):
    """A trace that somebody else recorded; instants in ns on a clock of the file's own."""

    index: int
    status: Literal["answered", "failed", "unfinished"] = "answered"
    reason: str = ""
    due_ns: int = 0
    released_ns: int | None = None
    sent_ns: int | None = None
    connected_ns: int | None = None
    done_ns: int | None = None
    first_answer_ns: int | None = None
    stamps_ns: list[int] = []
    tokens: list[int] = []
    num_tokens: int = 0
    num_prompt_tokens: int | None = None
    server_prompt_tokens: int | None = None
    cached_tokens: int | None = None
    num_pieces: int = 0
    exact_tokens: bool = True
    expected_tokens: int | None = None
    finish_reason: Literal["eos", "length", "stop", "error", "cancelled"] | None = None


def ns(time_s: float) -> int:
    """Seconds as whole nanoseconds."""
    return round(time_s * 1e9)
