"""The answer to one request, as it grows: one or more choices, from the engine's events to text and tool calls."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jackfield.engine.request import (
    EngineEvent,
    FinishEvent,
    GenerationRequest,
    PrefillEvent,
    PromptLogprobsEvent,
    TokenEvent,
)
from jackfield.models.registry import ServedModel
from jackfield.protocol.usage import Usage
from jackfield.text.stops import StopMatcher
from jackfield.text.stream import TextDelta, TextStream
from jackfield.text.tool_calls import ToolCallParser, ToolCallText

AnswerFinish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice has more: text or calls, the tokens they come from, and at last why it ended."""

    index: int
    text: str = ""
    calls: tuple[ToolCallText, ...] = ()
    tokens: tuple[TokenEvent, ...] = ()
    prompt_tokens: tuple[TokenEvent, ...] = ()
    finish_reason: AnswerFinish | None = None

    def __bool__(self) -> bool:
        return bool(self.text or self.calls or self.tokens or self.prompt_tokens or self.finish_reason)


def by_choice(deltas: Sequence[Delta], choices: int) -> list[list[Delta]]:
    """Deltas sorted by the choice they belong to."""
    sorted_deltas: list[list[Delta]] = [[] for _ in range(choices)]
    for delta in deltas:
        sorted_deltas[delta.index].append(delta)
    return sorted_deltas


@dataclass(frozen=True, slots=True)
class Progress:
    """The prompt is being processed: ``done`` of ``total`` tokens."""

    done: int
    total: int


@dataclass(slots=True)
class Choice:
    """One of the request's answers."""

    index: int
    request: GenerationRequest
    text: TextStream
    parser: ToolCallParser | None
    one_call: bool = False
    """End with the first call, as clients ask that cannot take several."""
    cached: int = 0
    generated: int = 0
    called: bool = False
    finish_reason: AnswerFinish | None = None

    def take(self, events: Sequence[EngineEvent]) -> Delta:
        """All that some events of the engine add."""
        given: list[TextDelta] = []
        prompt_tokens: tuple[TokenEvent, ...] = ()
        for event in events:
            match event:
                case TokenEvent():
                    if self.finish_reason is None:
                        self.generated += 1
                        given.append(self.text.push(event))
                        self.finish_reason = "stop" if self.text.stopped else None
                case PrefillEvent():
                    self.cached = event.cached
                case PromptLogprobsEvent():
                    prompt_tokens = event.tokens
                case FinishEvent() if self.finish_reason is None:
                    given.append(self.text.finish())
                    # The text that was held back may still complete a stop string.
                    self.finish_reason = "length" if event.reason == "length" and not self.text.stopped else "stop"
        return self._delta(given, prompt_tokens)

    def _delta(self, given: Sequence[TextDelta], prompt_tokens: tuple[TokenEvent, ...]) -> Delta:
        text = "".join(delta.text for delta in given)
        tokens = tuple(token for delta in given for token in delta.tokens)
        text, calls = self._separate(text)
        return Delta(self.index, text, calls, tokens, prompt_tokens, self.finish_reason)

    def _separate(self, text: str) -> tuple[str, tuple[ToolCallText, ...]]:
        if self.parser is None:
            return text, ()
        pieces = self.parser.push(text) + (self.parser.finish() if self.finish_reason else [])
        first = next((i for i, piece in enumerate(pieces) if isinstance(piece, ToolCallText)), None)
        if self.one_call and first is not None:
            pieces, self.finish_reason = pieces[: first + 1], "tool_calls"
        calls = tuple(piece for piece in pieces if isinstance(piece, ToolCallText))
        self.called = self.called or bool(calls)
        if self.called and self.finish_reason == "stop":
            self.finish_reason = "tool_calls"
        return "".join(piece for piece in pieces if isinstance(piece, str)), calls


@dataclass
class Answer:
    """All choices of one request. Iterate once; call ``cancel`` when nobody listens any more.

    Args:
        model: who answers.
        requests: one a choice, in order.
        stops: strings that end a choice.
        parsers: one a choice, when the request has tools.
        one_call: whether a choice ends with its first call.
        each: choices for each prompt; they stand next to each other.
    """

    model: ServedModel
    requests: Sequence[GenerationRequest]
    stops: Sequence[str] = ()
    parsers: Sequence[ToolCallParser | None] = ()
    one_call: bool = False
    each: int = 1
    _choices: list[Choice] = field(init=False)
    _events: asyncio.Queue[tuple[Choice, list[EngineEvent]]] = field(init=False, default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        parsers = self.parsers or [None] * len(self.requests)
        self._choices = [
            Choice(index, request, self._text(request), parser, self.one_call)
            for index, (request, parser) in enumerate(zip(self.requests, parsers, strict=True))
        ]

    def _text(self, request: GenerationRequest) -> TextStream:
        return TextStream(self.model.tokenizer.decoder(), StopMatcher(self.stops), request.stop_tokens)

    def admit(self) -> None:
        """Make sure that the engine takes the request, while the client can still be told otherwise.

        Raises:
            UnavailableError: it does not.
        """
        self.model.engine.admit(len(self.requests))

    async def __aiter__(self) -> AsyncIterator[Delta | Progress]:
        """What the choices have more, as it comes, until all of them have ended.

        Raises:
            JackfieldError: the engine failed.
        """
        for choice in self._choices:
            self._submit(choice)
        while any(choice.finish_reason is None for choice in self._choices):
            choice, events = await self._events.get()
            if choice.finish_reason is not None:
                continue
            last = events[-1]
            if isinstance(last, FinishEvent) and last.error is not None:
                raise last.error
            if isinstance(last, PrefillEvent):
                yield Progress(last.done, last.total)
            delta = choice.take(events)
            if delta.finish_reason is not None:
                self.model.engine.cancel([choice.request.id])
            if delta:
                yield delta

    def _submit(self, choice: Choice) -> None:
        self.model.engine.submit(choice.request, lambda events: self._events.put_nowait((choice, events)))

    def cancel(self) -> None:
        """Stop the work on every choice that has not ended."""
        self.model.engine.cancel([choice.request.id for choice in self._choices])

    def cut_off(self) -> list[Delta]:
        """What is left to say of the choices that have not ended, when nothing more comes."""
        return [choice.take([FinishEvent("length")]) for choice in self._choices if choice.finish_reason is None]

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once for all its choices, generated tokens for each."""
        first = self._choices[:: self.each]
        return Usage.of(
            prompt=sum(len(choice.request.prompt) for choice in first),
            completion=sum(choice.generated for choice in self._choices),
            cached=sum(choice.cached for choice in first),
        )
