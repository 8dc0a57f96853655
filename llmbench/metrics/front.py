"""What a search over quantised forms of one model found, and which of them nothing else beats in all respects."""

from collections.abc import Sequence

import msgspec

PROFILES = ("w8", "w4")
"""Of `acc compare`, for quantised weights; the strictest first."""
SPEED_TOLERANCE = 0.05
"""Speeds count as the same unless the slowest turn of one is so much faster than the fastest of the other."""


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """One form of the model. `failed` says why there are no figures.

    `num_bytes` is what its weights take, those of W8A8S as `weights compress` leaves them. `kld` is the mean KL
    divergence from the float model in nats, `top1` the share of rows with the same largest logit, `delta_p_rms` as in
    `acc compare` (docs/accuracy.md); `score` the share of right answers of an eval, if one was asked for.
    """

    name: str
    kind: str
    command: str = ""
    """Makes it again."""
    num_bytes: int = 0
    num_rows: int = 0
    kld: float = 0.0
    top1: float = 1.0
    delta_p_rms: float = 0.0
    profile: str = ""
    """The strictest profile of `acc compare` whose gates it keeps, one of PROFILES or none."""
    decode_tokens_per_s: float = 0.0
    ttft_s: float = 0.0
    speed: float = 1.0
    speed_slowest: float = 1.0
    speed_fastest: float = 1.0
    """Decoded tokens/s over those of the float model in the same turn: the middle one of all turns, and both ends."""
    score: float | None = None
    seconds: float = 0.0
    failed: str = ""


def front(found: Sequence[Scored]) -> list[Scored]:
    """Those that no other one beats, the smallest first."""
    known = [one for one in found if not one.failed]
    best = [one for one in known if not any(beats(other, one) for other in known)]
    return sorted(best, key=lambda one: (one.num_bytes, one.kld))


def beats(one: Scored, other: Scored) -> bool:
    """Whether it is no larger, no slower and no further from the float model, and in one of these better."""
    if _faster(other, one) or one.num_bytes > other.num_bytes or one.kld > other.kld:
        return False
    return _faster(one, other) or one.num_bytes < other.num_bytes or one.kld < other.kld


def _faster(one: Scored, other: Scored) -> bool:
    return one.speed_slowest > other.speed_fastest * (1 + SPEED_TOLERANCE)
