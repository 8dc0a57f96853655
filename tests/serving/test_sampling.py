"""What a request asks of sampling, from the frontend through scheduler and engine and back; and `LLM`.

The steps are those of the server: `loop` writes them, `agent.run_step` computes them, only the sockets are missing.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmbench import LLM, engines
from llmbench.engines import EngineSettings
from llmbench.link import frames
from llmbench.link.agent import run_step
from llmbench.link.arena import Dimensions, StepArrays
from llmbench.serving import loop
from llmbench.serving.blocks import BlockPool
from llmbench.serving.frontend import Frontend, Mailbox
from llmbench.serving.observe import Observer
from llmbench.serving.scheduler import Limits, Scheduler
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.types import Delta, Request, Sampling, TokenLogprob
from llmbench.weights.model import open_model

TOKENIZER = Tokenizer.from_file(embedded_path())
MODEL = open_model("random:tiny")
PROMPT = "The quick brown fox"
FOREVER = Sampling(ignore_eos=True)


class Answer:
    """The pieces of one request, joined."""

    def __init__(self, pieces: list[Delta]) -> None:
        self.pieces = pieces
        self.text = "".join(piece.text for piece in pieces)
        self.token_ids = [token_id for piece in pieces for token_id in piece.token_ids]
        self.logits = [logit for piece in pieces for logit in piece.logits]
        self.scores = [score for piece in pieces for score in piece.logprobs]
        self.reason = pieces[-1].finish_reason
        self.stop_reason = pieces[-1].stop_reason
        self.num_cached = pieces[-1].num_cached_tokens

    @property
    def prompt(self) -> tuple[TokenLogprob, ...]:
        return self.pieces[0].prompt


class Stack:
    """The server without its sockets. `eos_ids` are what ends an answer."""

    def __init__(
        self, limits: Limits | None = None, num_blocks: int = 512, eos_ids: frozenset[int] = frozenset()
    ) -> None:
        limits = limits or Limits(max_batch=8)
        self.engine = engines.get(
            "numpy_llama", MODEL, EngineSettings(num_blocks=num_blocks, max_batch=limits.max_batch, threads=1)
        )
        capacity = self.engine.capacity()
        self.pool = BlockPool(capacity.num_blocks, capacity.block_size, limits.prefix_cache)
        self.scheduler = Scheduler(limits, self.pool, capacity.max_model_len)
        self.observer = Observer()
        self.frontend = Frontend(self.scheduler, TOKENIZER, eos_ids, 0, asyncio.Event(), self.observer)
        self._arrays = StepArrays.private(
            Dimensions(
                max_batch=limits.max_batch,
                max_tokens=limits.max_tokens_per_step,
                max_blocks=-(-capacity.max_model_len // capacity.block_size),
            )
        )

    def answers(self, *requests: Request) -> list[Answer]:
        """The answers to requests that come at once."""
        mailboxes = [self.frontend.submit([request]) for request in requests]
        while self.step():
            pass
        assert self.pool.num_free == self.pool.num_blocks
        return [Answer(received(mailbox)) for mailbox in mailboxes]

    def answer(self, prompt: str | tuple[int, ...] = PROMPT, number: int = 24, **sampling: Any) -> Answer:
        return self.answers(request(prompt, number, **sampling))[0]

    def step(self) -> bool:
        """One step; false when there is nothing to do."""
        plan = self.scheduler.plan()
        if plan is None:
            return False
        loop.place(self._arrays, plan)
        rows, steps = loop.step_rows(plan)
        num_tokens = self._arrays.write(rows, steps)
        step = frames.Step(num_sequences=len(rows), num_tokens=num_tokens, extras=loop.step_extras(plan))
        done = run_step(self.engine, self._arrays, step, None)
        self.frontend.admitted(plan.admitted)
        loop.take_scores(plan, done.scored)
        self.frontend.deliver(self.scheduler.commit(plan, *self._arrays.result(len(rows))))
        return True


def request(prompt: str | tuple[int, ...] = PROMPT, number: int = 24, **sampling: Any) -> Request:
    return Request(prompt=prompt, max_new_tokens=number, sampling=Sampling(**sampling))


def received(mailbox: Mailbox) -> list[Delta]:
    pieces = []
    while not mailbox.pieces.empty():
        pieces.append(asyncio.run(mailbox.next())[1])
    return pieces


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack()


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("random:tiny", threads=1) as opened:
        yield opened


def log_softmax(rows: Any) -> Any:
    wide = np.asarray(rows, np.float64)
    wide = wide - wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def ids_of(prompt: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(prompt))


# -- seeds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_batch=1),
        Limits(max_batch=8, max_tokens_per_step=8),
        Limits(max_batch=5, max_tokens_per_step=7),
        Limits(max_batch=3, batching="static"),
        Limits(max_batch=8, prefix_cache=True),
    ],
    ids=["one at a time", "8 tokens a step", "5 and 7", "static", "prefix cache"],
)
def test_the_same_seed_gives_the_same_text_whatever_the_batch(stack: Stack, limits: Limits) -> None:
    asked = [
        request(
            f"{PROMPT} number {i} {'and on ' * (3 * i)}", 8 + i, temperature=0.5 + i / 4, top_k=40 * (i % 2), seed=i
        )
        for i in range(6)
    ] + [request(seed=3), request(temperature=1.0, top_p=0.8, seed=2**64 - 1, repetition_penalty=1.2)]
    expected = [stack.answers(each)[0] for each in asked]
    together = Stack(limits).answers(*asked)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in expected]
    assert [answer.text for answer in together] == [answer.text for answer in expected]
    assert len({tuple(answer.token_ids) for answer in expected}) == len(asked)


def test_another_seed_gives_another_text(stack: Stack) -> None:
    texts = {stack.answer(temperature=1.0, seed=seed).text for seed in range(8)}
    assert len(texts) == 8


# -- where an answer ends -------------------------------------------------------------------------------------------


def test_a_stop_text_that_lies_across_tokens_ends_the_answer_before_it(stack: Stack) -> None:
    plain = stack.answer(ignore_eos=True)
    texts = [piece.text for piece in plain.pieces]
    borders = 0
    for i, (left, right) in enumerate(itertools.pairwise(texts)):
        if not left or not right or "\ufffd" in left + right:
            continue
        borders += 1
        for stop in (left[-1] + right[0], left + right, left[-1] + right):
            answer = stack.answer(stop=(stop,), ignore_eos=True)
            assert answer.text == plain.text[: plain.text.index(stop)]
            assert (answer.reason, answer.stop_reason) == ("stop", stop)
            assert len(answer.token_ids) <= i + 2
            kept = stack.answer(stop=("\x00", stop), include_stop=True, ignore_eos=True)
            assert kept.text == answer.text + stop
    assert borders > 10


def test_a_stop_text_that_never_comes_changes_nothing(stack: Stack) -> None:
    plain = stack.answer(ignore_eos=True)
    answer = stack.answer(stop=(plain.text + "x", "\x00"), ignore_eos=True)
    assert (answer.text, answer.token_ids, answer.reason) == (plain.text, plain.token_ids, "length")


def test_a_stop_id_ends_the_answer_where_it_first_comes(stack: Stack) -> None:
    plain = stack.answer(ignore_eos=True).token_ids
    for token_id in plain[::5]:
        end = plain.index(token_id)
        answer = stack.answer(stop_token_ids=(token_id, 2047), ignore_eos=True)
        assert answer.token_ids == plain[: end + 1]
        assert (answer.reason, answer.stop_reason) == ("stop", token_id)
        assert answer.text == TOKENIZER.decode(plain[:end])
        assert stack.answer(stop_token_ids=(token_id,), include_stop=True).text == TOKENIZER.decode(plain[: end + 1])


def test_eos_ends_an_answer_unless_it_is_ignored() -> None:
    plain = Stack().answer().token_ids
    eos = plain[4]
    ending = Stack(eos_ids=frozenset((eos,)))
    answer = ending.answer()
    assert (answer.token_ids, answer.reason) == (plain[: plain.index(eos) + 1], "eos")
    ignored = ending.answer(ignore_eos=True)
    assert (ignored.token_ids, ignored.reason) == (plain, "length")


def test_before_the_least_number_of_tokens_nothing_ends_an_answer() -> None:
    plain = Stack().answer().token_ids
    eos, stop_id = plain[0], plain[1]
    stack = Stack(eos_ids=frozenset((eos,)))
    assert len(stack.answer(stop_token_ids=(stop_id,)).token_ids) == 1
    for least in (1, 2, 5, 24):
        answer = stack.answer(min_new_tokens=least, stop_token_ids=(stop_id,))
        assert not {eos, stop_id} & set(answer.token_ids[:least]), "they are not even chosen"
        assert len(answer.token_ids) >= least
        assert all(np.isfinite(answer.logits))
    assert stack.answer(min_new_tokens=24, number=24).reason == "length"


def test_before_the_least_number_of_tokens_a_stop_text_passes(stack: Stack) -> None:
    plain = stack.answer(ignore_eos=True)
    stop = plain.text[0]
    assert stack.answer(stop=(stop,)).text == ""
    for least in (1, 6):
        answer = stack.answer(stop=(stop,), min_new_tokens=least, ignore_eos=True)
        given = "".join(piece.text for piece in plain.pieces[:least])
        rest = plain.text[len(given) :]
        assert answer.text == given + rest[: rest.index(stop) if stop in rest else None]


# -- penalties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.8},
        {"presence_penalty": 1.25},
        {"frequency_penalty": 0.75},
        {"repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25},
    ],
    ids=str,
)
def test_penalised_answers_are_those_of_the_formulas_on_the_models_logits(
    stack: Stack, llm: LLM, asked: dict[str, Any]
) -> None:
    prompt = ids_of(PROMPT)
    ids = list(prompt)
    for _ in range(16):
        row = llm.logits(ids)[-1].astype(np.float64)
        for seen in set(ids):
            factor = asked.get("repetition_penalty", 1.0)
            row[seen] = row[seen] / factor if row[seen] > 0 else row[seen] * factor
        for seen in ids[len(prompt) :]:
            row[seen] -= asked.get("frequency_penalty", 0.0)
        for seen in set(ids[len(prompt) :]):
            row[seen] -= asked.get("presence_penalty", 0.0)
        ids.append(int(row.argmax()))
    answer = stack.answer(number=16, ignore_eos=True, **asked)
    assert answer.token_ids == ids[len(prompt) :]
    raw = llm.logits(ids)
    np.testing.assert_allclose(
        answer.logits, [raw[len(prompt) - 1 + i, t] for i, t in enumerate(answer.token_ids)], atol=1e-3
    )
    (offline,) = llm.generate(PROMPT, 16, Sampling(ignore_eos=True, **asked))
    assert (offline.text, offline.token_ids) == (TOKENIZER.decode(answer.token_ids), answer.token_ids)


# -- log-probabilities ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 1.5, "seed": 5}, {"frequency_penalty": 1.0}, {"min_new_tokens": 3}], ids=str
)
def test_logprobs_are_of_the_models_own_logits(stack: Stack, llm: LLM, sampling: dict[str, Any]) -> None:
    answer = stack.answer(number=10, num_logprobs=4, **sampling)
    prompt = ids_of(PROMPT)
    expected = log_softmax(llm.logits([*prompt, *answer.token_ids]))[len(prompt) - 1 : -1]
    assert len(answer.scores) == len(answer.token_ids) == 10
    for row, token_id, score in zip(expected, answer.token_ids, answer.scores, strict=True):
        assert score.token_id == token_id
        assert score.logprob == pytest.approx(row[token_id], abs=1e-3)
        best = np.argsort(-row, kind="stable")[:4]
        assert [value for _, value in score.top] == pytest.approx(row[best].tolist(), abs=1e-3)
        assert [text for text, _ in score.top] == [TOKENIZER.piece(int(each)) for each in best]


def test_asking_for_logprobs_does_not_change_the_answer_or_the_neighbours(stack: Stack) -> None:
    plain = stack.answer()
    scored, alone = stack.answers(request(num_logprobs=5, prompt_logprobs=2), request())
    assert scored.token_ids == alone.token_ids == plain.token_ids
    assert not alone.scores
    assert not alone.prompt
    assert all(piece.prompt == () for piece in scored.pieces[1:])


@pytest.fixture(scope="module")
def prompt_scores(llm: LLM) -> Any:
    """A prompt of 90 tokens and its log-probabilities [90, vocab] after each."""
    prompt = tuple(5 + 37 * i % 2000 for i in range(90))
    return prompt, log_softmax(llm.logits(prompt))


def check_prompt(scores: tuple[TokenLogprob, ...], prompt: tuple[int, ...], expected: Any) -> None:
    assert [score.token_id for score in scores] == list(prompt)
    assert scores[0].logprob is None
    for i, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(expected[i, prompt[i + 1]], abs=1e-3)
        assert [value for _, value in score.top] == pytest.approx(np.sort(-expected[i])[:2] * -1, abs=1e-3)


@pytest.mark.parametrize("max_tokens_per_step", [1, 2, 16, 33, 89, 90, 512])
@pytest.mark.parametrize("number", [0, 1, 5])
def test_prompt_logprobs_are_the_same_in_one_piece_and_in_several(
    prompt_scores: Any, max_tokens_per_step: int, number: int
) -> None:
    prompt, expected = prompt_scores
    stack = Stack(Limits(max_batch=1, max_tokens_per_step=max_tokens_per_step))
    answer = stack.answer(prompt, number, prompt_logprobs=2, ignore_eos=True)
    check_prompt(answer.prompt, prompt, expected)
    assert len(answer.token_ids) == number


def test_prompt_logprobs_survive_that_the_prompt_gives_way_in_the_middle(prompt_scores: Any) -> None:
    prompt, expected = prompt_scores
    stack = Stack(Limits(max_batch=2, max_tokens_per_step=4), num_blocks=8)
    older, scored = stack.answers(
        request((5, 6, 7), 60, ignore_eos=True), request(prompt, 3, prompt_logprobs=2, num_logprobs=0, ignore_eos=True)
    )
    assert stack.scheduler.num_preemptions >= 1
    check_prompt(scored.prompt, prompt, expected)
    assert len(scored.scores) == 3
    calm = Stack()
    assert older.token_ids == calm.answer((5, 6, 7), 60, ignore_eos=True).token_ids
    assert scored.token_ids == calm.answer(prompt, 3, ignore_eos=True).token_ids


def test_an_answer_that_gave_way_has_each_of_its_logprobs_once(prompt_scores: Any) -> None:
    prompt, _ = prompt_scores
    asked = [
        request(prompt[: 20 + i], 40, num_logprobs=1, prompt_logprobs=2, ignore_eos=True, temperature=0.8, seed=i)
        for i in range(4)
    ]
    expected = [Stack().answers(each)[0] for each in asked]
    crowded = Stack(Limits(max_batch=4, max_tokens_per_step=16), num_blocks=9)
    answers = crowded.answers(*asked)
    assert crowded.scheduler.num_preemptions >= 2
    for answer, right in zip(answers, expected, strict=True):
        assert answer.token_ids == right.token_ids
        assert [each.token_id for each in answer.scores] == answer.token_ids
        assert [each.logprob for each in answer.scores] == pytest.approx(
            [each.logprob for each in right.scores], abs=1e-3
        )
        assert [each.logprob for each in answer.prompt[1:]] == pytest.approx(
            [each.logprob for each in right.prompt[1:]], abs=1e-3
        )


# -- the prefix cache -----------------------------------------------------------------------------------------------


def test_with_a_prefix_cache_the_hits_are_told_and_the_tokens_are_those_of_a_cold_start() -> None:
    shared = tuple(5 + 31 * i % 2000 for i in range(70))
    warm = Stack(Limits(max_batch=4, prefix_cache=True))
    first = warm.answer(shared, 12, num_logprobs=1)
    again = warm.answer(shared, 12, num_logprobs=1)
    longer = warm.answer((*shared, 9, 8, 7), 12)
    other = warm.answer((6, *shared), 12)
    assert [answer.num_cached for answer in (first, again, longer, other)] == [0, 64, 64, 0]
    assert warm.observer.num_cache_hits == 128
    cold = Stack()
    assert cold.answer(shared, 12).num_cached == 0
    assert first.token_ids == again.token_ids == cold.answer(shared, 12).token_ids
    assert longer.token_ids == cold.answer((*shared, 9, 8, 7), 12).token_ids
    assert other.token_ids == cold.answer((6, *shared), 12).token_ids
    np.testing.assert_allclose(
        [each.logprob or 0 for each in again.scores], [each.logprob or 0 for each in first.scores], atol=1e-3
    )


def test_a_prompt_that_is_scored_is_computed_also_when_it_is_in_the_prefix_cache(prompt_scores: Any) -> None:
    prompt, expected = prompt_scores
    stack = Stack(Limits(max_batch=4, prefix_cache=True))
    stack.answer(prompt, 4)
    scored = stack.answer(prompt, 4, prompt_logprobs=2)
    assert scored.num_cached == 0
    check_prompt(scored.prompt, prompt, expected)


def test_what_a_request_finds_again_of_its_own_after_giving_way_is_no_hit() -> None:
    asked = [request(tuple(50 + 40 * i + j for j in range(20)), 60, ignore_eos=True) for i in range(3)]
    crowded = Stack(Limits(max_batch=3, prefix_cache=True), num_blocks=9)
    answers = crowded.answers(*asked)
    assert crowded.scheduler.num_preemptions >= 1
    assert [answer.num_cached for answer in answers] == [0, 0, 0]
    assert crowded.observer.num_cache_hits == 0
    calm = Stack()
    assert [answer.token_ids for answer in answers] == [calm.answers(each)[0].token_ids for each in asked]


def test_when_the_engine_has_lost_its_cache_nothing_is_found_in_it() -> None:
    stack = Stack(Limits(max_batch=4, prefix_cache=True))
    prompt = tuple(range(5, 75))
    before = stack.answer(prompt)
    assert stack.answer(prompt).num_cached == 64
    stack.scheduler.fail_running()
    after = stack.answer(prompt)
    assert (after.num_cached, after.token_ids) == (0, before.token_ids)
    assert stack.answer(prompt).num_cached == 64


# -- LLM --------------------------------------------------------------------------------------------------------------


def test_llm_ends_at_the_stop_texts_of_a_request_as_the_server_does(stack: Stack, llm: LLM) -> None:
    plain = stack.answer(ignore_eos=True).text
    for at in (1, 5, 11):
        stop = plain[at : at + 3]
        for include in (False, True):
            for least in (0, 4):
                asked = Sampling(stop=(stop,), include_stop=include, min_new_tokens=least, ignore_eos=True)
                expected = stack.answers(Request(prompt=PROMPT, max_new_tokens=24, sampling=asked))[0].text
                assert [answer.text for answer in llm.generate(PROMPT, 24, asked)] == [expected]


def test_llm_bans_what_would_end_an_answer_too_early(stack: Stack, llm: LLM) -> None:
    first = stack.answer(ignore_eos=True).token_ids[0]
    asked = Sampling(min_new_tokens=5, stop_token_ids=(first,), ignore_eos=True)
    expected = stack.answers(Request(prompt=PROMPT, max_new_tokens=24, sampling=asked))[0]
    assert [answer.text for answer in llm.generate(PROMPT, 24, asked)] == [expected.text]
