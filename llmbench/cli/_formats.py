"""What a run can be written as: each format and its file."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from llmbench import plugins
from llmbench.errors import InputError
from llmbench.report import console, contest, files, html, markdown, tables
from llmbench.report.view import View

FILES = {
    "json": "summary.json",
    "csv": "records.csv",
    "txt": "report.txt",
    "md": "report.md",
    "html": "report.html",
    "xlsx": "result.xlsx",
    "parquet": "records.parquet",
    "contest": "result_X_x.json",
}
ALWAYS = ("json", "csv", "txt", "md", "html", "contest")
"""Those that every run gets; the others want the extra `report`."""

_RENDER = {"txt": console.text, "md": markdown.page, "html": html.page}


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What all formats together need."""

    view: View
    answers: Sequence[contest.Answer]
    about: contest.Run


def chosen(names: Sequence[str]) -> list[str]:
    """The formats of these names, `all` for each of them. Raises InputError for an unknown one."""
    for name in names:
        if name not in (*FILES, "all"):
            raise InputError(f"--format: {plugins.unknown('format', name, [*FILES, 'all'])}")
    return list(FILES) if "all" in names else list(dict.fromkeys(names))


def write(names: Sequence[str], export: Export, folder: Path) -> list[Path]:
    """The files of these formats in a folder; their paths."""
    return [_write(name, export, folder) for name in chosen(names)]


def _write(name: str, export: Export, folder: Path) -> Path:
    path, view = folder / FILES[name], export.view
    if name == "contest":
        return contest.result(folder, export.about, export.answers)
    if name == "csv":
        files.records(folder, view.traces)
    elif name == "xlsx":
        tables.xlsx(path, [(export.about.qps, view.traces)])
    elif name == "parquet":
        tables.parquet(path, view.traces, view.start_ns)
    elif name == "json":
        files.write_json(path, files.summary(view))
    else:
        files.write(path, _RENDER[name](view).encode("utf-8", "replace"))
    return path
