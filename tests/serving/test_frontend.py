import asyncio
from collections.abc import Sequence as Sequences

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmbench.errors import AgentDied, LlmbenchError, Overloaded, PromptEmpty, PromptTooLong, ServingError, TimedOut
from llmbench.serving.blocks import BlockPool
from llmbench.serving.frontend import Frontend, Mailbox
from llmbench.serving.observe import Observer
from llmbench.serving.scheduler import Limits, Scheduler
from llmbench.serving.stops import StopTexts
from llmbench.tokenizer import Tokenizer, embedded_path
from llmbench.types import Delta, Request, Sampling

TOKENIZER = Tokenizer.from_file(embedded_path())
EOS = TOKENIZER.eos_id


class Desk:
    """A frontend over a real scheduler; the test says which tokens the engine gives."""

    def __init__(self, limits: Limits = Limits(max_batch=2, max_waiting=4), num_blocks: int = 16) -> None:  # noqa: B008
        self.pool = BlockPool(num_blocks, 16)
        self.scheduler = Scheduler(limits, self.pool, 200)
        self.wake = asyncio.Event()
        self.frontend = Frontend(self.scheduler, TOKENIZER, frozenset({EOS}), 0, self.wake, Observer())

    def submit(self, prompt: str | tuple[int, ...] = "Hi", number: int | None = 20, **sampling: object) -> Mailbox:
        asked = Sampling(**sampling)  # type: ignore[arg-type]
        return self.frontend.submit([Request(prompt=prompt, max_new_tokens=number, sampling=asked)])

    def step(self, *token_ids: int) -> None:
        """One step in which the running sequences get these tokens."""
        plan = self.scheduler.plan()
        assert plan is not None
        self.frontend.admitted(plan.admitted)
        self.frontend.deliver(self.scheduler.commit(plan, token_ids, [float(token) for token in token_ids]))

    def answer(self, token_ids: Sequences[int]) -> None:
        for token_id in token_ids:
            self.step(token_id)

    @property
    def num_held(self) -> int:
        return self.pool.num_blocks - self.pool.num_free


def received(mailbox: Mailbox) -> list[Delta]:
    """The pieces that lie in a mailbox."""
    pieces = []
    while not mailbox.pieces.empty():
        pieces.append(asyncio.run(mailbox.next())[1])
    return pieces


def failure(mailbox: Mailbox) -> LlmbenchError:
    with pytest.raises(LlmbenchError) as caught:
        received(mailbox)
    return caught.value


def test_the_pieces_of_an_answer_joined_are_its_text() -> None:
    ids = [*TOKENIZER.encode("naïve 世界 👩‍🚀 café", bos=False), EOS]
    desk = Desk()
    mailbox = desk.submit(number=200 - 10)
    desk.answer(ids)
    pieces = received(mailbox)
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode(ids)
    assert [piece.token_ids for piece in pieces] == [(token_id,) for token_id in ids]
    assert [piece.logits for piece in pieces] == [(float(token_id),) for token_id in ids]
    assert [piece.num_tokens for piece in pieces] == [1] * len(ids)
    assert [piece.finish_reason for piece in pieces] == [None] * (len(ids) - 1) + ["eos"]
    assert pieces[-1].num_prompt_tokens == len(TOKENIZER.encode("Hi"))


def test_half_a_character_is_held_back_and_comes_with_the_last_piece() -> None:
    first, second, _ = (3 + value for value in "世".encode())
    desk = Desk()
    mailbox = desk.submit(number=2)
    desk.answer([first, second])
    pieces = received(mailbox)
    assert [piece.text for piece in pieces] == ["", TOKENIZER.decode([first, second])]
    assert pieces[-1].finish_reason == "length"


def test_a_prompt_of_ids_is_used_as_it_is() -> None:
    desk = Desk()
    (sequence,) = desk.submit((5, 6, 7)).sequences
    assert sequence.prompt_ids == [5, 6, 7]
    (sequence,) = desk.submit("Hi").sequences
    assert sequence.prompt_ids == [TOKENIZER.bos_id, *TOKENIZER.encode("Hi", bos=False)]


def test_an_empty_text_is_a_prompt_of_the_begin_of_sequence() -> None:
    (sequence,) = Desk().submit("").sequences
    assert sequence.prompt_ids == [TOKENIZER.bos_id]


