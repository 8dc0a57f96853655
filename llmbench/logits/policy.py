"""Which rows are captured, decided row by row while a stack serves."""

import hmac
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench import clock
from llmbench.errors import InputError

FILE = "policy.json"
_LOOK_NS = 500_000_000  # how often the file is looked at, in nanoseconds
_WHOLE = 1 << 64

Int64 = npt.NDArray[np.int64]


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A row is captured when all of these hold.

    Its index (that of its last input token in the sequence, from 0) divides by `every`: 1 takes every row, 100 is the
    contest's. 64 bits of HMAC-SHA256(seed, request and step) lie below `rate`: a share of the rows that nobody can
    foresee without the seed. Its request is among `requests`, when any are given.
    """

    every: int = 1
    rate: float = 1.0
    requests: tuple[str, ...] = ()
    seed: str = ""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every: must be at least 1, got {self.every}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate: must be from 0 to 1, got {self.rate}")

    @property
    def looks_at_requests(self) -> bool:
        """Whether it matters whose a row is."""
        return bool(self.requests) or self.rate < 1

    def wants(self, request_id: str, step: int, index: int) -> bool:
        """Whether this row is captured; `step` 0 is the row that gives a request's first token."""
        if index % self.every or (self.requests and request_id not in self.requests):
            return False
        return self.rate >= 1 or draw(self.seed, request_id, step) < self.rate * _WHOLE

    def select(self, request_ids: Sequence[str], steps: Int64, indices: Int64) -> npt.NDArray[np.bool_]:
        """bool [n]: `wants` of n rows; their requests are not looked at where `looks_at_requests` says so."""
        chosen: npt.NDArray[np.bool_] = indices % self.every == 0
        if self.looks_at_requests:
            for i in np.flatnonzero(chosen).tolist():
                chosen[i] = self.wants(request_ids[i], int(steps[i]), int(indices[i]))
        return chosen


NOTHING = Policy(rate=0.0)


def draw(seed: str, request_id: str, step: int) -> int:
    """The 64 bits that decide whether a share holds a row."""
    return int.from_bytes(hmac.digest(seed.encode(), f"{request_id}\n{step}".encode(), "sha256")[:8], "little")


def write(folder: Path, policy: Policy) -> None:
    """Put a policy in force for the capture into a folder, also while it runs: it is looked at twice a second."""
    aside = folder / f".{FILE}.part"
    aside.write_bytes(msgspec.json.encode(policy) + b"\n")
    aside.replace(folder / FILE)


def read(folder: Path) -> Policy | None:
    """The policy in force in a folder; None without one. Raises InputError when it is no policy."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Policy)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise InputError(f"{folder / FILE}: not a capture policy ({error})") from error


class Watched:
    """The policy in a folder, read again when somebody has written another; a broken one changes nothing."""

    def __init__(self, folder: Path, policy: Policy) -> None:
        self._folder = folder
        self.policy = policy
        self._looked_ns = clock.now_ns()
        write(folder, policy)  # an agent that is started again begins with what it was started with
        self._modified_ns = self._stamp()

    def now(self) -> Policy:
        """The policy in force."""
        if clock.now_ns() - self._looked_ns >= _LOOK_NS:
            self.look()
        return self.policy

    def look(self) -> None:
        """Read the file if it is another one than before."""
        self._looked_ns = clock.now_ns()
        stamp = self._stamp()
        if stamp != self._modified_ns:
            self._modified_ns = stamp
            try:
                self.policy = read(self._folder) or self.policy
            except InputError:
                return

    def _stamp(self) -> int:
        try:
            return (self._folder / FILE).stat().st_mtime_ns
        except OSError:
            return 0
