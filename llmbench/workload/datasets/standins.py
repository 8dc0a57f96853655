"""Stand-ins of the two contest datasets: our own text with their numbers of records and their token lengths.

The lengths come from the quantiles below, which were measured on the real files with the Llama-2 tokenizer; the text is
composed to these lengths as the embedded tokenizer counts them. The same bytes come out every time.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from llmbench.errors import InputError
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.workload.corpus import Record, compose

SHARES = (0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 1)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Token lengths of one kind in one section: their quantiles at `SHARES`, and their sum."""

    quantiles: tuple[int, ...]
    total: int


@dataclass(frozen=True, kw_only=True)
class Section:
    """A run of records: how many, how many with an input, their lengths; `pinned` ones are given by their place."""

    size: int
    with_input: int
    prompts: Lengths
    outputs: Lengths
    pinned: dict[int, tuple[int, int]]  # place: (prompt tokens, output tokens)


STANDINS: dict[str, tuple[Section, ...]] = {
    "alpaca_5010": (
        Section(
            size=1500,
            with_input=613,
            prompts=Lengths(
                quantiles=(4, 6, 8, 10, 11, 13, 14, 16, 18, 21, 22, 25, 29, 34, 44, 62, 78, 101, 192), total=29925
            ),
            outputs=Lengths(
                quantiles=(1, 2, 4, 7, 12, 19, 29, 46, 69, 89, 100, 111, 125, 144, 174, 239, 294, 341, 504), total=98086
            ),
            pinned={1309: (7, 504), 81: (192, 40)},
        ),
        Section(
            size=3510,
            with_input=1365,
            prompts=Lengths(
                quantiles=(4, 6, 8, 9, 11, 13, 14, 16, 18, 21, 22, 24, 28, 32, 43, 62, 77, 94, 188), total=68651
            ),
            outputs=Lengths(
                quantiles=(0, 2, 4, 8, 12, 18, 29, 48, 68, 87, 96, 106, 120, 138, 179, 244, 287, 351, 822), total=226988
            ),
            pinned={2730: (12, 822)},
        ),
    ),
    "alpaca_521": (
        Section(
            size=500,
            with_input=204,
            prompts=Lengths(
                quantiles=(5, 6, 8, 9, 11, 13, 14, 16, 18, 21, 24, 27, 29, 36, 59, 89, 112, 121, 337), total=10938
            ),
            outputs=Lengths(
                quantiles=(1, 2, 5, 8, 13, 18, 29, 52, 72, 89, 100, 115, 129, 148, 184, 249, 306, 373, 464), total=33922
            ),
            pinned={300: (29, 464), 91: (337, 60)},
        ),
        Section(
            size=21,
            with_input=6,
            prompts=Lengths(
                quantiles=(7, 7, 9, 10, 11, 12, 14, 16, 19, 20, 20, 20, 25, 26, 30, 34, 36, 36, 37), total=365
            ),
            outputs=Lengths(
                quantiles=(4, 5, 8, 10, 15, 21, 30, 48, 53, 76, 91, 99, 99, 106, 122, 157, 169, 175, 181), total=1156
            ),
            pinned={},
        ),
    ),
}


def file_name(name: str) -> str:
    """The file of a stand-in; never the name of the real file."""
    return f"{name}.synthetic.json"


def make(folder: Path) -> list[Path]:
    """Write all stand-ins into a folder; returns their paths."""
    tokenizer = Tokenizer.from_file(embedded_path())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--folder {folder}: cannot make this folder ({error.strerror})") from error
    return [_write(folder / file_name(name), records(name, tokenizer)) for name in STANDINS]


