"""Answers as OpenAI's two older endpoints give them: choices, or chunks of choices."""

import time
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, TypeVar

from jackfield.answer import by_choice
from jackfield.api import sse
from jackfield.api.reply import Reply
from jackfield.choice import Delta
from jackfield.errors import JackfieldError
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.protocol.base import AnswerModel
from jackfield.protocol.chat import ChatChunkChoice
from jackfield.protocol.completions import CompletionChunkChoice
from jackfield.protocol.generation import GenerationAnswer
from jackfield.protocol.sampling import SamplingRequest

Asked = TypeVar("Asked", bound=SamplingRequest)
ChunkChoice = ChatChunkChoice | CompletionChunkChoice


class ChoicesReply(Reply[Asked]):
    """One answer, or several to choose from."""

    prefix: ClassVar[str]
    whole: ClassVar[type[GenerationAnswer]]
    chunk: ClassVar[type[GenerationAnswer]]

    def __init__(self, asked: Asked, model: ServedModel, exchange: Exchange, host: Host) -> None:
        super().__init__(asked, model, exchange, host)
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head: dict[str, Any] = {"id": self.id, "created": int(time.time()), "model": model.id}

    @abstractmethod
    def choice(self, index: int, parts: Sequence[Delta]) -> AnswerModel:
        """One of the choices, whole."""

    @abstractmethod
    def pieces(self, part: Delta) -> Iterator[ChunkChoice]:
        """More of a choice, as chunks say it."""

    def opening(self) -> Iterator[ChunkChoice]:
        """What a stream begins with, before there is an answer."""
        yield from ()

    async def collect(self) -> AnswerModel:
        """The whole answer."""
        parts = by_choice(await self.parts(), len(self.answer.requests))
        choices = [self.choice(index, own) for index, own in enumerate(parts)]
        whole = self.whole(**self._head, choices=choices, usage=self.answer.usage())
        if self.asked.wants_extension:
            whole.jackfield = self.answer.extension()
        return await self.transformed(whole)

    @classmethod
    def refused(cls, error: JackfieldError, request_id: str) -> Iterator[bytes]:
        """The error, and the end."""
        yield from super().refused(error, request_id)
        yield sse.DONE

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes, chunk by chunk."""
        for piece in self.opening():
            yield self._event(piece)
        async with aclosing(self.deltas()) as parts:
            async for part in parts:
                match part:
                    case bytes():
                        yield part
                    case JackfieldError():
                        for event in self.refused(part, self.exchange.info.id):
                            yield event
                        return
                    case Delta():
                        for piece in self.pieces(part):
                            yield self._event(piece)
        if self._wants_usage and self.answer.ended:
            yield self._event(None)
        yield sse.DONE

    def _event(self, piece: ChunkChoice | None) -> bytes:
        return sse.event(self._chunk(piece))

    def _chunk(self, piece: ChunkChoice | None) -> GenerationAnswer:
        chunk = self.chunk(**self._head, choices=[piece] if piece else [])
        options = self.asked.stream_options
        if piece is None or (options and options.continuous_usage_stats):
            chunk.usage = self.answer.usage()
        elif self._wants_usage:
            chunk.usage = None
        if self.asked.wants_extension and self._is_last(piece):
            chunk.jackfield = self.answer.extension()
        return chunk

    @property
    def _wants_usage(self) -> bool:
        return bool(self.asked.stream_options and self.asked.stream_options.include_usage)

    def _is_last(self, piece: ChunkChoice | None) -> bool:
        if piece is None or self._wants_usage:
            return piece is None  # the one with the usage
        return piece.finish_reason is not None and self.answer.ended
