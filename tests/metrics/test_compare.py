import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import gate_rules
from llmbench.errors import InputError, InvalidMeasurement
from llmbench.loadgen.record import Record
from llmbench.metrics.compare import Comparison, Effect, Pair, Primary, compare, holm, select
from llmbench.metrics.compare.changes import changes
from llmbench.metrics.compare.effects import Float64, Measured, Settings, estimate
from llmbench.metrics.compare.looks import looks
from llmbench.metrics.compare.power import power

TIME = Primary(metric="tpot:mean", better="lower", delta=0.02)
RATE = Primary(metric="output_tokens_per_s", better="higher", delta=0.02)
NO_BOOTSTRAP = Settings(num_resamples=0)


def values(*numbers: float) -> Measured:
    return Measured(values=numbers)


def mean(requests: Float64) -> Float64:
    return np.asarray(requests.mean(axis=-1))


def of_requests(*runs: Float64) -> Measured:
    return Measured(values=tuple(float(run.mean()) for run in runs), requests=runs, statistic=mean)


def judged(primary: Primary, a: Measured, b: Measured, paired: bool = False, band: float = 0.0) -> Comparison:
    return compare([Pair(primary=primary, a=a, b=b)], NO_BOOTSTRAP, paired=paired, band=band)


def bounded(effect: Effect) -> tuple[float, float, float]:
    """The change between its bounds."""
    assert effect.low is not None
    assert effect.change is not None
    assert effect.high is not None
    return effect.low, effect.change, effect.high


A = (0.0201, 0.0199, 0.0203, 0.0198)
B = (0.0222, 0.0219, 0.0225, 0.0217)


def test_unpaired_runs_are_judged_by_welchs_t_of_their_logarithms() -> None:
    found = estimate(values(*A), values(*B), 1, False, 0.0, NO_BOOTSTRAP)
    theirs = stats.ttest_ind(np.log(B), np.log(A), equal_var=False, alternative="greater")
    assert found.p_above(0.0) == pytest.approx(theirs.pvalue, rel=1e-9)
    low, high = found.bounds(0.05)
    interval = stats.ttest_ind(np.log(B), np.log(A), equal_var=False).confidence_interval(0.9)
    assert [low, high] == pytest.approx([interval.low, interval.high])


def test_paired_runs_are_judged_by_the_t_of_their_differences() -> None:
    found = estimate(values(*A), values(*B), 1, True, 0.0, NO_BOOTSTRAP)
    theirs = stats.ttest_rel(np.log(B), np.log(A), alternative="greater")
    assert found.p_above(0.0) == pytest.approx(theirs.pvalue, rel=1e-9)


def test_the_change_and_its_bounds_are_those_of_the_metric_itself() -> None:
    effect = judged(TIME, values(*A), values(*B)).effects[0]
    assert effect.change == pytest.approx(math.exp(np.log(B).mean() - np.log(A).mean()) - 1)
    low, change, high = bounded(effect)
    assert 0.05 < low < change < high < 0.15
    assert effect.verdict == "regression"


def test_a_rate_that_falls_is_worse_and_one_that_rises_is_better() -> None:
    slower = judged(RATE, values(100, 101, 99), values(90, 91, 89)).effects[0]
    assert slower.verdict == "regression"
    low, change, high = bounded(slower)
    assert change == pytest.approx(-0.1, abs=0.001)
    assert low < change < high < 0
    faster = judged(RATE, values(100, 101, 99), values(110, 111, 109)).effects[0]
    assert (faster.verdict, faster.improved) == ("no regression", True)


def test_runs_that_scatter_more_than_they_differ_decide_nothing_and_say_how_many_more_would() -> None:
    found = judged(TIME, values(1.0, 1.1, 0.95), values(1.08, 1.0, 1.15))
    assert found.verdict == "inconclusive"
    more = found.num_more
    assert more is not None
    assert 5 < more <= 100