def records(name: str, tokenizer: Tokenizer) -> list[Record]:
    """The records of a stand-in, composed to the lengths of the real ones; no prompt twice."""
    rng = Random(f"llmbench/{name}")
    seen: set[str] = set()
    made: list[Record] = []
    for section in STANDINS[name]:
        for prompt_tokens, output_tokens, with_input in _shapes(section, rng):
            record = _compose(rng, prompt_tokens, output_tokens, with_input, tokenizer)
            for _ in range(20):
                if record.prompt not in seen:
                    break
                record = _compose(rng, prompt_tokens, output_tokens, with_input, tokenizer)
            seen.add(record.prompt)
            made.append(record)
    return made


def _compose(rng: Random, prompt_tokens: int, output_tokens: int, with_input: bool, tokenizer: Tokenizer) -> Record:
    return compose(rng, prompt_tokens, output_tokens, with_input, lambda text: len(tokenizer.encode(text, bos=False)))


def _shapes(section: Section, rng: Random) -> list[tuple[int, int, bool]]:
    """(prompt tokens, output tokens, has an input) of each record of a section."""
    prompts = _sampled(section.prompts, section.size, rng)
    outputs = _sampled(section.outputs, section.size, rng)
    for place, (prompt_tokens, output_tokens) in section.pinned.items():
        _swap_in(prompts, place, prompt_tokens)
        _swap_in(outputs, place, output_tokens)
    _keep_below(prompts, outputs, max((sum(pair) for pair in section.pinned.values()), default=512), section)
    # longer prompts are likelier to have an input, and the shortest have no room for one
    order = sorted(range(section.size), key=lambda n: prompts[n] + rng.gauss(0, 7) if prompts[n] > 9 else -100)
    chosen = set(order[section.size - section.with_input :])
    return [(prompts[n], outputs[n], n in chosen) for n in range(section.size)]


def _sampled(lengths: Lengths, size: int, rng: Random) -> list[int]:
    """Lengths at even steps of the quantile function, moved by as little as makes their sum right, in random order."""
    exact = [_quantile(lengths.quantiles, n / (size - 1)) for n in range(size)]
    # rounded down at the low end: so the answers of one token and of two are as many as they are
    values = [int(value) if n < size * 0.06 else round(value) for n, value in enumerate(exact)]
    low, high = int(size * 0.55), int(size * 0.88)  # between the median and p90 one token more or less shows nowhere
    gap, place = lengths.total - sum(values), low
    while gap:
        step = 1 if gap > 0 else -1
        values[place] += step
        gap -= step
        place = place + 1 if place < high else low
    rng.shuffle(values)
    return values


def _quantile(quantiles: Sequence[int], share: float) -> float:
    """The quantile function, linear between the known points."""
    right = min(bisect_right(SHARES, share), len(SHARES) - 1)
    low, high = SHARES[right - 1], SHARES[right]
    part = (share - low) / (high - low)
    return quantiles[right - 1] + part * (quantiles[right] - quantiles[right - 1])


def _swap_in(values: list[int], place: int, wanted: int) -> None:
    """Bring the value nearest to the wanted one to a place, and make it the wanted one."""
    other = min(range(len(values)), key=lambda n: abs(values[n] - wanted))
    values[other], values[place] = values[place], wanted


def _keep_below(prompts: list[int], outputs: list[int], limit: int, section: Section) -> None:
    """Exchange outputs so that no record but a pinned one is as long as the longest pinned one."""
    shortest = sorted((n for n in range(section.size) if n not in section.pinned), key=lambda n: outputs[n])
    for place in range(section.size):
        if place not in section.pinned and prompts[place] + outputs[place] >= limit:
            other = shortest.pop(0)
            outputs[place], outputs[other] = outputs[other], outputs[place]


def _write(path: Path, made: Sequence[Record]) -> Path:
    rows = [{"instruction": r.instruction, "input": r.input, "output": r.output} for r in made]
    temporary = path.with_suffix(".part")
    text = json.dumps(rows, ensure_ascii=False, indent=4) + "\n"
    temporary.write_bytes(text.encode())
    os.replace(temporary, path)
    return path
