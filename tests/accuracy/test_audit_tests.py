"""The tests of an audit as pure functions: each on evidence that is right, and on evidence with one fault."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest

from llmbench.accuracy import audit, judge
from llmbench.accuracy.audit import Finding, again, canaries, repeats, rescore, secret, session, stream
from llmbench.accuracy.audit.run import Answer, Ids, spoken, tolerance
from llmbench.errors import InputError
from llmbench.loadgen.record import Record
from llmbench.loadgen.target import locate
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.types import Request, Sampling
from llmbench.workload.arrivals.burst import Arrival
from llmbench.workload.plan import Plan, PlannedRequest, PlanSettings, Turn, make_plan

TOKENIZER = Tokenizer.from_file(embedded_path())
EOS = TOKENIZER.eos_id


class Words:
    """The embedded vocabulary."""

    tokenizer = TOKENIZER
    eos_ids = (EOS,)


def answer(index: int = 0, *, prompt: str = "Name a red thing", asked: int | None = 4, **record: Any) -> Answer:
    """An answered request; by default of four tokens, ended by its length."""
    ids = record.pop("token_ids", [300, 301, 302, 303])
    sampling = record.pop("sampling", Sampling())
    request = Request(prompt=prompt, max_new_tokens=asked, sampling=sampling, request_id=f"plan-{index:05d}")
    planned = PlannedRequest(index=index, due_s=0.0, request=request, expected_tokens=asked)
    told: dict[str, Any] = {
        "status": "answered",
        "num_tokens": len(ids),
        "tokens": [1] * len(ids),
        "stamps_ns": [10**9 * (n + 1) for n in range(len(ids))],
        "sent_ns": 0,
        "finish_reason": "length",
        "text": TOKENIZER.decode(list(ids)),
    }
    return Answer(planned, Record(index=index, due_ns=0, token_ids=list(ids), **{**told, **record}))


def failed(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.verdict == "failed"]


# -- A1 ----------------------------------------------------------------------------------------------------------------


class Told:
    """A scorer whose gaps are given: 0 but for some tokens."""

    tier = "T0"

    def __init__(self, gaps: dict[int, float]) -> None:
        self._gaps = gaps

    def gaps(self, prompt: Ids, answer: Ids) -> Any:
        return np.array([self._gaps.get(token, 0.0) for token in answer])


def rescored(answers: list[Answer], gaps: dict[int, float] | None = None, most_bad: float = 0.5) -> Finding:
    scored = rescore.score(answers, Words(), Told(gaps or {}))
    return rescore.finding(scored, 1e-3, most_bad, "the trusted one")


def test_gaps_are_taken_from_the_row_before_each_token() -> None:
    logits = np.array([[9, 9, 9], [1, 4, 2], [5, 3, 0], [9, 9, 9]], np.float32)
    assert rescore.gaps(logits, 2, (1, 1)).tolist() == [0.0, 2.0]


def test_near_ties_pass_and_a_token_beyond_ten_margins_fails() -> None:
    many = [answer(n, token_ids=[300] * 60) for n in range(8)]
    assert rescored(many).verdict == "passed"
    assert rescored([*many, answer(8, token_ids=[301])], {301: 5e-3}).verdict == "passed"  # one of 481
    beyond = rescored([*many, answer(8, token_ids=[300, 301])], {301: 0.02})
    assert (beyond.verdict, beyond.why) == ("failed", "plan-00008: token 1 lies 0.02 below the model's own")
    often = rescored([*many, answer(8, token_ids=[301] * 4)], {301: 5e-3})
    assert often.verdict == "failed"
    assert often.figures["share"] == pytest.approx(480 / 484)


def test_too_few_requests_prove_nothing_but_a_fault_is_one() -> None:
    assert rescored([answer()], most_bad=0.05).verdict == "inconclusive"
    assert rescored([answer()], {300: 1.0}, most_bad=0.05).verdict == "failed"
    assert rescored([answer(n) for n in range(59)], most_bad=0.05).verdict == "passed"
    assert judge.would_be_seen(59) == pytest.approx(0.05, abs=1e-3)
    assert judge.would_be_seen(299) == pytest.approx(0.01, abs=1e-4)


def test_an_answer_that_says_it_ended_must_have_wanted_to() -> None:
    """A truncated answer whose text is all that there is: the end of sequence is scored with it."""
    text = " a red thing is good"  # it continues the prompt
    ids = tuple(TOKENIZER.encode(text.lstrip(), bos=False))
    cut = answer(text=text, token_ids=[], num_tokens=len(ids), finish_reason="eos")
    found = spoken(cut, Words())
    assert not isinstance(found, str)
    assert (found.answer, found.from_text) == ((*ids, EOS), True)
    assert rescored([cut], {EOS: 3.0}).verdict == "failed"
    with_end = answer(text=text, token_ids=[], num_tokens=len(ids) + 1, finish_reason="eos")
    assert spoken(with_end, Words()) == found


def test_a_text_that_does_not_give_its_tokens_again_is_not_scored() -> None:
    odd = answer(text="a red thing", token_ids=[], num_tokens=9)
    assert spoken(odd, Words()) == "its text does not give as many tokens as were counted"
    found = rescored([odd, *(answer(n) for n in range(1, 6))])
    assert (found.verdict, found.figures["not_scored"]) == ("inconclusive", 1)
    assert rescored([odd]).verdict == "not applicable"
    assert rescored([answer(token_ids=[], num_tokens=3, text="")]).verdict == "not applicable"


def test_an_answer_without_text_is_an_end_of_sequence() -> None:
    silent = answer(text="", token_ids=[], num_tokens=1, finish_reason="stop", tokens=[], stamps_ns=[])
    found = spoken(silent, Words())
    assert not isinstance(found, str)
    assert found.answer == (EOS,)
    assert rescored([silent], {EOS: 4.0}).verdict == "failed"
    assert failed(stream.findings([silent], [EOS])) == []
    claiming = answer(text="", token_ids=[], num_tokens=9, asked=9, tokens=[], stamps_ns=[])
    assert failed(stream.findings([claiming], [EOS])) == ["answers whose tokens are not as many as were counted"]


def test_only_greedy_runs_are_scored() -> None:
    assert rescore.not_greedy([answer()]) == ""
    assert "sampled" in rescore.not_greedy([answer(sampling=Sampling(temperature=0.7))])
    assert "penalties" in rescore.not_greedy([answer(sampling=Sampling(repetition_penalty=1.1))])


def test_the_margin_is_that_of_the_coarser_precision() -> None:
    float32, float16, bfloat16 = (("float32", ""), ("float16", ""), ("bfloat16", ""))
    assert [tolerance(float32), tolerance(float32, float16), tolerance(bfloat16, float16)] == [
        1e-3,
        0.02,
        0.13,
    ]


# -- A3 ----------------------------------------------------------------------------------------------------------------


def timed(first: dict[str, float], gap: dict[str, float], rounds: int = 12, asked: int = 16) -> list[Any]:
    """What is sent in an audit, with these times in seconds by arm; rounds differ a little."""
    run = [answer(n, prompt=f"Say {n} words about the old red house", asked=asked) for n in range(6)]
    sent = []
    for place, probe in enumerate(repeats.probes(run, 7, rounds)):
        start = round(1e9 * first.get(probe.arm, 0.1) * (1 + 0.01 * (place % 5)))
        step = round(1e9 * gap.get(probe.arm, 0.01) * (1 + 0.01 * (place % 7)))
        stamps = [start + n * step for n in range(8)]
        record = Record(index=place, due_ns=0, sent_ns=0, status="answered", stamps_ns=stamps, tokens=[1] * 8)
        sent.append((probe, record))
    return sent


def seen(sent: list[Any], cache: str = "cold") -> list[str]:
    return [finding.verdict for finding in repeats.findings(sent, cache)]


def test_probes_are_the_runs_own_prompts_with_a_nonce_and_in_another_order() -> None:
    run = [answer(n, prompt=f"Say {n} words about the old red house", asked=64) for n in range(6)]
    probes = repeats.probes(run, 7)
    assert len(probes) == 48
    prompts = {one.request.prompt for one in run}
    for before, *three in (probes[i : i + 4] for i in range(0, 48, 4)):
        arms = {probe.arm: str(probe.request.prompt) for probe in three}
        assert (before.arm, set(arms)) == ("before", {"same", "nonce", "shuffled"})
        assert before.request.prompt == arms["same"]
        assert arms["same"] in prompts
        assert arms["nonce"].endswith(f" {arms['same']}")
        assert sorted(arms["shuffled"].split()) == sorted(arms["same"].split())
        assert arms["shuffled"].split()[0] != arms["same"].split()[0]
    assert {probe.request.max_new_tokens for probe in probes} == {16}
    assert len({tuple(probe.arm for probe in probes[i : i + 4]) for i in range(0, 48, 4)}) > 2
    assert probes != repeats.probes(run, 8)
    assert repeats.probes([answer(prompt="Hi")], 7) == []


def test_repeats_that_are_not_faster_pass() -> None:
    assert seen(timed({}, {})) == ["passed", "passed"]


def test_a_cache_of_prefixes_fails_where_it_was_declared_off() -> None:
    quick = timed({"same": 0.05}, {})
    assert seen(quick) == ["failed", "passed"]
    assert seen(quick, "any") == seen(quick, "warm") == ["passed", "passed"]


def test_a_cache_of_answers_fails_whatever_was_declared() -> None:
    assert seen(timed({"same": 0.05}, {"same": 0.0}), "any") == ["passed", "failed"]


def test_few_rounds_that_look_faster_cannot_tell() -> None:
    assert seen(timed({"same": 0.05}, {}, rounds=6)) == ["inconclusive", "passed"]


# -- A4 ----------------------------------------------------------------------------------------------------------------


def test_right_streams_pass_and_each_fault_is_named() -> None:
    right = [answer(n) for n in range(3)] + [answer(3, token_ids=[300, EOS], finish_reason="eos")]
    assert failed(stream.findings(right, [EOS])) == []
    faults = {
        "error texts as answers": answer(9, text="Error202: prompt out of range"),
        "streams whose text is not that of the final answer": answer(9, streamed_text="other"),
        "answers with an end inside, or more than one": answer(9, token_ids=[300, EOS, 301, 302]),
        "answers whose tokens are not as many as were counted": answer(
            9, num_tokens=3, finish_reason="eos", token_ids=[300, 301, 302, EOS]
        ),
        "answers whose end does not fit their length": answer(9, token_ids=[300, 301]),
    }
    for what, wrong in faults.items():
        assert failed(stream.findings([*right, wrong], [EOS])) == [what]


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"token_ids": [1] * 5}, "5 tokens, 4 were asked for"),
        ({"finish_reason": None}, "no finish_reason"),
        ({"finish_reason": "eos"}, "says that the model ended it, but its last token is 303"),
        ({"finish_reason": "eos", "sampling": Sampling(ignore_eos=True)}, "ended by itself after 4 tokens"),
    ],
)
def test_ends_that_do_not_fit_say_why(record: dict[str, Any], why: str) -> None:
    wrong = [finding for finding in stream.findings([answer(**record)], [EOS]) if finding.verdict == "failed"]
    assert why in wrong[0].why


def length_of(answers: list[Answer], base: float | None = None) -> str:
    return stream.findings(answers, [EOS], base)[-1].verdict


def test_the_mean_length_is_judged_against_a_reference_run_or_what_must_be() -> None:
    short = [answer(n, asked=40, token_ids=[300] * 9 + [EOS], finish_reason="eos") for n in range(4)]
    assert length_of(short) == "not applicable"  # a model may end by itself
    assert length_of(short, base=10.5) == "passed"
    assert length_of(short, base=12.0) == "failed"
    forced = [msgspec.structs.replace(one.planned, request=one.request) for one in short]
    assert forced
    assert length_of([answer(asked=4)]) == "passed"
    assert length_of([answer(asked=8, sampling=Sampling(ignore_eos=True))]) == "failed"


# -- A5 ----------------------------------------------------------------------------------------------------------------


def a_plan(number: int = 40) -> Plan:
    samples = [Turn(prompt=f"Write about the thing number {n}", output_tokens=4 + n) for n in range(number)]
    settings = PlanSettings(dataset="made up", num_samples=number, arrivals="burst", qps=0.0, rate=None, seed=0)
    return make_plan(samples, Arrival(), number, settings, TOKENIZER)


def test_questions_take_the_place_of_requests_and_keep_all_but_their_prompt() -> None:
    plan = a_plan()
    mixed, chosen = canaries.mixed(plan, canaries.known(), 0.1, 5, TOKENIZER)
    replaced = [n for n in range(40) if mixed.requests[n] != plan.requests[n]]
    assert [canary.index for canary in chosen] == replaced
    assert len(replaced) == 4
    for index in replaced:
        was, now = plan.requests[index], mixed.requests[index]
        assert now.num_prompt_tokens == len(TOKENIZER.encode(str(now.request.prompt)))
        same = msgspec.structs.replace(now.request, prompt=was.request.prompt)
        assert msgspec.structs.replace(now, request=same, num_prompt_tokens=was.num_prompt_tokens) == was
        assert (now.request.max_new_tokens or 0) >= 16
    assert mixed.sha256 != plan.sha256
    assert canaries.mixed(plan, canaries.known(), 0.1, 6, TOKENIZER)[1] != chosen


def test_turns_of_a_conversation_are_no_questions() -> None:
    samples = [Turn(prompt="Hello", output_tokens=8), Turn(prompt="And then?", output_tokens=8, think_s=0.0)] * 4
    settings = PlanSettings(dataset="made up", num_samples=8, arrivals="burst", qps=0.0, rate=None, seed=0)
    plan = make_plan(samples, Arrival(), 8, settings, TOKENIZER)
    assert canaries.mixed(plan, canaries.known(), 0.1, 5, TOKENIZER) == (plan, ())


def test_own_questions_are_read_and_wrong_ones_named(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"prompt": "What is our colour?", "answer": "green"}\n')
    assert canaries.read(path) == [canaries.Question(prompt="What is our colour?", answer="green")]
    path.write_text('{"prompt": "What is our colour?"}\n')
    with pytest.raises(InputError, match=r"own\.jsonl: line 1: needs the texts prompt and answer"):
        canaries.read(path)


def test_an_answer_is_right_when_it_has_the_word() -> None:
    assert canaries.right("It is Paris.", "paris")
    assert not canaries.right("Comparison", "paris")


def test_fewer_right_answers_than_the_trusted_model_has_fail_when_they_are_enough() -> None:
    asked = [secret.Canary(index=n, answer="Paris") for n in range(12)]
    run = [answer(n) for n in range(12)]
    base = dict.fromkeys(range(12), "Paris")

    def verdict(texts: dict[int, str], against: dict[int, str] | None = base) -> str:
        return canaries.finding(asked, run, texts, against).verdict

    assert verdict(base) == "passed"
    assert verdict(dict.fromkeys(range(12), "London")) == "failed"
    assert verdict(base | {0: "London"}) == "inconclusive"
    assert verdict(dict.fromkeys(range(12), "London"), dict.fromkeys(range(12), "Rome")) == "passed"  # it never knew
    assert verdict(base, None) == verdict({}) == "not applicable"


# -- A6 ----------------------------------------------------------------------------------------------------------------


def looked(*sessions: dict[str, Any] | None) -> list[session.Looked]:
    return [
        session.Looked(
            attempt=1,
            at_s=0.0,
            when=f"look {n}",
            session=None if says is None else session.Session(source="/identity", says=says),
        )
        for n, says in enumerate(sessions)
    ]


def test_one_session_passes_and_what_changed_is_named() -> None:
    one = {"pid": 7, "weights": "ab", "config": "cd"}
    assert session.one_session(looked(one, one)).verdict == "passed"
    other = session.one_session(looked(one, one | {"weights": "xy"}))
    assert (other.verdict, other.why) == ("failed", "look 1 (attempt 1): weights ab, now xy")
    assert session.one_session(looked(one, None)).verdict == "failed"
    assert session.one_session([]).verdict == session.one_session(looked(None, None)).verdict == "not applicable"
    later = session.Session(source="/identity", says=one | {"pid": 9})
    assert session.one_session(looked(one, one), later).verdict == "passed"  # started again since
    later = session.Session(source="/identity", says=one | {"pid": 9, "config": "zz"})
    assert session.one_session(looked(one, one), later).verdict == "failed"


PAGES = {
    "/metrics": b"# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds 1.7e+09\nvllm:n 3\n",
    "/v1/models": b'{"data": [{"id": "their-model"}]}',
}


class Foreign(BaseHTTPRequestHandler):
    """A server that is not ours, with Prometheus' own metrics of its process."""

    def do_GET(self) -> None:
        page = PAGES.get(self.path)
        self.send_response(404 if page is None else 200)
        self.send_header("Content-Length", str(len(page or b"")))
        self.end_headers()
        self.wfile.write(page or b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name there)
        """Say nothing."""


