"""One of the answers to a request, as it grows: from the engine's events to text and tool calls."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jackfield.engine.request import (
    EngineEvent,
    FinishEvent,
    GenerationRequest,
    PromptLogprobsEvent,
    StartEvent,
    TokenEvent,
)
from jackfield.hooks.data import Confidence
from jackfield.metrics.requests import Timing
from jackfield.protocol.extension import CacheReport, ChoiceReport, ConfidenceReport, EndedBy
from jackfield.text.pieces import CallEnd, CallStart, Piece, in_parts
from jackfield.text.separator import Separator
from jackfield.text.stream import TextDelta, TextStream

logger = logging.getLogger(__name__)

AnswerFinish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What one choice has more: text, thoughts and calls, the tokens they come from, and at last why it ended."""

    index: int
    pieces: tuple[Piece, ...] = ()
    """In the order in which the model wrote them; no `ToolCallText` among them, but its parts."""
    tokens: tuple[TokenEvent, ...] = ()
    prompt_tokens: tuple[TokenEvent, ...] = ()
    finish_reason: AnswerFinish | None = None
    stop_string: str | None = None
    """The one that ended it."""

    @property
    def text(self) -> str:
        """Its text, without thoughts and calls."""
        return "".join(piece for piece in self.pieces if isinstance(piece, str))

    def __bool__(self) -> bool:
        return bool(self.pieces or self.tokens or self.prompt_tokens or self.finish_reason)


@dataclass(slots=True)
class Choice:
    """One of the request's answers."""

    index: int
    request: GenerationRequest
    text: TextStream
    separator: Separator
    request_id: str = ""
    """Of the whole request, as logs have it."""
    one_call: bool = False
    """End with the first call, as clients ask that cannot take several."""
    start: StartEvent | None = None
    finish: FinishEvent | None = None
    ended_by: EndedBy | None = None
    generated: int = 0
    thought: int = 0
    """Of these tokens, the ones of thoughts."""
    calls: int = 0
    repaired: int = 0
    """Of these calls, the ones that were not written as they should be."""
    tokens: list[TokenEvent] | None = None
    """All of them, if somebody wants them, the one that ended it included."""
    said: str = ""
    """And the text."""
    confidence: Mapping[str, Confidence] = field(default_factory=dict)
    submitted: float = 0.0
    spoke: float | None = None
    ended: float = 0.0
    """When it was submitted, had its first token and ended, by this side's clock."""

    @property
    def finish_reason(self) -> AnswerFinish | None:
        """Why it ended, in OpenAI's words."""
        if self.ended_by in ("length", "timeout", "shutdown", "error"):
            return "length"
        if self.ended_by is None:
            return None
        return "tool_calls" if self.calls else "stop"

    def take(self, events: Sequence[EngineEvent]) -> Delta:
        """All that some events of the engine add."""
        given: list[TextDelta] = []
        prompt_tokens: tuple[TokenEvent, ...] = ()
        for event in events:
            match event:
                case StartEvent():
                    self._begin(event)
                case TokenEvent() if self.ended_by is None:
                    given.append(self._grow(event))
                case PromptLogprobsEvent():
                    prompt_tokens = event.tokens
                case FinishEvent() if self.ended_by is None:
                    self.finish = event
                    given.append(self._close(event.reason))
        return self._delta(given, prompt_tokens)

    def cut_off(self, by: EndedBy) -> Delta:
        """What is left to say when nothing more comes."""
        return self._delta([self._close(by)])

    def _begin(self, event: StartEvent) -> None:
        self.start = event
        logger.info(
            "%s: %d of %d prompt tokens cached, %d of them on disk, miss: %s; waited %.3f seconds",
            self.request.id,
            event.cache.tokens,
            len(self.request.prompt),
            event.cache.from_disk,
            event.cache.miss or "none",
            event.waited,
            extra={"request_id": self.request_id},
        )

    def _grow(self, event: TokenEvent) -> TextDelta:
        self.spoke = self.spoke or time.monotonic()
        self.generated += 1
        self.thought += self.separator.thinking
        if self.tokens is not None:
            self.tokens.append(event)
        delta = self.text.push(event)
        if self.text.stopped:
            self._end("stop_string")
        return delta

    def _close(self, by: EndedBy) -> TextDelta:
        last = self.text.finish()
        # The text that was held back may still complete a stop string.
        self._end("stop_string" if self.text.stopped else by)
        return last

    def _end(self, by: EndedBy) -> None:
        self.ended_by, self.ended = by, time.monotonic()

    def _delta(self, given: Sequence[TextDelta], prompt_tokens: tuple[TokenEvent, ...] = ()) -> Delta:
        tokens = tuple(token for delta in given for token in delta.tokens)
        pieces = self._separate("".join(delta.text for delta in given))
        if self.tokens is not None:
            self.said += "".join(piece for piece in pieces if isinstance(piece, str))
        stop_string = self.text.stop_string if self.ended_by == "stop_string" else None
        return Delta(self.index, tuple(pieces), tokens, prompt_tokens, self.finish_reason, stop_string)

    def _separate(self, text: str) -> list[Piece]:
        found = self.separator.push(text) + (self.separator.finish() if self.ended_by else [])
        pieces = in_parts(found)
        first = next((i for i, piece in enumerate(pieces) if isinstance(piece, CallEnd)), None)
        if self.one_call and first is not None:
            pieces = pieces[: first + 1]
            self._end("tool_call")
        starts = [piece for piece in pieces if isinstance(piece, CallStart)]
        self.calls += len(starts)
        self.repaired += sum(start.repaired for start in starts)
        return pieces

    def report(self) -> ChoiceReport:
        """How it came about; only when it has ended."""
        assert self.ended_by is not None  # noqa: S101 - the caller's promise
        timing = self.timing
        return ChoiceReport(
            index=self.index,
            cache=self._cache_report(),
            queue_seconds=timing.queue,
            prefill_seconds=timing.prefill,
            decode_seconds=timing.decode,
            preemptions=self.finish.preemptions if self.finish else None,
            ended_by=self.ended_by,
            confidence={
                plugin: ConfidenceReport(score=found.score, label=found.label, factors=dict(found.factors))
                for plugin, found in self.confidence.items()
            }
            or None,
        )

    @property
    def timing(self) -> Timing:
        """Where the time went: the engine says it, unless the answer was cut on this side; only when it has ended."""
        waited = self.start.waited if self.start else self.ended - self.submitted
        if self.finish:
            return Timing(waited, self.finish.prefill_seconds, self.finish.decode_seconds)
        spoke = self.spoke or self.ended
        return Timing(waited, max(0.0, spoke - self.submitted - waited), self.ended - spoke)

    def _cache_report(self) -> CacheReport | None:
        if self.start is None:
            return None
        use = self.start.cache
        return CacheReport.of(
            prompt=len(self.request.prompt), cached=use.tokens, from_disk=use.from_disk, miss=use.miss
        )
