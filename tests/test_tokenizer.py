from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import InputError
from llmbench.tokenizer import Detokenizer, Tokenizer, embedded_path

LLAMA = Path(__file__).parents[1].parent / "shared" / "data" / "tokenizer.model"
PATHS = {"embedded": embedded_path(), "llama": LLAMA}
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "中文与日本語、한국어",
    "👩‍🚀🇨🇭 and 👍🏽 in one line",
    "naïve café — “quotes” … ½ ≤ ∞",
    "def f(x):\n\treturn  x  **  2\n",
    "a" * 200,
    "   leading and trailing   ",
    "\u0000\u0085\u2028\ufffd end",
    "",
)


@pytest.fixture(scope="module", params=PATHS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    path = PATHS[request.param]
    if request.param == "llama" and not path.exists():
        pytest.skip("no Llama tokenizer beside the checkout")
    return Tokenizer.from_file(path)


def byte_id(value: int) -> int:
    """The id of the piece that stands for one byte: behind unk, bos and eos."""
    return 3 + value


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_pieces_of_a_text_joined_are_the_text_of_all_ids(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(data=st.data())
def test_the_pieces_of_any_ids_joined_are_the_text_of_all(tokenizer: Tokenizer, data: st.DataObject) -> None:
    any_id = st.integers(0, tokenizer.vocab_size - 1)
    a_byte = st.integers(0, 255).map(lambda value: byte_id(value))
    ids = data.draw(st.lists(st.one_of(any_id, a_byte), max_size=40))
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(text=st.text(max_size=20))
def test_the_bytes_of_any_text_come_out_as_whole_characters(tokenizer: Tokenizer, text: str) -> None:
    """No character of a text is ever given in halves, and none is held back longer than its bytes take."""
    detokenizer = Detokenizer(tokenizer)
    start = tokenizer.encode("a", bos=False)
    for token_id in start:
        detokenizer.push(token_id)
    for character in text.replace("\ufffd", ""):
        *first, last = (byte_id(value) for value in character.encode())
        assert [detokenizer.push(token_id) for token_id in first] == [""] * len(first)
        assert detokenizer.push(last) == character
    assert detokenizer.flush() == ""


def test_a_character_behind_broken_bytes_is_not_lost(tokenizer: Tokenizer) -> None:
    """Held back is only what may still become a character, not the broken bytes before it."""
    broken, *rest = (byte_id(value) for value in "中".encode())
    ids = [*tokenizer.encode("x"), *[broken] * 5, *rest]
    assert pieces(tokenizer, ids)[-8:] == ["", "\ufffd", "\ufffd", "\ufffd", "\ufffd", "", "中", ""]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)


def test_half_a_character_at_the_end_comes_with_flush(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("x"), *(byte_id(value) for value in "中".encode()[:2])]
    *given_at_once, flushed = pieces(tokenizer, ids)
    assert "".join(given_at_once) == "x"
    assert flushed == tokenizer.decode(ids)[1:]
    assert set(flushed) == {"\ufffd"}


def test_special_ids_give_no_text(tokenizer: Tokenizer) -> None:
    specials = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id, tokenizer.vocab_size, tokenizer.vocab_size + 63]
    words = tokenizer.encode("two words", bos=False)
    assert pieces(tokenizer, specials) == [""] * (len(specials) + 1)
    assert tokenizer.decode([*specials, *words, *specials]) == "two words"
    assert "".join(pieces(tokenizer, [*specials, *words, *specials])) == "two words"


def test_a_special_id_inside_a_character_does_not_break_it(tokenizer: Tokenizer) -> None:
    first, *rest = (byte_id(value) for value in "中".encode())
    ids = [*tokenizer.encode("x"), first, tokenizer.eos_id, *rest]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids) == "x中"


def test_a_long_answer_costs_no_more_for_its_last_token_than_for_its_first(tokenizer: Tokenizer) -> None:
    decoded: list[int] = []

    class Counting(Tokenizer):
        def decode(self, ids: list[int]) -> str:
            decoded.append(len(ids))
            return super().decode(ids)

    ids = tokenizer.encode("a word and " * 100)
    pieces(Counting.from_file(Path(tokenizer.source)), ids)
    assert max(decoded) <= 10


def test_an_encoding_starts_with_bos_unless_told_otherwise(tokenizer: Tokenizer) -> None:
    with_bos = tokenizer.encode("hello")
    assert with_bos == [tokenizer.bos_id, *tokenizer.encode("hello", bos=False)]
    assert tokenizer.encode("") == [tokenizer.bos_id]
    assert tokenizer.encode("", bos=False) == []


def test_special_tokens_written_in_a_prompt_are_their_ids(tokenizer: Tokenizer) -> None:
    for text, token_id in (("<s>", tokenizer.bos_id), ("</s>", tokenizer.eos_id), ("<unk>", tokenizer.unk_id)):
        assert token_id in tokenizer.encode(f"say {text} now", bos=False)


@given(text=st.text(max_size=60))
def test_any_text_can_be_encoded_and_its_ids_are_of_the_vocabulary(tokenizer: Tokenizer, text: str) -> None:
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in tokenizer.encode(text))


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.model: cannot read the tokenizer \(No such file"):
        Tokenizer.from_file(tmp_path / "nothing.model")


def test_a_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    for content in (b"", b"<html>404</html>", bytes(range(256))):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.model: not a sentencepiece model"):
            Tokenizer.from_file(path)
