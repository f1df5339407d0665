"""An answer in content blocks, as it grows."""

import json
from collections.abc import Iterator
from typing import Any, Literal

from jackfield.errors import UpstreamError
from jackfield.protocol.anthropic.answer import SaidBlock, SaidText, SaidThinking, SaidToolUse
from jackfield.protocol.anthropic.events import (
    BlockDelta,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    SignatureDelta,
    StreamEvent,
    TextDelta,
    ThinkingDelta,
)
from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece, Thought

SIGNATURE = "jackfield"
"""Thoughts are not signed here, but clients only bring back those that are."""

Thoughts = Literal["shown", "omitted", "none"]
"""Told, told of, or neither."""


class Blocks:
    """Sorts pieces of an answer into blocks, one after the other.

    Blanks alone are no text: models write them between calls, and clients would show them.
    """

    def __init__(self, thoughts: Thoughts) -> None:
        self.content: list[SaidBlock] = []
        """The blocks that are whole."""
        self._thoughts = thoughts
        self._index = 0
        self._open: SaidBlock | None = None
        self._said = ""
        """Of the open block; between blocks, blanks that may begin a text."""

    def add(self, piece: Piece) -> Iterator[StreamEvent]:
        """What becomes of another piece.

        Raises:
            UpstreamError: a call has arguments that no block can hold.
        """
        match piece:
            case str():
                yield from self._text(piece)
            case Thought(text):
                yield from self._thought(text)
            case CallStart():
                yield from self._begin(SaidToolUse(id=piece.id, name=piece.name, input={}))
            case CallArguments(text):
                yield from self._more(text, InputJsonDelta(partial_json=text))
            case CallEnd():
                yield from self._end()

    def finish(self) -> Iterator[StreamEvent]:
        """Nothing more comes; a call that is cut here is none."""
        yield from self._end(whole=not isinstance(self._open, SaidToolUse))

    def _text(self, text: str) -> Iterator[StreamEvent]:
        if not isinstance(self._open, SaidText):
            text = self._said + text if self._open is None else text
            if not text.strip():
                yield from self._end()
                self._said = text
                return
            yield from self._begin(SaidText(text=""))
        yield from self._more(text, TextDelta(text=text))

    def _thought(self, text: str) -> Iterator[StreamEvent]:
        if self._thoughts == "none":
            return
        if not isinstance(self._open, SaidThinking):
            yield from self._begin(SaidThinking(thinking="", signature=""))
        if self._thoughts == "shown":
            yield from self._more(text, ThinkingDelta(thinking=text))

    def _begin(self, block: SaidBlock) -> Iterator[StreamEvent]:
        yield from self._end()
        self._open, self._said = block, ""
        yield ContentBlockStart(index=self._index, content_block=block)

    def _more(self, text: str, delta: BlockDelta) -> Iterator[StreamEvent]:
        if text:
            self._said += text
            yield ContentBlockDelta(index=self._index, delta=delta)

    def _end(self, *, whole: bool = True) -> Iterator[StreamEvent]:
        if self._open is None:
            return
        if isinstance(self._open, SaidThinking):
            yield ContentBlockDelta(index=self._index, delta=SignatureDelta(signature=SIGNATURE))
        if whole:
            self.content.append(_whole(self._open, self._said))
        yield ContentBlockStop(index=self._index)
        self._open, self._said = None, ""
        self._index += 1


def _whole(block: SaidBlock, said: str) -> SaidBlock:
    match block:
        case SaidText():
            return SaidText(text=said)
        case SaidThinking():
            return SaidThinking(thinking=said, signature=SIGNATURE)
        case SaidToolUse():
            return SaidToolUse(id=block.id, name=block.name, input=_input(block.name, said))


def _input(tool: str, said: str) -> dict[str, Any]:
    """What a call is made with. The engine here sees to it that it is an object; other servers do not."""
    try:
        found = json.loads(said or "null")
    except ValueError:
        found = said
    if not isinstance(found, dict | None):
        raise UpstreamError(
            f"The call of {tool!r} has no JSON object as its arguments: {said[:200]!r}",
            suggestions=("Send the request again.", "Take a model or a server that keeps to the schemas of tools."),
        )
    return found or {}
