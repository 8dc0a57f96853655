"""Stop texts: an answer ends before the one that is complete first, however it is cut into pieces."""

from collections.abc import Sequence


class StopTexts:
    """Takes text piece by piece; what may be the start of a stop text is held back until that is known."""

    def __init__(self, stops: Sequence[str], include: bool) -> None:
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
