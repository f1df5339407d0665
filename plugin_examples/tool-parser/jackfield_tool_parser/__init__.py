"""Tool calls as Phi-4-mini writes them: ``functools[{"name": "get_weather", "arguments": {"city": "Oslo"}}]``.

That is also what vLLM's parser ``phi4_mini_json`` looks for.
"""

import json

from jackfield.hooks import Piece, RegisterParser, ToolCallText, hookimpl

MARKER = "functools["


class FunctoolsParser:
    """Separates calls from text as an answer grows, wherever the pieces of it are cut.

    Args:
        names: the request's tools; whatever calls another one is text.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._held = ""
        """Text that is not certain yet: an end that may begin the marker, or a list from its ``[`` on."""
        self._inside = False

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        self._held += text
        pieces: list[Piece] = []
        if self._inside and "]" not in text:
            return pieces  # the list cannot have become whole
        while self._read_calls(pieces) if self._inside else self._read_text(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """A list that was not closed is text, like everything else that is left."""
        left = MARKER[:-1] + self._held if self._inside else self._held
        return [left] if left else []

    def _read_text(self, pieces: list[Piece]) -> bool:
        """Give out text up to the marker; whether it was there."""
        text, marker, rest = self._held.partition(MARKER)
        safe = text if marker else text[: len(text) - _overlap(text)]
        if safe:
            pieces.append(safe)
        self._inside = bool(marker)
        self._held = "[" + rest if marker else text[len(safe) :]
        return self._inside

    def _read_calls(self, pieces: list[Piece]) -> bool:
        """Give out a list's calls; whether it was whole."""
        try:
            calls, end = json.JSONDecoder().raw_decode(self._held)
        except (ValueError, RecursionError):
            return False
        found = [_call(call, self._names) for call in calls]
        whole = [call for call in found if call]
        pieces.extend(whole if whole and len(whole) == len(found) else [MARKER[:-1] + self._held[:end]])
        self._held, self._inside = self._held[end:], False
        return True


def _overlap(text: str) -> int:
    """How many characters at the end of ``text`` may begin the marker."""
    return next((size for size in range(len(MARKER) - 1, 0, -1) if text.endswith(MARKER[:size])), 0)


def _call(call: object, names: frozenset[str]) -> ToolCallText | None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or call["name"] not in names:
        return None
    # Both words are seen for the second one.
    arguments = call.get("arguments", call.get("parameters", {}))
    return (
        ToolCallText(call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None
    )


class Plugin:
    """Brings the parser that ``tool_parser = "functools"`` chooses."""

    @hookimpl
    def register_tool_parsers(self, register: RegisterParser) -> None:
        """One parser is made for each choice of an answer, with the names of the request's tools."""
        register("functools", FunctoolsParser)
