"""What `llmbench quantize` does: calibrate, quantise, say what came of it."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from llmbench import plugins
from llmbench.cli._progress import Line
from llmbench.errors import ConfigError, InputError
from llmbench.quantize import calibrate, choose, make, observers, samples, smooth
from llmbench.quantize.calibrate import Calibration
from llmbench.quantize.choose import Choice
from llmbench.quantize.make import Report, Row
from llmbench.quantize.sparse import Figures, Knobs
from llmbench.report import words
from llmbench.report.files import as_json
from llmbench.report.terminal import Terminal
from llmbench.weights import export
from llmbench.weights.convert import DTYPES
from llmbench.weights.model import of_weights
from llmbench.weights.sources import How, Opened, open_weights

_KINDS = {"w8a8": "W8A8", "w8a16": "W8A16"}
_ACTS = {"1": "min-max", "2": "histogram", "3": "auto"}  # as the reference numbers them


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is calibrated, on what, and how."""

    model: str
    calib: str
    num_samples: int
    max_tokens: int
    tokenizer: Path | None
    anti: str
    alpha: float | None
    act: str
    seed: int


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What is made of it, as it was typed."""

    kind: str
    sparse: bool
    fraction: float | None
    sigma_factor: float | None
    nonuniform: bool
    compensate: bool
    disable_level: str
    float_layers: str
    float_linears: tuple[str, ...]
    rollback_down: bool | None
    """None: with activations of 8 bits, which have the largest errors at the inputs of down_proj, but not where layers
    go as a whole.
    """
    whole_layers: bool
    kv: str
    asymmetric: bool
    form: str
    dtype: str | None


def main(source: Source, wanted: Wanted, out: Path, *, restart: bool, json: bool) -> None:
    """Make the model, print the report."""
    opened = open_weights(source.model, How(strict=False))
    settings = of_wanted(wanted, opened)
    make.check(settings, opened)
    check_new(out)
    folder = work_folder(out)
    with Line() as line, _going_on(folder):
        calibration = calibrated(source, opened, folder, line, restart=restart)
        report = make.quantise(calibration, settings, out, line)
    calibration.journal.remove()
    if json:
        sys.stdout.write(as_json(report).decode())
    else:
        show(Terminal(highlight=False, soft_wrap=True), report, out)


def check_new(out: Path) -> None:
    """Raise InputError now, rather than after the calibration, when the folder cannot be the new one."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"-o {out}: there is something in it already; choose a new folder")


def work_folder(out: Path) -> Path:
    """Where a calibration is while it goes on: beside what it is for."""
    return out.absolute().with_name(f".{out.absolute().name}.calibration")


@contextmanager
def _going_on(folder: Path) -> Iterator[None]:
    """Say, when a user breaks it off, that nothing of it is lost."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"broken off; the same command goes on with what is in {folder}", file=sys.stderr)
        raise


def calibrated(source: Source, opened: Opened, folder: Path, line: Line, *, restart: bool) -> Calibration:
    """Calibrate, or take up what was broken off. Raises ConfigError for a flag that is none of what can be."""
    smooth.check(source.anti, source.alpha)
    act = _ACTS.get(source.act, source.act)
    _known("--act", "observer", act, list(observers.OBSERVERS))
    settings = msgspec.convert(
        {"method": source.anti, "alpha": source.alpha, "observer": act, "seed": source.seed}, calibrate.Settings
    )
    found = samples.load(
        samples.Wanted(
            dataset=source.calib,
            num_samples=source.num_samples,
            max_tokens=source.max_tokens,
            seed=source.seed,
            tokenizer=source.tokenizer,
        ),
        of_weights(opened),
    )
    if restart:
        shutil.rmtree(folder, ignore_errors=True)
    return calibrate.calibrate(opened, found, settings, folder, line)


def of_wanted(wanted: Wanted, opened: Opened) -> make.Settings:
    """What was typed as settings. Raises ConfigError for a flag that is none of what can be."""
    _known("--kind", "kind", wanted.kind, list(_KINDS))
    _known("--kv", "cache", wanted.kv, ["float", "int8"])
    _known("--form", "form", wanted.form, list(export.FORMS))
    if wanted.dtype is not None:
        _known("--dtype", "dtype", wanted.dtype, list(DTYPES))
    by_default = wanted.kind == "w8a8" and not wanted.whole_layers
    choice = Choice(
        level=choose.level(wanted.disable_level),
        layers=choose.layers(wanted.float_layers, opened.config.num_layers),
        linears=wanted.float_linears,
        down=by_default if wanted.rollback_down is None else wanted.rollback_down,
        whole_layers=wanted.whole_layers,
    )
    if wanted.sparse and wanted.kind != "w8a8":
        raise ConfigError(f"--sparse is W8A8S: leave --kind {wanted.kind} out")
    given = {
        "kind": "W8A8S" if wanted.sparse else _KINDS[wanted.kind],
        "kv_cache": None if wanted.kv == "float" else wanted.kv,
        "asymmetric": wanted.asymmetric,
        "form": wanted.form,
        "dtype": wanted.dtype,
    }
    return msgspec.structs.replace(msgspec.convert(given, make.Settings), choice=choice, sparse=_knobs(wanted))


def _knobs(wanted: Wanted) -> Knobs | None:
    """What was typed of a W8A8S; None when nothing was."""
    found = Knobs(
        fraction=wanted.fraction,
        sigma_factor=wanted.sigma_factor,
        nonuniform=wanted.nonuniform,
        compensate=wanted.compensate,
    )
    return None if found == Knobs() else found


def _known(flag: str, kind: str, given: str, known: list[str]) -> None:
    if given not in known:
        raise ConfigError(f"{flag}: {plugins.unknown(kind, given, known)}")


_SPARSE = ("zeros", "values", "outliers", "power", "W error")


def _sparse(found: Figures | None) -> tuple[str, ...]:
    """What became of the weight of a W8A8S; nothing of one that stays float."""
    if found is None:
        return ("",) * len(_SPARSE)
    shares = (f"{found.zeros:.1%}", str(found.num_distinct), f"{found.outliers:.2%}")
    return (*shares, f"{found.power:g}", f"{found.error:.2%}")


def _input(row: Row) -> tuple[str, str]:
    return f"{row.score:.1f}", f"{row.low:.4g} … {row.high:.4g}"


def show(terminal: Console, report: Report, out: Path) -> None:
    """The table of linears, and what the whole came to."""
    is_sparse = any(row.sparse is not None for row in report.linears)
    named = _SPARSE if is_sparse else ("score", "range of its input")
    table = Table("linear", "kind", *named, "error" if is_sparse else "relative error", box=None, pad_edge=False)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in report.linears:
        error = row.why or "" if row.relative_error is None else f"{row.relative_error:.3%}"
        name = row.name.removeprefix("model.layers.")
        table.add_row(name, row.kind, *(_sparse(row.sparse) if is_sparse else _input(row)), error)
    terminal.print(table)
    num = sum(row.relative_error is not None for row in report.linears)
    layers = ",".join(map(str, report.float_layers)) or "none"
    terminal.print(
        f"\n{out}: {num} of {len(report.linears)} linears of 8 bits, {words.size(report.bytes_before)} to"
        f" {words.size(report.bytes_after)}; anti-outlier {report.method}; layers with float linears: {layers}"
    )
    terminal.print(
        f"calibrated on {report.num_samples} samples, {report.num_tokens} tokens of {report.data}"
        f" ({report.data_description})"
    )
