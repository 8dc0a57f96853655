"""Cases one after another: warm-up, outcomes, the journal, and the search for the largest batch."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import InputError, PromptTooLong, ServingError
from llmbench.metrics.sweep import Case, Measured, Pass, Round
from llmbench.sweep import grid, journal
from llmbench.sweep.journal import FILE, Header, Journal
from llmbench.sweep.largest import largest, search
from llmbench.sweep.measure import measure, sweep

HEADER = Header(what="a bench", name="it", settings={"batch": "1"})
CASE = Case(batch=2, input_len=8, output_len=16)


class Plain:
    """A bench that computes nothing: it notes what it is asked for, and fails where it is told to."""

    def __init__(self, wrong: Callable[[Case, int], BaseException | None] = lambda case, num_new: None) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self._wrong = wrong

    def unfit(self, case: Case) -> str:
        return "far too long" if case.input_len > 100 else ""

    def run(self, case: Case, num_new: int) -> Pass:
        self.asked.append((case.batch, case.input_len, num_new))
        error = self._wrong(case, num_new)
        if error is not None:
            raise error
        return Pass(total_s=float(num_new), first_s=1.0, steps_s=[1.0] * (num_new - 1))

    def close(self) -> None:
        pass


def test_a_case_is_warmed_up_then_timed_for_one_token_and_for_all() -> None:
    bench = Plain()
    found = measure(CASE, bench, repeats=2)
    assert [num_new for _, _, num_new in bench.asked] == [10, 1, 16, 1, 16]
    assert found.outcome == "measured"
    assert [(one.first.total_s, one.whole.total_s) for one in found.rounds] == [(1.0, 16.0)] * 2
    bench = Plain()
    measure(Case(batch=1, input_len=8, output_len=4), bench, repeats=1)
    assert [num_new for _, _, num_new in bench.asked] == [4, 1, 4], "a warm-up is no longer than the case"


def test_each_batch_size_is_warmed_up_at_its_first_input_length(tmp_path: Path) -> None:
    bench = Plain()
    cases = grid.cases([1, 2], [8, 16], [16], pairs=False)
    with Journal(tmp_path, HEADER) as kept:
        sweep(cases, bench, kept, 1, lambda found: None)
    warm_ups = [(batch, length) for batch, length, num_new in bench.asked if num_new == 10]
    assert warm_ups == [(1, 8), (1, 8), (1, 16), (2, 8), (2, 8), (2, 16)]


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (MemoryError(), "does not fit", "out of memory"),
        (PromptTooLong("9 are too many"), "does not fit", "9 are too many"),
        (ServingError("it broke"), "failed", "it broke"),
    ],
)
def test_a_case_that_cannot_be_measured_is_kept_with_its_reason_and_the_sweep_goes_on(
    tmp_path: Path, error: Exception, outcome: str, reason: str
) -> None:
    bench = Plain(lambda case, num_new: error if case.batch == 2 and num_new == 16 else None)
    cases = grid.cases([1, 2, 3], [8, 101], [16], pairs=False)
    told: list[Measured] = []
    with Journal(tmp_path, HEADER) as kept:
        sweep(cases, bench, kept, 1, told.append)
    assert [found.case for found in told] == cases
    outcomes = {(found.case.batch, found.case.input_len): (found.outcome, found.reason) for found in told}
    assert outcomes[2, 8] == (outcome, reason)
    assert outcomes[3, 8] == ("measured", "")
    assert outcomes[1, 101] == ("does not fit", "far too long")
    assert journal.read(tmp_path) == (HEADER, told)


def test_what_the_journal_has_is_not_measured_again_but_what_failed_is(tmp_path: Path) -> None:
    cases = grid.cases([1, 2, 3], [8], [16], pairs=False)
    with Journal(tmp_path, HEADER) as kept:
        kept.append(Measured(case=cases[0], outcome="failed", reason="the server was away"))
        kept.append(Measured(case=cases[1], outcome="does not fit", reason="too long"))
    bench = Plain()
    with Journal(tmp_path, HEADER) as kept:
        sweep(cases, bench, kept, 1, lambda found: None)
    assert {batch for batch, _, _ in bench.asked} == {1, 3}
    _, found = journal.read(tmp_path)
    assert [(one.case.batch, one.outcome) for one in found] == [(1, "measured"), (2, "does not fit"), (3, "measured")]


def test_a_torn_last_line_is_cut_off_and_its_case_measured_again(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER) as kept:
        kept.append(Measured(case=CASE, outcome="measured"))
        kept.append(Measured(case=Case(batch=3, input_len=8, output_len=16), outcome="measured"))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[:-20])
    assert [one.case for one in journal.read(tmp_path)[1]] == [CASE]
    with Journal(tmp_path, Header(what="another bench", name="it", settings={})) as kept:
        assert kept.what == "a bench", "what it was begun with"
        assert kept.settled(CASE) is not None
        kept.append(Measured(case=Case(batch=3, input_len=8, output_len=16), outcome="measured"))
    assert (tmp_path / FILE).read_bytes() == whole


@pytest.mark.parametrize("data", [b"", b"{}\n", b'{"kind":"llmbench eval 1"}\n', b"\xff\xfe\n"])
def test_what_is_no_journal_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / FILE).write_bytes(data)
    with pytest.raises(InputError, match="line 1 is not one of a sweep's journal"):
        journal.read(tmp_path)
    with pytest.raises(InputError, match="cannot read the sweep"):
        journal.read(tmp_path / "elsewhere")


# -- the largest batch ------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 300))
def test_the_search_finds_the_last_number_that_holds(low: int, span: int, last: int) -> None:
    asked: list[int] = []

    def within(number: int) -> bool:
        asked.append(number)
        return number <= last

    found = search(within, low, low + span)
    assert found == (min(last, low + span) if last >= low else None)
    assert len(asked) == len(set(asked)) <= 2 + 2 * (low + span).bit_length()
    assert all(low <= number <= low + span for number in asked)


def stepping(step_s: Callable[[int], float], most: int = 10**6) -> Callable[[Case], Measured]:
    def measured(case: Case) -> Measured:
        if case.batch > most:
            return Measured(case=case, outcome="does not fit", reason="no room")
        whole = Pass(total_s=1.0, first_s=0.1, steps_s=[step_s(case.batch)] * 3)
        return Measured(case=case, outcome="measured", rounds=[Round(first=whole, whole=whole)])

    return measured


def test_the_largest_batch_within_a_limit_is_told_with_the_values_around_it() -> None:
    found = largest((8, 4), 0.010, 1, 2000, stepping(lambda batch: 0.002 + 0.0001 * batch))
    assert (found.batch, found.next, found.monotone) == (80, 81, True)
    assert found.step_s(80) == pytest.approx(0.010)
    assert found.step_s(81) == pytest.approx(0.0101)


def test_a_batch_that_does_not_fit_counts_as_above_the_limit() -> None:
    found = largest((8, 4), 0.010, 1, 2000, stepping(lambda batch: 0.002, most=77))
    assert (found.batch, found.next) == (77, 78)
    assert found.probes[-1].reason == "no room"


def test_no_batch_and_every_batch_may_be_within_the_limit() -> None:
    assert largest((8, 4), 0.010, 3, 50, stepping(lambda batch: 0.02)).batch is None
    assert largest((8, 4), 0.010, 3, 50, stepping(lambda batch: 0.02)).next == 3
    found = largest((8, 4), 0.010, 3, 50, stepping(lambda batch: 0.001))
    assert (found.batch, found.next) == (50, None)


def test_measured_steps_that_contradict_each_other_are_told() -> None:
    found = largest((8, 4), 0.010, 1, 64, stepping(lambda batch: 0.001 if batch == 8 else 0.002))
    assert found.batch == 64
    assert not found.monotone
