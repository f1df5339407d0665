"""What a model thinks before it speaks, told from what it says."""

from dataclasses import dataclass

from jackfield.text.pieces import Piece, Thought
from jackfield.text.stops import StopMatcher


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """What thoughts stand between."""

    opening: str = "<think>"
    closing: str = "</think>"


class ThinkingParser:
    """Separates the thoughts an answer begins with from what follows; the blanks around the tags belong to neither.

    Args:
        tags: what thoughts stand between.
        open: whether the prompt has opened them already.
    """

    def __init__(self, tags: ThinkingTags, *, open: bool) -> None:  # noqa: A002
        self._tags = tags
        self._closing = StopMatcher([tags.closing])
        self._state = "thinking" if open else "undecided"
        self._held = ""
        """The beginning of an answer that may become the opening tag; later, blanks that may be the last ones."""
        self._thought = False

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self._state == "thinking"

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        if self._state == "undecided":
            text = self._decide(text)
        if self._state == "thinking":
            return self._think(text)
        return self._speak(text)

    def finish(self) -> list[Piece]:
        """What is left when no more text comes."""
        if self._state == "thinking":
            rest = (self._held + self._closing.flush()).rstrip()
            return [Thought(rest)] if rest else []
        held, self._held = self._held, ""
        return [held] if held and self._state == "undecided" else []

    def _decide(self, text: str) -> str:
        """See whether the answer begins with the tag; the text to go on with."""
        self._held += text
        begun = self._held.lstrip()
        if self._tags.opening.startswith(begun) and begun != self._tags.opening:
            return ""
        held, self._held = self._held, ""
        if not begun.startswith(self._tags.opening):
            self._state = "speaking"
            return held
        self._state = "thinking"
        return begun.removeprefix(self._tags.opening)

    def _think(self, text: str) -> list[Piece]:
        before = self._closing.held
        safe = self._closing.push(text)
        if not self._closing.stopped:
            return self._thoughts(safe)
        rest = (before + text)[len(safe) + len(self._tags.closing) :]
        pieces = self._thoughts(safe)
        self._state, self._held = "ended", ""
        return pieces + self._speak(rest)

    def _thoughts(self, text: str) -> list[Piece]:
        """Thoughts but for blanks at their beginning and, as far as one can tell, at their end."""
        text = self._held + text if self._thought else text.lstrip()
        self._thought = self._thought or bool(text)
        thought = text.rstrip()
        self._held = text[len(thought) :]
        return [Thought(thought)] if thought else []

    def _speak(self, text: str) -> list[Piece]:
        if self._state == "ended":
            text = text.lstrip()
            self._state = "speaking" if text else "ended"
        return [text] if text else []