def test_of_a_foreign_server_the_start_of_its_process_and_its_models_are_known() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Foreign) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        found = session.read(locate(f"http://127.0.0.1:{server.server_port}/v1"))
        server.shutdown()
    assert found == session.Session(
        source="/metrics", says={"process_start_time_seconds": 1.7e9, "models": ["their-model"]}
    )
    again_started = session.Session(source="/metrics", says=found.says | {"process_start_time_seconds": 1.8e9})
    restarted = looked({}, {})
    restarted = [
        msgspec.structs.replace(restarted[0], session=found),
        msgspec.structs.replace(restarted[1], session=again_started),
    ]
    assert session.one_session(restarted).verdict == "failed"


# -- A9 ----------------------------------------------------------------------------------------------------------------


def repeated(pairs: list[tuple[list[int], list[int]]], apart: dict[tuple[int, int], float] | None) -> Finding:
    sent = [
        again.Repeat(answer(n, token_ids=was), answer(n, token_ids=now).record) for n, (was, now) in enumerate(pairs)
    ]

    def gap(common: Ids, one: int, other: int) -> float:
        assert apart is not None
        return apart[one, other]

    return again.finding(sent, Words(), None if apart is None else gap, 1e-3)


def test_equal_answers_and_near_ties_pass() -> None:
    same = ([300, 301], [300, 301])
    assert repeated([same], {}).verdict == "passed"
    tie = repeated([same, ([300, 301, 302], [300, 305, 306])], {(301, 305): 5e-4})
    assert (tie.verdict, tie.figures["others"]) == ("passed", 1)
    far = repeated([same, ([300, 301], [300, 305])], {(301, 305): 0.5})
    assert (far.verdict, far.why) == ("failed", "plan-00001: the answers part at a token 0.5 below the other")
    assert repeated([([300, 301], [300])], {}).verdict == "failed"  # cut off
    assert repeated([([300, 301], [300, 305])], None).verdict == "inconclusive"
    assert again.finding([], Words(), None, 1e-3).verdict == "not applicable"


