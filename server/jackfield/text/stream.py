"""One answer's text as it grows: decoded, cut at stop strings, each token going out with its own text."""

from collections import deque
from dataclasses import dataclass

from jackfield.engine.request import TokenEvent
from jackfield.models.tokenizer import TextDecoder
from jackfield.text.stops import StopMatcher


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of an answer: text, and the tokens whose text begins in it."""

    text: str
    tokens: tuple[TokenEvent, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class TextStream:
    """Turns one answer's tokens into text.

    Args:
        decoder: of the model's tokenizer.
        stops: the strings that end the answer; they and what follows are not part of it.
        end_tokens: tokens that end the answer and have no text.
    """

    def __init__(self, decoder: TextDecoder, stops: StopMatcher, end_tokens: frozenset[int]) -> None:
        self._decoder = decoder
        self._stops = stops
        self._end_tokens = end_tokens
        self._decoded = 0
        self._given = 0
        self._waiting: deque[tuple[int, TokenEvent]] = deque()

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._stops.stopped

    @property
    def stop_string(self) -> str | None:
        """Which one."""
        return self._stops.found

    def push(self, token: TokenEvent) -> TextDelta:
        """The text that this token makes certain; perhaps none."""
        if self.stopped or token.id in self._end_tokens:
            return TextDelta("")
        self._waiting.append((self._decoded, token))
        text = self._decoder.push(token.id)
        self._decoded += len(text)
        return self._give(self._stops.push(text))

    def finish(self) -> TextDelta:
        """What is left when no more tokens come."""
        if self.stopped:
            return TextDelta("")
        last = self._decoder.flush()
        self._decoded += len(last)
        delta = self._give(self._stops.push(last) + self._stops.flush())
        tokens = () if self.stopped else tuple(token for _, token in self._waiting)
        self._waiting.clear()
        return TextDelta(delta.text, delta.tokens + tokens)

    def _give(self, text: str) -> TextDelta:
        self._given += len(text)
        tokens = []
        while self._waiting and self._waiting[0][0] < self._given:
            tokens.append(self._waiting.popleft()[1])
        return TextDelta(text, tuple(tokens))
