"""``POST /v1/responses``."""

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response as HttpResponse

from jackfield.answer import Answer
from jackfield.api import sse
from jackfield.api.conversation import Conversation
from jackfield.api.logprobs import token_logprob
from jackfield.api.reply import Reply
from jackfield.api.respond import respond
from jackfield.api.responses import input as given
from jackfield.api.responses.conversion import Placed, chat_request
from jackfield.api.responses.echo import echo
from jackfield.api.responses.output import Numbered, Output, new_id
from jackfield.api.responses.stored import owner_of
from jackfield.api.responses.toolbox import Toolbox
from jackfield.api.responses.truncation import fitted
from jackfield.backends.remote import RemoteModel
from jackfield.backends.route import capabilities_needed
from jackfield.choice import AnswerFinish, Delta
from jackfield.errors import InvalidRequestError, JackfieldError
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.protocol.base import AnswerModel, JsonObject
from jackfield.protocol.errors import ErrorDetails
from jackfield.protocol.responses.answer import (
    ErrorCode,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseError,
    ResponseStatus,
    ResponseUsage,
)
from jackfield.protocol.responses.events import ErrorEvent, Event, ResponseEvent
from jackfield.protocol.responses.request import ResponseRequest
from jackfield.response_store import StoredResponse
from jackfield.settings.upstreams import Capability


async def create_response(request: Request) -> HttpResponse:
    """Go on with a conversation, and perhaps remember it."""
    return await respond(request, ResponseRequest, _ResponseReply)


