"""A4: what came back as streams: no error in the place of an answer, one end, lengths as counted and as asked."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from statistics import fmean

from llmbench.accuracy.audit import Finding, not_applicable
from llmbench.accuracy.audit.run import Answer

LENGTH = 0.10
_ERRORS = (
    "Error202: prompt out of range",
    "Error203: prompt token empty",
    "error304: generation task stop abnormally",
)
"""What the contest's stack answers with HTTP 200 instead of an answer; its clients counted them as fast successes."""
_SAID_SO = ("Error20", "error304")


def findings(
    answers: Sequence[Answer], eos_ids: Collection[int] = (), base_length: float | None = None
) -> list[Finding]:
    """All of A4. `eos_ids` end an answer, where that is known; `base_length` is the mean length of a reference run."""
    if not answers:
        return [not_applicable("A4", "no request was answered")]
    return [
        _none("error texts as answers", _errors(answers), len(answers)),
        _none("streams whose text is not that of the final answer", _changed(answers), len(answers)),
        *(
            [_none("answers with an end inside, or more than one", _ends(answers, eos_ids), len(answers))]
            if eos_ids
            else []
        ),
        _none("answers whose tokens are not as many as were counted", _miscounted(answers), len(answers)),
        _none("answers whose end does not fit their length", _wrong_ends(answers, eos_ids), len(answers)),
        _length(answers, base_length),
    ]


def _none(what: str, wrong: Iterator[tuple[str, str]], number: int) -> Finding:
    """Of so many answers, none may be wrong."""
    found = list(wrong)
    return Finding(
        test="A4",
        what=what,
        verdict="failed" if found else "passed",
        value=f"{len(found)} of {number}",
        limit="0",
        why=": ".join(found[0]) if found else "",
        tier="T0",
        figures={"wrong": len(found), "answers": number},
    )


def _errors(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    for answer in answers:
        text = answer.record.text
        if text.lstrip().startswith((*_ERRORS, *_SAID_SO)):
            yield answer.id, repr(text[:60])


def _changed(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    for answer in answers:
        streamed = answer.record.streamed_text
        if streamed is not None:
            yield answer.id, f"streamed {streamed[:40]!r}, then said {answer.record.text[:40]!r}"


def _ends(answers: Sequence[Answer], eos_ids: Collection[int]) -> Iterator[tuple[str, str]]:
    for answer in answers:
        if answer.request.sampling.ignore_eos:
            continue
        places = [place for place, token in enumerate(answer.record.token_ids) if token in eos_ids]
        if len(places) > 1 or (places and places[0] != len(answer.record.token_ids) - 1):
            yield (
                answer.id,
                f"end of sequence at {', '.join(map(str, places))} of {len(answer.record.token_ids)} tokens",
            )


def _miscounted(answers: Sequence[Answer]) -> Iterator[tuple[str, str]]:
    """`usage` against what was streamed; where nobody says how many tokens a piece is, that is not known."""
    for answer in answers:
        record = answer.record
        counts, streamed = {"usage": record.num_tokens}, sum(record.tokens)
        if record.exact_tokens and (streamed or record.num_tokens > 1):  # a lone end of sequence has no text to stream
            counts["streamed"] = streamed
        if record.token_ids:
            counts["ids"] = len(record.token_ids)
        if len(set(counts.values())) > 1:
            yield answer.id, ", ".join(f"{name} {count}" for name, count in counts.items())


def _wrong_ends(answers: Sequence[Answer], eos_ids: Collection[int]) -> Iterator[tuple[str, str]]:
    for answer in answers:
        record, asked, sampling = answer.record, answer.request.max_new_tokens, answer.request.sampling
        number, reason = record.num_tokens, record.finish_reason
        if asked is not None and number > asked:
            yield answer.id, f"{number} tokens, {asked} were asked for"
        elif reason is None:
            yield answer.id, "no finish_reason"
        elif reason == "length" and asked is not None and number != asked:
            yield answer.id, f"ended by its length after {number} tokens of {asked}"
        elif reason == "eos" and sampling.ignore_eos:
            yield answer.id, f"ended by itself after {number} tokens, which it was asked not to do"
        elif reason == "eos" and eos_ids and record.token_ids and record.token_ids[-1] not in eos_ids:
            yield answer.id, f"says that the model ended it, but its last token is {record.token_ids[-1]}"


def _length(answers: Sequence[Answer], base_length: float | None) -> Finding:
    """The mean length against that of a reference run; without one, against what was asked, which a model that ends by
    itself need not reach.
    """
    mean = fmean(answer.record.num_tokens for answer in answers)
    asked = [answer.planned.expected_tokens for answer in answers]
    known = [length for length in asked if length is not None]
    what = (
        "mean length of the answers against the reference run's"
        if base_length
        else "mean length against what was asked"
    )
    against = base_length if base_length is not None else fmean(known) if len(known) == len(asked) else None
    if against is None:
        return Finding(
            test="A4", what=what, verdict="not applicable", why="no length was asked for, and there is no --base run"
        )
    ratio = mean / against
    fits = abs(ratio - 1) <= LENGTH
    must = base_length is not None or all(answer.request.sampling.ignore_eos for answer in answers)
    reasons = Counter(answer.record.finish_reason for answer in answers)
    return Finding(
        test="A4",
        what=what,
        verdict="passed" if fits else "failed" if must else "not applicable",
        value=f"{mean:.1f} tokens, {ratio:.2f} of {against:.1f}",
        limit=f"{1 - LENGTH:.1f} to {1 + LENGTH:.1f}",
        why=""
        if fits
        else f"{reasons['eos'] + reasons['stop']} of {len(answers)} answers say that the model ended them"
        + ("" if must else "; A1 tells whether it did, and a reference run with --base what it gives"),
        tier="T0",
        figures={"ratio": ratio},
    )
