"""``POST /v1/chat/completions``."""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jackfield.answer import Answer
from jackfield.api.generation import engine_requests
from jackfield.api.reply import Reply, respond
from jackfield.choice import Delta
from jackfield.compression import compress
from jackfield.engine.grammar import Grammar
from jackfield.engine.request import TokenEvent
from jackfield.models.registry import ServedModel
from jackfield.models.tokenizer import Tokenizer
from jackfield.prompt import chat_prompt
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
from jackfield.protocol.formats import JsonObjectFormat, JsonSchemaFormat
from jackfield.protocol.logprobs import ChatLogprobs, TokenLogprob, TopLogprob
from jackfield.protocol.tools import FunctionDefinition, NamedToolChoice
from jackfield.text.tool_calls import JsonCallParser, ToolCallParser


async def chat_completions(request: Request) -> Response:
    """Go on with a conversation."""
    return await respond(request, ChatCompletionRequest, _ChatReply)


ANSWER_ROOM = 1024
"""Tokens to keep free for an answer when its length is not limited, but no more than a quarter of the context."""


def _must_call(asked: ChatCompletionRequest) -> bool:
    return asked.tool_choice == "required" or isinstance(asked.tool_choice, NamedToolChoice)


def _names(asked: ChatCompletionRequest) -> frozenset[str]:
    if isinstance(asked.tool_choice, NamedToolChoice):
        return frozenset({asked.tool_choice.function.name})
    return frozenset(tool.function.name for tool in asked.tools or ())


def _grammar(asked: ChatCompletionRequest, model: ServedModel) -> Grammar | None:
    """What the answer must be, by tool_choice or response_format."""
    if _must_call(asked):
        return model.grammars.compile("json_schema", json.dumps(_call_schema(asked)), "tools")
    if isinstance(asked.response_format, JsonObjectFormat):
        return model.grammars.compile("json_schema", '{"type": "object"}', "response_format")
    if isinstance(asked.response_format, JsonSchemaFormat):
        schema = asked.response_format.json_schema.schema_ or {}
        return model.grammars.compile("json_schema", json.dumps(schema), "response_format.json_schema.schema")
    return None


def _call_schema(asked: ChatCompletionRequest) -> dict[str, Any]:
    functions = [tool.function for tool in asked.tools or () if tool.function.name in _names(asked)]
    if len(functions) == 1:
        return _one_call(functions[0], "#")
    return {"anyOf": [_one_call(function, f"#/anyOf/{i}") for i, function in enumerate(functions)]}


