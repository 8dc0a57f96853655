from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmbench.loadgen._http import HttpError, ResponseParser

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: b\r\n\r\n"
    b"5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nTrailer: yes\r\n\r\n"
)
SIZED = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 11\r\nConnection: close\r\n\r\nhello world"
CLOSED = b"HTTP/1.0 200 OK\r\n\r\nhello world"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + SIZED
RESPONSES = {"chunked": CHUNKED, "sized": SIZED, "until close": CLOSED, "after an interim one": INTERIM}


def parse(pieces: list[bytes]) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser()
    body = b"".join(parser.feed(piece) for piece in pieces)
    parser.close()
    return parser, body


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_cut_at_any_byte_has_the_same_body(name: str) -> None:
    raw = RESPONSES[name]
    whole, body = parse([raw])
    assert body == b"hello world"
    for cut in range(1, len(raw)):
        parser, found = parse([raw[:cut], raw[cut:]])
        assert (parser.status, parser.headers, parser.keep_alive, found) == (
            whole.status,
            whole.headers,
            whole.keep_alive,
            body,
        )


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_byte_by_byte_has_the_same_body(name: str) -> None:
    raw = RESPONSES[name]
    assert parse([raw[i : i + 1] for i in range(len(raw))])[1] == b"hello world"


@settings(deadline=None)  # a busy machine is not a fault
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6), st.lists(st.integers(0, 2000), max_size=8))
def test_any_chunks_in_any_cuts_give_the_bytes_back(chunks: list[bytes], cuts: list[int]) -> None:
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    edges = [0, *sorted(cut % len(raw) for cut in cuts), len(raw)]
    pieces = [raw[a:b] for a, b in pairwise(edges) if a < b]
    parser, body = parse(pieces)
    assert body == b"".join(chunks)
    assert parser.complete


def test_a_connection_is_kept_only_when_both_sides_can_tell_where_the_body_ends() -> None:
    assert parse([CHUNKED])[0].keep_alive
    assert not parse([SIZED])[0].keep_alive
    assert not parse([CLOSED])[0].keep_alive
    assert parse([b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n"])[0].keep_alive


def test_a_response_without_a_body_is_complete_at_its_head() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 204 No Content\r\n\r\n") == b""
    assert parser.complete


@pytest.mark.parametrize("name", ["chunked", "sized", "after an interim one"])
def test_a_response_that_ends_early_is_an_error(name: str) -> None:
    raw = RESPONSES[name]
    for cut in range(len(raw)):
        parser = ResponseParser()
        parser.feed(raw[:cut])
        with pytest.raises(HttpError, match="closed"):
            parser.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_what_is_not_http_is_an_error(raw: bytes) -> None:
    parser = ResponseParser()
    with pytest.raises(HttpError):
        parser.feed(raw)


@settings(deadline=None)  # a busy machine is not a fault
@given(st.binary(max_size=400))
def test_no_bytes_make_it_fail_in_any_other_way(raw: bytes) -> None:
    parser = ResponseParser()
    try:
        parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + raw)
        parser.close()
    except HttpError:
        pass
