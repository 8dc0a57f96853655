"""What a run leaves behind: of each request its instants and what came of it, and samples of the client itself."""

from typing import Literal

import msgspec

from llmbench.types import FinishReason

Status = Literal["answered", "failed", "unfinished"]


class Record(msgspec.Struct, kw_only=True, tag="request", tag_field="kind"):
    """One request of a run. Instants are `clock.now_ns`; None where it never came to that.

    due        when the plan wanted it sent
    released   from when on nothing but ourselves held it back: due, or when a slot became free
    sent       just before a connection is looked for; the request's bytes were ready before
    connected  a connection is ready; the same as sent for one that was kept from before
    first_byte the first read of the response, whatever was in it
    stamps     the reads that brought tokens, with `tokens` counting how many each brought
    done       the read that ended the response, or the end of waiting for it
    """

    index: int
    request_id: str = ""
    status: Status = "unfinished"
    reason: str = ""
    due_ns: int
    released_ns: int | None = None
    sent_ns: int | None = None
    connected_ns: int | None = None
    first_byte_ns: int | None = None
    first_answer_ns: int | None = None
    """The first token after the model's reasoning; None where it did not reason."""
    done_ns: int | None = None
    stamps_ns: list[int] = []
    tokens: list[int] = []
    num_pieces: int = 0
    """Events that brought tokens; more than there are stamps when several came in one read."""
    num_tokens: int = 0
    exact_tokens: bool = True
    """Whether `tokens` are known; else nobody said how many a piece of the stream is, and one each was assumed."""
    num_prompt_tokens: int | None = None
    """As the plan counted them."""
    server_prompt_tokens: int | None = None
    """As the server says it counted them."""
    cached_tokens: int | None = None
    """Those of the prompt that the server says it had computed before."""
    expected_tokens: int | None = None
    finish_reason: FinishReason | None = None
    connection: Literal["", "new", "reused", "retried"] = ""
    http_status: int = 0
    token_ids: list[int] = []
    text: str = ""
    streamed_text: str | None = None
    """The text of the pieces, where the server ended with a whole text that does not begin with it."""


class Sample(msgspec.Struct, frozen=True, kw_only=True, tag="sample", tag_field="kind"):
    """What the measuring process itself did since the sample before it, `span_s` ago."""

    at_ns: int
    span_s: float
    cpu_s: float
    """CPU time, user and system."""
    lag_s: float
    """The longest time in which its event loop came to nothing."""
    rss_bytes: int
    waited_s: float = 0.0
    """How long its event loop's thread could have run and got no core; 0 where the system does not say."""


class Scrape(msgspec.Struct, frozen=True, kw_only=True, tag="scrape", tag_field="kind"):
    """The server's own counters at an instant, by Prometheus name; those with labels summed over them."""

    at_ns: int
    values: dict[str, float]


Line = Record | Sample | Scrape