def _one_call(function: FunctionDefinition, root: str) -> dict[str, Any]:
    """The schema of a call of ``function``, to stand at ``root`` of a larger one."""
    arguments = _rebased(_closed(function.parameters or {}), f"{root}/properties/arguments")
    return {
        "type": "object",
        "properties": {"name": {"const": function.name}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    # Small models fill open objects with inventions until they are cut off; what the schema does not name, no
    # function expects.
    if schema and ("properties" not in schema or schema.keys() & {"allOf", "anyOf", "oneOf", "$ref"}):
        return schema
    return {"type": "object", "properties": {}, "additionalProperties": False, **schema}


def _rebased(schema: Any, root: str) -> Any:
    """The schema with its references from its own root pointing to where that root now stands."""
    if isinstance(schema, list):
        return [_rebased(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    reference = schema.get("$ref")
    rebased = {key: _rebased(value, root) for key, value in schema.items()}
    if isinstance(reference, str) and reference.startswith("#"):
        rebased["$ref"] = root + reference[1:]
    return rebased


class _ChatReply(Reply[ChatCompletionRequest]):
    prefix = "chatcmpl"
    whole = ChatCompletion
    chunk = ChatCompletionChunk

    async def prepare(self) -> None:
        """Make the prompt, from less of the conversation if there is too much and a plugin can make it shorter."""
        tokenizer = self.model.tokenizer
        self._prompt = await asyncio.to_thread(chat_prompt, self.asked, tokenizer)
        if len(self._prompt) > self._budget and self.exchange.hooks.has("compress_context"):
            found = await compress(self.asked, len(self._prompt), tokenizer, self._budget, self.exchange)
            if found is not None:
                self.asked, self._prompt = found
        await super().prepare()

    @property
    def _budget(self) -> int:
        """Tokens of a conversation that leave room for an answer."""
        context = self.model.context_length
        fits = context - min(self.asked.token_limit or ANSWER_ROOM, context // 4)
        return min(fits, self.host.settings.context_budget or fits)

    @property
    def scored(self) -> bool:
        return bool(self.asked.logprobs)

    def ask(self) -> Answer:
        requests = engine_requests(
            self.asked,
            self.model,
            [self._prompt],
            self.exchange,
            name=self.id,
            param="messages",
            top_logprobs=(self.asked.top_logprobs or 0) if self.asked.logprobs else None,
            grammar=_grammar(self.asked, self.model),
        )
        self._calls = [0] * len(requests)
        return Answer(
            self.model,
            requests,
            self.exchange,
            self.asked.stops,
            [self._parser() for _ in requests],
            one_call=self.asked.parallel_tool_calls is False,
            each=len(requests),
        )

    def _parser(self) -> ToolCallParser | None:
        if not self.asked.tools or self.asked.tool_choice == "none":
            return None
        names = _names(self.asked)
        return JsonCallParser(names) if _must_call(self.asked) else self.host.tool_parser(names)

    def facts(self) -> dict[str, Any]:
        roles = Counter(message.role for message in self.asked.messages)
        own = {"messages": len(self.asked.messages), "roles": dict(roles), "tools": len(self.asked.tools or ())}
        return super().facts() | own

    def choice(self, index: int, parts: Sequence[Delta]) -> ChatChoice:
        text = "".join(part.text for part in parts)
        calls = [
            ToolCall(id=_call_id(), function=FunctionCall(name=call.name, arguments=call.arguments))
            for part in parts
            for call in part.calls
        ]
        message = ChatMessage(content=text or None if calls else text)
        if calls:
            message.tool_calls = calls
        return ChatChoice(
            index=index,
            message=message,
            logprobs=self._logprobs(tuple(token for part in parts for token in part.tokens)),
            finish_reason=parts[-1].finish_reason or "stop",
        )

    def opening(self) -> Iterator[ChatChunkChoice]:
        for index in range(len(self.answer.requests)):
            yield ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))

    def pieces(self, part: Delta) -> Iterator[ChatChunkChoice]:
        if part.text or part.calls or part.tokens:
            yield ChatChunkChoice(index=part.index, delta=self._delta(part), logprobs=self._logprobs(part.tokens))
        if part.finish_reason:
            yield ChatChunkChoice(index=part.index, delta=ChatDelta(), finish_reason=part.finish_reason)

    def _delta(self, part: Delta) -> ChatDelta:
        delta = ChatDelta()
        if part.text or not part.calls:
            delta.content = part.text
        if part.calls:
            delta.tool_calls = [
                ToolCallDelta(
                    index=self._calls[part.index] + offset,
                    id=_call_id(),
                    type="function",
                    function=FunctionCallDelta(name=call.name, arguments=call.arguments),
                )
                for offset, call in enumerate(part.calls)
            ]
            self._calls[part.index] += len(part.calls)
        return delta

    def _logprobs(self, tokens: tuple[TokenEvent, ...]) -> ChatLogprobs | None:
        if not self.asked.logprobs:
            return None
        top = self.asked.top_logprobs or 0
        return ChatLogprobs(content=[_token_logprob(token, top, self.model.tokenizer) for token in tokens])


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _token_logprob(token: TokenEvent, top_logprobs: int, tokenizer: Tokenizer) -> TokenLogprob:
    text, data = _token_text(token.id, tokenizer)
    top = []
    # There may be more, for plugins.
    for other, logprob in token.top[:top_logprobs]:
        other_text, other_data = _token_text(other, tokenizer)
        top.append(TopLogprob(token=other_text, logprob=logprob, bytes=other_data))
    return TokenLogprob(token=text, logprob=token.logprob or 0.0, bytes=data, top_logprobs=top)


def _token_text(token: int, tokenizer: Tokenizer) -> tuple[str, list[int]]:
    data = tokenizer.token_bytes(token)
    return data.decode("utf-8", "replace"), list(data)
