"""Reading a call written as Qwen3-Coder does it: ``<function=NAME>``, parameters in tags, ``</function>``.

The format: the chat template of https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct.
"""

import json
from typing import Any

import regex

from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece
from jackfield.tools.offered import Tool, Tools
from jackfield.tools.readers import Outcome, load, whole_call

FUNCTION = regex.compile(r"<function=(?P<name>[^>\n]*)>\s*")
FUNCTION_END = regex.compile(r"\s*</function>")
PARAMETER_START = regex.compile(r"\s*<parameter=(?P<key>[^>\n]*)>(?:\n|(?=[^\n]))")
PARAMETER_END = "\n</parameter>"
PARAMETER = regex.compile(
    r"<parameter=(?P<key>[^>\n]*)>\n?(?P<value>.*?)(?:\n?</parameter>|(?=\n?<parameter=)|\s*\Z)", regex.DOTALL
)
"""Closed or not: the model forgets it at times."""


class FunctionReader:
    """Reads a function once it is whole; Llama 3.1's ``<function=NAME>{...}</function>`` too."""

    def __init__(self, tools: Tools, repaired: bool) -> None:
        self.outcome: Outcome | None = None
        self.rest = ""
        self._tools = tools
        self._repaired = repaired
        self._text = ""
        self._searched = 0

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        self._text += text
        head = FUNCTION.match(self._text)
        if head is None:
            possible = FUNCTION.match(self._text, partial=True)
            return [] if possible else self._is_text()
        tool = self._tools.get(head["name"].strip())
        return self._is_text() if tool is None else self._read(tool, head.end())

    def finish(self) -> list[Piece]:
        """A function that is not closed is no call."""
        return [] if self.outcome else self._is_text()

    def _read(self, tool: Tool, start: int) -> list[Piece]:
        end = FUNCTION_END.search(self._text, max(start, self._searched))
        if end is None:
            self._searched = len(self._text.rstrip()) - len("</function>")
            return []
        body = self._text[start : end.start()]
        arguments = {found["key"]: value_of(tool, found["key"], found["value"]) for found in PARAMETER.finditer(body)}
        if not arguments and body.strip():
            arguments = load(body)
        if not tool.fits(arguments):
            return self._is_text()
        self.outcome, self.rest = "call", self._text[end.end() :]
        return whole_call(tool, arguments, repaired=self._repaired)

    def _is_text(self) -> list[Piece]:
        self.outcome, self.rest = "text", self._text
        return []


class StreamedFunctionReader(FunctionReader):
    """The same, with parameters going out as they come where a grammar vouches for them: for all tools or for none."""

    def __init__(self, tools: Tools, repaired: bool) -> None:
        super().__init__(tools, repaired)
        self._enforced = all(tool.in_tags for tool in tools)
        self._tool: Tool | None = None
        """Known once its parameters go out."""
        self._done = 0
        """How much of the text has been dealt with."""
        self._parameters = 0
        self._parameter: _Parameter | None = None

    def push(self, text: str) -> list[Piece]:
        """What this text makes certain."""
        if self._tool is None:
            return super().push(text)
        self._text += text
        return self._stream()

    def finish(self) -> list[Piece]:
        """What is on its way is a call."""
        if self._tool is None or self.outcome is not None:
            return super().finish()
        self.outcome = "call"
        return []

    def _read(self, tool: Tool, start: int) -> list[Piece]:
        if not self._enforced:
            return super()._read(tool, start)
        self._tool, self._done = tool, start
        return [CallStart(tool.name, self._repaired), CallArguments("{"), *self._stream()]

    def _stream(self) -> list[Piece]:
        pieces: list[Piece] = []
        while self._step(pieces):
            pass
        return pieces

    def _step(self, pieces: list[Piece]) -> bool:
        """Read one more tag, or more of a parameter; False when more text is needed."""
        text = self._text[self._done :]
        if self._parameter is not None:
            return self._read_value(self._parameter, text, pieces)
        if begun := PARAMETER_START.match(text):
            self._done += begun.end()
            self._begin(begun["key"], pieces)
            return True
        if ended := FUNCTION_END.match(text):
            self.outcome, self.rest = "call", text[ended.end() :]
            pieces += [CallArguments("}"), CallEnd()]
        return False

    def _begin(self, key: str, pieces: list[Piece]) -> None:
        assert self._tool is not None  # noqa: S101 - by the caller
        self._parameter = _Parameter(self._tool, key)
        separator = ", " if self._parameters else ""
        self._parameters += 1
        pieces.append(CallArguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: "))

    def _read_value(self, parameter: "_Parameter", text: str, pieces: list[Piece]) -> bool:
        written, rest = parameter.push(text)
        if written:
            pieces.append(CallArguments(written))
        self._done = len(self._text) - len(rest or "")
        if rest is None:
            return False
        self._parameter = None
        return True


class _Parameter:
    """The value of one parameter: as JSON, a string as it comes, everything else once it is whole."""

    def __init__(self, tool: Tool, key: str) -> None:
        self._tool = tool
        self._key = key
        self._text = tool.takes_text(key)
        self._held = ""
        self._begun = False

    def push(self, text: str) -> tuple[str, str | None]:
        """JSON that is certain, and, once the parameter has ended, the text behind it."""
        self._held += text
        value, end, rest = self._held.partition(PARAMETER_END)
        if end:
            return self._last(value), rest
        if not self._text:
            return "", None
        # Not the end, and not the line break before it.
        safe = len(value) - max(
            (size for size in range(1, len(PARAMETER_END)) if value.endswith(PARAMETER_END[:size])), default=0
        )
        value, self._held = value[:safe], value[safe:]
        return self._as_string(value) if value else "", None

    def _as_string(self, text: str) -> str:
        quote = "" if self._begun else '"'
        self._begun = True
        return quote + json.dumps(text, ensure_ascii=False)[1:-1]

    def _last(self, value: str) -> str:
        if self._text:
            return self._as_string(value) + '"'
        return json.dumps(value_of(self._tool, self._key, value), ensure_ascii=False)


def value_of(tool: Tool, key: str, text: str) -> Any:
    """What a parameter's text means: itself for strings, else JSON, and itself again if it is none."""
    if tool.takes_text(key):
        return text
    found = load(text.strip())
    return text if found is None and text.strip() != "null" else found
