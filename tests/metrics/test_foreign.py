"""Files of other tools: what they tell, and what they leave unknown."""

import json
from pathlib import Path
from typing import Any

import pytest

from llmbench.errors import InputError
from llmbench.metrics import foreign
from llmbench.metrics.definitions import guidellm, vllm

REAL = Path(__file__).parents[3] / "shared" / "data" / "contest_baseline_result_0.5_x.json"

GOLDEN = Path(__file__).parents[1] / "golden" / "guidellm_report.json"

VLLM: dict[str, Any] = {
    "backend": "vllm",
    "model_id": "m",
    "request_rate": 2.0,
    "num_prompts": 3,
    "completed": 2,
    "failed": 1,
    "duration": 1.5,
    "total_input_tokens": 30,
    "total_output_tokens": 5,
    "request_throughput": 2 / 1.5,
    "output_throughput": 5 / 1.5,
    "total_token_throughput": 35 / 1.5,
    "input_lens": [10, 20, 5],
    "output_lens": [3, 2, 0],
    "ttfts": [0.1, 0.05, 0.0],
    "itls": [[0.02, 0.04], [0.03], []],
    "start_times": [100.0, 100.5, 101.0],
    "errors": ["", "", "Traceback\nTimeoutError"],
    "mean_ttft_ms": 75.0,
    "median_ttft_ms": 75.0,
    "p99_ttft_ms": 99.5,
    "mean_e2el_ms": 120.0,
    "median_e2el_ms": 120.0,
}


def told(value: Any, name: str = "result.json") -> foreign.Told:
    (found,) = foreign.read(json.dumps(value).encode(), name)
    return found


def test_a_contest_result_tells_two_times_of_each_answer_and_nothing_else() -> None:
    rows = [
        {"input": "a", "resp_text": "b", "res_time": 2.0, "first_token_time": 0.5},
        {"input": "a", "resp_text": "b", "res_time": 4.0, "first_token_time": 1.5},
        {"input": "a", "resp_text": "Error202 busy", "res_time": 0.1, "first_token_time": 0.1},
    ]
    found = told(rows, "result_0.5_x.json")
    numbers = found.numbers
    assert (numbers.num_answered, numbers.num_failed) == (2, 1)
    assert numbers.requests["service_time"].mean == pytest.approx(3.0)
    assert numbers.requests["ttft_from_sent"].p50 == pytest.approx(1.0)
    unknown = ("ttft", "e2el", "tpot", "icl", "client_wait")
    assert all(numbers.requests[name].num == 0 for name in unknown)
    assert set(numbers.run.values()) == {None}
    assert found.load == "X = 0.5 requests per second"
    assert "due" in found.not_judged
    assert not found.traces


@pytest.mark.skipif(not REAL.exists(), reason="the contest's own result is not in the repository")
def test_the_contests_baseline_is_read() -> None:
    (found,) = foreign.read(REAL.read_bytes(), REAL.name)
    assert found.numbers.num_answered == 1500
    assert (found.numbers.requests["service_time"].mean or 0) > (found.numbers.requests["ttft_from_sent"].mean or 0) > 0


def test_a_detailed_result_of_vllm_becomes_traces_that_give_its_own_numbers_again() -> None:
    found = told(VLLM)
    assert found.numbers.reasons == {"TimeoutError": 1}
    assert found.numbers.requests["ttft_from_sent"].mean == pytest.approx(0.075)
    assert found.numbers.requests["tpot"].mean == pytest.approx(0.03)
    assert found.numbers.requests["ttft"].num == found.numbers.requests["e2el"].num == 0  # from due: unknown
    assert found.numbers.run["offered_rate"] is None
    assert found.numbers.run["achieved_rate"] == pytest.approx(2.0)
    printed = {figure.name: figure.value for figure in vllm.figures(found.traces)}
    assert printed["Mean TTFT"] == pytest.approx(75)
    assert printed["Mean ITL"] == pytest.approx(30)
    assert printed["Mean E2EL"] == pytest.approx((160 + 80) / 2)


def test_chunks_of_several_tokens_leave_the_gaps_between_tokens_unknown() -> None:
    found = told(VLLM | {"output_lens": [7, 2, 0]})
    assert found.numbers.requests["itl"].num == 1  # of the second answer
    assert found.numbers.requests["icl"].num == 3
    assert found.numbers.requests["tpot"].max == pytest.approx(0.03)
    assert any("several tokens" in note for note in found.notes)


def test_without_instants_of_sending_the_rates_are_those_that_the_file_states() -> None:
    found = told({key: value for key, value in VLLM.items() if key != "start_times"})
    assert found.numbers.run["requests_per_s"] == pytest.approx(2 / 1.5)
    assert found.numbers.run["achieved_rate"] is None
    assert not found.traces