def test_so_many_more_runs_like_these_do_decide() -> None:
    a, b = (1.0, 1.03, 0.97, 1.01), (1.08, 1.05, 1.01, 1.04)
    found = judged(TIME, values(*a), values(*b), paired=True)
    assert found.num_more is not None
    times = 1 + -(-found.num_more // len(a))  # whole copies, at least as many
    assert judged(TIME, values(*a * times), values(*b * times), paired=True).verdict == "regression"


def test_a_change_below_delta_is_no_regression_however_sure_it_is() -> None:
    a = tuple(1.0 + 1e-4 * i for i in range(8))
    assert judged(TIME, values(*a), values(*(1.01 * value for value in a))).verdict == "no regression"


def test_one_run_on_a_side_falls_back_to_a_threshold_and_says_so() -> None:
    found = judged(TIME, values(1.0), values(1.03))
    assert (found.method, found.verdict) == ("threshold", "regression")
    assert found.effects[0].method == "threshold"
    assert judged(TIME, values(1.0), values(1.01)).verdict == "no regression"


def test_several_metrics_are_corrected_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    rng = np.random.default_rng(5)
    a = tuple(np.exp(0.02 * rng.standard_normal(5)))
    b = tuple(1.045 * np.exp(0.02 * rng.standard_normal(5)))
    alone = judged(TIME, values(*a), values(*b))
    assert alone.verdict == "regression"
    quiet = Pair(primary=RATE, a=values(*A), b=values(*A))
    together = compare([Pair(primary=TIME, a=values(*a), b=values(*b)), *[quiet] * 9], NO_BOOTSTRAP)
    assert together.effects[0].verdict == "inconclusive"


def test_one_open_metric_leaves_the_whole_open_and_one_regression_decides_it() -> None:
    fine = Pair(primary=TIME, a=values(*A), b=values(*A))
    wide = Pair(primary=RATE, a=values(1.0, 1.4, 0.8), b=values(1.2, 0.9, 1.3))
    worse = Pair(primary=TIME, a=values(*A), b=values(*B))
    assert compare([fine, wide], NO_BOOTSTRAP).verdict == "inconclusive"
    assert compare([fine, wide, worse], NO_BOOTSTRAP).verdict == "regression"


def test_runs_that_agree_by_chance_are_not_believed_when_their_requests_scatter() -> None:
    rng = np.random.default_rng(3)
    requests = [rng.lognormal(0, 1.0, 40) for _ in range(6)]
    level = [each / each.mean() for each in requests]  # six runs that agree to the last digit
    a, b = of_requests(*level[:3]), of_requests(*(1.05 * each for each in level[3:]))
    by_t = compare([Pair(primary=TIME, a=a, b=b)], NO_BOOTSTRAP)
    with_requests = compare([Pair(primary=TIME, a=a, b=b)], Settings(num_resamples=1000))
    assert by_t.verdict == "regression"
    assert with_requests.verdict == "inconclusive"


def test_requests_of_paired_runs_stay_together_in_the_bootstrap() -> None:
    rng = np.random.default_rng(4)
    shared = [rng.lognormal(0, 1.0, 100) for _ in range(4)]  # long and short prompts, the same on both sides
    a = of_requests(*(each * rng.normal(1, 0.005, 100) for each in shared))
    b = of_requests(*(1.06 * each * rng.normal(1, 0.005, 100) for each in shared))
    paired = compare([Pair(primary=TIME, a=a, b=b)], Settings(num_resamples=1000), paired=True)
    apart = compare([Pair(primary=TIME, a=a, b=b)], Settings(num_resamples=1000))
    assert paired.verdict == "regression"
    assert apart.verdict == "inconclusive"


def test_the_band_between_days_widens_the_bounds_of_a_stored_baseline() -> None:
    apart = tuple(1.05 * value for value in A)
    assert judged(TIME, values(*A), values(*apart)).verdict == "regression"
    assert judged(TIME, values(*A), values(*apart), band=0.03).verdict == "inconclusive"


def test_requests_without_an_answer_on_one_side_only_decide() -> None:
    lost, whole = values(1.0, math.inf, 1.0), values(1.0, 1.0, 1.0)
    assert judged(TIME, whole, lost).verdict == "regression"
    assert judged(TIME, lost, whole).verdict == "no regression"
    assert judged(TIME, lost, lost).verdict == "inconclusive"


def test_a_metric_of_zero_is_refused_by_name() -> None:
    with pytest.raises(InvalidMeasurement, match=r"tpot:mean: 0 in run 2 of B gives no ratio"):
        judged(TIME, values(1.0, 1.0), values(1.0, 0.0))


def test_looks_spend_alpha_and_no_more() -> None:
    found = list(looks(10, 0.05))
    assert [look.num_runs for look in found] == [3, 4, 5, 6, 7, 8, 10]
    assert sum(look.level for look in found) == pytest.approx(0.05)
    assert [look.num_runs for look in looks(2, 0.05)] == [2]


def record(index: int, ttft_ns: int) -> Record:
    return Record(
        index=index,
        request_id=f"plan-{index:05d}",
        status="answered",
        due_ns=index,
        released_ns=index,
        sent_ns=index,
        connected_ns=index,
        done_ns=index + 2 * ttft_ns,
        stamps_ns=[index + ttft_ns],
        tokens=[1],
        num_tokens=1,
    )


def test_metrics_are_named_as_they_are_declared() -> None:
    runs = [[record(0, 10**9), record(1, 3 * 10**9)], [record(0, 2 * 10**9), record(1, 4 * 10**9)]]
    found = select.measured("ttft:mean", runs)
    assert found is not None
    assert found.values == pytest.approx((2.0, 3.0))
    assert select.primary("ttft:p50", 0.02).better == "lower"
    assert select.primary("output_tokens_per_s", 0.02).better == "higher"
    for wrong, said in (
        ("tttft:mean", "did you mean ttft"),
        ("ttft", "ttft:mean or ttft:p50"),
        ("ttft:p101", "p100"),
        ("ttft:median", "ttft:mean"),
    ):
        with pytest.raises(InputError, match=said):
            select.primary(wrong, 0.02)
    assert select.measured("tpot:mean", runs) is None  # answers of one token have none


def test_a_step_in_a_series_is_found_where_it_is_and_noise_is_not_one() -> None:
    rng = np.random.default_rng(8)
    noise = np.exp(0.01 * rng.standard_normal(30))
    assert changes(list(noise), 0.02) == []
    stepped = noise * np.where(np.arange(30) < 17, 1.0, 1.08)
    (found,) = changes(list(stepped), 0.02)
    assert found.index == 17
    assert found.change == pytest.approx(0.08, abs=0.01)
    twice = stepped * np.where(np.arange(30) < 8, 1.1, 1.0)
    assert [each.index for each in changes(list(twice), 0.02)] == [8, 17]
    assert changes(list(stepped[15:20]), 0.02) == []  # five versions say nothing


def test_power_from_an_a_a_grows_with_the_scatter_of_runs() -> None:
    rng = np.random.default_rng(6)
    quiet, loud = (scatter * rng.standard_normal(12) for scatter in (0.005, 0.03))
    looked = list(looks(10, 0.05))
    calm = power("tpot:mean", 0.02, quiet, looked, 2)
    rough = power("tpot:mean", 0.02, loud, looked, 2)
    assert calm.false_alarms <= 0.01
    assert rough.false_alarms <= 0.01
    assert calm.smallest is not None
    assert rough.smallest is not None
    assert 0.02 < calm.smallest < 0.04 < rough.smallest


@pytest.mark.parametrize(
    ("num", "num_resamples"),
    [(200, 0), pytest.param(500, 500, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
)
def test_in_virtual_time_false_alarms_are_rare_and_a_slow_down_of_5_percent_is_found(
    num: int, num_resamples: int
) -> None:
    alike, slower = (gate_rules.tally(num, by, 16, num_resamples, seed) for by, seed in ((0.0, 1), (0.05, 2)))
    ours = "ours, up to the most runs"
    assert alike[ours]["regression"] <= 0.01 * num
    assert slower[ours]["regression"] >= 0.95 * num
    assert slower[ours]["no regression"] <= 0.05 * num
    # what other tools do on the same runs
    assert alike["Welch over requests, 1 run"]["regression"] > 0.05 * num
    assert slower["5 % threshold, 1 run"]["no regression"] > 0.1 * num
