"""The server's book beside ours: agreeing books are fine, each planted difference is found."""

import numpy as np
import pytest

from llmbench.loadgen.record import Record, Scrape
from llmbench.metrics import ledger
from llmbench.metrics.checks import Evidence, server

S = 1_000_000_000
TTFT_S, E2EL_S, TOKENS = 0.2, 1.0, 20


def records(num: int = 300, rate: float = 5.0, seed: int = 1) -> list[Record]:
    """Answered requests, Poisson arrivals."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, num)) + 1.0
    return [
        Record(
            index=i,
            status="answered",
            due_ns=(at := round(due_s * S)),
            released_ns=at,
            sent_ns=at,
            stamps_ns=[at + round(TTFT_S * S), at + round(E2EL_S * S)],
            tokens=[1, TOKENS - 1],
            num_tokens=TOKENS,
            num_prompt_tokens=30,
            done_ns=at + round(E2EL_S * S),
        )
        for i, due_s in enumerate(due)
    ]


def scrape(at_s: float, finished: float, running: float, began: float = 7.0, **off: float) -> Scrape:
    """What a server like vLLM says; it had served others before we came."""
    number = began + finished
    values = {
        "vllm:request_success_total": number,
        "vllm:prompt_tokens_total": number * off.get("prompt", 30),
        "vllm:generation_tokens_total": number * off.get("tokens", TOKENS),
        "vllm:time_to_first_token_seconds_sum": number * off.get("ttft_s", TTFT_S - 0.003),
        "vllm:time_to_first_token_seconds_count": number,
        "vllm:num_requests_running": running,
        "vllm:num_requests_waiting": 0,
    }
    return Scrape(at_ns=round(at_s * S), values=values)


def scrapes(run: list[Record], others: float = 0, beside: float = 0, **off: float) -> list[Scrape]:
    """Before, every five seconds, and after."""
    last_s = max(record.done_ns or 0 for record in run) / S
    found = [scrape(0.5, 0, 0, **off)]
    for at_s in np.arange(5.0, last_s, 5.0).tolist():
        done = sum((record.done_ns or 0) <= (at_s - 0.002) * S for record in run)
        sent = sum((record.sent_ns or 0) <= (at_s - 0.002) * S for record in run)
        found.append(scrape(at_s, done, sent - done + beside, **off))
    return [*found, scrape(last_s + 1, len(run) + others, 0, **off)]


def outcomes(run: list[Record], readings: list[Scrape], seams_s: list[float] | None = None) -> dict[str, str]:
    evidence = Evidence(traces=run, scrapes=readings, seams_s=seams_s or [])
    return {found.id: found.verdict for found in (function(evidence) for function in server.CHECKS)}


def test_books_that_agree_are_fine_in_hundreds_of_runs() -> None:
    for seed in range(300):
        run = records(seed=seed)
        assert set(outcomes(run, scrapes(run)).values()) == {"ok"}, seed


def test_one_request_of_somebody_else_is_found() -> None:
    run = records()
    found = outcomes(run, scrapes(run, others=1))
    assert found["ledger-requests"] == "failed"
    assert found["ledger-tokens-server"] == found["ledger-ttft"] == "not applicable", "the means are of others too"


def test_somebody_else_whose_requests_do_not_end_is_found_by_the_queue() -> None:
    run = records()
    assert outcomes(run, scrapes(run, beside=2))["ledger-queue"] == "failed"


def test_a_server_that_has_not_seen_our_requests_is_another_one() -> None:
    run = records()
    idle = [scrape(0.5, 0, 0), scrape(9999, len(run) - 100, 0)]
    assert outcomes(run, idle)["ledger-requests"] == "inconclusive"


def test_a_request_that_failed_may_be_counted_or_not() -> None:
    run = records()
    run[9].status = "failed"
    for others in (0, -1):
        last = scrape(9999, len(run) + others, 0)
        assert outcomes(run, [scrape(0.5, 0, 0), last])["ledger-requests"] == "ok"
    assert outcomes(run, scrapes(run, others=1))["ledger-requests"] == "failed"


@pytest.mark.parametrize(("tokens", "verdict"), [(TOKENS, "ok"), (TOKENS + 1, "ok"), (TOKENS * 2, "failed")])
def test_tokens_that_the_server_did_not_generate_are_found_but_for_the_end_of_each_answer(
    tokens: int, verdict: str
) -> None:
    run = records()
    assert outcomes(run, scrapes(run, tokens=tokens))["ledger-tokens-server"] == verdict


@pytest.mark.parametrize(("prompt", "verdict"), [(30, "ok"), (40, "ok"), (60, "inconclusive"), (20, "inconclusive")])
def test_prompts_may_be_longer_by_a_chat_template_but_not_of_another_vocabulary(prompt: int, verdict: str) -> None:
    run = records()
    assert outcomes(run, scrapes(run, prompt=prompt))["ledger-prompts"] == verdict
    for record in run:
        record.server_prompt_tokens = prompt
    assert outcomes(run, [])["ledger-prompts"] == verdict, "usage alone is enough"


def test_first_tokens_cannot_come_before_the_server_has_made_them() -> None:
    run = records()
    assert outcomes(run, scrapes(run, ttft_s=TTFT_S + 0.02))["ledger-ttft"] == "inconclusive"
    book = ledger.ledger(run, scrapes(run))
    assert book is not None
    assert ledger.network_s(book) == pytest.approx(0.003)


def test_without_readings_on_both_sides_of_the_run_nothing_is_said() -> None:
    run = records()
    whole = scrapes(run)
    for readings in ([], whole[:1], whole[1:], whole[:-1]):
        assert set(outcomes(run, readings).values()) == {"not applicable"}
    assert set(outcomes(run, whole, seams_s=[3.0]).values()) == {"not applicable"}


def test_a_counter_that_falls_began_anew_and_one_that_is_new_began_at_nothing() -> None:
    def series(*values: float | None) -> list[Scrape]:
        name = "vllm:request_success_total"
        return [Scrape(at_ns=i, values={} if v is None else {name: v}) for i, v in enumerate(values)]

    assert ledger.increase(series(10, 14, 2, 5), "finished") == 9
    assert ledger.increase(series(None, 3), "finished") == 3
    assert ledger.increase(series(None, None), "finished") is None


@pytest.mark.parametrize(
    "name", ["vllm:request_success_total", "sglang:num_requests_total", "tgi_request_success", "request_success_total"]
)
def test_other_servers_names_are_known(name: str) -> None:
    assert ledger.found(Scrape(at_ns=0, values={name: 3.0}), "finished") == 3.0
