"""Plugins' tool parsers, which cost an answer nothing but its calls when they fail."""

from collections.abc import Callable

from jackfield.hooks.calls import Hooks
from jackfield.hooks.dispatcher import ESCAPES
from jackfield.hooks.plugin import Plugin
from jackfield.text.pieces import Piece
from jackfield.text.tool_calls import ToolCallParser

HOOK = "register_tool_parsers"

MakeParser = Callable[[frozenset[str]], ToolCallParser]


class IsolatedParser:
    """Passes text on as it is, once the plugin's parser has failed.

    It runs on the event loop at every step of an answer, where nothing could stop one that hangs.
    """

    def __init__(self, make: MakeParser, names: frozenset[str], plugin: Plugin, hooks: Hooks) -> None:
        self._plugin = plugin
        self._hooks = hooks
        self._parser: ToolCallParser | None = None
        self._swallowed = ""
        """Text that the parser has been given and has not given back, as far as one can tell."""
        self._try(lambda: self._make(make, names))

    def _make(self, make: MakeParser, names: frozenset[str]) -> list[Piece]:
        self._parser = make(names)
        return []

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        self._swallowed += text
        parser = self._parser
        return self._given_up() if parser is None else self._try(lambda: parser.push(text))

    def finish(self) -> list[Piece]:
        """What is left when no more text comes."""
        parser = self._parser
        if parser is None:
            return self._given_up()
        pieces = self._try(parser.finish)
        if self._parser is not None:
            self._plugin.count(HOOK, 0.0)
        return pieces

    def _try(self, work: Callable[[], list[Piece]]) -> list[Piece]:
        try:
            pieces = list(work())
        except ESCAPES as error:
            self._parser = None
            self._hooks.failed(self._plugin, HOOK, error)
            return self._given_up()
        for piece in pieces:
            self._swallowed = self._swallowed[len(piece) :] if isinstance(piece, str) else ""
        return pieces

    def _given_up(self) -> list[Piece]:
        text, self._swallowed = self._swallowed, ""
        return [text] if text else []
