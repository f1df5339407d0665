"""Stop strings, matched on text: wherever tokens cut them, nothing of them is ever given out."""

from collections.abc import Sequence


class StopMatcher:
    """Looks for the first of some strings in text that comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.held = ""
        """The end of the text so far, when it may begin a stop string."""
        self.found: str | None = None
        """The first of them, once it is there."""

    @property
    def stopped(self) -> bool:
        """Whether one has been found."""
        return self.found is not None

    def push(self, text: str) -> str:
        """The text that is safe to give out: all but an end that may be the beginning of a stop string."""
        if self.stopped:
            return ""
        text = self.held + text
        places = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            at, self.found = min(places, key=lambda place: place[0])
            self.held = ""
            return text[:at]
        safe = len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)
        self.held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """What was held back, once it is clear that nothing more comes."""
        held, self.held = self.held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of ``text`` that begins ``stop``, without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
