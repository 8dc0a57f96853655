"""An HTTP/1.1 response parser without I/O: bytes in, body bytes out; any cut of the input gives the same."""

from enum import Enum, auto

_MAX_HEAD_BYTES = 64 * 1024
_PLAIN_SIZE_BYTES = 12
_MAX_LINE_BYTES = 4 * 1024  # a chunk's size line with extensions, or one trailer


class HttpError(Exception):
    """The peer did not speak HTTP/1.1, or stopped in the middle."""


class _Expect(Enum):
    HEAD = auto()
    SIZED = auto()  # Content-Length
    CHUNK_SIZE = auto()
    CHUNK = auto()
    CHUNK_END = auto()
    TRAILERS = auto()
    CLOSE = auto()  # the body lasts until the peer closes
    NOTHING = auto()


_CHUNK_SIZE, _NOTHING = _Expect.CHUNK_SIZE, _Expect.NOTHING  # an Enum's members are found slowly


class ResponseParser:
    """Parses one response. `status` is 0 until the head is whole, and `chunked` until it says how the body ends;
    `headers` have lower-case names.
    """

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.keep_alive = False
        self.chunked = False
        self._expect = _Expect.HEAD
        self._buffer = b""
        self._left = 0  # bytes still to come of a sized body or a chunk

    @property
    def complete(self) -> bool:
        return self._expect is _NOTHING

    def feed(self, data: bytes) -> bytes:
        """The body bytes in this piece of input. Raises HttpError when it is not HTTP, or longer than the response."""
        if self._buffer:
            data, self._buffer = self._buffer + data, b""
        elif self._expect is _CHUNK_SIZE and (chunk := _one_chunk(data)):
            return chunk
        body: list[bytes] = []
        position = 0
        if self._expect is _Expect.HEAD:
            position = self._head(data)
        while position < len(data) and self._expect is not _Expect.HEAD:
            if self._expect is _Expect.NOTHING:
                raise HttpError("more bytes than the response has")
            if self._expect is _Expect.CHUNK_SIZE:
                position = _whole_chunks(data, position, body)
                if position == len(data):
                    break
            after = self._step(data, position, body)
            if after == position:  # a line is not whole yet
                self._buffer = data[position:]
                if len(self._buffer) > _MAX_LINE_BYTES:
                    raise HttpError("a chunk's size line is too long")
                break
            position = after
        return body[0] if len(body) == 1 else b"".join(body)

    def close(self) -> None:
        """The peer closed. Raises HttpError when that was too early."""
        if self._expect is _Expect.CLOSE:
            self._expect = _Expect.NOTHING
        if self._expect is not _Expect.NOTHING:
            raise HttpError("closed before a response" if not self.status else "closed in the middle of the response")

    def _head(self, data: bytes) -> int:
        """Parse the head if it is whole; where the body begins. Interim (1xx) responses are passed over."""
        position = 0
        while True:
            end = data.find(b"\r\n\r\n", position)
            if end < 0:
                self._buffer = data[position:]
                if len(self._buffer) > _MAX_HEAD_BYTES:
                    raise HttpError("the response's head is too long")
                return len(data)
            status = self._parse_head(data[position:end])
            position = end + 4
            if status >= 200:
                self.status = status
                self._expect = self._body_kind()
                return position

    def _parse_head(self, head: bytes) -> int:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdigit():
            raise HttpError(f"not an HTTP/1.1 response: {first[:60]!r}")
        self.headers = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise HttpError(f"not a header: {line[:60]!r}")
            self.headers[name.strip().lower()] = value.strip()
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (version == "HTTP/1.1" or "keep-alive" in connection)
        return int(rest[:3])

    def _body_kind(self) -> _Expect:
        if self.status in (204, 304):
            return _Expect.NOTHING
        self.chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if self.chunked:
            return _Expect.CHUNK_SIZE
        length = self.headers.get("content-length")
        if length is None:
            self.keep_alive = False
            return _Expect.CLOSE
        if not length.isdigit():
            raise HttpError(f"wrong Content-Length {length[:20]!r}")
        self._left = int(length)
        return _Expect.SIZED if self._left else _Expect.NOTHING

    def _step(self, data: bytes, position: int, body: list[bytes]) -> int:
        """Consume one element at `position`; the position after it, or the same when more input is needed."""
        if self._expect is _Expect.CLOSE:
            body.append(data[position:])
            return len(data)
        if self._expect is _Expect.SIZED or self._expect is _Expect.CHUNK:
            return self._take(data, position, body)
        end = data.find(b"\n", position)
        if end < 0:
            return position
        line = data[position:end].rstrip(b"\r")
        if self._expect is _Expect.CHUNK_SIZE:
            self._chunk_size(line)
        elif self._expect is _Expect.CHUNK_END:
            if line:
                raise HttpError("a chunk is longer than its size")
            self._expect = _Expect.CHUNK_SIZE
        elif not line:  # the empty line after the trailers
            self._expect = _Expect.NOTHING
        return end + 1

    def _take(self, data: bytes, position: int, body: list[bytes]) -> int:
        piece = data[position : position + self._left] if position or len(data) > self._left else data
        body.append(piece)
        self._left -= len(piece)
        if not self._left:
            self._expect = _Expect.NOTHING if self._expect is _Expect.SIZED else _Expect.CHUNK_END
        return position + len(piece)

    def _chunk_size(self, line: bytes) -> None:
        digits = line.partition(b";")[0].strip()
        try:
            self._left = int(digits, 16)
        except ValueError as error:
            raise HttpError(f"wrong chunk size {digits[:20]!r}") from error
        if self._left < 0:
            raise HttpError(f"wrong chunk size {digits[:20]!r}")
        self._expect = _Expect.CHUNK if self._left else _Expect.TRAILERS


def _one_chunk(data: bytes) -> bytes:
    """What is in the one chunk that the data is, as almost all reads are; nothing when it is not."""
    end = data.find(b"\r\n", 0, _PLAIN_SIZE_BYTES)
    digits = data[:end]
    if end < 1 or not digits.isalnum() or not data.endswith(b"\r\n"):
        return b""
    try:
        size = int(digits, 16)
    except ValueError:
        return b""
    return data[end + 2 : -2] if len(data) == end + size + 4 else b""


def _whole_chunks(data: bytes, position: int, body: list[bytes]) -> int:
    """Take the chunks that are here to their ends, as almost all are; where something else begins."""
    while True:
        end = data.find(b"\r\n", position, position + _PLAIN_SIZE_BYTES)
        digits = data[position:end] if end > position else b""
        try:
            size = int(digits, 16) if digits.isalnum() else 0  # extensions, signs and the last chunk are for `_step`
        except ValueError:
            size = 0
        behind = end + 2 + size
        if not size or data[behind : behind + 2] != b"\r\n":
            return position
        body.append(data[end + 2 : behind])
        position = behind + 2
