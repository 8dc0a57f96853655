"""What `llmbench acc batchvar` does: two stacks, the second with a prefix cache, the same requests to both."""

import tempfile
from pathlib import Path

from llmbench import protocols
from llmbench.accuracy import batchvar, profiles
from llmbench.accuracy.asking import Asker
from llmbench.accuracy.batchvar import Cache, Design, Settings
from llmbench.cli import _acc_modes as modes
from llmbench.cli._acc import Stack
from llmbench.errors import InputError


def main(settings: Settings, stack: Stack, dataset: str, profile: str | None, json: Path | None) -> int:
    """Launch, send, compare, print; the exit status."""
    if profile is not None:
        profiles.get(profile)  # a wrong name is refused now
    prompts, max_batch = modes.prompts(stack, dataset, settings.seed, 2 * settings.num_new_tokens)
    largest = max(settings.batch_sizes)
    if stack.config is not None and largest > max_batch:
        raise InputError(f"--batches {largest}: {stack.config} runs {max_batch} at once (limits.max_batch)")
    sent = batchvar.design(settings, prompts)
    room = () if largest <= max_batch else ("--max-batch", str(largest))
    with tempfile.TemporaryDirectory(prefix="llmbench-batchvar-") as scratch:
        cold, hot = Path(scratch) / "cold", Path(scratch) / "hot"
        _send(sent, stack, cold, "cold", "--no-prefix-cache", *room)
        cached = _send(sent, stack, hot, "hot", "--prefix-cache", *room)
        with modes.opened(cold) as base, modes.opened(hot) as new:
            report = batchvar.judge(sent, settings, base, new, cached, profile)
    return modes.finish(report, batchvar.lines(report), json)


def batch_sizes(text: str) -> tuple[int, ...]:
    """`2,8,32` as numbers. Raises InputError."""
    try:
        sizes = tuple(int(word) for word in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 2 or len(set(sizes)) < len(sizes):
        raise InputError(f"--batches {text}: different numbers from 2 on, with commas between them, such as 2,8,32")
    return sizes


def _send(sent: Design, stack: Stack, folder: Path, cache: Cache, *more: str) -> dict[str, int]:
    told = modes.progress(f"prefix cache {cache}", sent.num_requests(cache))
    with modes.capturing(stack, folder, "full32", *more, requests=sent.names) as target:
        return batchvar.send(sent, Asker(target, protocols.get("openai_completions"), told), cache)
