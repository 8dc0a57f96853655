"""Which row of one capture belongs to which of the other, and up to where both went through the same text.

Rows are joined by request and step, or by request and index where one side is a contest folder with a manifest; never
by time. Contest folders without a manifest know no requests: they are joined by the names' key (sequence, index), and
files of one key in the order of their names. That assumes that both runs sent the requests in the same order and
answered those of one key in that order; a run that did not can fail without being wrong.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from llmbench.accuracy.sides import Finding, Int64, Kind, Records, Side, StoreSide
from llmbench.logits.policy import Policy

JoinedBy = Literal["request", "file name"]
NameKey = tuple[str, int]
Keys = dict[Hashable, int]
COMPARABLE, AT_DIVERGENCE, AFTER_DIVERGENCE = range(3)

_FLOAT_ID = re.compile(r"([0-9]+)\.0")


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows there should be, where somebody knows: of `only` these requests, and of them the shares that each side
    was told to capture. None: all that the other side has.
    """

    only: frozenset[str] | None = None
    base_share: Policy | None = None
    new_share: Policy | None = None


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """Pairs of rows: `base` and `new` int64 [n] are their numbers, `status` int8 [n] says what may be compared.

    COMPARABLE rows saw the same tokens on both sides. At AT_DIVERGENCE both still did, and then chose differently; what
    comes AFTER_DIVERGENCE answers another text and is not scored.
    """

    by: JoinedBy
    base: Int64
    new: Int64
    status: npt.NDArray[np.int8]
    findings: tuple[Finding, ...]


def join(base: Side, new: Side, asked: Asked = Asked()) -> Joined:  # noqa: B008
    """Pair the rows of two captures; what has no counterpart, or several, is a finding."""
    by_request = all(len(side.request_ids) or isinstance(side, StoreSide) for side in (base, new))
    if by_request:
        keys = [_request_keys(side, asked.only, step=_have_steps(base, new)) for side in (base, new)]
    else:
        keys = _name_keys(base, new)
    findings = list(base.findings) + list(new.findings)
    (theirs, their_doubles), (ours, our_doubles) = (
        _unique(side, side_keys) for side, side_keys in zip((base, new), keys, strict=True)
    )
    findings += their_doubles + our_doubles
    findings += _alone("missing", base, theirs, new, set(keys[1]), asked.new_share)
    findings += _alone("extra", new, ours, base, set(keys[0]), asked.base_share)
    pairs = sorted((number, ours[key]) for key, number in theirs.items() if key in ours)
    base_numbers = np.array([pair[0] for pair in pairs], np.int64)
    new_numbers = np.array([pair[1] for pair in pairs], np.int64)
    status = np.full(len(pairs), COMPARABLE, np.int8)
    if by_request and len(pairs):
        findings += _check_prompts(base, new, base_numbers, new_numbers)
        status = status_of(base.rows[base_numbers], new.rows[new_numbers])
    return Joined(
        by="request" if by_request else "file name",
        base=base_numbers,
        new=new_numbers,
        status=status,
        findings=tuple(sorted(findings, key=lambda finding: (finding.kind, finding.file))),
    )


def digits(sequence: str) -> str:
    """The ids of a contest name without what tells its spelling: `1.020355.0915.0` and `120355915` are `120355915`."""
    return _FLOAT_ID.sub(r"\1", sequence).replace(".", "")


def _have_steps(*sides: Side) -> bool:
    return all(isinstance(side, StoreSide) for side in sides)


def _request_keys(side: Side, only: Collection[str] | None, *, step: bool) -> list[Hashable]:
    """A key for each row; None for one that is not looked at."""
    ids = [name if only is None or name in only else None for name in side.request_ids]
    places = side.rows["step" if step else "position"].tolist()
    return [
        (ids[request], place) if request >= 0 and ids[request] is not None else None
        for request, place in zip(side.rows["request"].tolist(), places, strict=True)
    ]


def _name_keys(base: Side, new: Side) -> list[list[Hashable]]:
    """Keys by file name on both sides, spelled as the base spells them."""
    theirs, ours = base.keys(), new.keys()
    spelled = _respelled(sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs)))
    return [_numbered(theirs, base.order()), _numbered([spelled.get(key, key) for key in ours], new.order())]


