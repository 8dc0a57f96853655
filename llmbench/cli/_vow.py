"""What `perf --audit` adds to a run: a secret that is committed to first and revealed last, and the sealed evidence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from llmbench import chain
from llmbench.accuracy.audit import canaries, evidence, secret, session
from llmbench.accuracy.audit.secret import Committed, Revealed, Secret
from llmbench.accuracy.audit.session import Looked
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.target import Target
from llmbench.tokenizer import Tokenizer
from llmbench.workload.plan import Plan

SHARE = 0.05
"""Of the requests that ask questions with known answers."""


class Vow:
    """The secret of one attempt at a run."""

    def __init__(self, attempt: int = 1) -> None:
        self._attempt = attempt
        self._seed = secret.new_seed()
        self._secret: Secret | None = None
        self._lines: list[Committed] = []

    @property
    def rows_seed(self) -> str:
        """What decides which rows the server keeps of this run; it follows from the secret and does not tell it."""
        return secret.of_rows(self._seed)

    def mix(self, plan: Plan, share: float | None, questions: Path | None, tokenizer: Tokenizer) -> Plan:
        """The plan with questions in it, which the secret names. Raises InputError when wished ones do not fit."""
        asked = canaries.known() if questions is None else canaries.read(questions)
        seed = secret.number(self._seed, "canaries")
        plan, chosen = canaries.mixed(plan, asked, SHARE if share is None else share, seed, tokenizer)
        if not chosen and (share is not None or questions is not None):
            raise InputError(
                "--canaries: every request of this plan is of a conversation or of token ids; leave it out"
            )
        self._secret = secret.new(chosen, self._seed)
        return plan

    def commit(self, plan: Plan, say: Callable[[str], None]) -> None:
        """From here on the secret stands; it is said what it was committed to."""
        found = self._secret = self._secret or secret.new((), self._seed)
        self._lines.append(
            Committed(attempt=self._attempt, at_s=secret.now_s(), commitment=found.commitment, plan_sha256=plan.sha256)
        )
        say(f"audit: committed to {found.commitment}, {len(found.canaries)} questions among the requests")

    @contextmanager
    def kept(self, folder: Path, target: Target) -> Iterator[None]:
        """Around all that is sent: what the server is before and after, the secret at the end, whatever happens."""
        secret.append(folder, *self._lines, self._looked(target, "before the warm-up"))
        try:
            yield
        finally:
            assert self._secret is not None, "what was not committed to cannot be revealed"
            shown = Revealed(attempt=self._attempt, at_s=secret.now_s(), secret=self._secret)
            secret.append(folder, self._looked(target, "after the run"), shown)

    def _looked(self, target: Target, when: str) -> Looked:
        return Looked(attempt=self._attempt, at_s=secret.now_s(), when=when, session=session.read(target))


def seal(folder: Path, say: Callable[[str], None]) -> None:
    """Seal what a run has left; its head is said, for whoever is to trust it later."""
    sealed = evidence.seal(folder)
    say(f"audit: sealed, head {sealed.head}; see `llmbench audit {folder}`")


def refuse_changed(folder: Path) -> None:
    """Raise InvalidMeasurement for a run that was sealed and is not what was sealed: it must not be sealed again."""
    if (folder / chain.FILE).is_file():
        found = evidence.finding(folder, None)
        if found.verdict == "broken":
            raise InvalidMeasurement(f"{folder}: {found.why}; a run that was changed cannot go on")
