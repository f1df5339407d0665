"""An answer as the items of a response: it grows piece by piece, and each piece is told of in events."""

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

from jackfield.choice import Delta
from jackfield.engine.request import TokenEvent
from jackfield.protocol.base import AnswerModel
from jackfield.protocol.logprobs import TokenLogprob
from jackfield.protocol.responses.answer import (
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputText,
    Reasoning,
    ReasoningText,
    SummaryText,
)
from jackfield.protocol.responses.events import (
    ArgumentsDelta,
    ArgumentsDone,
    ContentPartEvent,
    Event,
    OutputItemEvent,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    SummaryPartEvent,
    SummaryTextDelta,
    SummaryTextDone,
)
from jackfield.protocol.responses.items import sealed
from jackfield.text.pieces import CallArguments, CallEnd, CallStart, Piece, Thought

Kind = TypeVar("Kind", bound=Event)


def new_id(prefix: str) -> str:
    """As OpenAI's look: ``msg_`` and 48 hex digits, say."""
    return f"{prefix}_{secrets.token_hex(24)}"


class Numbered:
    """Makes events and counts them."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, kind: type[Kind], **fields: Any) -> Kind:
        """The next one."""
        event = kind(sequence_number=self._next, **fields)
        self._next += 1
        return event


class Output:
    """All items of an answer, the last of them perhaps still growing.

    Args:
        event: makes events.
        names: the namespace and the name of a function that the model has called.
        logprob: of a token of text; None where nobody wants log probabilities.
        summarized: whether thoughts are sent as a summary.
        seal: whether they come in a form that can be brought back unread.
    """

    def __init__(
        self,
        event: Numbered,
        names: Callable[[str], tuple[str | None, str]],
        *,
        logprob: Callable[[TokenEvent], TokenLogprob] | None = None,
        summarized: bool = False,
        seal: bool = False,
    ) -> None:
        self.items: list[OutputItem] = []
        """Those that have ended."""
        self._event = event
        self._names = names
        self._logprob = logprob
        self._thoughts = _Summary if summarized else _Thoughts
        self._seal = seal
        self._open: _Growing | None = None
        self._blank = ""
        """Blanks that are the beginning of a message, or stand between calls and mean nothing."""
        self._tokens: list[TokenEvent] = []
        """Those whose text has not gone out."""

    def take(self, part: Delta) -> Iterator[Event]:
        """More of the answer, and perhaps its end."""
        if self._logprob is not None and (part.text or self._open is None or isinstance(self._open, _Text)):
            # The text of the others is thought or called.
            self._tokens += part.tokens
        for piece in part.pieces:
            yield from self._take(piece)
        if part.finish_reason is not None:
            yield from self._finish("incomplete" if part.finish_reason == "length" else "completed")

    def _take(self, piece: Piece) -> Iterator[Event]:
        match piece:
            case str():
                yield from self._say(piece)
            case Thought(text):
                if not isinstance(self._open, _Thoughts):
                    yield from self._begin(self._thoughts, self._seal)
                yield from self._grow(text)
            case CallStart():
                yield from self._begin(_Call, piece.id, *self._names(piece.name))
            case CallArguments(text):
                yield from self._grow(text)
            case CallEnd():
                yield from self._end("completed")

    def _say(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, _Text):
            text, self._blank = self._blank + text, ""
            if not text.strip():
                self._blank = text
                return
            yield from self._begin(_Text)
        yield from self._grow(text)

    def _begin(self, kind: "type[_Growing]", *more: Any) -> Iterator[Event]:
        yield from self._end("completed")
        if kind is not _Text:
            self._blank = ""
            self._tokens.clear()
        self._open = kind(self._event, len(self.items), *more)
        yield from self._open.begin()

    def _grow(self, text: str) -> Iterator[Event]:
        if self._open is not None and text:
            tokens, self._tokens = self._tokens, []
            spoken = tokens if isinstance(self._open, _Text) else ()
            yield from self._open.grow(text, [self._logprob(token) for token in spoken] if self._logprob else [])

    def _end(self, status: ItemStatus) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is not None:
            yield from item.end(status)
            self.items.append(item.whole(status))

    def _finish(self, status: ItemStatus) -> Iterator[Event]:
        yield from self._end(status)
        if not self.items:
            # An answer says something, if only nothing.
            yield from self._begin(_Text)
            yield from self._grow(self._blank)
            yield from self._end(status)


class _Growing(ABC):
    """An item that grows."""

    prefix: ClassVar[str]

    def __init__(self, event: Numbered, index: int) -> None:
        self.id = new_id(self.prefix)
        self._event = event
        self._index = index
        self._texts: list[str] = []

    @property
    def _text(self) -> str:
        return "".join(self._texts)

    @abstractmethod
    def bare(self) -> OutputItem:
        """The item with nothing in it yet."""

    @abstractmethod
    def whole(self, status: ItemStatus) -> OutputItem:
        """The item with all that is in it."""

    def begin(self) -> Iterator[Event]:
        """It is there."""
        kind = "response.output_item.added"
        yield self._event(OutputItemEvent, type=kind, output_index=self._index, item=self.bare())

    @abstractmethod
    def grow(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        """There is more of it."""

    def end(self, status: ItemStatus) -> Iterator[Event]:
        """It is whole, or cut off."""
        kind = "response.output_item.done"
        yield self._event(OutputItemEvent, type=kind, output_index=self._index, item=self.whole(status))


class _Call(_Growing):
    """A call."""

    prefix = "fc"

    def __init__(self, event: Numbered, index: int, call_id: str, namespace: str | None, name: str) -> None:
        super().__init__(event, index)
        self._name = name
        self._named: dict[str, Any] = {"call_id": call_id, "namespace": namespace, "name": name}
        self._place = {"item_id": self.id, "output_index": index}

    def bare(self) -> OutputFunctionCall:
        return OutputFunctionCall(id=self.id, status="in_progress", arguments="", **self._named)

    def whole(self, status: ItemStatus) -> OutputFunctionCall:
        return OutputFunctionCall(id=self.id, status=status, arguments=self._text, **self._named)

    def grow(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        self._texts.append(text)
        yield self._event(ArgumentsDelta, **self._place, delta=text)

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield self._event(ArgumentsDone, **self._place, name=self._name, arguments=self._text)
        yield from super().end(status)


class _OnePart(_Growing):
    """An item whose text is in a part of its own."""

    part_event: ClassVar[type[Event]] = ContentPartEvent
    part_kind: ClassVar[str] = "response.content_part"
    part_index: ClassVar[str] = "content_index"
    delta_event: ClassVar[type[Event]]
    done_event: ClassVar[type[Event]]

    def __init__(self, event: Numbered, index: int) -> None:
        super().__init__(event, index)
        self._place = {"item_id": self.id, "output_index": index, self.part_index: 0}

    @abstractmethod
    def part(self, text: str) -> AnswerModel:
        """The part when this is its text."""

    def said(self, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        """What there is to tell of text besides the text."""
        return {}

    def all_said(self) -> dict[str, Any]:
        """The same for all of it."""
        return {}

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield self._event(self.part_event, type=f"{self.part_kind}.added", **self._place, part=self.part(""))

    def grow(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[Event]:
        self._texts.append(text)
        yield self._event(self.delta_event, **self._place, delta=text, **self.said(logprobs))

    def end(self, status: ItemStatus) -> Iterator[Event]:
        yield self._event(self.done_event, **self._place, text=self._text, **self.all_said())
        yield self._event(self.part_event, type=f"{self.part_kind}.done", **self._place, part=self.part(self._text))
        yield from super().end(status)


class _Text(_OnePart):
    """A message."""

    prefix = "msg"
    delta_event = OutputTextDelta
    done_event = OutputTextDone

    def __init__(self, event: Numbered, index: int) -> None:
        super().__init__(event, index)
        self._logprobs: list[TokenLogprob] = []

    def bare(self) -> OutputMessage:
        return OutputMessage(id=self.id, status="in_progress", content=[])

    def whole(self, status: ItemStatus) -> OutputMessage:
        return OutputMessage(id=self.id, status=status, content=[self.part(self._text)])

    def part(self, text: str) -> OutputText:
        return OutputText(text=text, logprobs=list(self._logprobs))

    def said(self, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        self._logprobs += logprobs
        return {"logprobs": logprobs}

    def all_said(self) -> dict[str, Any]:
        return {"logprobs": list(self._logprobs)}


class _Thoughts(_OnePart):
    """Thoughts, as they are."""

    prefix = "rs"
    delta_event: ClassVar[type[Event]] = ReasoningTextDelta
    done_event: ClassVar[type[Event]] = ReasoningTextDone

    def __init__(self, event: Numbered, index: int, seal: bool) -> None:
        super().__init__(event, index)
        self._seal = seal

    @property
    def _sealed(self) -> str | None:
        return sealed(self._text) if self._seal else None

    def bare(self) -> Reasoning:
        return Reasoning(id=self.id, status="in_progress", summary=[], content=[])

    def whole(self, status: ItemStatus) -> Reasoning:
        content = [ReasoningText(text=self._text)]
        return Reasoning(id=self.id, status=status, summary=[], content=content, encrypted_content=self._sealed)

    def part(self, text: str) -> AnswerModel:
        return ReasoningText(text=text)


class _Summary(_Thoughts):
    """Thoughts, as the summary that the client wants to see."""

    part_event = SummaryPartEvent
    part_kind = "response.reasoning_summary_part"
    part_index = "summary_index"
    delta_event = SummaryTextDelta
    done_event = SummaryTextDone

    def bare(self) -> Reasoning:
        return Reasoning(id=self.id, status="in_progress", summary=[])

    def whole(self, status: ItemStatus) -> Reasoning:
        summary = [SummaryText(text=self._text)]
        return Reasoning(id=self.id, status=status, summary=summary, encrypted_content=self._sealed)

    def part(self, text: str) -> AnswerModel:
        return SummaryText(text=text)
