"""What both endpoints do alike: read a request, and send its answer whole or as a stream."""

import asyncio
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from jackfield.answer import Answer, by_choice
from jackfield.api import body, sse
from jackfield.backends.cascade import Cascade
from jackfield.choice import Delta
from jackfield.exchange import Exchange
from jackfield.hooks.data import TextDelta
from jackfield.host import OWN, Host
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
        exchange: where it is told how the answer goes.
        host: the server.
    """

    prefix: ClassVar[str]
    whole: ClassVar[type[GenerationAnswer]]
    chunk: ClassVar[type[GenerationAnswer]]
    answer: Answer | Cascade

    def __init__(self, asked: Asked, model: ServedModel, exchange: Exchange, host: Host) -> None:
        self.asked = asked
        self.model = model
        self.exchange = exchange
        self.host = host
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head: dict[str, Any] = {"id": self.id, "created": int(time.time()), "model": model.id}

    async def prepare(self) -> None:
        """Find out what has to be done, and who does it."""
        # Templates, tokens and grammars take their time.
        self.answer = own = await asyncio.to_thread(self.ask)
        self.exchange.station("received", **self.facts())
        name, reason = await self.host.backend(self.exchange.info)
        self.exchange.answered_by(name, reason)
        if name != OWN:
            document = self.asked.model_dump(mode="json", by_alias=True, exclude_unset=True)
            plain = len(own.requests) == 1 and own.requests[0].grammar is None and not own.parsed and not self.scored
            self.answer = self.host.plugged(name, own, document, plain=plain)

    @property
    @abstractmethod
    def scored(self) -> bool:
        """Whether log probabilities are asked for."""

    @abstractmethod
    def ask(self) -> Answer:
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

    def facts(self) -> dict[str, Any]:
        """What there is to log of the request, in numbers and names."""
        requests = self.answer.requests
        return {
            "prompt_tokens": sum(len(one.prompt) for one in requests[:: self.answer.each]),
            "max_tokens": requests[0].max_tokens,
            "choices": len(requests),
            "context_length": self.model.context_length,
        }

    async def collect(self) -> GenerationAnswer:
        """The whole answer."""
        try:
            parts = [part async for part in self.answer if isinstance(part, Delta)]
        except Exception as error:
            self.exchange.failed(error)
            raise
        finally:
            self.answer.cancel()
        choices = [self.choice(index, own) for index, own in enumerate(by_choice(parts, len(self.answer.requests)))]
        whole = self.whole(**self._head, choices=choices, usage=self.answer.usage())
        if self.asked.wants_extension:
            whole.jackfield = self.answer.extension()
        return await self._transformed(whole)

    async def _transformed(self, whole: GenerationAnswer) -> GenerationAnswer:
        hooks = self.exchange.hooks
        if not hooks.has("transform_response"):
            return whole
        check = self.whole.model_validate
        return check(await hooks.transform_response(self.exchange.info, json.loads(whole.to_json()), check))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes, chunk by chunk."""
        for piece in self.opening():
            yield self._event(piece)
        async with aclosing(sse.deltas(self.answer)) as parts:
            async for part in parts:
                if isinstance(part, bytes):
                    yield part
                    continue
                for piece in self.pieces(await self._transformed_delta(part)):
                    yield self._event(piece)
        if self._wants_usage and self.answer.ended:
            yield self._event(None)
        yield sse.DONE

    async def _transformed_delta(self, part: Delta) -> Delta:
        hooks = self.exchange.hooks
        if not part.text or not hooks.has("transform_delta"):
            return part
        delta = await hooks.transform_delta(self.exchange.info, TextDelta(part.index, part.text))
        return replace(part, text=delta.text)

    def _event(self, piece: ChunkChoice | None) -> bytes:
        chunk = self.chunk(**self._head, choices=[piece] if piece else [])
        options = self.asked.stream_options
        if piece is None or (options and options.continuous_usage_stats):
            chunk.usage = self.answer.usage()
        elif self._wants_usage:
            chunk.usage = None
        if self.asked.wants_extension and self._is_last(piece):
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
    exchange = Exchange.of(request)
    try:
        whole = await body.whole(request)
        prepared = await body.unless_gone(request, _prepare(request, whole, asks, reply, exchange))
        prepared.answer.admit()
    except ClientDisconnect:
        exchange.cancelled(0)
        raise
    except Exception as error:
        exchange.failed(error)
        raise
    if prepared.asked.stream:
        return sse.respond(prepared.stream(), prepared.host.settings.heartbeat)
    completion = await body.unless_gone(request, prepared.collect())
    return Response(completion.to_json(), media_type="application/json")


async def _prepare(
    request: Request, whole: bytes, asks: type[Asked], reply: type[Reply[Asked]], exchange: Exchange
) -> Reply[Asked]:
    asked = await body.read(whole, asks, exchange)
    model = request.app.state.registry.get(asked.model)
    prepared = reply(asked, model, exchange, request.app.state.host)
    await prepared.prepare()
    return prepared