@pytest.mark.parametrize("prompt", [(), (5, 0, 6), "an <unk> inside"])
def test_a_prompt_without_tokens_or_with_the_padding_id_is_refused(prompt: str | tuple[int, ...]) -> None:
    desk = Desk()
    with pytest.raises(PromptEmpty):
        desk.submit(prompt)
    assert not desk.scheduler.waiting


def test_what_the_server_cannot_hold_is_refused_at_once() -> None:
    desk = Desk()
    with pytest.raises(PromptTooLong, match="3 prompt tokens and 198 new ones"):
        desk.submit((5, 6, 7), number=198)
    desk.submit((5, 6, 7), number=197)


def test_a_text_with_more_characters_than_can_fit_is_refused_before_it_is_tokenised() -> None:
    desk = Desk()
    most = TOKENIZER.longest_piece * desk.scheduler.max_model_len
    with pytest.raises(PromptTooLong, match=f"{most + 1} characters, {most} are the most"):
        desk.submit("a" * (most + 1))
    with pytest.raises(PromptTooLong, match="prompt tokens"):  # this one was tokenised
        desk.submit("a" * most)


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    desk = Desk()
    for _ in range(4):
        desk.submit()
    with pytest.raises(Overloaded, match="4 requests are waiting already") as caught:
        desk.submit()
    assert caught.value.retry_after_s > 0
    desk.step(5, 5)
    desk.submit()


def test_when_one_of_several_prompts_is_refused_none_is_queued() -> None:
    desk = Desk()
    with pytest.raises(PromptEmpty):
        desk.frontend.submit([Request(prompt=prompt, max_new_tokens=5) for prompt in ("a", "b", ())])
    assert not desk.scheduler.waiting


def test_the_pieces_of_several_prompts_say_whose_they_are() -> None:
    desk = Desk()
    mailbox = desk.frontend.submit([Request(prompt="a", max_new_tokens=2), Request(prompt="b", max_new_tokens=1)])
    desk.step(50, 60)
    desk.step(51)
    got = [asyncio.run(mailbox.next()) for _ in range(3)]
    assert [(index, delta.token_ids, delta.finish_reason) for index, delta in got] == [
        (0, (50,), None),
        (1, (60,), "length"),
        (0, (51,), "length"),
    ]


def test_without_a_number_of_tokens_the_contests_300_are_taken() -> None:
    desk = Desk()
    desk.scheduler.max_model_len = 1000
    (sequence,) = desk.submit(number=None).sequences
    assert sequence.max_new_tokens == 300


def test_a_submitted_request_wakes_the_step_loop() -> None:
    desk = Desk()
    assert not desk.wake.is_set()
    desk.submit()
    assert desk.wake.is_set()


def test_the_instants_of_arrival_are_different_and_in_order() -> None:
    desk = Desk(Limits(max_waiting=1000))
    arrivals = [desk.submit(number=1).sequences[0].arrival_s for _ in range(500)]
    assert arrivals == sorted(set(arrivals))
    assert len({f"{arrival:.7f}" for arrival in arrivals}) == 500  # as the names of captured rows spell them


def test_requests_without_an_id_get_one_each_and_a_given_one_stays() -> None:
    desk = Desk(Limits(max_waiting=1000))
    ids = {desk.submit().sequences[0].request_id for _ in range(100)}
    assert len(ids) == 100
    (sequence,) = desk.frontend.submit([Request(prompt="a", request_id="r7", max_new_tokens=5)]).sequences
    assert sequence.request_id == "r7"


def test_a_seed_that_is_given_is_used_and_one_that_is_not_is_another_each_time() -> None:
    desk = Desk()
    assert desk.submit(seed=0).sequences[0].seed == 0
    assert desk.submit().sequences[0].seed != desk.submit().sequences[0].seed


@pytest.mark.parametrize("when", ["waiting", "running"])
def test_a_client_that_has_gone_frees_its_blocks_at_once(when: str) -> None:
    desk = Desk()
    mailbox = desk.submit()
    if when == "running":
        desk.step(5)
        assert desk.num_held
    desk.frontend.cancel(mailbox)
    assert (desk.num_held, len(desk.scheduler.waiting), desk.scheduler.running) == (0, 0, [])
    desk.frontend.cancel(mailbox)  # twice is fine


