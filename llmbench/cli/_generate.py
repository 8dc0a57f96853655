"""What `llmbench generate` does: read the prompts, let the engine answer, print answers and speeds."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from llmbench import clock
from llmbench.errors import InputError
from llmbench.report import words
from llmbench.report.terminal import Terminal
from llmbench.serving.offline import LLM, Answer, Piece, Speed

_STDIN = "-"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What answers, and how."""

    model: str
    engine: str | None
    model_cfg_path: str | None
    tokenizer: str | None
    threads: int | None
    batch_size: int
    max_new_tokens: int | None
    max_length: int | None
    sampling: dict[str, Any]
    chat: bool


class Show(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of the answers."""

    echo: bool
    out: Path | None
    json: bool
    quiet: bool


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """An answer in a file."""

    index: int
    prompt: str
    answer: Answer


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What `--json` prints. Rates are None where there was no such step."""

    model: str
    engine: str
    loaded_s: float
    """Reading the weights, and what the engine does with them."""
    compiled_s: float
    """The first runs of compiled graphs; in no other time."""
    speed: Speed
    prefill_tokens_per_s: float | None
    decode_tokens_per_s: float | None
    answers: list[Line]


def prompts(given: Sequence[str], file: Path | None, field: str) -> list[str]:
    """The prompts of the command line, then those of the file. Raises InputError when there is none."""
    if str(file) == _STDIN and _STDIN in given:
        raise InputError("stdin can be read once: as a prompt, or as --file")
    found = [sys.stdin.read().removesuffix("\n") if text == _STDIN else text for text in given]
    if file is not None:
        found += _from_file(file, field)
    if not found:
        raise InputError("no prompt: give one as an argument, several with --file, or - for stdin")
    return found


def _from_file(path: Path, field: str) -> list[str]:
    """A prompt for each line that is not blank. Raises InputError naming the line."""
    try:
        text = sys.stdin.read() if str(path) == _STDIN else path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"--file {path}: cannot read it ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--file {path}: not UTF-8 text ({error})") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line.removesuffix("\r") for _, line in lines]
    return [_in_field(line, field, f"--file {path}: line {number}") for number, line in lines]


def _in_field(line: str, field: str, where: str) -> str:
    try:
        value = msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    found = value.get(field) if isinstance(value, dict) else None
    if not isinstance(found, str):
        raise InputError(f"{where}: no text in field {field!r}; name another one with --field")
    return found


def main(texts: Sequence[str], settings: Settings, show: Show) -> None:
    """Answer all prompts. Raises InputError before anything is computed."""
    start_ns = clock.now_ns()
    with (
        _lines(show.out) as out,
        LLM(
            settings.model,
            settings.engine,
            tokenizer=settings.tokenizer,
            model_cfg_path=settings.model_cfg_path,
            batch_size=min(settings.batch_size, len(texts)),
            threads=settings.threads,
        ) as llm,
    ):
        loaded_s = clock.seconds(start_ns, clock.now_ns())
        screen = _Screen(texts, show)
        answers: dict[int, Answer] = {}
        for piece in llm.stream(
            texts,
            settings.max_new_tokens,
            max_length=settings.max_length,
            joined=show.echo,
            chat=settings.chat,
            **settings.sampling,
        ):
            screen.take(piece)
            if piece.answer is not None:
                answers[piece.index] = piece.answer
                if out is not None:
                    line = Line(index=piece.index, prompt=texts[piece.index], answer=piece.answer)
                    out.write(msgspec.json.encode(line) + b"\n")
        told = Told(
            model=settings.model,
            engine=llm.engine,
            loaded_s=loaded_s,
            compiled_s=llm.speed.compiled_s,
            speed=llm.speed,
            prefill_tokens_per_s=llm.speed.prefill_tokens_per_s,
            decode_tokens_per_s=llm.speed.decode_tokens_per_s,
            answers=[Line(index=i, prompt=text, answer=answers[i]) for i, text in enumerate(texts)],
        )
    if show.json:
        print(msgspec.json.format(msgspec.json.encode(told), indent=2).decode())
    elif not show.quiet:
        print(sentence(told), file=sys.stderr)


def sentence(told: Told) -> str:
    """`1 answer: prefill 9 tokens in 2.1 ms (4,290 tokens/s), decode 29 tokens in ...; loaded in 0.2 s`."""
    speed = told.speed
    parts = [_part("prefill", speed.num_prompt_tokens, speed.prefill_s, told.prefill_tokens_per_s)]
    if told.decode_tokens_per_s is not None:
        parts.append(_part("decode", speed.num_decoded_tokens, speed.decode_s, told.decode_tokens_per_s))
    apart = [f"loaded in {words.time(told.loaded_s)}"]
    if told.compiled_s:
        apart.append(f"compiled in {words.time(told.compiled_s)}, which is in no other time")
    return f"{_counted(len(told.answers), 'answer')}: {', '.join(parts)}; {', '.join(apart)}"


def _part(what: str, num_tokens: int, took_s: float, tokens_per_s: float | None) -> str:
    return f"{what} {_counted(num_tokens, 'token')} in {words.time(took_s)} ({_rate(tokens_per_s)} tokens/s)"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _rate(tokens_per_s: float | None) -> str:
    if tokens_per_s is None:
        return words.DASH
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100 else f"{tokens_per_s:.3g}"


@contextmanager
def _lines(path: Path | None) -> Iterator[BinaryIO | None]:
    """The file for answers, each line written when it is there. Raises InputError."""
    if path is None:
        yield None
        return
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise InputError(f"--out {path}: cannot write there ({error.strerror})") from error
    with file:
        yield file


class _Screen:
    """Prints a single answer as it comes, and several whole, in the order of their prompts.

    The text goes out as it is: rich would change tabs and control characters.
    """

    def __init__(self, texts: Sequence[str], show: Show) -> None:
        self._texts = texts
        self._echo = show.echo
        self._silent = show.json
        self._waiting: dict[int, Answer] = {}
        self._next = 0
        if len(texts) == 1 and show.echo:
            self._put(texts[0])

    def take(self, piece: Piece) -> None:
        """A piece of any answer."""
        if len(self._texts) == 1:
            self._put(piece.text + ("" if piece.answer is None else "\n"))
            return
        if piece.answer is not None:
            self._waiting[piece.index] = piece.answer
        while self._next in self._waiting:
            text = self._texts[self._next] if self._echo else ""
            self._put(f"[{self._next + 1}] {text}{self._waiting.pop(self._next).text}\n")
            self._next += 1

    def _put(self, text: str) -> None:
        if self._silent:
            return
        try:
            print(text, end="", flush=True)
        except BrokenPipeError:
            Terminal().on_broken_pipe()
