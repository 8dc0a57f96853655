"""What a run commits to before anything is sent, and reveals when all is answered: `audit.jsonl`, append-only.

The commitment is the sha256 of the secret, which has a seed of 256 random bits in it: nobody can guess the secret from
it, and nobody can show another one afterwards. The seed chooses what the audit looks at; the secret names the
questions with known answers. It is in no file until the last request is answered. A process that can read the memory of
the one that measures knows it all the same: measure from another machine, or as another user.
"""

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from llmbench.accuracy.audit.session import Looked
from llmbench.errors import InputError

FILE = "audit.jsonl"
T = TypeVar("T")


class Canary(msgspec.Struct, frozen=True, kw_only=True):
    """A request of the plan that is a question with a known answer."""

    index: int
    answer: str


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """What nobody but the one who measures knows during the run."""

    seed: str
    canaries: tuple[Canary, ...] = ()

    @property
    def commitment(self) -> str:
        """sha256 of the secret as JSON, in hex."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class Committed(msgspec.Struct, frozen=True, kw_only=True, tag="committed", tag_field="kind"):
    """Before a server is launched, and before anything is sent. `at_s` are seconds since the epoch."""

    attempt: int
    at_s: float
    commitment: str
    plan_sha256: str


class Revealed(msgspec.Struct, frozen=True, kw_only=True, tag="revealed", tag_field="kind"):
    """After the last answer."""

    attempt: int
    at_s: float
    secret: Secret


Line = Committed | Looked | Revealed


def new(canaries: Iterable[Canary] = (), seed: str | None = None) -> Secret:
    """A secret with a seed of 256 bits, drawn now unless it was before."""
    return Secret(seed=seed or new_seed(), canaries=tuple(canaries))


def new_seed() -> str:
    """256 random bits in hex."""
    return secrets.token_hex(32)


def append(folder: Path, *lines: Line) -> None:
    """Add lines to the log of the run in a folder."""
    with (folder / FILE).open("ab") as file:
        file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def now_s() -> float:
    """Seconds since the epoch: what people compare with other clocks."""
    return time.time()


def read(folder: Path) -> list[Line]:
    """The log of a run; empty when it has none. Raises InputError that names the line which is none of it."""
    path = folder / FILE
    if not path.is_file():
        return []
    decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
    found: list[Line] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            found.append(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: line {number} is not one of an audit's log ({error})") from error
    return found


def revealed(lines: Iterable[Line]) -> Secret | None:
    """The secret of the run: the last seed, and the questions of the first attempt, which made the plan."""
    found = [line.secret for line in lines if isinstance(line, Revealed)]
    if not found:
        return None
    return Secret(seed=found[-1].seed, canaries=next((one.canaries for one in found if one.canaries), ()))


def lost(lines: Iterable[Line]) -> bool:
    """Whether the first attempt, which made the plan, ended without revealing its secret."""
    found = list(lines)
    return any(isinstance(line, Committed) for line in found) and not any(
        isinstance(line, Revealed) and line.attempt == 1 for line in found
    )


def broken(lines: Iterable[Line], plan_sha256: str) -> str:
    """What does not fit in the log: a secret that is not what was committed to, another plan; "" when all fits."""
    committed = {line.attempt: line for line in lines if isinstance(line, Committed)}
    for attempt, promise in committed.items():
        if promise.plan_sha256 != plan_sha256:
            return f"attempt {attempt} was committed to another plan, {promise.plan_sha256[:12]}"
    for line in lines:
        if isinstance(line, Revealed) and (
            line.attempt not in committed or line.secret.commitment != committed[line.attempt].commitment
        ):
            return f"the secret of attempt {line.attempt} is not the one that was committed to"
    return ""


def chosen(seed: str, what: str, ids: Iterable[str], number: int) -> list[str]:
    """`number` of these ids, those with the smallest HMAC-SHA256(seed, what and id): nobody can foresee which."""

    def drawn(one: str) -> bytes:
        return hmac.digest(seed.encode(), f"{what}\n{one}".encode(), "sha256")

    return sorted(ids, key=drawn)[:number]


def of_rows(seed: str) -> str:
    """The seed of the rows that a server is to keep: it follows from the secret one and does not tell it."""
    return hmac.digest(seed.encode(), b"rows", "sha256").hex()


def number(seed: str, what: str) -> int:
    """A seed for a random generator, of 64 bits, that follows from the secret one."""
    return int.from_bytes(hmac.digest(seed.encode(), what.encode(), "sha256")[:8], "little")
