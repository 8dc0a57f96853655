"""Where an answer's text ends: stop texts, however they are cut into pieces, and the text token by token."""

from collections.abc import Sequence as Sequences

from llmbench.serving.sequence import Sequence
from llmbench.tokenizer import Detokenizer, Tokenizer
from llmbench.types import FinishReason


class AnswerText:
    """The text of one answer as its tokens come: whole characters only, and nothing behind what stops it.

    `joined` keeps the space between the prompt and the answer. `num_given` counts the tokens so far.
    """

    def __init__(self, tokenizer: Tokenizer, sequence: Sequence, joined: bool) -> None:
        sampling = sequence.sampling
        self._detokenizer = Detokenizer(tokenizer, after=sequence.prompt_ids[-1] if joined else None)
        self._stops = StopTexts(sampling.stop, sampling.include_stop) if sampling.stop else None
        self._include_stop = sampling.include_stop
        self._min_tokens = sampling.min_new_tokens
        self._scores_only = not sequence.max_new_tokens
        self.num_given = 0

    def push(self, token_id: int, reason: FinishReason | None) -> tuple[str, FinishReason | None, str | int | None]:
        """What one more token adds; why the answer ends with it, if it does; the stop text or id that ended it.

        `reason` is the scheduler's, which knows nothing of stop texts.
        """
        hidden = self._scores_only or (reason == "stop" and not self._include_stop)  # a stop id has no text
        text = "" if hidden else self._detokenizer.push(token_id)
        stop_reason: str | int | None = token_id if reason == "stop" else None
        if reason is not None:
            text += self._detokenizer.flush()
        if self._stops is not None:
            text, found = self._stops.push(text, armed=self.num_given >= self._min_tokens)
            if found is not None:
                reason, stop_reason = "stop", found
            elif reason is not None:
                text += self._stops.flush()
        self.num_given += 1
        return text, reason, stop_reason


class StopTexts:
    """Takes text piece by piece; what may be the start of a stop text is held back until that is known."""

    def __init__(self, stops: Sequences[str], include: bool) -> None:
        self._stops = stops
        self._include = include
        self._held = ""

    def push(self, text: str, armed: bool = True) -> tuple[str, str | None]:
        """What may be given now, and the stop text that was found; unarmed, it looks for none."""
        text = self._held + text
        self._held = ""
        if not armed:
            return text, None
        places = ((at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0)
        if (found := min(places, default=None)) is not None:
            end, at, stop = found  # of several that end at one place the longest
            return text[: end if self._include else at], stop
        keep = self._longest_start(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, when the answer ends without the rest of a stop text."""
        held, self._held = self._held, ""
        return held

    def _longest_start(self, text: str) -> int:
        """How many last characters are the start of a stop text."""
        longest = max(map(len, self._stops), default=1) - 1
        for count in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-count:]) for stop in self._stops):
                return count
        return 0
