"""What both endpoints do alike: read a request, and send its answer whole or as a stream."""

import asyncio
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer, by_choice
from jackfield.api import body, sse
from jackfield.choice import Delta
from jackfield.models.registry import ServedModel
from jackfield.protocol.base import AnswerModel
from jackfield.protocol.chat import ChatChunkChoice
from jackfield.protocol.completions import CompletionChunkChoice
from jackfield.protocol.generation import GenerationAnswer
from jackfield.protocol.sampling import SamplingRequest

Asked = TypeVar("Asked", bound=SamplingRequest)
ChunkChoice = ChatChunkChoice | CompletionChunkChoice


class Reply(ABC, Generic[Asked]):
    """The answer to one request, and how to put it into OpenAI's words.

    Args:
        asked: what the client sent.
        model: who answers.
        arrived: when the request came, on ``time.monotonic``'s clock.
    """

    prefix: ClassVar[str]
    whole: ClassVar[type[GenerationAnswer]]
    chunk: ClassVar[type[GenerationAnswer]]

    def __init__(self, asked: Asked, model: ServedModel, arrived: float) -> None:
        self.asked = asked
        self.model = model
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head: dict[str, Any] = {"id": self.id, "created": int(time.time()), "model": model.id}
        self.answer = self.ask(arrived)

    @abstractmethod
    def ask(self, arrived: float) -> Answer:
        """What the engine has to do."""

    @abstractmethod
    def choice(self, index: int, parts: Sequence[Delta]) -> AnswerModel:
        """One of the choices, whole."""

    @abstractmethod
    def pieces(self, part: Delta) -> Iterator[ChunkChoice]:
        """More of a choice, as chunks say it."""

    def opening(self) -> Iterator[ChunkChoice]:
        """What a stream begins with, before there is an answer."""
        yield from ()

    async def collect(self) -> GenerationAnswer:
        """The whole answer."""
        try:
            parts = [part async for part in self.answer if isinstance(part, Delta)]
        finally:
            self.answer.cancel()
        choices = [self.choice(index, own) for index, own in enumerate(by_choice(parts, len(self.answer.requests)))]
        whole = self.whole(**self._head, choices=choices, usage=self.answer.usage())
        if self.asked.jackfield:
            whole.jackfield = self.answer.extension()
        return whole

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes, chunk by chunk."""
        for piece in self.opening():
            yield self._event(piece)
        async with aclosing(sse.deltas(self.answer)) as parts:
            async for part in parts:
                for event in [part] if isinstance(part, bytes) else map(self._event, self.pieces(part)):
                    yield event
        if self._wants_usage and self.answer.ended:
            yield self._event(None)
        yield sse.DONE

    def _event(self, piece: ChunkChoice | None) -> bytes:
        chunk = self.chunk(**self._head, choices=[piece] if piece else [])
        options = self.asked.stream_options
        if piece is None or (options and options.continuous_usage_stats):
            chunk.usage = self.answer.usage()
        elif self._wants_usage:
            chunk.usage = None
        if self.asked.jackfield and self._is_last(piece):
            chunk.jackfield = self.answer.extension()
        return sse.event(chunk)

    @property
    def _wants_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _is_last(self, piece: ChunkChoice | None) -> bool:
        if piece is None or self._wants_usage:
            return piece is None  # the one with the usage
        return piece.finish_reason is not None and self.answer.ended


async def respond(request: Request, asks: type[Asked], reply: type[Reply[Asked]]) -> Response:
    """Answer a request."""
    arrived = time.monotonic()
    asked = await body.read(request, asks)
    model = request.app.state.registry.get(asked.model)
    # Templates, tokens and grammars take their time.
    prepared = await asyncio.to_thread(reply, asked, model, arrived)
    prepared.answer.admit()
    if asked.stream:
        return sse.respond(prepared.stream(), request.app.state.settings.heartbeat)
    completion = await body.unless_gone(request, prepared.collect())
    return Response(completion.to_json(), media_type="application/json")
