"""Reading one call, wherever the pieces of its text are cut.

A reader is given text from the call's first character on. It gives out pieces only once they cannot be taken back:
either all of a call, or, where a grammar holds the arguments to their schema, these as they come.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import regex

from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece
from jackfield.tools.json_text import JsonScanner
from jackfield.tools.offered import Tool, Tools

Outcome = Literal["call", "text"]


class CallReader(Protocol):
    """Reads one call."""

    outcome: Outcome | None
    """What it turned out to be, once that is known; ``text`` only if nothing was given out."""
    rest: str
    """What follows the call; all of the text if it is no call."""

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""

    def finish(self) -> list[Piece]:
        """What is left when no more text comes."""


MakeReader = Callable[[Tools, bool], CallReader]
"""Takes the tools, and whether the call is not written as it should be."""


def whole_call(tool: Tool, arguments: dict[str, Any], *, repaired: bool) -> list[Piece]:
    """All pieces of a call."""
    return [CallStart(tool.name, repaired), CallArguments(json.dumps(arguments, ensure_ascii=False)), CallEnd()]


def name_and_arguments(call: Any) -> tuple[object, object]:
    """What a call says in one of the shapes that models give it; None for what is not there."""
    if not isinstance(call, dict):
        return None, None
    inner = call["function"] if isinstance(call.get("function"), dict) else call
    arguments: object = next((inner[key] for key in ("arguments", "parameters") if key in inner), {})
    name = inner.get("name", inner.get("function"))
    return name, load(arguments) if isinstance(arguments, str) else arguments


def load(text: str) -> Any:
    """What JSON text says; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


class ObjectReader:
    """A call written as ``{"name": ..., "arguments": {...}}``.

    Args:
        tools: those that may be called.
        repaired: whether this is not how the model should write it.
    """

    _arguments_end = 1
    """How many brackets are open behind the arguments."""

    def __init__(self, tools: Tools, repaired: bool) -> None:
        self.outcome: Outcome | None = None
        self.rest = ""
        self._tools = tools
        self._repaired = repaired
        self._names = "|".join(map(regex.escape, sorted(tools.names))) or r"(?!)"
        self._head = regex.compile(self._head_pattern())
        self._text = ""
        self._scanner = JsonScanner()
        self._scanned = 0
        self._streaming = False
        """The arguments go out as they come."""
        self._closing = False
        """And now they are whole, but the object is not."""

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        self._text += text
        if self._streaming:
            return self._stream()
        return self._close() if self._closing else self._decide()

    def finish(self) -> list[Piece]:
        """An object that is not closed is no call, unless its arguments are whole or on their way."""
        if self.outcome is None:
            if self._closing:
                return self._ended(len(self._text))
            self.outcome, self.rest = ("call", "") if self._streaming else ("text", self._text)
        return []

    def _head_pattern(self) -> str:
        """What stands before arguments; they begin with one bracket, and their next character is known."""
        keys = r'"(?:arguments|parameters)"'
        return rf'\{{\s*"name"\s*:\s*"(?P<name>{self._names})"\s*,\s*{keys}\s*:\s*(?=\{{\s*["}}])'

    def _possible(self) -> bool:
        """Whether this can be a call."""
        return True

    def _decide(self) -> list[Piece]:
        if not self._possible():
            return self._is_text()
        head = self._head.match(self._text)
        tool = self._tools.get(head["name"]) if head else None
        if head is not None and tool is not None and _streams(tool, self._text[head.end() :]):
            self._streaming = True
            self._scanner, self._scanned = JsonScanner(self._arguments_end), head.end()
            return [CallStart(tool.name, self._repaired), *self._stream()]
        return self._look_for_end()

    def _look_for_end(self) -> list[Piece]:
        """The object is judged once it is whole."""
        begun = self._scanned or self._text.find("{")
        if begun < 0:
            return []
        end = self._scanner.feed(self._text, begun)
        self._scanned = len(self._text)
        return [] if end < 0 else self._judge(end)

    def _stream(self) -> list[Piece]:
        """More of the arguments."""
        given = self._scanned
        end = self._scanner.feed(self._text, given, until=self._arguments_end)
        self._scanned = len(self._text) if end < 0 else end
        pieces: list[Piece] = [CallArguments(self._text[given : self._scanned])]
        if end < 0:
            return pieces
        self._streaming, self._closing = False, True
        return pieces + self._close()

    def _close(self) -> list[Piece]:
        """More of what follows the arguments, up to the object's end."""
        if self._arguments_end == 0:
            return self._ended(self._scanned)
        end = self._scanner.feed(self._text, self._scanned)
        self._scanned = len(self._text)
        return [] if end < 0 else self._ended(end)

    def _ended(self, end: int) -> list[Piece]:
        self.outcome, self.rest = "call", self._text[end:]
        return [CallEnd()]

    def _judge(self, end: int) -> list[Piece]:
        """The object is whole: is it a call?"""
        name, arguments = self._read(end)
        tool = self._tools.get(name)
        if tool is None or not isinstance(arguments, dict) or not tool.fits(arguments):
            return self._is_text()
        self.outcome, self.rest = "call", self._text[end:]
        return whole_call(tool, arguments, repaired=self._repaired)

    def _read(self, end: int) -> tuple[object, object]:
        return name_and_arguments(load(self._text[:end]))

    def _is_text(self) -> list[Piece]:
        self.outcome, self.rest = "text", self._text
        return []


