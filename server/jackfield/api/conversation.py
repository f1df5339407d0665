"""A conversation to go on with: its prompt, and what the engine has to do. All dialects come together here."""

import asyncio
import json
from collections import Counter
from typing import Any

from jackfield.answer import Answer
from jackfield.api.generation import engine_requests
from jackfield.compression import compress
from jackfield.engine.grammar import Grammar
from jackfield.exchange import Exchange
from jackfield.host import Host
from jackfield.models.registry import ServedModel
from jackfield.prompt import chat_prompt
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.formats import JsonObjectFormat, JsonSchemaFormat
from jackfield.protocol.tools import FunctionDefinition, NamedToolChoice
from jackfield.text.separator import Separator
from jackfield.text.tool_calls import JsonCallParser, ToolCallParser

ANSWER_ROOM = 1024
"""Tokens to keep free for an answer when its length is not limited, but no more than a quarter of the context."""


class Conversation:
    """What a request of any dialect asks for, in the words of ``/v1/chat/completions``.

    Args:
        asked: the request.
        model: who answers.
        exchange: where it is told how the answer goes.
        host: the server.
    """

    def __init__(self, asked: ChatCompletionRequest, model: ServedModel, exchange: Exchange, host: Host) -> None:
        self.asked = asked
        self._model = model
        self._exchange = exchange
        self._host = host
        self._prompt: list[int] = []

    async def prepare(self) -> None:
        """Make the prompt, from less of the conversation if there is too much and a plugin can make it shorter.

        Raises:
            InvalidRequestError: the model's template refuses the conversation.
        """
        tokenizer = self._model.tokenizer
        self._prompt = await asyncio.to_thread(chat_prompt, self.asked, tokenizer)
        if len(self._prompt) > self._budget and self._exchange.hooks.has("compress_context"):
            found = await compress(self.asked, len(self._prompt), tokenizer, self._budget, self._exchange)
            if found is not None:
                self.asked, self._prompt = found

    @property
    def _budget(self) -> int:
        """Tokens of a conversation that leave room for an answer."""
        context = self._model.context_length
        fits = context - min(self.asked.token_limit or ANSWER_ROOM, context // 4)
        return min(fits, self._host.settings.context_budget or fits)

    def ask(self, name: str, param: str = "messages") -> Answer:
        """What the engine has to do; on a worker thread.

        Args:
            name: the answer's id.
            param: the field that holds the conversation.

        Raises:
            InvalidRequestError: it cannot be done.
        """
        asked = self.asked
        requests = engine_requests(
            asked,
            self._model,
            [self._prompt],
            self._exchange,
            name=name,
            param=param,
            top_logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
            grammar=_grammar(asked, self._model),
        )
        return Answer(
            self._model,
            requests,
            self._exchange,
            asked.stops,
            [Separator(calls=self._parser()) for _ in requests],
            one_call=asked.parallel_tool_calls is False,
            each=len(requests),
        )

    def _parser(self) -> ToolCallParser | None:
        if not self.asked.tools or self.asked.tool_choice == "none":
            return None
        names = _names(self.asked)
        return JsonCallParser(names) if _must_call(self.asked) else self._host.tool_parser(names)

    def facts(self) -> dict[str, Any]:
        """What there is to log of the conversation, in numbers and names."""
        roles = Counter(message.role for message in self.asked.messages)
        return {"messages": len(self.asked.messages), "roles": dict(roles), "tools": len(self.asked.tools or ())}


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