# -- the secret, and what follows from all -----------------------------------------------------------------------------


def test_a_secret_fits_its_commitment_alone(tmp_path: Path) -> None:
    own = secret.new([secret.Canary(index=3, answer="Paris")])
    told = secret.Committed(attempt=1, at_s=1.0, commitment=own.commitment, plan_sha256="plan")
    shown = secret.Revealed(attempt=1, at_s=2.0, secret=own)
    secret.append(tmp_path, told)
    secret.append(tmp_path, shown)
    assert secret.read(tmp_path) == [told, shown]
    assert secret.broken([told, shown], "plan") == ""
    assert "another plan" in secret.broken([told, shown], "other")
    other = msgspec.structs.replace(own, canaries=())
    assert "not the one that was committed to" in secret.broken(
        [told, msgspec.structs.replace(shown, secret=other)], "plan"
    )
    assert "not the one that was committed to" in secret.broken([shown], "plan")
    again_shown = secret.Revealed(attempt=2, at_s=4.0, secret=secret.new())
    last = secret.revealed([told, shown, again_shown])
    assert last is not None
    assert (last.seed, last.canaries) == (again_shown.secret.seed, own.canaries)
    (tmp_path / secret.FILE).write_text("{}\n")
    with pytest.raises(InputError, match=r"audit\.jsonl: line 1"):
        secret.read(tmp_path)


