"""What `llmbench acc calibrate` does: three stacks, the same requests to each, and a profile of their noise."""

import tempfile
from pathlib import Path

from llmbench import protocols
from llmbench.accuracy import calibrate
from llmbench.accuracy.asking import Asker
from llmbench.accuracy.calibrate import Settings
from llmbench.cli import _acc_modes as modes
from llmbench.cli._acc import Stack
from llmbench.errors import InputError


def main(settings: Settings, stack: Stack, dataset: str, out: Path, json: Path | None) -> int:
    """Launch, send, measure, write the profile, print; the exit status."""
    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"-o {out}: a profile is known by its suffix; end it in .yaml")
    if not out.parent.is_dir():
        raise InputError(f"-o {out}: there is no folder {out.parent}")
    prompts, max_batch = modes.prompts(stack, dataset, settings.seed, settings.num_new_tokens)
    if settings.batch_size > min(max_batch, settings.num_requests):
        raise InputError(
            f"--batch {settings.batch_size}: the stack runs {max_batch} at once, and {settings.num_requests} requests "
            "are sent"
        )
    sent = calibrate.requests(settings, prompts)
    dialect = protocols.get("openai_completions")
    with tempfile.TemporaryDirectory(prefix="llmbench-calibrate-") as scratch:
        folders = [Path(scratch) / name for name in ("base", "again", "batch")]
        for folder, concurrency in zip(folders, (1, 1, settings.batch_size), strict=True):
            told = modes.progress(f"{folder.name}, {concurrency} at once", len(sent))
            with modes.capturing(stack, folder, "full32", "--no-prefix-cache") as target:
                Asker(target, dialect, told).ask(sent, concurrency)
        report = calibrate.calibrate(settings, *folders)
    modes.write(out, "-o", calibrate.text(report).encode())
    return modes.finish(report, calibrate.lines(report, out), json)
