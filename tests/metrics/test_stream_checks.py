"""The checks of streams: quiet for one piece after the other, loud for a stream that is none."""

from collections.abc import Callable

import pytest

from llmbench.loadgen.record import Record
from llmbench.metrics import per_request
from llmbench.metrics.checks import Check, Evidence, stream

MS = 1_000_000


def answer(
    reads: list[int] | None = None, pieces: int | None = None, total: int | None = None, gap_ms: int = 20
) -> Record:
    """An answer whose reads brought so many tokens each; a piece for each token unless said otherwise."""
    reads = [1] * 20 if reads is None else reads
    stamps = [(100 + gap_ms * i) * MS for i in range(len(reads))]
    return Record(
        index=0,
        status="answered",
        due_ns=0,
        sent_ns=0,
        stamps_ns=stamps,
        tokens=reads,
        num_pieces=sum(reads) if pieces is None else pieces,
        num_tokens=sum(reads) if total is None else total,
        done_ns=stamps[-1] if stamps else 100 * MS,
    )


@pytest.mark.parametrize("check", [stream.tokens_counted, stream.not_coalesced, stream.streams_at_all])
def test_tokens_one_by_one_are_fine_and_answers_without_a_stream_are_not_judged(
    check: Callable[[Evidence], Check],
) -> None:
    assert check(Evidence(traces=[answer() for _ in range(50)])).verdict == "ok"
    assert check(Evidence(traces=[answer(reads=[], total=20)])).verdict == "not applicable"


def test_a_last_token_that_is_not_streamed_is_forgiven_and_others_are_not() -> None:
    assert stream.tokens_counted(Evidence(traces=[answer(total=21)])).verdict == "ok"
    outcome = stream.tokens_counted(Evidence(traces=[answer(total=40)]))
    assert outcome.verdict == "inconclusive"
    assert outcome.value == pytest.approx(19 / 40)


def test_the_time_per_token_goes_by_the_servers_count_where_pieces_are_not_tokens() -> None:
    assert per_request.tpot.of(answer()) == pytest.approx(0.02)
    assert per_request.tpot.of(answer(total=21)) == pytest.approx(0.02), "an end that is not streamed takes no time"
    assumed = answer(total=39)
    assert per_request.tpot.of(assumed) == pytest.approx(0.02)
    assumed.exact_tokens = False
    assert per_request.tpot.of(assumed) == pytest.approx(0.01)
    assert per_request.itl.of(assumed) == []
    assert stream.tokens_counted(Evidence(traces=[assumed])).verdict == "not applicable"


def test_pieces_that_come_together_are_found_and_pieces_of_several_tokens_are_not_that() -> None:
    buffered = Evidence(traces=[answer(reads=[4] * 5) for _ in range(9)])
    assert stream.not_coalesced(buffered).verdict == "inconclusive"
    assert stream.not_coalesced(buffered).value == pytest.approx(15 / 19)
    speculative = Evidence(traces=[answer(reads=[4] * 5, pieces=5) for _ in range(9)])
    assert stream.not_coalesced(speculative).value == 0
    now_and_then = Evidence(traces=[answer(reads=[1, 1, 2, 1, 1, 2, 1, 1])])
    assert stream.not_coalesced(now_and_then).verdict == "ok"


def test_a_stream_that_comes_all_at_once_is_none() -> None:
    held_back = [answer(reads=[20]) for _ in range(9)]
    assert stream.streams_at_all(Evidence(traces=held_back)).verdict == "failed"
    assert stream.streams_at_all(Evidence(traces=[*held_back, *(answer() for _ in range(9))])).verdict == "ok"
    short = [answer(reads=[3]) for _ in range(9)]
    assert stream.streams_at_all(Evidence(traces=short)).verdict == "not applicable"