def test_what_is_chosen_follows_from_the_seed_alone() -> None:
    names = [f"plan-{n:05d}" for n in range(50)]
    first = secret.chosen("seed", "score", names, 10)
    assert first == secret.chosen("seed", "score", reversed(names), 10)
    assert first != secret.chosen("other", "score", names, 10)
    assert first != secret.chosen("seed", "again", names, 10)
    assert secret.number("seed", "a") != secret.number("seed", "b")


def test_the_verdict_on_a_run_weighs_what_was_found() -> None:
    def found(**verdicts: Any) -> tuple[str, str]:
        findings = [Finding(test=test, what="", verdict=verdict) for test, verdict in verdicts.items()]
        return audit.overall(findings, list(audit.TESTS))

    assert found(A1="passed", A5="not applicable") == ("passed", "")
    assert found(A1="failed", A10="broken")[0] == "broken"
    assert found(A1="failed", A9="inconclusive") == ("failed", "not passed: A1")
    assert found(A1="passed", A9="inconclusive")[0] == "inconclusive"
    assert found(A4="passed", A1="not applicable") == (
        "inconclusive",
        "nothing compared the answers with a trusted model",
    )
    assert audit.overall([Finding(test="A4", what="", verdict="passed")], ["A4"]) == ("passed", "")
    assert audit.overall([audit.not_applicable("A4", "")], ["A4"])[0] == "inconclusive"
    assert audit.wanted("a4, A1") == ["A1", "A4"]
    with pytest.raises(InputError, match="unknown test 'A7'"):
        audit.wanted("A7")
