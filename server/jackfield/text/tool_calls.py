"""What finds tool calls in an answer's text."""

from typing import Protocol

from jackfield.text.pieces import Piece


class ToolCallParser(Protocol):
    """Separates calls from text as an answer grows."""

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""

    def finish(self) -> list[Piece]:
        """What is left when no more text comes."""
