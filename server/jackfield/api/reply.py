"""What the answers of all endpoints that generate have in common."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Generic, TypeVar

from jackfield.answer import Answer
from jackfield.api import sse
from jackfield.backends.begun import AnyAnswer, Begun
from jackfield.backends.plugged import PluggedAnswer
from jackfield.backends.remote import RemoteModel
from jackfield.backends.route import capabilities_needed
from jackfield.backends.upstream_answer import UpstreamAnswer
from jackfield.choice import Delta
from jackfield.errors import JackfieldError
from jackfield.exchange import Exchange
from jackfield.hooks.data import TextDelta
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.protocol.asking import Asking
from jackfield.protocol.base import AnswerModel, JsonObject
from jackfield.protocol.errors import ErrorEnvelope
from jackfield.settings.upstreams import OWN, Capability
from jackfield.text.pieces import Piece

Asked = TypeVar("Asked", bound=Asking)
Whole = TypeVar("Whole", bound=AnswerModel)


class Reply(ABC, Generic[Asked]):
    """The answer to one request, and how to put it into the words of the endpoint.

    Args:
        asked: what the client sent.
        model: who answers.
        exchange: where it is told how the answer goes.
        host: the server.
    """

    answer: AnyAnswer

    def __init__(self, asked: Asked, model: ServedModel, exchange: Exchange, host: Host) -> None:
        self.asked = asked
        self.model = model
        self.exchange = exchange
        self.host = host

    # --- What each endpoint does in its own way --------------------------------------------------------------------

    @abstractmethod
    def ask(self) -> Answer:
        """What the engine has to do; on a worker thread."""

    @abstractmethod
    async def collect(self) -> AnswerModel:
        """The whole answer."""

    @abstractmethod
    def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes, event by event."""

    def ask_elsewhere(self, model: RemoteModel) -> UpstreamAnswer | PluggedAnswer:
        """What somebody else has to do."""
        return model.answer(self.document(), self.exchange, plain=self.plain)

    @classmethod
    async def needs(cls, asked: Asked, exchange: Exchange, host: Host) -> frozenset[Capability]:
        """What a request needs of whoever answers it, before that is settled.

        Raises:
            InvalidRequestError: nobody can answer it.
        """
        return capabilities_needed(asked.model_dump(mode="json", by_alias=True, exclude_unset=True))

    @classmethod
    def refused(cls, error: JackfieldError, request_id: str) -> Iterator[bytes]:
        """The events of a stream that has nothing to say but an error."""
        yield sse.event(ErrorEnvelope.model_validate(error.envelope()))

    @property
    def plain(self) -> bool:
        """Whether an answer of text alone will do."""
        return True

    def document(self) -> JsonObject:
        """The request in the words of ``/v1/chat/completions`` or ``/v1/completions``, for backends of plugins."""
        return self.asked.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def facts(self) -> dict[str, Any]:
        """What there is to log of the request, in numbers and names."""
        requests = self.answer.requests
        return {
            # None where somebody else counts them.
            "prompt_tokens": sum(len(one.prompt) for one in requests[:: self.answer.each]) or None,
            "max_tokens": requests[0].max_tokens,
            "choices": len(requests),
            "context_length": self.model.context_length or None,
        }

    # --- What they have in common ----------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Find out what has to be done, and who does it."""
        if isinstance(self.model, RemoteModel):
            self.answer = self.ask_elsewhere(self.model)
            self.exchange.received(**self.facts())
            return
        # Whoever followed a route has told of it.
        routed = bool(self.exchange.backend)
        # Templates, tokens and grammars take their time.
        self.answer = own = await asyncio.to_thread(self.ask)
        self.exchange.received(**self.facts())
        name, reason = await self.host.backend(self.exchange.info)
        if name != OWN or not routed:
            self.exchange.answered_by(name, reason)
        if name != OWN:
            plain = self.plain and len(own.requests) == 1 and own.requests[0].grammar is None and not own.parsed
            self.answer = self.host.plugged(name, own, self.document(), plain=plain)

    async def begin(self) -> None:
        """Prepare, and wait until the answer has begun, as long as somebody else may give it instead.

        Raises:
            JackfieldError: there is none.
        """
        try:
            await self.prepare()
            self.answer.admit()
            begun = Begun(self.answer)
            self.answer = begun
            # A client that waits for a stream hears a sign of life before long, and then there is no way back.
            await begun.begin(self.host.settings.heartbeat if self.asked.stream else None)
        except BaseException:
            if hasattr(self, "answer"):
                self.answer.stop()
            raise

    async def parts(self) -> list[Delta]:
        """All of the answer, once it is there."""
        try:
            return [part async for part in self.answer if isinstance(part, Delta)]
        except Exception as error:
            self.exchange.failed(error)
            raise
        finally:
            self.answer.cancel()

    async def deltas(self) -> AsyncGenerator[Delta | bytes | JackfieldError, None]:
        """The answer as it comes, as plugins have it; comments to send as they are; an error only as the first."""
        async with aclosing(sse.deltas(self.answer)) as parts:
            async for part in parts:
                yield await self._transformed_delta(part) if isinstance(part, Delta) else part

    async def transformed(self, whole: Whole) -> Whole:
        """The whole answer as plugins have it."""
        hooks = self.exchange.hooks
        if not hooks.has("transform_response"):
            return whole
        check = type(whole).model_validate
        return check(await hooks.transform_response(self.exchange.info, json.loads(whole.to_json()), check))

    async def _transformed_delta(self, part: Delta) -> Delta:
        if not part.text or not self.exchange.hooks.has("transform_delta"):
            return part
        return replace(part, pieces=tuple([await self._transformed_piece(part.index, one) for one in part.pieces]))

    async def _transformed_piece(self, index: int, piece: Piece) -> Piece:
        if not isinstance(piece, str):
            return piece
        delta = await self.exchange.hooks.transform_delta(self.exchange.info, TextDelta(index, piece))
        return delta.text