def _streams(tool: Tool, arguments: str) -> bool:
    """Whether arguments that begin like this can go out before their end: a grammar has seen to it that they fit."""
    return tool.enforced and not regex.match(r"\{\s*\}", arguments)


class BareReader(ObjectReader):
    """The same in plain text, given up as soon as it does not begin like a call."""

    def __init__(self, tools: Tools, repaired: bool) -> None:
        super().__init__(tools, repaired)
        name = rf'"name"\s*:\s*"(?:{self._names})"\s*[,}}]'
        function = rf'"function"\s*:\s*(?:\{{|"(?:{self._names})")|"type"\s*:\s*"function"\s*,'
        self._begins = regex.compile(rf'\{{\s*(?:{name}|"(?:arguments|parameters)"\s*:|{function})')

    def _possible(self) -> bool:
        return self._begins.match(self._text, partial=True) is not None


class NamedReader(ObjectReader):
    """A call written as Mistral's newer models do it: ``NAME[ARGS]{...}``, perhaps with an id between.

    The format: https://github.com/mistralai/mistral-common, tokenizers v11 and v13.
    """

    _arguments_end = 0

    def _head_pattern(self) -> str:
        return rf'(?P<name>{self._names})(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{{\s*["}}])'

    def _possible(self) -> bool:
        return self._head.match(self._text, partial=True) is not None

    def _read(self, end: int) -> tuple[object, object]:
        head = self._head.match(self._text)
        return (head["name"], load(self._text[head.end() : end])) if head else (None, None)


class WholeReader:
    """A call in a format that only a function for whole texts can read.

    Args:
        tools: those that may be called.
        repaired: see `ObjectReader`.
        end: what it ends with; empty for the end of the answer.
        parse: finds the calls in the text before that end: (name, arguments) each.
    """

    def __init__(
        self, tools: Tools, repaired: bool, end: str, parse: Callable[[str], Sequence[tuple[object, object]]]
    ) -> None:
        self.outcome: Outcome | None = None
        self.rest = ""
        self._tools = tools
        self._repaired = repaired
        self._end = end
        self._parse = parse
        self._text = ""

    def push(self, text: str) -> list[Piece]:
        """Nothing is certain before the end."""
        searched = max(0, len(self._text) - len(self._end))
        self._text += text
        at = self._text.find(self._end, searched) if self._end else -1
        return [] if at < 0 else self._judge(at, at + len(self._end))

    def finish(self) -> list[Piece]:
        """The end counts as one."""
        return [] if self.outcome else self._judge(len(self._text), len(self._text))

    def _judge(self, at: int, end: int) -> list[Piece]:
        pieces: list[Piece] = []
        self.outcome, self.rest = "text", self._text
        for name, arguments in self._parse(self._text[:at]):
            tool = self._tools.get(name)
            if tool is None or not isinstance(arguments, dict) or not tool.fits(arguments):
                return []
            pieces += whole_call(tool, arguments, repaired=self._repaired)
        if pieces:
            self.outcome, self.rest = "call", self._text[end:]
        return pieces
