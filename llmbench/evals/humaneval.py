"""HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): functions to write from their docstrings.

A greedy completion, cut at the first line that is not indented (ascend-formats section 5.3). Nothing is run unless the
user says so: `samples.jsonl` goes into OpenAI's own harness. With `--allow-exec` each program runs with its tests in a
process that is shut in, see `_confined`, for three seconds at most; accuracy is pass@1.
"""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmbench.evals import NO_ANSWER, Ask, Item, Mark, Marked, Options, Reply, _confined, _lines

ABOUT = "HumanEval, functions to write; folder with HumanEval.jsonl(.gz); runs the code with --allow-exec only"
MODES = ("completion",)
SPLITS = ("test",)
SHOTS = (0,)

_log = logging.getLogger(__name__)

FILE = "HumanEval.jsonl"
MAX_NEW_TOKENS = 512
TIMEOUT_S = 3.0


def evaluation(options: Options) -> "HumanEval":
    """HumanEval with everything chosen."""
    return HumanEval(options)


class HumanEval:
    """Completions, and with leave of the user what their tests say."""

    name = "humaneval"

    def __init__(self, options: Options) -> None:
        self._allow_exec = options.allow_exec
        if self._allow_exec and not _confined.network_is_cut():
            _log.warning("this system gives no network namespaces to users: the code that is run can reach the network")
        self.max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
        self.protocol: Mapping[str, Any] = {
            "eval": self.name,
            "version": 1,
            "mode": MODES[0],
            "split": SPLITS[0],
            "shots": 0,
            "max_new_tokens": self.max_new_tokens,
            "executed": self._allow_exec,
        }

    def items(self, folder: Path) -> list[Item]:
        """Every line of the file."""
        return [self._item(line) for line in _lines.read(folder / FILE)]

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        """Whether the program passes its tests; not known unless it may be run."""
        if not self._allow_exec:
            return Mark(predicted=NO_ANSWER, correct=None)
        outcome = _confined.run(program(item.notes, cut(replies[0].text)), TIMEOUT_S)
        return Mark(predicted=outcome, correct=outcome == _confined.PASSED)

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        """`samples.jsonl` as OpenAI's harness reads it: a task and its completion on each line."""
        lines = [{"task_id": one.id, "completion": cut(one.replies[0])} for one in marked]
        return {"samples.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()}

    def _item(self, line: _lines.Line) -> Item:
        return Item(
            id=line.text("task_id"),
            group=self.name,
            category=self.name,
            truth=_confined.PASSED,
            asks=(Ask(prompt=line.text("prompt"), max_new_tokens=self.max_new_tokens),),
            notes={key: line.text(key) for key in ("prompt", "test", "entry_point")},
        )


def cut(completion: str) -> str:
    """The completion up to its first line that is not indented; the line that it begins on is the prompt's last."""
    first, *lines = completion.split("\n")
    for place, line in enumerate(lines):
        if line and not line[0].isspace():
            lines = lines[:place]
            break
    return "\n".join([first, *lines])


def program(notes: Mapping[str, str], completion: str) -> str:
    """The prompt, its completion, the tests, and the call of the tests."""
    return f"{notes['prompt']}{completion}\n\n{notes['test']}\n\ncheck({notes['entry_point']})\n"


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """1 - prod(1 - k / i) for i from n - c + 1 to n: unbiased for the chance that one of k samples is right."""
    if num_samples - num_right < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_right + 1, num_samples + 1))
