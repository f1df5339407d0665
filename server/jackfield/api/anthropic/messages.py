"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer
from jackfield.api import body, sse
from jackfield.api.anthropic.blocks import Blocks, Thoughts
from jackfield.api.anthropic.conversion import as_chat
from jackfield.api.anthropic.envelope import envelope
from jackfield.api.anthropic.names import own_names
from jackfield.api.conversation import Conversation
from jackfield.api.reply import Reply
from jackfield.api.respond import respond
from jackfield.api.tokens import looked_up
from jackfield.backends.remote import UpstreamModel
from jackfield.backends.route import capabilities_needed
from jackfield.choice import Delta
from jackfield.errors import JackfieldError, UpstreamError
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.prompt import chat_prompt
from jackfield.protocol.anthropic.answer import (
    MessageAnswer,
    MessagesUsage,
    StopReason,
    ThinkingTokens,
    TokenCount,
)
from jackfield.protocol.anthropic.errors import MessagesErrorEnvelope
from jackfield.protocol.anthropic.events import (
    MessageChange,
    MessageDelta,
    MessageStart,
    MessageStop,
    Ping,
    StreamEvent,
)
from jackfield.protocol.anthropic.request import (
    BetaMessagesRequest,
    BetaTokenCountRequest,
    MessagesRequest,
    TokenCountRequest,
)
from jackfield.protocol.base import AnswerModel, JsonObject
from jackfield.settings.upstreams import Capability


async def messages(request: Request) -> Response:
    """Go on with a conversation."""
    return await respond(request, BetaMessagesRequest if _has_betas(request) else MessagesRequest, _MessagesReply)


async def count_tokens(request: Request) -> Response:
    """How many tokens the model would read."""
    asks = BetaTokenCountRequest if _has_betas(request) else TokenCountRequest
    _, asked = await body.parsed(await body.whole(request), asks)
    body.log_ignored(asked)

    async def ask(model: ServedModel) -> TokenCount:
        if isinstance(model, UpstreamModel):
            question = model.question.along(request.headers, "anthropic-version", "anthropic-beta")
            document = asked.model_dump(mode="json", by_alias=True, exclude_unset=True)
            return await question.ask("/messages/count_tokens", document, _their_count)
        return await _counted(asked, model)

    return await looked_up(request, asked.model, ask)


async def _counted(asked: TokenCountRequest, model: ServedModel) -> TokenCount:
    chat = as_chat(asked)
    with own_names(asked, chat):
        pictures = None if model.images is None else await model.images.read(chat)
        # Templates and tokens take their time.
        prompt = await asyncio.to_thread(chat_prompt, chat, model.tokenizer, pictures)
    return TokenCount(input_tokens=len(prompt.tokens))


def _their_count(told: JsonObject) -> TokenCount:
    return TokenCount(input_tokens=told["input_tokens"])


def _has_betas(request: Request) -> bool:
    return "anthropic-beta" in request.headers or request.query_params.get("beta") == "true"


class _MessagesReply(Reply[MessagesRequest]):
    def __init__(self, asked: MessagesRequest, model: ServedModel, exchange: Exchange, host: Host) -> None:
        super().__init__(asked, model, exchange, host)
        self._id = f"msg_{uuid.uuid4().hex}"
        self._chat = as_chat(asked)
        self._conversation = Conversation(self._chat, model, exchange, host)
        self._blocks = Blocks(_thoughts(asked))

    @classmethod
    async def needs(cls, asked: MessagesRequest, exchange: Exchange, host: Host) -> frozenset[Capability]:
        return capabilities_needed(as_chat(asked).model_dump(mode="json", by_alias=True, exclude_unset=True))

    async def prepare(self) -> None:
        """Make the prompt first."""
        with own_names(self.asked, self._chat):
            await self._conversation.prepare()
            await super().prepare()

    def ask(self) -> Answer:
        return self._conversation.ask(self._id)

    def document(self) -> JsonObject:
        # A server that refuses what is not OpenAI's could never answer, though the client has said nothing of thoughts.
        unsaid = {"chat_template_kwargs"} if self.asked.thinking is None and self._is_for_any_server else None
        return self._conversation.asked.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude=unsaid)

    @property
    def _is_for_any_server(self) -> bool:
        return isinstance(self.model, UpstreamModel) and self.model.question.upstream.settings.speaks == "openai"

    def facts(self) -> dict[str, Any]:
        return super().facts() | self._conversation.facts()

    async def collect(self) -> AnswerModel:
        """The whole answer."""
        parts = await self.parts()
        for part in parts:
            list(self._more(part))
        list(self._blocks.finish())
        whole = self._message(content=self._blocks.content, **_ending(parts[-1]))
        if self.asked.wants_extension:
            whole.jackfield = self.answer.extension()
        return await self.transformed(whole)

    @classmethod
    def refused(cls, error: JackfieldError, request_id: str) -> Iterator[bytes]:
        """The error in this dialect."""
        yield _event(envelope(error, request_id))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer as it comes, event by event."""
        begun, last = False, Delta(0)
        async with aclosing(self.deltas()) as parts:
            async for part in parts:
                if isinstance(part, JackfieldError):
                    for event in self.refused(part, self.exchange.info.id):
                        yield event
                    return
                if not begun:
                    begun = True
                    # Only now is it known what the prefix cache gave.
                    yield _event(MessageStart(message=self._message(content=[])))
                    yield _event(Ping())
                if isinstance(part, bytes):
                    yield part
                    continue
                last = part
                try:
                    for more in self._more(part):
                        yield _event(more)
                except UpstreamError as error:
                    self.exchange.failed(error)
                    for event in self.refused(error, self.exchange.info.id):
                        yield event
                    return
        for more in self._closing(last):
            yield _event(more)

    def _more(self, part: Delta) -> Iterator[StreamEvent]:
        for piece in part.pieces if self.asked.max_tokens else ():
            yield from self._blocks.add(piece)

    def _closing(self, last: Delta) -> Iterator[StreamEvent]:
        yield from self._blocks.finish()
        ending = MessageDelta(delta=MessageChange(**_ending(last)), usage=self._usage())
        if self.asked.wants_extension and self.answer.ended:
            ending.jackfield = self.answer.extension()
        yield ending
        yield MessageStop()

    def _message(self, **said: Any) -> MessageAnswer:
        return MessageAnswer(id=self._id, model=self.model.id, usage=self._usage(), **said)

    def _usage(self) -> MessagesUsage:
        usage = self.answer.usage()
        cached = usage.prompt_tokens_details.cached_tokens
        return MessagesUsage(
            input_tokens=usage.prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=usage.completion_tokens if self.asked.max_tokens else 0,
            output_tokens_details=ThinkingTokens(thinking_tokens=usage.completion_tokens_details.reasoning_tokens),
        )


def _event(event: StreamEvent | MessagesErrorEnvelope) -> bytes:
    return sse.event(event, event.type)


def _thoughts(asked: MessagesRequest) -> Thoughts:
    if not asked.thinks:
        return "none"
    return "omitted" if asked.thinking and asked.thinking.display == "omitted" else "shown"


_STOP_REASONS: dict[str | None, StopReason] = {"tool_calls": "tool_use", "length": "max_tokens", "stop": "end_turn"}


def _ending(last: Delta) -> dict[str, Any]:
    if last.finish_reason == "stop" and last.stop_string is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": last.stop_string}
    return {"stop_reason": _STOP_REASONS[last.finish_reason]}
