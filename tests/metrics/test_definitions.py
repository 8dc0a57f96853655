"""What other tools would have printed, worked out by hand for two answers and a failure.

In ms after sending: A has tokens 1, 2, 1 at 100, 120, 160 and ends at 170; B has one token at 50 and one at 70 and ends
at 75. A is sent first, B 990 ms later, the failure 1490 ms later; it ends at 1590 ms.
"""

from collections.abc import Sequence

import pytest

from llmbench.errors import InputError
from llmbench.loadgen.record import Record
from llmbench.metrics import Trace, definitions

MS = 1_000_000


def answer(index: int, due: int, sent: int, stamps: list[int], tokens: list[int], done: int, prompt: int) -> Record:
    return Record(
        index=index,
        status="answered",
        due_ns=due * MS,
        sent_ns=sent * MS,
        stamps_ns=[stamp * MS for stamp in stamps],
        tokens=tokens,
        num_tokens=sum(tokens),
        done_ns=done * MS,
        num_prompt_tokens=prompt,
    )


TRACES: Sequence[Trace] = [
    answer(1, 1000, 1000, [1050, 1070], [1, 1], 1075, 20),
    answer(0, 0, 10, [110, 130, 170], [1, 2, 1], 180, 10),
    Record(index=2, status="failed", reason="HTTP 500", due_ns=1400 * MS, sent_ns=1500 * MS, done_ns=1600 * MS),
]


def printed(name: str, traces: Sequence[Trace] = TRACES) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in definitions.get(name).figures(traces)}


BY_HAND: dict[str, dict[str, float]] = {
    "vllm": {
        "Successful requests": 2,
        "Failed requests": 1,
        "Benchmark duration": 1.59,
        "Request throughput": 2 / 1.59,
        "Output token throughput": 6 / 1.59,
        "Total token throughput": 36 / 1.59,
        "Peak output token throughput": 3,  # chunks, though A had four tokens in that second
        "Peak concurrent requests": 2,  # they never were in flight together
        "Median TTFT": 75,
        "P99 TTFT": 99.5,
        "Mean TPOT": 20,
        "Mean ITL": 80 / 3,
        "Median ITL": 20,
        "P99 ITL": 39.6,
        "Mean E2EL": 115,
    },
    "sglang": {
        "Mean TPOT": (70 / 3 + 25) / 2,
        "Mean E2E Latency": 122.5,
        "Concurrency": 0.245 / 1.59,
        "P90 E2E Latency": 160.5,
        "Max ITL": 40,
    },
    "guidellm": {
        "Errored or incomplete requests": 1,
        "Request latency, Mean": 0.1225,
        "Request latency, Mdn": 0.075,
        "Request latency, p95": 0.170,
        "TTFT, Mdn": 50,
        "ITL, Mean": 20,
        "TPOT, Mean": (4 * 40 + 2 * 35) / 6,
        "TPOT, Mdn": 40,  # 4 of the 6 tokens
    },
    "aiperf": {
        "Time to First Token, avg": 75,
        "Time to First Token, std": 25,
        "Time to Second Token, avg": 20,
        "Request Latency, max": 160,
        "Inter Token Latency, avg": 20,
        "Inter Chunk Latency, avg": 80 / 3,
        "Output Token Throughput Per User, avg": 50,
        "Request Count": 2,
    },
    "contest": {
        "Exec Time": 1.59,
        "res_time, mean": 0.1225,
        "first_token_time, mean": 0.075,
        "latencyAvg": (0.170 / 4 + 0.075 / 2) / 2,
    },
    "inference-perf": {
        "failures count": 1,
        "normalized_time_per_output_token mean": (0.040 + 0.035) / 2,
        "inter_token_latency mean": 0.080 / 4,  # 0 within A's second chunk
        "inter_token_latency p50": 0.020,
        "time_per_output_token p50": 0.020,
    },
    "llmperf": {
        "inter_token_latency_s mean": (0.040 + 0.035) / 2,
        "end_to_end_latency_s p50": 0.1225,
        "num_completed_requests_per_min": 120 / 1.59,
    },
    "evalscope": {"TPOT mean": (0.070 / 3 + 0.025) / 2, "Latency mean": 0.1225, "Failed requests": 1},
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_tools_numbers_are_those_worked_out_by_hand(name: str) -> None:
    found = printed(name)
    for figure, value in BY_HAND[name].items():
        assert found[figure] == pytest.approx(value), figure


def test_every_definition_is_tested_by_hand() -> None:
    assert {name.replace("-", "_") for name in BY_HAND} == set(definitions.names())


@pytest.mark.parametrize("name", definitions.names())
def test_a_definition_says_what_it_is_and_copes_with_nothing(name: str) -> None:
    definition = definitions.get(name)
    assert definition.TOOL
    assert definition.__doc__
    assert definition.FORMULAS
    nothing = [Record(index=0, due_ns=0)]
    whole = answer(0, 0, 0, [], [], 50, 10)
    for traces in ([], nothing, [whole]):
        names = [figure.name for figure in definition.figures(traces)]
        assert len(set(names)) == len(names)


def test_an_unknown_tool_is_an_error_with_a_hint() -> None:
    with pytest.raises(InputError, match="Did you mean 'guidellm'"):
        definitions.get("guidelm")


def test_the_order_of_the_traces_does_not_matter() -> None:
    for name in definitions.names():
        assert printed(name) == pytest.approx(printed(name, TRACES[::-1]), nan_ok=True)
