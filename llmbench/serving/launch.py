"""Starting `llmbench serve` as a process of its own, for commands that need a server."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from llmbench.processes import Child, child

READY = "llmbench serve: ready on "
_GOODBYE_S = 15.0  # longer than a server drains


def flags(given: Mapping[str, object]) -> list[str]:
    """`--flag value` for each setting that was given; None stands for "not given"."""
    return [word for flag, value in given.items() if value is not None for word in (flag, str(value))]


def capturing(
    folder: Path,
    tier: str,
    *,
    every: int | None = None,
    rate: float | None = None,
    seed: str | None = None,
    force: Path | None = None,
) -> list[str]:
    """The flags of a server that captures rows of logits into a folder; see serving.config.Capture."""
    given = {
        "--capture": folder.absolute(),
        "--capture-tier": tier,
        "--capture-every": every,
        "--capture-rate": rate,
        "--capture-seed": seed or None,
        "--force": force and force.absolute(),
    }
    return flags(given)


def launched(argv: list[str], serve: Sequence[str] | None = None) -> AbstractContextManager[Child]:
    """`llmbench serve --port 0 ARGV`, answering; stopped on leaving, and by itself should this process be killed.

    `serve` is another command than this installation's `llmbench serve`, of another version for example.

    Raises ServingError (ConfigError when the server said that its settings are wrong) with its last line of output.
    """
    command = [*(serve or (sys.executable, "-m", "llmbench", "serve")), "--port", "0", "--until-stdin-closes", *argv]
    return child(command, READY, "the bundled stack", _GOODBYE_S)
