"""What a response makes of its record: stamped pieces in, tokens and text out, whatever carries them."""

from collections.abc import Mapping

from llmbench.loadgen.record import Record
from llmbench.protocols import ClientHalf, Decoder
from llmbench.types import Request

_SHOWN_BODY_CHARS = 200


class Answer:
    """Fills a record from the head and the body of one response."""

    def __init__(self, dialect: ClientHalf, request: Request, record: Record) -> None:
        self._dialect = dialect
        self._request = request
        self._record = record
        self._decoder: Decoder | None = None
        self._refusal = b""
        self._pieces: list[str] = []
        self._error = ""
        self._assumed = False  # of some pieces nobody said how many tokens they are
        self._reasoned = False
        self._total_tokens: int | None = None

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        """The status has come; `headers` have lower-case names."""
        self._record.http_status = status
        if status == 200:
            self._decoder = self._dialect.decoder(self._request, headers)

    def body(self, stamp_ns: int, data: bytes) -> None:
        """A piece of the body, read at that instant."""
        if self._decoder is None:
            self._refusal += data[: 4 * _SHOWN_BODY_CHARS - len(self._refusal)]
        else:
            self._take(stamp_ns, self._decoder, data)

    def end(self, stamp_ns: int) -> str:
        """The response is whole: why it is no answer, nothing if it is one."""
        if self._decoder is None:
            shown = self._refusal.decode("utf-8", "replace")[:_SHOWN_BODY_CHARS].strip()
            return f"HTTP {self._record.http_status}: {shown}"
        self._take(stamp_ns, self._decoder, None)
        if self._error or self._record.finish_reason in ("error", "cancelled"):
            return self._error or f"the server says {self._record.finish_reason}"
        return ""

    def close(self) -> None:
        """Put into the record what is known at the end, also of a response that was not whole."""
        record, counted = self._record, sum(self._record.tokens)
        record.text = "".join(self._pieces)
        record.num_tokens = self._total_tokens or counted
        # every piece has a token at least: when they are as many as the server says, each has one
        record.exact_tokens = not self._assumed or self._total_tokens == counted

    def _take(self, stamp_ns: int, decoder: Decoder, data: bytes | None) -> None:
        """Note what a read brought; None is the end of the body."""
        record = self._record
        tokens = 0
        for delta in decoder.close() if data is None else decoder.feed(data):
            tokens += delta.num_tokens
            record.num_pieces += delta.num_tokens > 0
            if delta.token_ids:
                record.token_ids += delta.token_ids
            if delta.text:
                self._pieces.append(delta.text)
            if delta.assumed:
                self._assumed = True
            if delta.reasoning:
                self._reasoned = True
            elif self._reasoned and delta.num_tokens and record.first_answer_ns is None:
                record.first_answer_ns = stamp_ns
            if delta.finish_reason is not None:
                record.finish_reason = delta.finish_reason
                self._error = self._error or (delta.error or "")
            if delta.full_text is not None:
                self._whole(delta.full_text)
            if delta.total_tokens is not None:
                self._total_tokens = delta.total_tokens
            if delta.num_prompt_tokens is not None:
                record.server_prompt_tokens = delta.num_prompt_tokens
            if delta.num_cached_tokens is not None:
                record.cached_tokens = delta.num_cached_tokens
        if tokens:
            record.stamps_ns.append(stamp_ns)
            record.tokens.append(tokens)

    def _whole(self, text: str) -> None:
        """The server has said the whole text: it counts, and that the pieces were of another one is kept."""
        streamed = "".join(self._pieces)
        if not text.lstrip().startswith(streamed.lstrip()):
            self._record.streamed_text = streamed
        self._pieces = [text]
