"""Asking: every item once, marked when its last reply is there; what was not answered is no wrong answer."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmbench.evals import Ask, Item, Mark, Marked, Reply
from llmbench.exam.journal import Header, Journal
from llmbench.exam.sitting import Failure, Progress, changed, sit


def item(number: int) -> Item:
    """One Ask, or two for an odd number."""
    asks = tuple(Ask(prompt=f"{number}{part}") for part in "ab"[: 1 + number % 2])
    return Item(id=f"toy/{number}", group="toy", category="toy", truth="yes", asks=asks)


ITEMS = [item(number) for number in range(4)]
HEADER = Header(protocol={"eval": "toy"}, model="m", fingerprint="f", via="in process", data="d", num_items=4)


class Toy:
    """Right when every reply is its prompt in capitals."""

    name = "toy"
    protocol: Mapping[str, Any] = {"eval": "toy"}

    def items(self, folder: Path) -> list[Item]:
        return ITEMS

    def mark(self, item: Item, replies: Sequence[Reply]) -> Mark:
        right = [reply.text for reply in replies] == [ask.prompt.upper() for ask in item.asks]
        return Mark(predicted="yes" if right else "no", correct=right)

    def files(self, marked: Sequence[Marked]) -> dict[str, bytes]:
        return {}


class Scripted:
    """Answers backwards, by a function from the prompt."""

    def __init__(self, reply: Callable[[str], Reply]) -> None:
        self.asked: list[str] = []
        self._reply = reply

    def answer(self, asks: Sequence[Ask], replied: Callable[[int, Reply], None]) -> None:
        for index in reversed(range(len(asks))):
            self.asked.append(asks[index].prompt)
            replied(index, self._reply(asks[index].prompt))


def upper(prompt: str) -> Reply:
    return Reply(text=prompt.upper())


def test_every_item_is_marked_with_its_replies_in_order(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def progress(counts: Progress) -> None:
        seen.append((counts.marked, counts.right))

    with Journal(tmp_path, HEADER, ITEMS) as journal:
        failures = sit(Toy(), ITEMS, Scripted(upper), HEADER, journal, progress)
        assert failures == []
        assert [journal.done[n].replies for n in range(4)] == [["0A"], ["1A", "1B"], ["2A"], ["3A", "3B"]]
        assert all(one.correct for one in journal.done.values())
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_what_was_not_answered_is_a_failure_and_is_asked_again_the_next_time(tmp_path: Path) -> None:
    def broken(prompt: str) -> Reply:
        return Reply(error="HTTP 503") if prompt == "3a" else upper(prompt)

    with Journal(tmp_path, HEADER, ITEMS) as journal:
        assert sit(Toy(), ITEMS, Scripted(broken), HEADER, journal) == [Failure(id="toy/3", reason="HTTP 503")]
        assert sorted(journal.done) == [0, 1, 2]
    again = Scripted(upper)
    with Journal(tmp_path, HEADER, ITEMS, resume=True) as journal:
        assert sit(Toy(), ITEMS, again, HEADER, journal) == []
        assert sorted(journal.done) == [0, 1, 2, 3]
    assert again.asked == ["3b", "3a"]


def test_an_error_in_the_middle_keeps_what_was_answered(tmp_path: Path) -> None:
    def stops(prompt: str) -> Reply:
        if prompt == "1a":
            raise KeyboardInterrupt
        return upper(prompt)

    with pytest.raises(KeyboardInterrupt), Journal(tmp_path, HEADER, ITEMS) as journal:
        sit(Toy(), ITEMS, Scripted(stops), HEADER, journal)
    with Journal(tmp_path, HEADER, ITEMS, resume=True) as journal:
        assert sorted(journal.done) == [2, 3]


def test_a_server_that_answers_otherwise_than_before_is_noticed(tmp_path: Path) -> None:
    with Journal(tmp_path, HEADER, ITEMS) as journal:
        sit(Toy(), ITEMS, Scripted(upper), HEADER, journal)
        asked = Scripted(upper)
        assert changed(Toy(), ITEMS, asked, journal.done, 2) == []
        assert asked.asked == ["2a", "0a"]
        assert changed(Toy(), ITEMS, Scripted(lambda _: Reply(text="?")), journal.done, 2) == ["toy/0", "toy/2"]
        assert changed(Toy(), ITEMS, asked, {}, 2) == []
