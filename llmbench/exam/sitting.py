"""One run of an eval: every item is asked, marked as soon as its replies are there, and kept."""

from collections.abc import Callable, Mapping, Sequence

import msgspec

from llmbench.evals import Ask, Eval, Item, Marked, Reply
from llmbench.exam import Answerer
from llmbench.exam.journal import Header, Journal, key_of, prompt_sha256


class Progress(msgspec.Struct):
    """How far a run is."""

    planned: int
    marked: int = 0
    right: int = 0
    failed: int = 0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An item that a model did not answer, and why."""

    id: str
    reason: str


def sit(
    evaluation: Eval,
    items: Sequence[Item],
    answerer: Answerer,
    header: Header,
    journal: Journal,
    progress: Callable[[Progress], None] | None = None,
) -> list[Failure]:
    """Ask all items that the journal does not have yet; what was not answered is given back, not kept as wrong."""
    sitting = _Sitting(evaluation, items, header, journal, progress)
    answerer.answer(sitting.asks, sitting.replied)
    return sitting.failures


class _Sitting:
    """Which Ask belongs to which item, and the replies that are still waiting for the item's others."""

    def __init__(
        self,
        evaluation: Eval,
        items: Sequence[Item],
        header: Header,
        journal: Journal,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._evaluation = evaluation
        self._items = items
        self._header = header
        self._journal = journal
        self._progress = progress
        self._replies: dict[int, dict[int, Reply]] = {}
        self.failures: list[Failure] = []
        self.counts = Progress(planned=len(items), marked=len(journal.done))
        self.counts.right = sum(marked.correct is True for marked in journal.done.values())
        self._places = [
            (number, part)
            for number, item in enumerate(items)
            if number not in journal.done
            for part in range(len(item.asks))
        ]

    @property
    def asks(self) -> list[Ask]:
        """What is still to be asked."""
        return [self._items[number].asks[part] for number, part in self._places]

    def replied(self, index: int, reply: Reply) -> None:
        """Take a reply; when it is the item's last, mark the item and keep it."""
        number, part = self._places[index]
        replies = self._replies.setdefault(number, {})
        replies[part] = reply
        item = self._items[number]
        if len(replies) < len(item.asks):
            return
        del self._replies[number]
        self._settle(number, item, [replies[part] for part in range(len(item.asks))])
        if self._progress is not None:
            self._progress(self.counts)

    def _settle(self, number: int, item: Item, replies: Sequence[Reply]) -> None:
        error = next((reply.error for reply in replies if reply.error), "")
        if error:
            self.failures.append(Failure(id=item.id, reason=error))
            self.counts.failed += 1
            return
        marked = self._marked(number, item, replies)
        self._journal.append(marked)
        self.counts.marked += 1
        self.counts.right += marked.correct is True

    def _marked(self, number: int, item: Item, replies: Sequence[Reply]) -> Marked:
        mark = self._evaluation.mark(item, replies)
        return Marked(
            number=number,
            id=item.id,
            group=item.group,
            category=item.category,
            truth=item.truth,
            predicted=mark.predicted,
            correct=mark.correct,
            scores=mark.scores,
            metrics=mark.metrics,
            replies=[reply.text for reply, ask in zip(replies, item.asks, strict=True) if ask.want == "text"],
            shots=item.shots,
            prompt_sha256=prompt_sha256(item.asks),
            key=key_of(self._header, item),
        )


def changed(
    evaluation: Eval, items: Sequence[Item], answerer: Answerer, done: Mapping[int, Marked], number: int
) -> list[str]:
    """Ask some of the items again that were answered before; the ids of those whose answers are others now."""
    known = sorted(done)
    chosen = [known[len(known) * i // number] for i in range(min(number, len(known)))]
    places = [(item, part) for item in chosen for part in range(len(items[item].asks))]
    replies: dict[tuple[int, int], Reply] = {}

    def replied(index: int, reply: Reply) -> None:
        replies[places[index]] = reply

    answerer.answer([items[item].asks[part] for item, part in places], replied)
    marks = {
        item: evaluation.mark(items[item], [replies[item, part] for part in range(len(items[item].asks))])
        for item in chosen
    }
    return [items[item].id for item, mark in marks.items() if mark.predicted != done[item].predicted]
