"""An answer that another server gives."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

from jackfield.backends.chunks import Chunks
from jackfield.backends.dialect import INFILL, said
from jackfield.backends.infill_chunks import InfillChunks
from jackfield.backends.question import Question
from jackfield.backends.refusals import ELSEWHERE
from jackfield.backends.turn import Turn
from jackfield.choice import AnswerFinish, Delta
from jackfield.drain import Drain
from jackfield.engine.request import GenerationRequest, SamplingParameters
from jackfield.errors import DeadlineExceededError, JackfieldError, UnsupportedError
from jackfield.exchange import Exchange
from jackfield.protocol.base import JsonObject
from jackfield.protocol.extension import ChoiceReport, EndedBy, Extension
from jackfield.protocol.usage import Usage

logger = logging.getLogger(__name__)

END = None
"""After the last chunk."""


class UpstreamAnswer:
    """All choices of one request, as another server gives them. Iterate once; then ``cancel``.

    Args:
        question: who is asked, and for which model.
        document: the request in the words of ``/v1/chat/completions`` or ``/v1/completions``, or ``infill``'s.
        exchange: where it is told how the answer goes.
        drain: ends it when the server's time is over.
        infill: whether it is asked in llama.cpp's words to fill a gap.

    Raises:
        UnsupportedError: the upstream has no words for a part of it.
    """

    parsed = False

    def __init__(
        self, question: Question, document: JsonObject, exchange: Exchange, drain: Drain, *, infill: bool = False
    ) -> None:
        self.exchange = exchange
        self.each = document.get("n") or 1
        self.requests = stand_ins(document, self.each)
        self._question = question
        self._upstream = question.upstream
        path = INFILL if infill else "/chat/completions" if "messages" in document else "/completions"
        self._path, self._document = said(self._upstream.settings.speaks, path, document)
        self._drain = drain
        reads = InfillChunks if self._path == INFILL else Chunks
        self._chunks = reads(len(self.requests), question.tokens, self._upstream.nonsense, each=self.each)
        self._heard: asyncio.Queue[JsonObject | Exception | None] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None
        self._turn: Turn | None = None
        self._ended_by: EndedBy | None = None
        self._pieces = 0
        self._began = time.monotonic()

    def admit(self) -> None:
        """Whether it is taken is seen when it is sent."""

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        """What the choices have more, as it comes, until all of them have ended.

        Raises:
            JackfieldError: the upstream failed, or the request's time was over before anything was said.
        """
        self._turn = turn = Turn(self._upstream)
        self._reading = asyncio.create_task(self._read())
        held: list[Delta] = []
        try:
            while (chunk := await self._next(turn)) is not END:
                for delta in self._chunks.take(chunk):
                    turn.has_spoken()
                    self._pieces += 1
                    self.exchange.generated(delta.index, delta.tokens, waited=0.0, cached=0)
                    if self._chunks.ended:
                        # The end is told when it is known how many tokens there were.
                        held.append(delta)
                    else:
                        yield delta
        except JackfieldError as error:
            self._stop_reading()
            self._spend()
            turn.failed(error)
            raise
        held += self._chunks.cut_off()
        self._ended_by = self._ended_by or "stop"
        for delta in held:
            yield delta
        self._succeeded(turn)

    # --- Sending and hearing -----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            async with aclosing(self._asked()) as chunks:
                async for chunk in chunks:
                    self._heard.put_nowait(chunk)
            self._heard.put_nowait(END)
        except JackfieldError as error:
            self._heard.put_nowait(error)
        except Exception as error:
            logger.exception("Upstream %s could not be read.", self._upstream.name, exc_info=error)
            self._heard.put_nowait(self._upstream.nonsense("it could not be read"))

    def _asked(self) -> AsyncGenerator[JsonObject, None]:
        body, headers = self._question.body(self._document) | {"stream": True}, self._question.headers
        options = {} if self._path == INFILL else {"stream_options": {"include_usage": True}}
        return self._upstream.chunks(self._path, body | options, headers)

    async def _next(self, turn: Turn) -> JsonObject | None:
        settings = self._upstream.settings
        patience = settings.first_seconds if turn.waits else settings.idle_seconds
        try:
            async with self._drain.interrupting(), asyncio.timeout(self._question.seconds(patience)):
                heard = await self._heard.get()
        except TimeoutError:
            if self._chunks.ended:
                return END
            silent = self._question.silent(patience)
            if turn.waits or not isinstance(silent, DeadlineExceededError):
                raise silent from None
            self._ended_by = "timeout"
            return END
        if self._chunks.ended:
            # Whatever becomes of the connection, the answer is whole.
            return None if isinstance(heard, Exception) else heard
        if isinstance(heard, Exception):
            raise heard
        if heard is END:
            raise self._too_early()
        return heard

    def _too_early(self) -> JackfieldError:
        if not self._chunks.too_few:
            return self._upstream.nonsense("its stream ended before the answer did")
        return UnsupportedError(
            f"Upstream {self._upstream.name} gives fewer choices than are asked for.",
            param="n" if self.each > 1 else "prompt",
            suggestions=("Ask for one at a time.", ELSEWHERE),
        )

    # --- Ends --------------------------------------------------------------------------------------------------------

    def _succeeded(self, turn: Turn) -> None:
        self._stop_reading()
        self._spend()
        turn.succeeded()
        each = self.usage().completion_tokens // len(self.requests)
        for finish in self._chunks.finishes:
            self.exchange.finished(self._choice_ended_by(finish), each)
        self.exchange.completed(**self._facts())

    def _spend(self) -> None:
        # Most servers count when all is said; until then a piece is taken for a token.
        self.exchange.spends(max(self.usage().total_tokens, self._pieces))

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    @property
    def ended(self) -> bool:
        """Whether all choices have."""
        return self._ended_by is not None

    @property
    def truncated(self) -> bool:
        """Whether the upstream says that it has left out some of the prompt."""
        return self._chunks.truncated

    def cancel(self) -> None:
        """Nobody listens any more: the upstream is told so at once."""
        self._spend()
        self.exchange.cancelled(self._chunks.usage.completion_tokens)
        self.stop()

    def stop(self) -> None:
        """The upstream need not go on; harmless once it has ended."""
        self._stop_reading()
        if self._turn is not None:
            self._turn.abandoned()

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


def stand_ins(document: JsonObject, each: int) -> Sequence[GenerationRequest]:
    """One a choice, in the place of what an engine would be asked: their prompts are not known here."""
    prompt = document.get("prompt")
    sampling = SamplingParameters(
        temperature=1.0 if document.get("temperature") is None else document["temperature"],
        top_p=1.0 if document.get("top_p") is None else document["top_p"],
        frequency_penalty=document.get("frequency_penalty") or 0.0,
        presence_penalty=document.get("presence_penalty") or 0.0,
    )
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    limits = (document.get(name) for name in ("max_completion_tokens", "max_tokens", "n_predict"))
    limit = next(filter(None, limits), 0)
    return [GenerationRequest(f"upstream-{i}", (), limit, sampling) for i in range(each * prompts)]
