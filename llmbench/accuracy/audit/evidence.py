"""A10: the files that a run's numbers rest on, sealed in a chain of hashes."""

from pathlib import Path

from llmbench import chain
from llmbench.accuracy.audit import Finding, secret
from llmbench.errors import InputError
from llmbench.loadgen import journal

_FILES = ("plan.jsonl.gz", "config.json", "environment.json", "server.json", "calibration.json", secret.FILE)
_FOLDERS = ("rows",)


def files(folder: Path) -> list[str]:
    """The evidence in the folder of a run; all else can be made of it again."""
    there = [name for name in _FILES if (folder / name).is_file()]
    journals = [path.name for path in journal.paths(folder)]
    below = sorted(
        path.relative_to(folder).as_posix()
        for name in _FOLDERS
        for path in (folder / name).rglob("*")
        if path.is_file()
    )
    return [*there, *journals, *below]


def seal(folder: Path) -> chain.Chain:
    """Write the chain over a run's evidence: when nothing writes there any more. Raises InputError.

    A run that goes on after it was sealed must still be what was sealed, but for what its next attempt adds.
    """
    return chain.seal(folder, files(folder))


def finding(folder: Path, head: str | None) -> Finding:
    """Whether the evidence is what was sealed, with this head if one is known."""
    try:
        sealed = chain.read(folder)
    except InputError as error:
        return _broken(str(error))
    if sealed is None:
        return _broken(f"there is no {chain.FILE}: the run was not made with perf --audit, or killed before its end")
    if head is not None and not (len(head) >= 8 and sealed.head.startswith(head.lower())):
        return _broken(f"its head is {sealed.head[:16]}, not {head[:16]}: it was sealed again")
    broken = chain.verify(folder, sealed, files(folder))
    if broken is not None:
        return _broken(str(broken))
    return Finding(
        test="A10",
        what="evidence as it was sealed",
        verdict="passed",
        value=f"{sealed.num_links} links over {len(sealed.parts)} files, head {sealed.head[:16]}",
        limit="all fit" if head is None else "all fit, and the head is the one given",
        figures={"links": sealed.num_links, "files": len(sealed.parts)},
    )


def commitments(folder: Path, plan_sha256: str) -> Finding:
    """Whether the secret is the one that was committed to before the run, for this plan. Raises InputError."""
    lines = secret.read(folder)
    wrong = secret.broken(lines, plan_sha256)
    if wrong:
        return _broken(f"{secret.FILE}: {wrong}")
    found = secret.revealed(lines)
    value = "nothing was committed to" if not lines else "nothing was revealed"
    return Finding(
        test="A10",
        what="the secret that was committed to before the first request",
        verdict="passed" if found else "not applicable",
        value="" if found is None else f"seed {found.seed[:8]}…, {len(found.canaries)} questions",
        limit="sha256 fits",
        why="" if found else f"{value}; what it would have chosen is chosen now",
    )


def _broken(why: str) -> Finding:
    return Finding(test="A10", what="evidence as it was sealed", verdict="broken", limit="all fit", why=why)
