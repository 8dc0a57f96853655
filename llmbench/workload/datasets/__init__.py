"""Datasets by name or by path: the real file when a user has added it, else its synthetic stand-in."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import msgspec

from llmbench import __version__
from llmbench.errors import InputError
from llmbench.plugins import unknown
from llmbench.workload.corpus import hendrycks
from llmbench.workload.datasets import alpaca, standins
from llmbench.workload.datasets.alpaca import Sample

MANIFEST = "manifest.json"
MMLU = "mmlu"
_MMLU_STANDIN = "mmlu.synthetic"  # a folder


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file that the manifest knows, or one folder; its hash is of the hashes and names of its files."""

    name: str
    file: str
    source: str
    licence: str
    sha256: str
    bytes: int
    count: int
    synthetic: bool


REAL = (
    Entry(
        name="alpaca_5010",
        file="alpaca_5010.json",
        source="2024 Ascend Innovation Contest, MindSpore track, topic 3; Alpaca-style instructions",
        licence="none stated (Stanford Alpaca is CC BY-NC 4.0); not redistributed here",
        sha256="72e5059e2dd14af4464284a43b9e4fae2fde93c2fd1fb191b4d6fe4df5a23507",
        bytes=2196451,
        count=5010,
        synthetic=False,
    ),
    Entry(
        name="alpaca_521",
        file="alpaca_521.json",
        source="2024 Ascend Innovation Contest, MindSpore track, topic 3; Alpaca-style instructions",
        licence="none stated (Stanford Alpaca is CC BY-NC 4.0); not redistributed here",
        sha256="82adef416691ddc77db6ad0154801fbbf2926ad1c347929ee14992c1eaa67c2b",
        bytes=237067,
        count=521,
        synthetic=False,
    ),
)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """Which file a name or path stands for, and how to say so."""

    name: str
    path: Path
    real: bool  # False for a stand-in that we made
    description: str


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of a dataset, and where they come from."""

    name: str
    path: Path
    real: bool
    description: str
    samples: list[Sample]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a check of one file of the manifest found; `ok` is None when the file is not there."""

    entry: Entry
    path: Path
    ok: bool | None


def folder() -> Path:
    """Where datasets are: $LLMBENCH_DATASETS, ./datasets, the checkout's own, else the user's cache."""
    given = os.environ.get("LLMBENCH_DATASETS")
    if given:
        return Path(given)
    checkout = Path(__file__).parents[3] / "datasets"
    for candidate in (Path("datasets"), checkout):
        if (candidate / MANIFEST).is_file():
            return candidate
    return _cache()


def _cache() -> Path:
    """The folder of this version in the user's cache, as the platform has it."""
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg:
        base = Path(xdg)
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return base / "llmbench" / __version__ / "datasets"


def manifest(place: Path) -> list[Entry]:
    """What is known of the real files, and of the stand-ins in a folder."""
    path = place / MANIFEST
    if not path.is_file():
        return list(REAL)
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Entry])
    except msgspec.MsgspecError as error:
        raise InputError(f"{path}: not a manifest of datasets ({error})") from error


def make(place: Path) -> list[Path]:
    """Write the stand-ins and the manifest into a folder; the same bytes every time."""
    paths = standins.make(place)
    paths += hendrycks.make(place / _MMLU_STANDIN)
    entries = [*REAL, *(_standin_entry(name, place) for name in standins.STANDINS), _mmlu_entry(place)]
    path = place / MANIFEST
    path.write_bytes(json.dumps(msgspec.to_builtins(entries), indent=2).encode() + b"\n")
    return [*paths, path]


def mmlu() -> Found:
    """The folder of MMLU's questions: the user's own copy, else our stand-in, which is made when it is not there."""
    own = folder() / MMLU
    if own.is_dir():
        return Found(name=MMLU, path=own, real=True, description=f"the folder {own}")
    standin = folder() / _MMLU_STANDIN
    if not standin.is_dir():
        standin = _cache() / _MMLU_STANDIN
        if not standin.is_dir():
            _make_whole(standin)
    return Found(name=MMLU, path=standin, real=False, description=f"{standin}, our own stand-in for MMLU")