def test_cancelling_a_complete_answer_changes_nothing() -> None:
    desk = Desk()
    mailbox, other = desk.submit(number=1), desk.submit()
    desk.step(5, 6)
    desk.frontend.cancel(mailbox)
    assert received(mailbox)[-1].finish_reason == "length"
    desk.step(7)
    assert [piece.token_ids for piece in received(other)] == [(6,), (7,)]


def test_an_error_ends_a_request_after_the_pieces_that_came() -> None:
    desk = Desk()
    mailbox = desk.submit()
    desk.step(TOKENIZER.encode("Hello", bos=False)[0])
    desk.frontend.fail(desk.scheduler.fail_running(), AgentDied("gone"))
    assert asyncio.run(mailbox.next())[1].token_ids
    assert str(failure(mailbox)) == "gone"


def test_when_the_server_stops_every_request_gets_an_error_also_those_that_wait() -> None:
    desk = Desk(Limits(max_batch=1))
    running, waiting = desk.submit(), desk.submit()
    desk.step(5)
    desk.frontend.fail_all(ServingError("the server is stopping"))
    received_first = asyncio.run(running.next())
    assert received_first[1].token_ids == (5,)
    assert str(failure(running)) == str(failure(waiting)) == "the server is stopping"
    assert desk.num_held == 0
    assert desk.scheduler.plan() is None


def test_a_server_that_stops_takes_no_more_requests() -> None:
    desk = Desk()
    desk.frontend.stopping = True
    with pytest.raises(Overloaded, match="the server is stopping"):
        desk.submit()


def test_a_request_that_takes_too_long_is_ended_and_its_blocks_are_free() -> None:
    desk = Desk()
    mailbox = desk.submit()
    desk.step(5)
    desk.frontend.expire(older_than_s=3600)
    assert desk.num_held
    desk.frontend.expire(older_than_s=0)
    assert desk.num_held == 0
    asyncio.run(mailbox.next())
    assert isinstance(failure(mailbox), TimedOut)


def test_the_server_knows_when_every_request_is_answered() -> None:
    async def work() -> None:
        desk = Desk()
        await desk.frontend.all_answered()
        desk.submit(number=2)
        answered = asyncio.ensure_future(desk.frontend.all_answered())
        desk.step(5)
        await asyncio.sleep(0)
        assert not answered.done()
        desk.step(5)
        await asyncio.wait_for(answered, 10)

    asyncio.run(work())


# -- stop texts -----------------------------------------------------------------------------------------------------


def test_a_stop_text_ends_the_answer_before_it_and_frees_the_blocks() -> None:
    desk = Desk()
    mailbox = desk.submit(stop=("wor",))
    for token_id in TOKENIZER.encode("hello world and more", bos=False):
        if desk.scheduler.running or desk.scheduler.waiting:
            desk.step(token_id)
    pieces = received(mailbox)
    assert "".join(piece.text for piece in pieces) == "hello "
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", "wor")
    assert desk.num_held == 0


def test_the_start_of_a_stop_text_comes_after_all_when_the_answer_ends() -> None:
    desk = Desk()
    ids = TOKENIZER.encode("hello wor", bos=False)
    mailbox = desk.submit(number=len(ids), stop=("world",))
    desk.answer(ids)
    pieces = received(mailbox)
    assert "".join(piece.text for piece in pieces) == "hello wor"
    assert pieces[-1].finish_reason == "length"


def test_a_stop_id_ends_the_answer_and_has_no_text() -> None:
    desk = Desk()
    first, second = TOKENIZER.encode("hello world", bos=False)[:2]
    mailbox = desk.submit(stop_token_ids=(second,))
    desk.answer([first, second])
    pieces = received(mailbox)
    assert "".join(piece.text for piece in pieces) == TOKENIZER.decode([first])
    assert (pieces[-1].finish_reason, pieces[-1].stop_reason) == ("stop", second)


@given(
    parts=st.lists(st.text("ab<", max_size=4), max_size=8),
    stop=st.text("ab<", min_size=1, max_size=4),
    include=st.booleans(),
)
def test_however_a_text_is_cut_it_ends_at_the_same_stop_text(parts: list[str], stop: str, include: bool) -> None:
    text = "".join(parts)
    at = text.find(stop)
    expected = text if at < 0 else text[: at + len(stop) * include]
    stops, given_out, found = StopTexts((stop,), include), "", None
    for part in parts:
        if found is None:
            piece, found = stops.push(part)
            given_out += piece
    if found is None:
        given_out += stops.flush()
    assert (given_out, found) == (expected, stop if at >= 0 else None)
