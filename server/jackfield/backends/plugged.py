"""An answer by a backend that a plugin brings."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from jackfield.answer import Answer
from jackfield.choice import Delta
from jackfield.drain import Drain
from jackfield.errors import DeadlineExceededError, InvalidRequestError, JackfieldError, UnavailableError
from jackfield.hooks.data import JsonObject
from jackfield.hooks.dispatcher import PluginError
from jackfield.hooks.specs import Backend
from jackfield.protocol.extension import ChoiceReport, EndedBy, Extension
from jackfield.protocol.usage import Usage

logger = logging.getLogger(__name__)


class PluggedAnswer:
    """One choice of plain text.

    Args:
        backend: who answers.
        body: the request in OpenAI's words.
        own: what the engine here would do; it knows the prompt, and counts tokens.
        plain: whether one choice of text alone is asked for.
        seconds: how long the backend may say nothing.
        drain: ends it when the server's time is over.
    """

    def __init__(
        self, backend: Backend, body: JsonObject, own: Answer, *, plain: bool, seconds: float, drain: Drain
    ) -> None:
        self._plain = plain
        self._backend = backend
        self._body = body
        self._own = own
        self._exchange = own.exchange
        self._seconds = seconds
        self._drain = drain
        self._text = ""
        self._ended_by: EndedBy | None = None
        self._began = time.monotonic()

    def admit(self) -> None:
        """Make sure that it can be answered this way.

        Raises:
            InvalidRequestError: it asks for more than text.
        """
        if not self._plain:
            raise InvalidRequestError(
                "Whoever answers this request gives one choice, as text alone.",
                suggestions=("Leave out 'n', 'logprobs', 'tools' and 'response_format'.",),
            )

    async def __aiter__(self) -> AsyncIterator[Delta]:
        """The text as it comes.

        Raises:
            DeadlineExceededError: the request's time was over before anything was said.
            ShuttingDownError: the server's time is over.
            Exception: whatever the backend raised.
        """
        answer = aiter(self._backend.answer(self._exchange.info, self._body))
        try:
            while (piece := await self._next(answer)) is not None:
                if piece:
                    self._exchange.generated(0, (), waited=0.0, cached=0)
                    self._text += piece
                    yield Delta(0, (piece,))
        finally:
            if isinstance(answer, AsyncGenerator):
                await answer.aclose()
        self._ended_by = self._ended_by or "stop"
        yield Delta(0, finish_reason="length" if self._ended_by == "timeout" else "stop")
        self._exchange.finished(self._ended_by, self._tokens)
        self._exchange.completed(**self._facts())

    async def _next(self, answer: AsyncIterator[str]) -> str | None:
        deadline = self._own.requests[0].deadline
        left = self._seconds if deadline is None else min(self._seconds, deadline - time.monotonic())
        try:
            # In this task, since what a generator opens it must close in the same one.
            async with self._drain.interrupting(), asyncio.timeout(max(left, 0.0)):
                piece = await self._anext(answer)
        except TimeoutError:
            if deadline is None or time.monotonic() < deadline:
                raise UnavailableError(f"Nothing came for {self._seconds:g} seconds.") from None
            if not self._text:
                raise DeadlineExceededError from None
            self._ended_by = "timeout"
            return None
        if piece is not None and not isinstance(piece, str):
            raise PluginError(f"a backend answered {type(piece).__name__} instead of text")
        return piece

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
        self._exchange.spends(self.usage().total_tokens)
        self._exchange.cancelled(self._tokens)

    def stop(self) -> None:
        """It ends with the iteration."""

    def cut_off(self, by: EndedBy = "error") -> Iterator[Delta]:
        """What is left to say when nothing more comes."""
        self._ended_by = by
        yield Delta(0, finish_reason="length")

    @property
    def _tokens(self) -> int:
        return len(self._own.model.tokenizer.encode(self._text, special=False))

    def usage(self) -> Usage:
        """As the served model's own tokenizer counts."""
        return Usage.of(prompt=len(self._own.requests[0].prompt), completion=self._tokens)

    def extension(self) -> Extension:
        """How it came about; only when it has ended."""
        report = ChoiceReport(
            index=0,
            cache=None,
            queue_seconds=0.0,
            prefill_seconds=self._exchange.first_token_seconds or 0.0,
            decode_seconds=time.monotonic() - self._began,
            preemptions=None,
            ended_by=self._ended_by or "error",
        )
        info = self._exchange.info
        return Extension(
            request_id=info.id,
            backend=self._exchange.backend,
            choices=[report],
            compression=self._exchange.compression,
            attempts=self._exchange.attempts or None,
        )

    def _facts(self) -> dict[str, object]:
        usage = self.usage()
        self._exchange.spends(usage.total_tokens)
        spoke = self._exchange.first_token_seconds or 0.0
        return {
            "finish_reasons": ["length" if self._ended_by == "timeout" else "stop"],
            "ended_by": [self._ended_by],
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": 0,
            "completion_tokens": usage.completion_tokens,
            "tokens_per_second": usage.completion_tokens / max(self._exchange.seconds - spoke, 1e-6),
            "memory_before": 0,
            "memory_after": 0,
            "confidence": [{}],
        }