def test_a_result_of_vllm_without_details_has_what_it_states() -> None:
    details = {"ttfts", "itls", "output_lens", "input_lens", "start_times", "errors"}
    found = told({key: value for key, value in VLLM.items() if key not in details})
    spread = found.numbers.requests["ttft_from_sent"]
    assert (spread.mean, spread.p50, spread.p99, spread.p90) == pytest.approx((0.075, 0.075, 0.0995, None))
    assert found.numbers.num_planned == 3
    assert found.numbers.requests["icl"].num == 0


def test_a_result_of_sglang_is_known_by_its_names_and_may_stand_in_lines() -> None:
    """As `sglang.bench_serving --output-details` appends it: no instants of sending, other names for two figures."""
    named = {"total_throughput": 9.0, "mean_e2e_latency_ms": 100.0, "median_e2e_latency_ms": 90.0}
    left_out = {"start_times", "total_token_throughput", "failed", "mean_e2el_ms", "median_e2el_ms"}
    value = {key: entry for key, entry in VLLM.items() if key not in left_out} | named
    line = json.dumps(value).encode() + b"\n"
    found = foreign.read(line + line, "bench.jsonl")
    assert [each.tool for each in found] == ["sglang.bench_serving"] * 2
    assert found[0].numbers.run["total_tokens_per_s"] == 9.0
    without_details = {key: entry for key, entry in value.items() if key not in ("ttfts", "itls", "output_lens")}
    assert told(without_details).numbers.requests["service_time"].p50 == pytest.approx(0.09)


def guide(timings: dict[str, float], status: str = "successful") -> dict[str, Any]:
    request = {"info": {"timings": timings, "error": None}, "prompt_tokens": 10, "output_tokens": 5}
    return {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"},
        "benchmarks": [
            {
                "type_": "generative_benchmark",
                "config": {"strategy": {"type_": "constant", "rate": 2.0}},
                "metrics": {"request_totals": {"successful": 3, "errored": 0, "incomplete": 0, "total": 3}},
                "requests": {status: [request]},
            }
        ],
    }


TIMINGS = {
    "targeted_start": 1000.0,
    "request_start": 1000.2,
    "first_token_iteration": 1000.3,
    "last_token_iteration": 1000.7,
    "request_end": 1000.8,
}


def test_a_report_of_guidellm_has_both_instants_of_a_request() -> None:
    found = told(guide(TIMINGS))
    requests = found.numbers.requests
    assert requests["ttft"].mean == pytest.approx(0.3, abs=1e-6)
    assert requests["ttft_from_sent"].mean == pytest.approx(0.1, abs=1e-6)
    assert requests["client_wait"].mean == pytest.approx(0.2, abs=1e-6)
    assert requests["tpot"].mean == pytest.approx(0.1, abs=1e-6)
    assert requests["icl"].num == requests["itl"].num == 0
    assert found.load == "constant, 2 per second"
    assert any("1 of 3" in note for note in found.notes)


def test_the_definitions_of_guidellm_give_what_guidellm_itself_has_printed() -> None:
    """The report is of guidellm 0.8.1 on `llmbench serve --engine stub`, cut down to the keys that are read:

    guidellm run --backend kind=openai_http,target=…,request_format=/v1/completions,model=embedded
    --profile kind=poisson,rate=5 --constraint kind=max_requests,count=20
    --data kind=synthetic_text,prompt_tokens=16,output_tokens=32 --tokenizer kind=hf_auto,model=tok
    --output kind=json,path=bench.json
    """
    report = json.loads(GOLDEN.read_bytes())
    (found,) = foreign.read(GOLDEN.read_bytes(), GOLDEN.name)
    ours = {figure.name: figure.value for figure in guidellm.figures(found.traces)}
    names = {
        "Request latency": "request_latency",
        "TTFT": "time_to_first_token_ms",
        "ITL": "inter_token_latency_ms",
        "TPOT": "time_per_output_token_ms",
    }
    for name, theirs in names.items():
        printed = report["benchmarks"][0]["metrics"][theirs]["successful"]
        assert ours[f"{name}, Mean"] == pytest.approx(printed["mean"], rel=1e-4)
        assert ours[f"{name}, Mdn"] == pytest.approx(printed["median"], rel=1e-4)
        assert ours[f"{name}, p95"] == pytest.approx(printed["percentiles"]["p95"], rel=1e-4)


def test_a_request_of_guidellm_that_failed_is_lost() -> None:
    found = told(guide({"targeted_start": 1.0}, "errored"))
    assert found.numbers.num_failed == 1
    assert found.numbers.reasons == {"not told in the file": 1}


def test_the_benchmarks_of_one_report_are_not_put_together() -> None:
    report = guide(TIMINGS)
    report["benchmarks"] *= 3
    assert len(foreign.read(json.dumps(report).encode(), "benchmarks.json")) == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"nonsense", "nor JSON"),
        (b"{}", "known: contest, guidellm, vllm"),
        (b'[{"res_time": "long"}]', "looks like a result of contest"),
        (b'{"benchmarks": [1]}', "looks like a result of guidellm"),
    ],
)
def test_a_file_that_is_not_known_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        foreign.read(data, "file.json")
