"""Stop texts in every cut of a text: what ends an answer must not depend on where its tokens begin and end."""

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.serving.stops import StopTexts


def cuts(text: str) -> Iterator[list[str]]:
    """Every way to cut a text into pieces."""
    for borders in product((False, True), repeat=max(0, len(text) - 1)):
        pieces, start = [], 0
        for at, border in enumerate(borders, 1):
            if border:
                pieces.append(text[start:at])
                start = at
        yield [*pieces, text[start:]]


def pushed(pieces: Sequence[str], stops: Sequence[str], include: bool = False) -> tuple[list[str], str | None]:
    """What was given for each piece, the rest at the end as one more, and the stop text that was found."""
    texts = StopTexts(stops, include)
    given_out = []
    for piece in pieces:
        text, found = texts.push(piece)
        given_out.append(text)
        if found is not None:
            return given_out, found
    return [*given_out, texts.flush()], None


def expected(text: str, stops: Sequence[str], include: bool = False) -> tuple[str, str | None]:
    """Character by character: the stop text that is complete first, the longest of several; the text before it."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


WORDS = ["".join(letters) for length in (1, 2, 3) for letters in product("ab", repeat=length)]


@pytest.mark.parametrize("include", [False, True])
def test_of_one_or_two_stop_texts_the_same_is_found_in_every_cut_of_every_short_text(include: bool) -> None:
    texts = ["".join(letters) for length in range(6) for letters in product("ab", repeat=length)]
    for stops in [(word,) for word in WORDS] + list(combinations(WORDS, 2)):
        for text in texts:
            right = expected(text, stops, include)
            for pieces in cuts(text):
                given_out, found = pushed(pieces, stops, include)
                assert ("".join(given_out), found) == right, (stops, pieces)


@given(
    pieces=st.lists(st.text("abé<|", max_size=5), max_size=8),
    stops=st.lists(st.text("abé<|", min_size=1, max_size=5), min_size=1, max_size=4),
    include=st.booleans(),
)
def test_any_stop_texts_are_found_in_any_cut(pieces: list[str], stops: list[str], include: bool) -> None:
    given_out, found = pushed(pieces, stops, include)
    assert ("".join(given_out), found) == expected("".join(pieces), stops, include)


@given(pieces=st.lists(st.text("ab<", max_size=4), max_size=8), stops=st.lists(st.text("ab<", min_size=1, max_size=4)))
def test_nothing_is_held_back_but_what_may_be_the_start_of_a_stop_text(pieces: list[str], stops: list[str]) -> None:
    texts, text, given_out = StopTexts(stops, include=False), "", ""
    for piece in pieces:
        text += piece
        new, found = texts.push(piece)
        given_out += new
        if found is not None:
            return
        held = text[len(given_out) :]
        assert text == given_out + held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


@pytest.mark.parametrize(
    ("text", "stops", "before", "found"),
    [
        ("one two", ("two", "one"), "", "one"),
        ("abc", ("abc", "b"), "a", "b"),  # "b" is complete first, whoever began first
        ("abc", ("bc", "abc"), "", "abc"),  # complete at once: the longer one
        ("aab", ("ab",), "a", "ab"),
        ("ababac", ("abac",), "ab", "abac"),
        ("aaaa", ("aa",), "", "aa"),
        ("a\n\nb", ("\n\n",), "a", "\n\n"),
        ("nothing here", ("There", "hers"), "nothing here", None),
        ("<|im_en", ("<|im_end|>",), "<|im_en", None),
        ("", ("a",), "", None),
    ],
)
def test_the_text_ends_before_the_stop_text_that_is_complete_first(
    text: str, stops: tuple[str, ...], before: str, found: str | None
) -> None:
    for pieces in ([text], list(text), [text[:2], text[2:]]):
        given_out, stop = pushed(pieces, stops)
        assert ("".join(given_out), stop) == (before, found)


def test_an_included_stop_text_is_the_last_of_the_answer_also_where_its_token_had_more() -> None:
    given_out, found = pushed(["Hel", "lo wor", "ld and more"], ["world"], include=True)
    assert (given_out, found) == (["Hel", "lo ", "world"], "world")


def test_what_turns_out_to_be_no_stop_text_comes_with_the_next_piece() -> None:
    given_out, found = pushed(["see ST", "O", "RM", " ST"], ["STOP"])
    assert (given_out, found) == (["see ", "", "STORM", " ", "ST"], None)


def test_unarmed_a_stop_text_passes_and_armed_it_ends() -> None:
    texts = StopTexts(["end"], include=False)
    assert texts.push("an end, an en", armed=False) == ("an end, an en", None)
    assert texts.push("d", armed=True) == ("d", None)  # its start was given out already
    assert texts.push("the end.", armed=True) == ("the ", "end")


def test_without_stop_texts_everything_passes_at_once() -> None:
    assert pushed(["a", "", "b"], []) == (["a", "", "b", ""], None)


def test_a_long_stop_text_over_many_pieces_is_found() -> None:
    stop = "x" * 500 + "y"
    text = "x" * 700 + "y" + "z"
    for size in (1, 7, 64, 1000):
        given_out, found = pushed([text[i : i + size] for i in range(0, len(text), size)], [stop])
        assert ("".join(given_out), found) == ("x" * 200, stop)
