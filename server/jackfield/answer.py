"""The answer to one request: submits its choices to the engine, and merges what comes back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

from jackfield.choice import Choice, Delta
from jackfield.engine.request import CacheUse, EngineEvent, FinishEvent, GenerationRequest, PrefillEvent, StartEvent
from jackfield.errors import DeadlineExceededError, ShuttingDownError
from jackfield.exchange import Exchange
from jackfield.hooks.data import Outcome
from jackfield.models.registry import ServedModel
from jackfield.protocol.extension import EndedBy, Extension
from jackfield.protocol.usage import Usage
from jackfield.text.separator import Separator
from jackfield.text.stops import StopMatcher
from jackfield.text.stream import TextStream


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


@dataclass
class Answer:
    """All choices of one request. Iterate once; call ``cancel`` when nobody listens any more.

    Args:
        model: who answers.
        requests: one a choice, in order.
        exchange: where it is told how the answer goes.
        stops: strings that end a choice.
        separators: one a choice, when there may be more than text in it.
        one_call: whether a choice ends with its first call.
        each: choices for each prompt; they stand next to each other.
        visible: special tokens that are part of the text.
    """

    model: ServedModel
    requests: Sequence[GenerationRequest]
    exchange: Exchange
    stops: Sequence[str] = ()
    separators: Sequence[Separator] = ()
    one_call: bool = False
    each: int = 1
    visible: frozenset[int] = frozenset()
    _choices: list[Choice] = field(init=False)
    _memory_before: int = 0
    _events: asyncio.Queue[tuple[Choice, list[EngineEvent]]] = field(init=False, default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        separators = self.separators or [Separator() for _ in self.requests]
        self._choices = [
            Choice(index, request, self._text(request), separator, self.exchange.info.id, self.one_call)
            for index, (request, separator) in enumerate(zip(self.requests, separators, strict=True))
        ]
        if any(map(self.exchange.hooks.has, ("observe_tokens", "score_confidence"))):
            for choice in self._choices:
                choice.tokens = []

    def _text(self, request: GenerationRequest) -> TextStream:
        return TextStream(self.model.tokenizer.decoder(self.visible), StopMatcher(self.stops), request.stop_tokens)

    @property
    def parsed(self) -> bool:
        """Whether there may be calls in it."""
        return any(separator.calls is not None for separator in self.separators)

    def admit(self) -> None:
        """Make sure that the engine takes the request, while the client can still be told otherwise.

        Raises:
            UnavailableError: it does not.
        """
        self.model.engine.admit([request.id for request in self.requests])

    async def __aiter__(self) -> AsyncGenerator[Delta | Progress, None]:
        """What the choices have more, as it comes, until all of them have ended.

        Raises:
            JackfieldError: the engine failed, or the request's time was over before anything was said.
        """
        self._memory_before = self.model.engine.statistics.device_bytes
        self.exchange.spends(self.usage().total_tokens)
        for choice in self._choices:
            self._submit(choice)
        while not self.ended:
            choice, events = await self._events.get()
            if choice.ended_by is not None:
                continue
            last = events[-1]
            if isinstance(last, PrefillEvent):
                yield Progress(last.done, last.total)
            delta = self._take(choice, self._survived(choice, events))
            if delta.finish_reason is not None:
                self.model.engine.cancel([choice.request.id])
                reason = "timeout" if choice.ended_by == "timeout" else delta.finish_reason
                self.exchange.finished(reason, choice.generated, choice.timing)
                await self._judge(choice)
            if delta:
                yield delta
        self._tell_completion()

    def _take(self, choice: Choice, events: list[EngineEvent]) -> Delta:
        known = choice.generated
        delta = choice.take(events)
        if choice.generated > known:
            start = choice.start or StartEvent(0.0, CacheUse())
            new = choice.tokens[known:] if choice.tokens else ()
            self.exchange.generated(choice.index, new, waited=start.waited, cached=start.cache.tokens)
        return delta

    async def _judge(self, choice: Choice) -> None:
        if choice.tokens is None or choice.ended_by is None:
            return
        outcome = Outcome(
            choice.index,
            choice.finish_reason or "stop",
            choice.ended_by,
            len(choice.request.prompt),
            compressed=self.exchange.compression is not None,
            calls=choice.calls,
            repaired_calls=choice.repaired,
        )
        choice.confidence = await self.exchange.hooks.score_confidence(
            self.exchange.info, choice.tokens, choice.said, outcome
        )

    def _tell_completion(self) -> None:
        usage = self.usage()
        self.exchange.spends(usage.total_tokens)
        spoke = self.exchange.first_token_seconds or 0.0
        self.exchange.completed(
            finish_reasons=[choice.finish_reason for choice in self._choices],
            ended_by=[choice.ended_by for choice in self._choices],
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
            completion_tokens=usage.completion_tokens,
            tokens_per_second=usage.completion_tokens / max(self.exchange.seconds - spoke, 1e-6),
            memory_before=self._memory_before,
            memory_after=self.model.engine.statistics.device_bytes,
            confidence=[{name: asdict(found) for name, found in c.confidence.items()} for c in self._choices],
        )

    def _submit(self, choice: Choice) -> None:
        choice.submitted = time.monotonic()
        self.model.engine.submit(choice.request, lambda events: self._events.put_nowait((choice, events)))

    def _survived(self, choice: Choice, events: list[EngineEvent]) -> list[EngineEvent]:
        """The events, unless they end the whole request with an error."""
        last = events[-1]
        if not isinstance(last, FinishEvent) or last.error is None:
            return events
        if isinstance(last.error, DeadlineExceededError) and any(choice.generated for choice in self._choices):
            # Other choices have spoken, so this one is just one that had no time.
            return [*events[:-1], replace(last, reason="timeout", error=None)]
        if isinstance(last.error, ShuttingDownError) and self._has_begun(but=choice):
            return [*events[:-1], replace(last, reason="shutdown", error=None)]
        raise last.error

    def _has_begun(self, *, but: Choice) -> bool:
        """Whether others are answered, and this choice is just one that was still in the queue."""
        return but.start is None and any(choice.start for choice in self._choices)

    @property
    def ended(self) -> bool:
        """Whether all choices have."""
        return all(choice.ended_by is not None for choice in self._choices)

    def cancel(self) -> None:
        """Stop the work on every choice that has not ended."""
        self.exchange.spends(self.usage().total_tokens)
        self.exchange.cancelled(sum(choice.generated for choice in self._choices))
        self.stop()

    def stop(self) -> None:
        """The engine need not go on; harmless once it has ended."""
        self.model.engine.cancel([choice.request.id for choice in self._choices])

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say of the choices that have not ended, when nothing more comes; they end as it is told."""
        for choice in self._choices:
            if choice.ended_by is None:
                yield choice.cut_off(by)

    def usage(self) -> Usage:
        """Tokens so far. A prompt counts once for all its choices, generated tokens for each."""
        first = self._choices[:: self.each]
        return Usage.of(
            prompt=sum(len(choice.request.prompt) for choice in first),
            completion=sum(choice.generated for choice in self._choices),
            cached=sum(choice.start.cache.tokens for choice in first if choice.start),
            reasoning=sum(choice.thought for choice in self._choices),
        )

    def extension(self) -> Extension:
        """How the choices came about; only when all have ended."""
        return Extension(
            request_id=self.exchange.info.id,
            backend=self.exchange.backend,
            choices=[choice.report() for choice in self._choices],
            compression=self.exchange.compression,
            attempts=self.exchange.attempts or None,
        )
