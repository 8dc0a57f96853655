"""Which faults a request meets: a pure function of the settings and of its number."""

import math
from hashlib import blake2b
from statistics import NormalDist

import msgspec

from llmbench.loadgen.null_server import Settings

_NORMAL = NormalDist()


class Fate(msgspec.Struct, frozen=True, kw_only=True):
    """What will become of one request. Tokens are counted from 0; None is never."""

    error_status: int | None = None
    dropped: bool = False
    abort_after: int | None = None
    hang_after: int | None = None
    stall_after: int | None = None
    kept: float = 1.0
    """Share of the tokens asked for that are sent."""
    slowness: float = 1.0
    """What its times are multiplied by."""
    cached: bool = False
    """Its `usage` says that the prompt came from a cache."""
    clock_shift_s: float = 0.0


def fate(settings: Settings, number: int, seen: bool) -> Fate:
    """Of the request with this number; `seen` when its prompt has come before."""
    faults = settings.faults

    def hit(share: float, what: str) -> bool:
        return share > 0 and chance(settings.seed, number, what) < share

    return Fate(
        error_status=faults.error_status if hit(faults.error_share, "error") else None,
        dropped=hit(faults.drop_share, "drop"),
        abort_after=faults.abort_after if hit(faults.abort_share, "abort") else None,
        hang_after=faults.hang_after if hit(faults.hang_share, "hang") else None,
        stall_after=faults.stall_after if faults.stall_every and number % faults.stall_every == 0 else None,
        kept=faults.truncate_to if hit(faults.truncate_share, "truncate") else 1.0,
        slowness=_slowness(settings, number) * (faults.cache_speed if seen else 1.0),
        cached=seen and faults.cache_counted,
        clock_shift_s=faults.clock_jump_s if number >= faults.clock_jump_after else 0.0,
    )


def refused(settings: Settings, number: int) -> bool:
    """Whether the connection of this number is reset at once."""
    share = settings.faults.refuse_share
    return share > 0 and number > 0 and chance(settings.seed, number, "refuse") < share


def chance(seed: int, number: int, what: str) -> float:
    """A number that is evenly spread over 0 to 1, the same for the same arguments everywhere."""
    digest = blake2b(f"{seed} {number} {what}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _slowness(settings: Settings, number: int) -> float:
    factor = 1.0 + settings.faults.slow_down
    if settings.faults.tenant_slow_down:
        factor *= 1.0 + settings.faults.tenant_slow_down * chance(settings.seed, number, "tenant")
    if settings.spread:
        place = min(max(chance(settings.seed, number, "spread"), 1e-9), 1 - 1e-9)
        factor *= math.exp(settings.spread * _NORMAL.inv_cdf(place))
    return factor
