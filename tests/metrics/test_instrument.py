import msgspec
import pytest

from llmbench.loadgen.null_server import Truth
from llmbench.loadgen.record import Record
from llmbench.metrics.instrument import errors, spread

MS = 1_000_000


def record(sent_ns: int, stamps_ns: list[int], tokens: list[int], late_ns: int = 0) -> Record:
    return Record(
        index=0,
        status="answered",
        due_ns=sent_ns - late_ns,
        released_ns=sent_ns - late_ns,
        sent_ns=sent_ns,
        stamps_ns=stamps_ns,
        tokens=tokens,
    )


def test_the_error_of_a_perfect_client_is_none() -> None:
    truths = [Truth(100, [200, 300, 400])]
    found = errors([record(100, [200, 300, 400], [1, 1, 1])], truths)
    assert (found.ttft.mean_s, found.stamp.p99_s, found.lateness.p99_s) == (0.0, 0.0, 0.0)
    assert (found.ttft_p99_shift_s, found.icl_p99_shift_s) == (0.0, 0.0)


def test_the_way_there_and_back_is_error_of_ttft_and_the_way_back_that_of_a_stamp() -> None:
    found = errors([record(0, [15 * MS, 26 * MS], [1, 1], late_ns=MS)], [Truth(2 * MS, [12 * MS, 22 * MS])])
    assert found.ttft.mean_s == pytest.approx(0.005)
    assert found.stamp.num == 2
    assert found.stamp.mean_s == pytest.approx(0.0035)
    assert found.lateness.p50_s == pytest.approx(0.001)
    assert found.ttft_p99_shift_s == pytest.approx(0.005)
    assert found.icl_p99_shift_s == pytest.approx(0.001)


def test_tokens_that_came_in_one_read_have_its_stamp() -> None:
    found = errors([record(0, [30 * MS], [3])], [Truth(0, [10 * MS, 20 * MS, 30 * MS])])
    assert found.stamp.mean_s == pytest.approx(0.010)
    assert found.icl_p99_shift_s == pytest.approx(-0.010)


def test_an_answer_whose_reads_cannot_be_matched_counts_for_its_first_token_only() -> None:
    found = errors([record(0, [11 * MS], [1])], [Truth(0, [10 * MS, 10 * MS])])
    assert found.ttft.mean_s == pytest.approx(0.001)
    assert found.stamp.num == 0
    assert found.stamp.p99_s is None
    assert found.icl_p99_shift_s is None


def test_without_answers_nothing_is_known() -> None:
    found = errors([], [])
    assert found.ttft.num == 0
    assert found.ttft_p99_shift_s is None
    assert msgspec.json.decode(msgspec.json.encode(found))["ttft"]["mean_s"] is None


def test_few_errors_are_judged_by_their_95th_percentile_and_many_by_their_99th() -> None:
    few, many = spread(range(100)), spread(range(200))
    assert few.high_s == few.p95_s
    assert many.high_s == many.p99_s
    assert many.p50_s == 99.5
    assert many.p999_s == pytest.approx(198.801)