def _make_whole(standin: Path) -> None:
    """Make the folder aside and rename it, so that it is whole or not there, whoever else makes it at the same time."""
    standin.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=standin.parent) as aside:
        hendrycks.make(Path(aside) / standin.name)
        with contextlib.suppress(OSError):  # it is there by now
            os.replace(Path(aside) / standin.name, standin)


def names() -> list[str]:
    """The names that can be given for a dataset."""
    return list(standins.STANDINS)


def resolve(name: str) -> Found:
    """The file that a name or a path stands for; missing stand-ins are made. Raises InputError on a wrong name."""
    if name in standins.STANDINS:
        return _known(name, folder())
    path = Path(name)
    if path.is_file():
        return Found(name=path.stem, path=path, real=True, description=f"the file {path}")
    if path.suffix or len(path.parts) > 1:
        raise InputError(f"{path}: there is no such dataset file")
    raise InputError(unknown("dataset", name, names()) + "; or give the path of an Alpaca-style JSON file")


def _known(name: str, place: Path) -> Found:
    entry = next(entry for entry in REAL if entry.name == name)
    real = place / entry.file
    if real.is_file():
        verdict = "sha256 ok" if sha256(real) == entry.sha256 else "NOT the known file: its sha256 differs"
        return Found(name=name, path=real, real=True, description=f"the real {name} ({verdict})")
    standin = place / standins.file_name(name)
    if standin.is_file():
        return Found(name=name, path=standin, real=False, description=f"the synthetic stand-in of {name}")
    cache = _cache()
    standin = cache / standins.file_name(name)
    how = "kept in the cache"
    if not standin.is_file():
        make(cache)
        how = f"just made in {cache}"
    return Found(name=name, path=standin, real=False, description=f"the synthetic stand-in of {name}, {how}")


def load(name: str) -> Dataset:
    """The samples that a name or a path stands for."""
    found = resolve(name)
    return Dataset(
        name=found.name,
        path=found.path,
        real=found.real,
        description=found.description,
        samples=alpaca.read(found.path),
    )


def sha256(path: Path) -> str:
    """The hash of a file; of a folder that of `HASH  NAME` lines, as sha256sum prints them, in the order of names."""
    if path.is_dir():
        files = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
        return hashlib.sha256("".join(f"{sha256(path / name)}  {name}\n" for name in files).encode()).hexdigest()
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file ({error.strerror})") from error


def verify() -> list[Verdict]:
    """Compare every file of the manifest that is there with its hash."""
    place = folder()
    verdicts = []
    for entry in manifest(place):
        path = place / entry.file
        verdicts.append(Verdict(entry=entry, path=path, ok=sha256(path) == entry.sha256 if path.exists() else None))
    return verdicts


def add(path: Path) -> Path:
    """Copy a file that is known by its hash into the datasets folder, under its own name."""
    found = sha256(path)
    entry = next((entry for entry in manifest(folder()) if entry.sha256 == found), None)
    if entry is None:
        raise InputError(f"{path}: not a file of the manifest (sha256 {found[:16]}…); use it with --dataset {path}")
    target = folder() / entry.file
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (target.exists() and target.samefile(path)):
        temporary = target.with_suffix(".part")
        shutil.copyfile(path, temporary)
        os.replace(temporary, target)
    return target


def _standin_entry(name: str, place: Path) -> Entry:
    path = place / standins.file_name(name)
    return Entry(
        name=name,
        file=path.name,
        source="made by `llmbench data make`",
        licence="Apache-2.0",
        sha256=sha256(path),
        bytes=path.stat().st_size,
        count=len(alpaca.read(path)),
        synthetic=True,
    )


def _mmlu_entry(place: Path) -> Entry:
    path = place / _MMLU_STANDIN
    files = [found for found in path.rglob("*") if found.is_file()]
    return Entry(
        name=MMLU,
        file=path.name,
        source="made by `llmbench data make`; held-out questions of the embedded model",
        licence="Apache-2.0",
        sha256=sha256(path),
        bytes=sum(found.stat().st_size for found in files),
        count=sum(found.read_bytes().count(b"\n") for found in files if found.parent.name in ("val", "test")),
        synthetic=True,
    )
