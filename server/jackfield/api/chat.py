"""``POST /v1/chat/completions``."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer
from jackfield.api.choices import ChoicesReply
from jackfield.api.conversation import Conversation
from jackfield.api.logprobs import token_logprob
from jackfield.api.respond import respond
from jackfield.choice import Delta
from jackfield.engine.request import TokenEvent
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
    ChatMessage,
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from jackfield.protocol.logprobs import ChatLogprobs
from jackfield.text.pieces import Call, CallArguments, CallStart, Piece, Thought, message


async def chat_completions(request: Request) -> Response:
    """Go on with a conversation."""
    return await respond(request, ChatCompletionRequest, _ChatReply)


class _ChatReply(ChoicesReply[ChatCompletionRequest]):
    prefix = "chatcmpl"
    whole = ChatCompletion
    chunk = ChatCompletionChunk

    def __init__(self, asked: ChatCompletionRequest, model: ServedModel, exchange: Exchange, host: Host) -> None:
        super().__init__(asked, model, exchange, host)
        self._conversation = Conversation(asked, model, exchange, host)
        self._calls: defaultdict[int, int] = defaultdict(lambda: -1)

    async def prepare(self) -> None:
        """Make the prompt first."""
        await self._conversation.prepare()
        self.asked = self._conversation.asked
        await super().prepare()

    def ask(self) -> Answer:
        return self._conversation.ask(self.id)

    @property
    def plain(self) -> bool:
        return not self.asked.logprobs

    def facts(self) -> dict[str, Any]:
        return super().facts() | self._conversation.facts()

    def choice(self, index: int, parts: Sequence[Delta]) -> ChatChoice:
        said = message(piece for part in parts for piece in part.pieces)
        answer = ChatMessage(content=said.text or None if said.calls else said.text)
        if said.reasoning:
            answer.reasoning_content = answer.reasoning = said.reasoning
        if said.calls:
            answer.tool_calls = [_tool_call(call) for call in said.calls]
        return ChatChoice(
            index=index,
            message=answer,
            logprobs=self._logprobs(tuple(token for part in parts for token in part.tokens)),
            finish_reason=parts[-1].finish_reason or "stop",
        )

    def opening(self) -> Iterator[ChatChunkChoice]:
        for index in range(len(self.answer.requests)):
            yield ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))

    def pieces(self, part: Delta) -> Iterator[ChatChunkChoice]:
        tokens = part.tokens
        for delta in self._deltas(part):
            yield ChatChunkChoice(index=part.index, delta=delta, logprobs=self._logprobs(tokens))
            tokens = ()
        if part.finish_reason:
            yield ChatChunkChoice(index=part.index, delta=ChatDelta(), finish_reason=part.finish_reason)

    def _deltas(self, part: Delta) -> list[ChatDelta]:
        """One for each piece; for log probabilities of tokens without any text, one with none."""
        found = [delta for piece in part.pieces if (delta := self._delta(part.index, piece)) is not None]
        return found or ([ChatDelta(content="")] if part.tokens and self.asked.logprobs else [])

    def _delta(self, choice: int, piece: Piece) -> ChatDelta | None:
        match piece:
            case str():
                return ChatDelta(content=piece)
            case Thought(text):
                return ChatDelta(reasoning_content=text, reasoning=text)
            case CallStart():
                self._calls[choice] += 1
                begun = FunctionCallDelta(name=piece.name, arguments="")
                return self._call_delta(choice, id=piece.id, type="function", function=begun)
            case CallArguments(text):
                return self._call_delta(choice, function=FunctionCallDelta(arguments=text))
        return None

    def _call_delta(self, choice: int, **more: Any) -> ChatDelta:
        return ChatDelta(tool_calls=[ToolCallDelta(index=self._calls[choice], **more)])

    def _logprobs(self, tokens: tuple[TokenEvent, ...]) -> ChatLogprobs | None:
        if not self.asked.logprobs:
            return None
        top = self.asked.top_logprobs or 0
        return ChatLogprobs(content=[token_logprob(token, top, self.model.tokenizer) for token in tokens])


def _tool_call(call: Call) -> ToolCall:
    return ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments))