def _respelled(missing: Sequence[NameKey], extra: Sequence[NameKey]) -> dict[NameKey, NameKey]:
    """Keys that only the new side has -> keys that only the base has, where only one can be meant."""
    found = {}
    for key in extra:
        fitting = [other for other in missing if _same_start(key, other)]
        if len(fitting) == 1 and sum(_same_start(other, fitting[0]) for other in extra) == 1:
            found[key] = fitting[0]
    return found


def _same_start(one: NameKey, other: NameKey) -> bool:
    """Whether two names may be of one row, one spelled with floats and one with integers."""
    if one[1] != other[1] or ("." in one[0]) == ("." in other[0]):
        return False
    first, second = digits(one[0]), digits(other[0])
    return first.startswith(second) or second.startswith(first)


def _numbered(keys: Sequence[NameKey], order: Sequence[int]) -> list[Hashable]:
    """Each key with how many of it came before in this order."""
    seen: Counter[NameKey] = Counter()
    found: dict[int, Hashable] = {}
    for i in order:
        found[i] = (keys[i], seen[keys[i]])
        seen[keys[i]] += 1
    return [found[i] for i in range(len(keys))]


def _unique(side: Side, keys: Sequence[Hashable]) -> tuple[dict[Hashable, int], list[Finding]]:
    """Where each key is; one that several rows have is no key, and each of them a finding."""
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        if key is not None:
            rows[key].append(number)
    findings = []
    for numbers in rows.values():
        if len(numbers) > 1:
            message = f"is {len(numbers)} times in {side.path}: which one counts, nobody can tell"
            findings += [_finding("duplicate", side, number, message) for number in numbers]
    return {key: numbers[0] for key, numbers in rows.items() if len(numbers) == 1}, findings


def _alone(
    kind: Kind, side: Side, keys: Keys, far: Side, far_keys: set[Hashable], share: Policy | None
) -> list[Finding]:
    """Rows of one side without a counterpart on the other, if that was to have them."""
    message = f"is in {side.path} but not in {far.path}"
    alone = [keys[key] for key in keys.keys() - far_keys]
    return [_finding(kind, side, number, message) for number in alone if share is None or _wanted(side, number, share)]


def _wanted(side: Side, number: int, share: Policy) -> bool:
    row = side.rows[number]
    return share.wants(side.request_id(number) or "", int(row["step"]), int(row["position"]))


def _check_prompts(base: Side, new: Side, base_numbers: Int64, new_numbers: Int64) -> list[Finding]:
    """Requests of one id whose prompts are known to differ."""
    if not (isinstance(base, StoreSide) and isinstance(new, StoreSide)):
        return []
    pairs = np.stack([base.rows["request"][base_numbers], new.rows["request"][new_numbers]], axis=1)
    findings = []
    for theirs, ours in np.unique(pairs, axis=0).tolist():
        one, other = base.store.requests[theirs], new.store.requests[ours]
        differ = one.prompt_len != other.prompt_len or one.head != other.head
        if differ or (one.prompt and other.prompt and one.prompt != other.prompt):
            message = (
                f"its prompt has {one.prompt_len} tokens in {base.path} and another {other.prompt_len} in {new.path}"
            )
            findings.append(Finding(kind="prompt", file=one.id, request_id=one.id, message=message))
    return findings


def status_of(theirs: Records, ours: Records, *, by_prefix: bool = True) -> npt.NDArray[np.int8]:
    """Which pairs of sides.ROWS [n] may be compared: by the hash of the tokens before them where both know it and it
    is wanted, else by the chosen tokens of the captured rows before them.
    """
    known = (theirs["prefix"] != 0) & (ours["prefix"] != 0) & by_prefix
    split = (theirs["token"] >= 0) & (ours["token"] >= 0) & (theirs["token"] != ours["token"])
    order = np.lexsort((theirs["position"], theirs["request"]))
    request, splits = theirs["request"][order], np.cumsum(split[order])
    first = np.searchsorted(request, request)  # where each row's request begins
    before = splits - split[order] - (splits - split[order])[first]
    after = np.empty(len(order), bool)
    after[order] = before > 0
    after = np.where(known, theirs["prefix"] != ours["prefix"], after)
    status = np.where(after, AFTER_DIVERGENCE, np.where(split, AT_DIVERGENCE, COMPARABLE))
    return status.astype(np.int8)


def _finding(kind: Kind, side: Side, number: int, message: str) -> Finding:
    return Finding(kind=kind, file=side.name(number), request_id=side.request_id(number), message=message)
