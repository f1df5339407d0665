"""An answer by a backend that a plugin brings."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from jackfield.choice import Delta
from jackfield.drain import Drain
from jackfield.engine.request import GenerationRequest
from jackfield.errors import (
    DeadlineExceededError,
    JackfieldError,
    ShuttingDownError,
    UnsupportedError,
    UpstreamError,
    UpstreamTimeoutError,
)
from jackfield.exchange import Exchange
from jackfield.hooks.data import JsonObject
from jackfield.hooks.dispatcher import PluginError
from jackfield.hooks.specs import Backend
from jackfield.protocol.extension import ChoiceReport, EndedBy, Extension
from jackfield.protocol.usage import Usage
from jackfield.settings.upstreams import Capability

logger = logging.getLogger(__name__)


TEXT_ALONE: frozenset[Capability] = frozenset({"tools", "structured_output", "logprobs"})
"""What answers of text alone are not enough for."""


@dataclass(frozen=True)
class PluggedTask:
    """What such a backend has to do.

    Args:
        body: the request in OpenAI's words.
        requests: one a choice, as an engine would have them.
        prompt_tokens: how many there are.
        count: how many tokens a text has.
        plain: whether one choice of text alone is asked for.
        deadline: when the answer has to end, on ``time.monotonic``'s clock.
    """

    body: JsonObject
    requests: Sequence[GenerationRequest]
    prompt_tokens: int
    count: Callable[[str], int]
    plain: bool
    deadline: float | None


class PluggedAnswer:
    """One choice of plain text.

    Args:
        name: the backend's.
        backend: who answers.
        task: what there is to do.
        exchange: where it is told how the answer goes.
        seconds: how long the backend may say nothing.
        drain: ends it when the server's time is over.
        outcome: hears how the backend did: None for well, or what was wrong.
    """

    each = 1

    def __init__(
        self,
        name: str,
        backend: Backend,
        task: PluggedTask,
        exchange: Exchange,
        *,
        seconds: float,
        drain: Drain,
        outcome: Callable[[Exception | None], None],
    ) -> None:
        self.requests = task.requests
        self.exchange = exchange
        self._name = name
        self._backend = backend
        self._task = task
        self._seconds = seconds
        self._drain = drain
        self._outcome = outcome
        self._text = ""
        self._ended_by: EndedBy | None = None
        self._began = time.monotonic()

    def admit(self) -> None:
        """Make sure that it can be answered this way.

        Raises:
            UnsupportedError: it asks for more than text.
        """
        if not self._task.plain:
            raise UnsupportedError(
                f"{self._name} gives one choice, as text alone.",
                suggestions=("Leave out 'n', 'logprobs', 'tools', 'regex', 'grammar' and 'response_format'.",),
            )

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        """The text as it comes.

        Raises:
            DeadlineExceededError: the request's time was over before anything was said.
            ShuttingDownError: the server's time is over.
            UpstreamError: the backend failed.
        """
        try:
            async for part in self._parts():
                yield part
        except (DeadlineExceededError, ShuttingDownError):
            # The client's own limit, or the server's end: no fault of the backend.
            raise
        except Exception as error:
            self._outcome(error)
            if isinstance(error, JackfieldError):
                raise
            # Its own words may quote the request.
            raise UpstreamError(
                f"{self._name}, which was to answer, failed ({type(error).__name__}).",
                suggestions=("Send the request again.", "Look at the server's log, and at GET /v1/plugins."),
            ) from None
        self._outcome(None)
        self.exchange.finished(self._ended_by or "stop", self._tokens)
        self.exchange.completed(**self._facts())

    async def _parts(self) -> AsyncIterator[Delta]:
        answer = aiter(self._backend.answer(self.exchange.info, self._task.body))
        try:
            while (piece := await self._next(answer)) is not None:
                if piece:
                    self.exchange.generated(0, (), waited=0.0, cached=0)
                    self._text += piece
                    yield Delta(0, (piece,))
        finally:
            if isinstance(answer, AsyncGenerator):
                await answer.aclose()
        self._ended_by = self._ended_by or "stop"
        yield Delta(0, finish_reason="length" if self._ended_by == "timeout" else "stop")

    async def _next(self, answer: AsyncIterator[str]) -> str | None:
        deadline = self._task.deadline
        left = self._seconds if deadline is None else min(self._seconds, deadline - time.monotonic())
        try:
            # In this task, since what a generator opens it must close in the same one.
            async with self._drain.interrupting(), asyncio.timeout(max(left, 0.0)):
                piece = await self._anext(answer)
        except TimeoutError:
            if deadline is None or time.monotonic() < deadline:
                raise self._late() from None
            if not self._text:
                raise DeadlineExceededError from None
            self._ended_by = "timeout"
            return None
        if piece is not None and not isinstance(piece, str):
            raise PluginError(f"a backend answered {type(piece).__name__} instead of text")
        return piece

    def _late(self) -> UpstreamTimeoutError:
        return UpstreamTimeoutError(
            f"{self._name}, which was to answer, said nothing for {self._seconds:g} seconds.",
            suggestions=("Try again when it has less to do.", "Set slow_hook_seconds higher."),
        )

    @staticmethod
    async def _anext(answer: AsyncIterator[str]) -> str | None:
        """The next piece; errors come without their own words, which may quote the request."""
        try:
            return await anext(answer, None)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise PluginError("a backend was cancelled by itself") from None
        except (JackfieldError, TimeoutError):
            raise
        except (Exception, SystemExit) as error:
            logger.debug("A backend failed.", exc_info=error)
            raise PluginError(f"a backend raised {type(error).__name__}") from None

    @property
    def ended(self) -> bool:
        """Whether it is whole."""
        return self._ended_by is not None

    def cancel(self) -> None:
        """Nobody listens any more."""
        self.exchange.spends(self.usage().total_tokens)
        self.exchange.cancelled(self._tokens)

    def stop(self) -> None:
        """It ends with the iteration."""

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        self._ended_by = by
        yield Delta(0, finish_reason="length")

    @property
    def _tokens(self) -> int:
        return self._task.count(self._text)

    def usage(self) -> Usage:
        """As far as it is known."""
        return Usage.of(prompt=self._task.prompt_tokens, completion=self._tokens)

    def extension(self) -> Extension:
        """How it came about; only when it has ended."""
        report = ChoiceReport(
            index=0,
            cache=None,
            queue_seconds=0.0,
            prefill_seconds=self.exchange.first_token_seconds or 0.0,
            decode_seconds=time.monotonic() - self._began,
            preemptions=None,
            ended_by=self._ended_by or "error",
        )
        info = self.exchange.info
        return Extension(
            request_id=info.id,
            backend=self.exchange.backend,
            choices=[report],
            compression=self.exchange.compression,
            attempts=self.exchange.attempts or None,
        )

    def _facts(self) -> dict[str, object]:
        usage = self.usage()
        self.exchange.spends(usage.total_tokens)
        spoke = self.exchange.first_token_seconds or 0.0
        return {
            "finish_reasons": ["length" if self._ended_by == "timeout" else "stop"],
            "ended_by": [self._ended_by],
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": 0,
            "completion_tokens": usage.completion_tokens,
            "tokens_per_second": usage.completion_tokens / max(self.exchange.seconds - spoke, 1e-6),
            "memory_before": 0,
            "memory_after": 0,
            "confidence": [{}],
        }
