"""llama.cpp's rules for lines, which keep a completion short: where it leaves its block, and when it takes too long."""

import re
import time
from collections.abc import Callable, Sequence

from jackfield.text.stops import StopMatcher

_BREAK = re.compile(r"(?:\r?\n[ \t]*)+")


class LineMatcher(StopMatcher):
    """Stop strings, and an end at a line break: before a line that is indented less, or once the time is over.

    A line break is held back together with the spaces after it, until it is clear that the text goes on there. Empty
    lines are indented by nothing and belong to the next one.

    Args:
        stops: the strings that end the text.
        indentation: how many spaces or tabs a line must begin with, but for the first.
        seconds: how long after its first token the text may take, if it has a limit.
        clock: in seconds.
    """

    def __init__(
        self,
        stops: Sequence[str],
        indentation: int = 0,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stops)
        self._indentation = indentation
        self._seconds = seconds
        self._clock = clock
        self._began: float | None = None
        self._break = ""
        """A line break that is held back."""

    def push(self, text: str) -> str:
        """The text that is safe to give out."""
        self._began = self._began or self._clock()
        text, self._break = self._break + super().push(text), ""
        ruled = self._indentation or self._seconds is not None
        return self._by_lines(text) if ruled else text

    def flush(self) -> str:
        """What was held back, once it is clear that nothing more comes."""
        held, self._break = self._break, ""
        return held + super().flush()

    def _by_lines(self, text: str) -> str:
        for found in _BREAK.finditer(text):
            if self._is_late() or (found.end() < len(text) and _indentation(found[0]) < self._indentation):
                # No stop string, and yet the end.
                self.found = ""
                return text[: found.start()]
            if found.end() == len(text) and not self.stopped:
                self._break = found[0]
                return text[: found.start()]
        return text

    def _is_late(self) -> bool:
        return self._seconds is not None and self._clock() - (self._began or 0.0) > self._seconds


def _indentation(line_break: str) -> int:
    return len(line_break) - line_break.rindex("\n") - 1
