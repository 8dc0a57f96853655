"""What `llmbench acc selfcheck` does: answers of the bundled stack, or of an OpenAI-compatible server, scored again."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llmbench import protocols
from llmbench.accuracy import profiles, selfcheck
from llmbench.accuracy.asking import Asker
from llmbench.accuracy.prompts import Prompts
from llmbench.accuracy.selfcheck import PROMPT_TOKENS, Prompt, Report, Scores, Settings
from llmbench.cli import _acc_modes as modes
from llmbench.cli._acc import Stack, say
from llmbench.cli._acc_modes import Server
from llmbench.errors import InputError
from llmbench.loadgen.target import Target
from llmbench.tokenizer import Tokenizer

_LONGEST = 1 << 20  # of a foreign server nobody knows; it refuses what is too long
_FOREIGN = "bf16"


def main(
    settings: Settings, stack: Stack, server: Server | None, dataset: str, profile: str | None, json: Path | None
) -> int:
    """Ask, score again, print; the exit status."""
    if profile is not None:
        selfcheck.limits(profile)  # a wrong one is refused now
    if server is None:
        report = _of_stack(settings, stack, dataset, profile)
    else:
        report = _of_server(settings, stack, server, dataset, profile)
    return modes.finish(report, selfcheck.lines(report), json)


def _of_stack(settings: Settings, stack: Stack, dataset: str, profile: str | None) -> Report:
    made, _ = modes.prompts(stack, dataset, settings.seed, settings.num_new_tokens + 1)
    dialect = protocols.get("openai_completions", token_ids=True)
    with tempfile.TemporaryDirectory(prefix="llmbench-selfcheck-") as scratch:
        folder = Path(scratch) / "rows"
        with modes.capturing(stack, folder, "fp", "--prefix-cache") as target:
            rounds = _ask(settings, _prompts(settings, made), target, dialect)
        with modes.opened(folder) as side:  # only it knows what the engine computes in
            name = profile or profiles.for_dtype(side.store.manifest.dtype, side.store.manifest.quantisation)
    return selfcheck.judge_rounds(settings, rounds, name, by_ids=True, cache_is_ours=True)


def _of_server(settings: Settings, stack: Stack, server: Server, dataset: str, profile: str | None) -> Report:
    if server.dialect != "openai_completions":
        raise InputError(f"--dialect {server.dialect}: prompts are scored in openai_completions only")
    texts, by_ids = modes.texts(dataset), stack.tokenizer is not None
    if profile is None:
        say(f"profile: {_FOREIGN}, since a server does not say what it computes in; another with --profile")
    prompts: Sequence[Prompt] = texts[: settings.num_prompts]
    if stack.tokenizer is not None:
        tokenizer = Tokenizer.from_file(stack.tokenizer)
        prompts = _prompts(settings, Prompts(texts, tokenizer, np.random.default_rng([settings.seed, 0]), _LONGEST))
    target = server.target()
    options = {"token_ids": True} if by_ids else {}
    rounds = _ask(settings, prompts, target, server.speech(target, **options))
    return selfcheck.judge_rounds(settings, rounds, profile or _FOREIGN, by_ids=by_ids, cache_is_ours=False)


def _prompts(settings: Settings, made: Prompts) -> list[Prompt]:
    rng = np.random.default_rng([settings.seed, 3])
    return [made.take(int(n)) for n in rng.integers(*PROMPT_TOKENS, size=settings.num_prompts, endpoint=True)]


def _ask(settings: Settings, prompts: Sequence[Prompt], target: Target, dialect: protocols.ClientHalf) -> list[Scores]:
    asker = Asker(target, dialect, modes.progress("answers and their scores", 4 * len(prompts)))
    return [selfcheck.send(settings, prompts, asker, "cold"), selfcheck.send(settings, prompts, asker, "hot")]