class _ResponseReply(Reply[ResponseRequest]):
    def __init__(self, asked: ResponseRequest, model: ServedModel, exchange: Exchange, host: Host) -> None:
        super().__init__(asked, model, exchange, host)
        self.id = new_id("resp")
        self._created = int(time.time())
        self._owner = owner_of(exchange.info.identity)
        self._stores = host.settings.store_responses if asked.store is None else asked.store
        self._tools = Toolbox(asked)
        self._event = Numbered()
        self._output = Output(
            self._event,
            self._tools.names,
            logprob=self._logprob if asked.wants_logprobs else None,
            summarized=asked.summary is not None,
            seal=asked.wants_sealed,
        )

    @property
    def _logprob(self) -> Any:
        return partial(token_logprob, top_logprobs=self.asked.top_logprobs or 0, tokenizer=self.model.tokenizer)

    # --- The request -------------------------------------------------------------------------------------------------

    @classmethod
    async def needs(cls, asked: ResponseRequest, exchange: Exchange, host: Host) -> frozenset[Capability]:
        earlier, own = await _gathered(asked, owner_of(exchange.info.identity), host)
        chat, _ = await asyncio.to_thread(chat_request, asked, [*earlier, *own], Toolbox(asked))
        return capabilities_needed(chat.model_dump(mode="json", by_alias=True, exclude_unset=True))

    async def prepare(self) -> None:
        """Gather the conversation and make its prompt first."""
        self._check_store()
        earlier, self._own = await _gathered(self.asked, self._owner, self.host)
        chat, places = await asyncio.to_thread(chat_request, self.asked, [*earlier, *self._own], self._tools)
        try:
            if self.asked.truncation == "auto" and not isinstance(self.model, RemoteModel):
                chat, places = await fitted(chat, places, self.model)
            self._conversation = Conversation(chat, self.model, self.exchange, self.host)
            await self._conversation.prepare()
            await super().prepare()
        except JackfieldError as error:
            places.tell(error)
            raise

    def _check_store(self) -> None:
        if self.asked.store and not self.host.responses.keeps:
            raise InvalidRequestError(
                "Nothing is stored here: the setting 'stored_responses_bytes' is 0.",
                param="store",
                code="unsupported_value",
                suggestions=("Send 'store': false, and the whole conversation in 'input'.",),
            )

    def ask(self) -> Answer:
        return self._conversation.ask(self.id, param="input")

    @property
    def plain(self) -> bool:
        return not self.asked.wants_logprobs

    def document(self) -> JsonObject:
        """The conversation in the words that backends know."""
        return self._conversation.asked.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def facts(self) -> dict[str, Any]:
        return super().facts() | self._conversation.facts()

    # --- The answer --------------------------------------------------------------------------------------------------

    async def collect(self) -> AnswerModel:
        """The whole response."""
        parts = await self.parts()
        for part in parts:
            for _ in self._output.take(part):
                pass
        whole = await self.transformed(self._ended(parts[-1].finish_reason))
        await self._keep(whole)
        return whole

    @classmethod
    def refused(cls, error: JackfieldError, request_id: str) -> Iterator[bytes]:
        """The error in this dialect; there is no response that could have failed."""
        yield _sent(_error(Numbered(), error))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The response as it comes, event by event; after the last one nothing follows, not even ``[DONE]``."""
        yield self._tell("response.created", self._response("in_progress"))
        yield self._tell("response.in_progress", self._response("in_progress"))
        finish: AnswerFinish | None = None
        async with aclosing(self.deltas()) as parts:
            async for part in parts:
                match part:
                    case bytes():
                        yield part
                    case JackfieldError():
                        yield _sent(_error(self._event, part))
                        yield self._tell("response.failed", self._failed(part))
                        return
                    case Delta():
                        finish = part.finish_reason
                        for event in self._output.take(part):
                            yield _sent(event)
        whole = self._ended(finish)
        await self._keep(whole)
        yield self._tell(f"response.{whole.status}", whole)

    def _tell(self, kind: str, response: Response) -> bytes:
        return _sent(self._event(ResponseEvent, type=kind, response=response))

    def _response(self, status: ResponseStatus) -> Response:
        return Response(
            id=self.id,
            created_at=self._created,
            status=status,
            model=self.model.id,
            output=list(self._output.items),
            store=self._stores,
            **echo(self.asked, self.answer.requests[0].sampling),
        )

    def _failed(self, error: JackfieldError) -> Response:
        failed = self._response("failed")
        code: ErrorCode = "rate_limit_exceeded" if error.status == 429 else "server_error"
        failed.error, failed.store = ResponseError(code=code, message=error.message), False
        return failed

    def _ended(self, finish: AnswerFinish | None) -> Response:
        cut = finish == "length"
        ended = self._response("incomplete" if cut else "completed")
        ended.usage = self._usage()
        if cut:
            ended.incomplete_details = IncompleteDetails()
        else:
            ended.completed_at = int(time.time())
        if self.asked.wants_extension:
            ended.jackfield = self.answer.extension()
        return ended

    def _usage(self) -> ResponseUsage:
        usage = self.answer.usage()
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )

    async def _keep(self, whole: Response) -> None:
        """Store it if that was asked for; it says itself whether it is stored."""
        made = [item.model_dump(mode="json", exclude_unset=True) for item in whole.output]
        if self._stores:
            previous, records = self.asked.previous_response_id, given.records(self._own)
            stored = StoredResponse(self.id, self._owner, previous, whole.to_json().decode(), records, made)
            whole.store = await self.host.responses.put(stored)
        elif self.asked.store is None:
            self.host.recent_items.remember(self._owner, made)


async def _gathered(asked: ResponseRequest, owner: str, host: Host) -> tuple[list[Placed], list[Placed]]:
    """The items that a request goes on from, and its own."""
    earlier = await given.earlier(asked, host.responses, owner)
    return earlier, await given.own(asked, host.responses, host.recent_items, owner)


def _error(event: Numbered, error: JackfieldError) -> ErrorEvent:
    details = ErrorDetails.model_validate(error.envelope()["error"])
    return event(ErrorEvent, code=details.code, message=details.message, param=details.param, error=details)


def _sent(event: Event) -> bytes:
    return sse.event(event, event.type)
