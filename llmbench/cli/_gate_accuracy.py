"""The accuracy half of the gate: rows captured in the timed runs themselves, compared, and told beside the times."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.text import Text

from llmbench.accuracy import compare as accuracy
from llmbench.accuracy import describe
from llmbench.cli import _acc, _acc_files
from llmbench.cli._compare import Outputs
from llmbench.errors import InputError
from llmbench.metrics import compare as comparing
from llmbench.metrics.compare import Comparison
from llmbench.report import files, junit, regression
from llmbench.report.terminal import Terminal
from llmbench.serving import launch


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked of the rows: see `llmbench acc compare`."""

    profile: str | None = None
    tier: str = "topk"


def flags(settings: Settings | None, rows: Path | None) -> list[str]:
    """The flags of a server that captures into a folder; none without accuracy."""
    if settings is None or rows is None:
        return []
    return launch.capturing(rows, settings.tier)


def judge(settings: Settings | None, rows: Mapping[str, Sequence[Path]]) -> accuracy.Comparison | None:
    """The rows of the first run of each side against each other; None without accuracy."""
    if settings is None:
        return None
    if not rows.get("a") or not rows.get("b"):
        raise InputError("accuracy: the baseline has no rows; update it with settings that have `accuracy`")
    return accuracy.compare(rows["a"][0], rows["b"][0], accuracy.Options(profile=settings.profile))[0]


def tell(
    found: Comparison,
    rows: accuracy.Comparison | None,
    sides: tuple[str, ...],
    outputs: Outputs,
    folder: Path,
) -> int:
    """Print and write both halves; the exit status of the worse one."""
    a, b = sides
    if outputs.one_line:
        print(regression.one_line(found) + ("" if rows is None else f", accuracy {rows.verdict}"))
    else:
        regression.show(Terminal(), found, a, b)
        if rows is not None:
            _acc.show(Terminal(), rows)
        Terminal().print(Text(f"files: {folder}"), soft_wrap=True)
    if outputs.github:
        print(regression.annotations(found) + _annotation(rows), end="")
    _write(found, rows, sides, outputs)
    codes = [comparing.EXIT[found.verdict], 0 if rows is None else describe.EXIT[rows.verdict]]
    return next((code for code in (1, 3, 4) if code in codes), 0)


def _write(found: Comparison, rows: accuracy.Comparison | None, sides: tuple[str, ...], outputs: Outputs) -> None:
    a, b = sides
    with files.wanted():
        if outputs.json is not None:
            files.write_json(outputs.json, {"a": a, "b": b, "speed": msgspec.to_builtins(found), "accuracy": rows})
        if outputs.junit is not None:
            cases = [*regression.cases(found), *([] if rows is None else _acc_files.cases(rows))]
            files.write(outputs.junit, junit.junit("llmbench gate", cases))
        if outputs.markdown is not None:
            parts = [regression.markdown(found, a, b), *([] if rows is None else [_acc_files.markdown(rows)])]
            files.write(outputs.markdown, "\n".join(parts).encode())


def _annotation(rows: accuracy.Comparison | None) -> str:
    if rows is None or rows.verdict == "passed":
        return ""
    kind = "warning" if rows.verdict == "inconclusive" else "error"
    return regression.annotation(kind, f"accuracy {rows.verdict}", "; ".join(rows.reasons)) + "\n"
