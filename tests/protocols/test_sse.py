"""Framing: server-sent events, payloads with a separator, whole bodies, and the decoder over them."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench import protocols
from llmbench.protocols import Decoder
from llmbench.protocols._sse import DONE, Events, Frames, JsonDecoder, Separated, Whole, event, said_error
from llmbench.types import Delta, Request


def payloads(frames: Frames, *parts: bytes) -> list[bytes]:
    return [payload for part in parts for payload in frames.feed(part)] + frames.close()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),  # one space belongs to the field, a second to the data
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": ping\n\nevent: token\nid: 7\nretry: 9\ndata: a\n\n", [b"a"]),
        (b"\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: a\n\ndata: b", [b"a", b"b"]),  # the end of the body ends the event
        (b"data: a\n", [b"a"]),
        (b"data: a\r", [b"a"]),
        (b"data\n\ndatum: a\n\n", []),
        (b"data:\n\n", [b""]),
        (b"", []),
    ],
)
def test_events_are_framed_as_the_standard_says(body: bytes, found: list[bytes]) -> None:
    assert payloads(Events(), body) == found
    assert payloads(Events(), *(bytes([byte]) for byte in body)) == found


def test_an_event_is_given_with_the_byte_that_completes_it() -> None:
    frames = Events()
    assert frames.feed(b"data: a\n") == []
    assert frames.feed(b"\n") == [b"a"]


def test_separated_payloads_need_no_separator_behind_the_last() -> None:
    assert payloads(Separated(), b"a\0b", b"c\0", b"\n\0d") == [b"a", b"bc", b"d"]


def test_a_whole_body_comes_at_its_end_and_an_empty_one_not_at_all() -> None:
    frames = Whole()
    assert frames.feed(b"a") == frames.feed(b"b") == []
    assert frames.close() == [b"ab"]
    assert payloads(Whole(), b" \n") == []


class Words:
    """A reader of `{"word": ...}`; the word `end` is held back until the end."""

    def __init__(self) -> None:
        self.held = False

    def read(self, event: dict[str, Any]) -> Iterable[Delta]:
        self.held = event["word"] == "end"
        return [] if self.held else [Delta(text=event["word"], num_tokens=1)]

    def end(self, done: bool) -> Iterable[Delta]:
        return [Delta(finish_reason="stop" if self.held else "eos")] if self.held or done else []


def words(body: bytes) -> list[Delta]:
    decoder = JsonDecoder(Events(), Words())
    return decoder.feed(body) + decoder.close()


A, END = event({"word": "a"}), event({"word": "end"})


def test_what_was_held_back_comes_with_done_or_with_the_end_of_the_body() -> None:
    assert words(A + END) == words(A + END + b"data: [DONE]\n\n") == words(A + END + b"data: [DONE]")
    assert [delta.finish_reason for delta in words(A + END)] == [None, "stop"]
    assert words(A + b"data:[DONE]\n\n")[-1].finish_reason == "eos"


def test_nothing_is_read_behind_the_end() -> None:
    assert words(A + b"data: [DONE]\n\n" + A + b"data: {\n\n") == words(A + b"data: [DONE]\n\n")


def test_an_answer_that_never_ends_is_an_error() -> None:
    assert [delta.error for delta in words(A)] == [None, "the response ended before the answer did"]
    assert words(b"")[0].finish_reason == "error"


@pytest.mark.parametrize(
    "payload",
    [b"{", b"5", b"[]", b'"text"', b"\xff", b"{}", b'{"word": NaN}', b"[" * 100_000, b'{"word": "\\ud800"}'],
)
def test_a_malformed_event_is_an_error_that_shows_it(payload: bytes) -> None:
    (delta,) = words(b"data: " + payload + b"\n\n")
    assert delta.finish_reason == "error"
    assert (delta.error or "").startswith("not an event of this dialect: ")
    assert len(delta.error or "") < 300


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"error": {"message": "too long", "type": "x"}}, "too long"),  # OpenAI, vLLM, SGLang
        ({"error": "too long", "error_type": "validation"}, "too long"),  # TGI, MindIE
        ({"object": "error", "message": "too long", "code": 400}, "too long"),  # vLLM before 0.10
        ({"error": {"code": 7}}, "{'code': 7}"),
        ({"error": None, "word": "a"}, ""),
        ({"word": "a"}, ""),
    ],
)
def test_errors_are_known_in_every_servers_shape(value: dict[str, Any], message: str) -> None:
    assert said_error(value) == message
    if message:
        assert words(event(value))[0].error == message


def test_an_event_is_one_line_whatever_splits_it() -> None:
    text = "a\nb\r\x0b\x0c\x1c\x85\u2028\u2029c"
    written = event({"word": text})
    assert len(written.decode().splitlines()) == 2  # the event, and the empty line behind it
    assert words(written)[0].text == text


def choice_event(text: str, **more: object) -> bytes:
    fields = {"index": 0, "text": text, "logprobs": None, "finish_reason": None} | more
    return b"data: " + json.dumps({"id": "x", "object": "e", "choices": [fields]}).encode() + b"\n\n"


# texts of one event; those that are not plain, or that stand elsewhere in the event too, among them
TEXTS = ["a", "text", " the", "", 'say "hi"', "\\", "\\u0041", "déjà", "\x85", "\x00", "index", '", "x": "', "👍", " "]


def completions() -> Decoder:
    return protocols.get("openai_completions").decoder(Request(prompt="x"), {"content-type": "text/event-stream"})


@given(st.lists(st.sampled_from(TEXTS) | st.text(max_size=8).filter(lambda text: text.isascii()), max_size=12))
def test_an_event_that_repeats_the_one_before_is_read_as_if_it_were_the_first(texts: list[str]) -> None:
    decoder = completions()
    stream = [choice_event(text) for text in texts] + [choice_event("end", finish_reason="stop"), DONE]
    found = [delta for event in stream for delta in decoder.feed(event)]
    whole = [text for text in texts if text] + ["end", ""]
    assert [delta.text for delta in found] == whole
    assert [delta.num_tokens for delta in found] == [1] * (len(whole) - 1) + [0]
    assert found[-1].finish_reason == "stop"


def test_a_server_that_escapes_its_text_is_read_as_it_means_it() -> None:
    decoder = completions()
    escaped = [choice_event("ab"), choice_event("@").replace(b"@", b"\\u0041"), choice_event("cd"), choice_event("")]
    assert [delta.text for event in escaped for delta in decoder.feed(event)] == ["ab", "A", "cd"]


@pytest.mark.parametrize("broken", [b"\xff", b'a"b', b"a\x01b", b"\\"])
def test_an_event_that_is_like_the_one_before_but_broken_is_an_error(broken: bytes) -> None:
    decoder = completions()
    assert [delta.text for delta in decoder.feed(choice_event("ab"))] == ["ab"]
    found = decoder.feed(choice_event("@@").replace(b"@@", broken))
    assert [delta.finish_reason for delta in found] == ["error"]


def test_a_repeated_piece_of_reasoning_stays_reasoning() -> None:
    decoder = protocols.get("openai_chat").decoder(Request(prompt="x"), {"content-type": "text/event-stream"})
    stream = [
        b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}).encode() + b"\n\n"
        for delta in ({"reasoning_content": "so"}, {"reasoning_content": "far"}, {"content": "yes"}, {"content": "no"})
    ]
    found = [delta for event in stream for delta in decoder.feed(event)]
    assert [(delta.text, delta.reasoning) for delta in found] == [
        ("so", True),
        ("far", True),
        ("yes", False),
        ("no", False),
    ]
