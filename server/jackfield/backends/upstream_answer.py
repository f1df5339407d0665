"""An answer that another server gives."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from jackfield.backends.breaker import Attempt
from jackfield.backends.chunks import Chunks, SpokenTokens
from jackfield.backends.upstream import Upstream
from jackfield.choice import AnswerFinish, Delta
from jackfield.drain import Drain
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.errors import (
    DeadlineExceededError,
    JackfieldError,
    ShuttingDownError,
    UpstreamBusyError,
    UpstreamError,
    UpstreamLimitError,
)
from jackfield.exchange import Exchange
from jackfield.protocol.base import JsonObject
from jackfield.protocol.extension import ChoiceReport, EndedBy, Extension
from jackfield.protocol.usage import Usage

logger = logging.getLogger(__name__)

NOT_PASSED_ON = ("jackfield", "timeout", "priority", "cache_prompt")
"""Fields of our own: other servers refuse what they do not know, and these are seen to here."""

END = None
"""After the last chunk."""


@dataclass(frozen=True)
class Question:
    """What another server is asked.

    Args:
        upstream: who.
        model: what the model is called there.
        tokens: where the answer's tokens get their numbers.
        trail: see `jackfield.backends.upstream.onward`.
        deadline: when the answer has to end, on ``time.monotonic``'s clock.
    """

    upstream: Upstream
    model: str
    tokens: SpokenTokens
    trail: Mapping[str, str]
    deadline: float | None = None


class UpstreamAnswer:
    """All choices of one request, as another server gives them. Iterate once; then ``cancel``.

    Args:
        question: who is asked, and for which model.
        document: the request in the words of ``/v1/chat/completions`` or ``/v1/completions``.
        exchange: where it is told how the answer goes.
        drain: ends it when the server's time is over.
    """

    parsed = False

    def __init__(self, question: Question, document: JsonObject, exchange: Exchange, drain: Drain) -> None:
        self.exchange = exchange
        self.each = document.get("n") or 1
        self.requests = _stand_ins(document, self.each)
        self._question = question
        self._upstream = question.upstream
        self._document = document
        self._drain = drain
        self._chunks = Chunks(len(self.requests), question.tokens, self._upstream.nonsense)
        self._heard: asyncio.Queue[JsonObject | Exception | None] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._attempt: Attempt | None = None
        self._ended_by: EndedBy | None = None
        self._waits = False
        self._began = time.monotonic()

    def admit(self) -> None:
        """Whether it is taken is seen when it is sent."""

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """What the choices have more, as it comes, until all of them have ended.

        Raises:
            JackfieldError: the upstream failed, or the request's time was over before anything was said.
        """
        self._send()
        held: list[Delta] = []
        try:
            while (chunk := await self._next()) is not END:
                self._has_spoken()
                for delta in self._chunks.take(chunk):
                    self.exchange.generated(delta.index, delta.tokens, waited=0.0, cached=0)
                    if self._chunks.ended:
                        # The end is told when it is known how many tokens there were.
                        held.append(delta)
                    else:
                        yield delta
        except JackfieldError as error:
            self._failed(error)
            raise
        held += self._chunks.cut_off()
        self._ended_by = self._ended_by or "stop"
        for delta in held:
            yield delta
        self._succeeded()

    # --- Sending and hearing -----------------------------------------------------------------------------------------

    def _send(self) -> None:
        self._attempt = self._upstream.begin()
        self._upstream.waiting += 1
        self._waits = True
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        body = {name: value for name, value in self._document.items() if name not in NOT_PASSED_ON}
        body |= {"model": self._question.model, "stream": True, "stream_options": {"include_usage": True}}
        path = "/chat/completions" if "messages" in body else "/completions"
        headers = {**self._question.trail, "X-Request-ID": self.exchange.info.id}
        try:
            async with aclosing(self._upstream.chunks(path, body, headers)) as chunks:
                async for chunk in chunks:
                    self._heard.put_nowait(chunk)
            self._heard.put_nowait(END)
        except JackfieldError as error:
            self._heard.put_nowait(error)
        except Exception as error:
            logger.exception("Upstream %s could not be read.", self._upstream.name, exc_info=error)
            self._heard.put_nowait(self._upstream.nonsense("it could not be read"))

    async def _next(self) -> JsonObject | None:
        settings = self._upstream.settings
        seconds, deadline = settings.first_seconds if self._waits else settings.idle_seconds, self._question.deadline
        left = seconds if deadline is None else min(seconds, deadline - time.monotonic())
        try:
            async with self._drain.interrupting(), asyncio.timeout(max(left, 0.0)):
                heard = await self._heard.get()
        except TimeoutError:
            if self._chunks.ended:
                return END
            if deadline is None or time.monotonic() < deadline:
                raise self._upstream.late(seconds) from None
            if self._waits:
                raise DeadlineExceededError from None
            self._ended_by = "timeout"
            return END
        if self._chunks.ended:
            # Whatever becomes of the connection, the answer is whole.
            return None if isinstance(heard, Exception) else heard
        if isinstance(heard, Exception):
            raise heard
        if heard is END:
            raise self._upstream.nonsense("its stream ended before the answer did")
        return heard

    def _has_spoken(self) -> None:
        if self._waits:
            self._waits = False
            self._upstream.waiting -= 1

    # --- Ends --------------------------------------------------------------------------------------------------------

    def _succeeded(self) -> None:
        self._end("answered")
        if self._attempt is not None:
            self._attempt.succeeded()
        each = self.usage().completion_tokens // len(self.requests)
        for finish in self._chunks.finishes:
            self.exchange.finished(self._choice_ended_by(finish), each)
        self.exchange.completed(**self._facts())

    def _failed(self, error: JackfieldError) -> None:
        self._end(error.error_code or error.type)
        if self._attempt is None:
            return
        if _is_to_blame(error):
            self._attempt.failed()
        elif isinstance(error, DeadlineExceededError | ShuttingDownError):
            self._attempt.abandoned()
        else:
            # It is there, and answers.
            self._attempt.succeeded()

    def _end(self, outcome: str) -> None:
        self._has_spoken()
        if self._reading is not None:
            self._upstream.outcomes[outcome] += 1
            self._reading.cancel()
            self._reading = None

    @property
    def ended(self) -> bool:
        """Whether all choices have."""
        return self._ended_by is not None

    def cancel(self) -> None:
        """Nobody listens any more: the upstream is told so at once."""
        self.exchange.cancelled(self._chunks.usage.completion_tokens)
        self.stop()

    def stop(self) -> None:
        """The upstream need not go on; harmless once it has ended."""
        self._end("cancelled")
        if self._attempt is not None:
            self._attempt.abandoned()

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        self._ended_by = by
        yield from self._chunks.cut_off()

    # --- What there is to say of it ----------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """As the upstream counts."""
        return self._chunks.usage

    def extension(self) -> Extension:
        """How the choices came about; only when all have ended."""
        spoke = self.exchange.first_token_seconds or 0.0
        return Extension(
            request_id=self.exchange.info.id,
            backend=self.exchange.backend,
            choices=[
                ChoiceReport(
                    index=index,
                    cache=None,
                    queue_seconds=0.0,
                    prefill_seconds=spoke,
                    decode_seconds=max(0.0, time.monotonic() - self._began - spoke),
                    preemptions=None,
                    ended_by=self._choice_ended_by(finish),
                )
                for index, finish in enumerate(self._chunks.finishes)
            ],
            attempts=self.exchange.attempts or None,
        )

    def _choice_ended_by(self, finish: AnswerFinish) -> EndedBy:
        if finish != "length":
            return "stop"
        return "length" if self._ended_by is None or self._ended_by == "stop" else self._ended_by

    def _facts(self) -> dict[str, object]:
        usage, finishes = self.usage(), self._chunks.finishes
        spoke = self.exchange.first_token_seconds or 0.0
        return {
            "finish_reasons": list(finishes),
            "ended_by": [self._choice_ended_by(finish) for finish in finishes],
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.prompt_tokens_details.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "tokens_per_second": usage.completion_tokens / max(self.exchange.seconds - spoke, 1e-6),
            "memory_before": 0,
            "memory_after": 0,
            "confidence": [{} for _ in finishes],
        }


def _is_to_blame(error: JackfieldError) -> bool:
    """Whether an error says that the upstream is not well, rather than that it is busy or not set up for this."""
    if isinstance(error, UpstreamLimitError):
        return False
    known = ("upstream_unauthorized", "upstream_model_not_found")
    return isinstance(error, UpstreamError | UpstreamBusyError) and error.error_code not in known


def _stand_ins(document: JsonObject, each: int) -> Sequence[GenerationRequest]:
    """One a choice, in the place of what an engine would be asked: their prompts are not known here."""
    prompt = document.get("prompt")
    sampling = SamplingParameters(
        temperature=1.0 if document.get("temperature") is None else document["temperature"],
        top_p=1.0 if document.get("top_p") is None else document["top_p"],
        frequency_penalty=document.get("frequency_penalty") or 0.0,
        presence_penalty=document.get("presence_penalty") or 0.0,
    )
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    limit = document.get("max_completion_tokens") or document.get("max_tokens") or 0
    return [GenerationRequest(f"upstream-{i}", (), limit, sampling) for i in range(each * prompts)]
