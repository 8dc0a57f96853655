"""What `llmbench acc determinism` does: the same prompts again and again, to the bundled stack or to any server."""

import tempfile
from pathlib import Path

from llmbench import plugins, protocols
from llmbench.accuracy import determinism, profiles
from llmbench.accuracy.asking import Asker
from llmbench.accuracy.determinism import Design, Level, Report, Said, Settings
from llmbench.cli import _acc_modes as modes
from llmbench.cli._acc import Stack
from llmbench.cli._acc_modes import Server
from llmbench.errors import InputError
from llmbench.loadgen.target import Target


def main(
    settings: Settings,
    stack: Stack,
    server: Server | None,
    dataset: str,
    level: str | None,
    profile: str | None,
    json: Path | None,
) -> int:
    """Ask, count, print; the exit status."""
    declared = _level(level, server)
    if profile is not None:
        profiles.get(profile)  # a wrong name is refused now
        if declared != "profile":
            raise InputError(f"--profile is for --level profile, not {declared}; leave one of them out")
    if not settings.num_idle and not settings.num_load:
        raise InputError("--idle 0 --load 0: there is nothing to repeat")
    if server is not None:
        report = _of_server(settings, server, dataset)
    else:
        report = _of_stack(settings, stack, dataset, declared, profile)
    return modes.finish(report, determinism.lines(report), json)


def _level(level: str | None, server: Server | None) -> Level:
    """The level that is declared; else the strictest that can be checked and is not everybody's to keep."""
    if level is None:
        return "profile" if server is None else "text"
    for known in determinism.LEVELS:
        if known == level:
            if server is not None and known != "text":
                raise InputError(f"--level {level}: rows are seen of the launched stack only; --url has --level text")
            return known
    raise InputError(f"--level: {plugins.unknown('level', level, list(determinism.LEVELS))}")


def _of_server(settings: Settings, server: Server, dataset: str) -> Report:
    texts = modes.texts(dataset)
    if settings.num_prompts > len(texts):
        raise InputError(f"--prompts {settings.num_prompts}: {dataset} has {len(texts)} samples")
    sent, target = determinism.design(settings, texts), server.target()
    return determinism.judge(settings, _ask(sent, settings, target, server.speech(target)), "text")


def _of_stack(settings: Settings, stack: Stack, dataset: str, level: Level, profile: str | None) -> Report:
    prompts, _ = modes.prompts(stack, dataset, settings.seed, 2 * settings.num_new_tokens)
    sent = determinism.design(settings, prompts)
    with tempfile.TemporaryDirectory(prefix="llmbench-determinism-") as scratch:
        folder = Path(scratch) / "rows"
        with modes.capturing(stack, folder, "topk" if level == "profile" else "fp") as target:
            said = _ask(sent, settings, target, protocols.get("openai_completions"))
        with modes.opened(folder) as side:
            return determinism.judge(settings, said, level, side, profile)


def _ask(sent: Design, settings: Settings, target: Target, dialect: protocols.ClientHalf) -> dict[str, Said]:
    asker = Asker(target, dialect, modes.progress("repeats and others", sent.num_requests))
    return determinism.send(sent, asker, settings.concurrency)
