"""The sentencepiece tokenizer: ids as Hugging Face's LlamaTokenizer gives them, and text piece by piece.

`encode` is `[bos] + sentencepiece ids` (measured equal to LlamaTokenizer on every Alpaca prompt).
"""

import codecs
import re
from functools import cached_property
from pathlib import Path

import sentencepiece

from llmbench.errors import InputError

_BROKEN = "\ufffd"  # sentencepiece's sign for bytes that are no character, or not yet one
_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")
_SPECIAL = re.compile("(<s>|</s>|<unk>)")


def embedded_path() -> Path:
    """The tokenizer of the embedded model."""
    return Path(__file__).parent / "weights" / "embedded" / "tokenizer.model"


class Tokenizer:
    """A sentencepiece vocabulary. `vocab_size`, `bos_id`, `eos_id`, `unk_id` are of the vocabulary itself."""

    def __init__(self, model: bytes, source: str) -> None:
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"{source}: not a sentencepiece model ({error})") from error
        self.source = source
        self.vocab_size: int = self._processor.GetPieceSize()
        self.bos_id: int = self._processor.bos_id()
        self.eos_id: int = self._processor.eos_id()
        self.unk_id: int = self._processor.unk_id()

    @classmethod
    def from_file(cls, path: Path) -> "Tokenizer":
        """Read a `tokenizer.model`. Raises InputError when it is missing or something else."""
        try:
            return cls(path.read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot read the tokenizer ({error.strerror})") from error

    def encode(self, text: str, bos: bool = True) -> list[int]:
        """The ids of a text, with the begin-of-sequence id in front unless told otherwise.

        `<s>`, `</s>` and `<unk>` written in the text are those ids, as with Hugging Face.
        """
        ids = [self.bos_id] if bos else []
        for part in _SPECIAL.split(text):
            if _SPECIAL.fullmatch(part):
                ids.append(self._processor.PieceToId(part))
            elif part:
                ids += self._processor.EncodeAsIds(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special ones (bos, eos, unk) give nothing, as with `skip_special_tokens`."""
        return str(self._processor.DecodeIds([i for i in ids if not self.is_special(i)]))

    def piece(self, token_id: int) -> str:
        """One id as text, its leading space included; a lone byte of a longer character is `\\x9f`."""
        if token_id >= self.vocab_size:
            return ""
        piece = str(self._processor.IdToPiece(token_id))
        if not self._processor.IsByte(token_id):
            return piece.replace("\u2581", " ")
        byte = int(piece[3:-1], 16)  # "<0x9F>"
        return chr(byte) if byte < 0x80 else f"\\x{byte:02x}"

    @cached_property
    def plain(self) -> list[str | None]:
        """The text of every id that stands for the same text wherever it is, its leading space included; None else."""
        ids = list(range(self.vocab_size))
        pieces, are_bytes = self._processor.IdToPiece(ids), self._processor.IsByte(ids)
        return [
            None if is_byte or self.is_special(token_id) else piece.replace("\u2581", " ")
            for token_id, piece, is_byte in zip(ids, pieces, are_bytes, strict=True)
        ]

    @cached_property
    def longest_piece(self) -> int:
        """The most characters that one id can stand for."""
        return max(len(text) for text in self.plain if text is not None)

    def is_special(self, token_id: int) -> bool:
        """Whether an id stands for no text: bos, eos, unk, other control pieces, and what pads a model's vocabulary."""
        return token_id >= self.vocab_size or token_id == self.unk_id or bool(self._processor.IsControl(token_id))

    def num_open(self, ids: list[int]) -> int:
        """How many ids at the end are the start of a character whose other bytes are not there yet."""
        run = bytearray()
        for token_id in reversed(ids[-3:]):  # a character has at most four bytes
            if not self._processor.IsByte(token_id):
                break
            run.insert(0, int(self._processor.IdToPiece(token_id)[1:-1], 16))  # <0xE4>
        decoder = _new_utf8_decoder("replace")
        decoder.decode(bytes(run))
        return len(decoder.getstate()[0])


class Detokenizer:
    """Turns one answer's ids into text piece by piece; joined, the pieces are the text of all ids.

    A piece whose bytes do not yet make a whole character is held back until the rest has come, or `flush`.
    Cost per token does not grow with the length of the answer: an id behind whole characters is looked up; otherwise
    the ids since the last whole piece, and one piece before them for the space in between, are decoded again.
    """

    def __init__(self, tokenizer: Tokenizer, after: int | None = None) -> None:
        """`after` is the id that stands before the answer, when the answer's leading space is wanted."""
        self._tokenizer = tokenizer
        self._plain = tokenizer.plain
        known = after is not None and after < len(self._plain) and self._plain[after] is not None
        # ids whose text has been given, kept so that spaces come out right
        self._context: list[int] = [after] if known and after is not None else []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this id completes, or nothing."""
        plain = self._plain[token_id] if token_id < len(self._plain) else None
        if plain is not None and self._context and not self._pending:  # an answer's first piece loses its space
            self._context = [token_id]
            return plain
        if self._tokenizer.is_special(token_id):
            return ""
        self._pending.append(token_id)
        text = self._tokenizer.decode(self._context + self._pending)
        if not text.endswith(_BROKEN):
            return self._give(text, len(self._pending))
        whole = len(self._pending) - self._tokenizer.num_open(self._pending)
        return self._give(self._tokenizer.decode(self._context + self._pending[:whole]), whole) if whole else ""

    def flush(self) -> str:
        """What was held back, at the end of the answer."""
        text = self._tokenizer.decode(self._context + self._pending)
        return self._give(text, len(self._pending)) if self._pending else ""

    def _give(self, text: str, count: int) -> str:
        """The new part of `text`, which the first `count` pending ids complete."""
        piece = text[len(self._tokenizer.decode(self._context)) :]
        self._context, self._pending = self._pending[:count], self._pending[count:]
        return piece
