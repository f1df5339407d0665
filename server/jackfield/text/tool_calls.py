"""Tool calls in an answer's text."""

import json
from typing import Protocol

from jackfield.text.pieces import Piece, ToolCallText
from jackfield.text.stops import StopMatcher

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class ToolCallParser(Protocol):
    """Separates calls from text as an answer grows."""

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""

    def finish(self) -> list[Piece]:
        """What is left when no more text comes."""


def parse_call(text: str, names: frozenset[str]) -> ToolCallText | None:
    """The call that ``text`` holds as JSON, if it is one of the request's tools."""
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return ToolCallText(name, json.dumps(arguments, ensure_ascii=False))


class JsonCallParser:
    """For answers that a grammar holds to be one call in JSON, and nothing else."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._text = ""

    def push(self, text: str) -> list[Piece]:
        """Nothing is certain before the end."""
        self._text += text
        return []

    def finish(self) -> list[Piece]:
        """The call; or, when the answer was cut, the text as it is."""
        call = parse_call(self._text, self._names)
        return [call or self._text] if self._text else []


class HermesCallParser:
    """Calls as Hermes and Qwen models write them: JSON inside ``<tool_call>`` and ``</tool_call>``."""

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._inside = False
        self._body = ""
        self._opening = StopMatcher([_OPEN])

    def push(self, text: str) -> list[Piece]:
        """Text goes on at once, but for an end that may begin a call; a call once it is closed."""
        pieces: list[Piece] = []
        while text:
            text = self._in_call(text, pieces) if self._inside else self._in_text(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """An unclosed call counts when it is whole."""
        if not self._inside:
            held = self._opening.flush()
            return [held] if held else []
        call = parse_call(self._body, self._names)
        return [call or _OPEN + self._body]

    def _in_text(self, text: str, pieces: list[Piece]) -> str:
        held = self._opening.held
        safe = self._opening.push(text)
        if safe:
            pieces.append(safe)
        if not self._opening.stopped:
            return ""
        self._inside, self._body = True, ""
        return (held + text)[len(safe) + len(_OPEN) :]

    def _in_call(self, text: str, pieces: list[Piece]) -> str:
        self._body += text
        body, close, rest = self._body.partition(_CLOSE)
        if not close:
            return ""
        pieces.append(parse_call(body, self._names) or _OPEN + body + close)
        self._inside, self._opening = False, StopMatcher([_OPEN])
        return rest
