"""What `acc bisect` does: find the first bad row, compute it again part by part, say where it begins."""

import shlex
import sys
from pathlib import Path

import msgspec
from rich.table import Table

from llmbench.accuracy import bisect as bisecting
from llmbench.accuracy import profiles
from llmbench.accuracy.bisect import Found, Given, Place
from llmbench.accuracy.compare import Comparison, Options
from llmbench.cli import _progress
from llmbench.errors import InputError
from llmbench.logits.store import read_manifest
from llmbench.report import files
from llmbench.report.terminal import Terminal
from llmbench.tokenizer import Tokenizer
from llmbench.weights.model import Model, open_model

_ENGINE = "numpy_llama"


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The command: two captures, or two models and a prompt. What is None is taken from the captures."""

    base: Path | None = None
    new: Path | None = None
    base_model: str | None = None
    base_engine: str | None = None
    new_model: str | None = None
    new_engine: str | None = None
    prompt: str | None = None
    num_new: int = 0
    profile: str | None = None
    request: str | None = None
    step: int | None = None
    threads: int | None = None


def run(asked: Asked, json: Path | None) -> int:
    """Find, print; the exit status."""
    notes: list[str] = []
    if asked.base is not None and asked.new is not None:
        if asked.prompt is not None:
            raise InputError("--prompt: the captures have the prompts; give either two captures or --prompt")
        options = Options(profile=asked.profile, allow_missing=sys.maxsize, processes=asked.threads)
        comparison, place = bisecting.first_bad(asked.base, asked.new, options, asked.request, asked.step)
        if place is None:
            print(f"nothing to look for: all {comparison.num_compared} rows are equal bit by bit")
            return 0
        sides = [
            _captured(folder, model, engine, notes)
            for folder, model, engine in (
                (asked.base, asked.base_model, asked.base_engine),
                (asked.new, asked.new_model, asked.new_engine),
            )
        ]
        profile = comparison.profile
        _say_row(comparison, place)
    elif asked.base is None:
        sides = [
            _given(asked.base_model, asked.base_engine, "--base-model"),
            _given(asked.new_model, asked.new_engine, "--new-model"),
        ]
        place = bisecting.prompted(sides[0], _encode(sides[0].model, asked.prompt), asked.num_new, asked.threads)
        profile = asked.profile or "fp32"
    else:
        raise InputError("one capture only: give BASE and NEW, or neither, with --base-model, --new-model and --prompt")
    say = _progress.line if sys.stderr.isatty() else lambda text: None
    found = bisecting.bisect(sides[0], sides[1], place, profiles.get(profile), asked.threads, say)
    repro = _repro(asked, sides, place)
    _show(found, notes, repro)
    if json is not None:
        files.write_json(json, _as_json(found, notes, repro))
    return 0 if found.verdict == "nothing" else 1


def _captured(folder: Path, model: str | None, engine: str | None, notes: list[str]) -> Given:
    """The model and engine of a capture, or those that were given in their place."""
    manifest = read_manifest(folder)
    opened = open_model(model or manifest.model)
    if manifest.fingerprint and opened.fingerprint() != manifest.fingerprint:
        notes.append(
            f"{folder} was captured from {manifest.model} with weights {manifest.fingerprint[:8]}; those of "
            f"{opened.name} are others, so what is computed again here need not be what was captured"
        )
    return Given(opened, engine or manifest.engine)


def _given(model: str | None, engine: str | None, flag: str) -> Given:
    if model is None:
        raise InputError(f"{flag}: without two captures, both models are to be given")
    return Given(open_model(model), engine or _ENGINE)


def _encode(model: Model, prompt: str | None) -> list[int]:
    if prompt is None:
        raise InputError("--prompt: without two captures, a text is to be given")
    if model.tokenizer_path is None:
        raise InputError(f"model {model.name} brings no tokenizer.model, which --prompt needs")
    return Tokenizer.from_file(model.tokenizer_path).encode(prompt)


def _say_row(comparison: Comparison, place: Place) -> None:
    kind = "the first bad row" if place.bad else "no row is bad; of those looked at, the furthest"
    print(
        f"profile {comparison.profile}, {comparison.num_compared} rows compared: {kind}: request {place.request_id}, "
        f"step {place.step}, KLD {place.kld:.3g}, largest difference {place.max_abs:.3g}"
    )


def _show(found: Found, notes: list[str], repro: str) -> None:
    console = Terminal()
    if sys.stderr.isatty():
        _progress.line()
    table = Table("part", "error", "at", "noise", "limit", "")
    for part in found.parts:
        style = "red" if part.name == found.part else "yellow" if part.differs else ""
        mark = "<- the first" if part.name == found.part else "differs" if part.differs else ""
        at = str(part.position) if part.error else ""
        cells = (part.name, f"{part.error:.2g}", at, f"{part.noise:.2g}", f"{part.limit:.2g}", mark)
        table.add_row(*cells, style=style)
    console.print(table)
    console.print(
        "error: |new - base| / |base| of the token (at this place) where that is largest, each part given the base's "
        f"input; noise: the same of the base in other steps; {found.dtypes[0]} and {found.dtypes[1]}",
        soft_wrap=True,
    )
    same = "the same" if found.tokens[0] == found.tokens[1] else f"{found.tokens[1]} for {found.tokens[0]}"
    console.print(
        f"the row computed again: KLD {found.kld:.3g}, largest difference {found.max_abs:.3g}, next token {same}",
        soft_wrap=True,
    )
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    console.print(_verdict(found), style="green" if found.verdict == "nothing" else "red", soft_wrap=True)
    if found.verdict != "nothing":
        console.print(f"again: {repro}", soft_wrap=True, highlight=False)
        if found.verdict != "elsewhere":
            step = found.place.step
            console.print(
                f"on Ascend, for this step alone: msit llm dump --exec 'YOUR COMMAND' --type tensor -er {step},{step}",
                soft_wrap=True,
                highlight=False,
            )


def _verdict(found: Found) -> str:
    num = sum(part.differs for part in found.parts)
    if found.verdict == "part":
        others = f"; {num - 1} of the others differ as well" if num > 1 else "; all others are within their noise"
        return f"FOUND: {found.where}{others}"
    if found.verdict == "sum":
        return "FOUND no single part: each is within its noise, together they make a bad row"
    if found.verdict == "elsewhere":
        return (
            "NOT REPRODUCED: the captured rows differ, computed again alone they do not: what differs is not in a "
            "layer but in how requests were computed together: see llmbench acc batchvar"
        )
    return "NOTHING FOUND: every part is within its noise"


def _repro(asked: Asked, sides: list[Given], place: Place) -> str:
    words = ["llmbench", "acc", "bisect"]
    if asked.base is not None:
        words += [str(asked.base), str(asked.new), "--request", str(place.request_id), "--step", str(place.step)]
    else:
        words += ["--prompt", str(asked.prompt), "--num-new", str(asked.num_new)]
    for name, side in zip(("base", "new"), sides, strict=True):
        words += [f"--{name}-model", side.model.name, f"--{name}-engine", side.engine]
    return shlex.join(words + (["--profile", asked.profile] if asked.profile else []))


def _as_json(found: Found, notes: list[str], repro: str) -> dict[str, object]:
    parts = [{**msgspec.structs.asdict(part), "differs": part.differs} for part in found.parts]
    return {**msgspec.structs.asdict(found), "parts": parts, "step": found.place.step, "notes": notes, "repro": repro}
