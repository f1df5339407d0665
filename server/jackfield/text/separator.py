"""Thoughts, text and calls of one answer, told from each other as it grows."""

from dataclasses import dataclass

from jackfield.text.pieces import Piece
from jackfield.text.reasoning import ThinkingParser
from jackfield.text.tool_calls import ToolCallParser


@dataclass(slots=True)
class Separator:
    """First thoughts are told from what is said, then calls from text: thoughts hold no calls."""

    thoughts: ThinkingParser | None = None
    calls: ToolCallParser | None = None

    @property
    def thinking(self) -> bool:
        """Whether what comes next is thought."""
        return self.thoughts is not None and self.thoughts.thinking

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        return self._separated(self.thoughts.push(text) if self.thoughts else [text])

    def finish(self) -> list[Piece]:
        """What is left when no more text comes."""
        pieces = self._separated(self.thoughts.finish() if self.thoughts else [])
        return pieces + (self.calls.finish() if self.calls else [])

    def _separated(self, pieces: list[Piece]) -> list[Piece]:
        if self.calls is None:
            return pieces
        return [found for piece in pieces for found in (self.calls.push(piece) if isinstance(piece, str) else [piece])]
