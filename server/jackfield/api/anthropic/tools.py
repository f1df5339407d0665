"""Tools of a request, and those that the model is shown only where the conversation comes to them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jackfield.protocol.anthropic.messages import SystemTurn, Turn
from jackfield.protocol.anthropic.request import TokenCountRequest
from jackfield.protocol.anthropic.tools import (
    AnyToolChoice,
    AutoToolChoice,
    MessagesToolChoice,
    NoToolChoice,
    OneToolChoice,
    OwnTool,
    ToolAdditionBlock,
    ToolDefined,
)
from jackfield.protocol.tools import FunctionDefinition, FunctionName, FunctionTool, NamedToolChoice, ToolChoice


class Toolbox:
    """All tools that a request has, wherever it describes them."""

    def __init__(self, asked: TokenCountRequest) -> None:
        self._offered = asked.tools or ()
        self._defined = {tool.name: tool for tool in _defined_on_the_way(asked.messages)}
        self._choice = asked.tool_choice
        self._by_name = {tool.name: tool for tool in self._offered} | self._defined

    def fields(self) -> dict[str, Any]:
        """The same for ``/v1/chat/completions``; those that come later can be called, but are not in the prompt yet."""
        tools = [_function(tool, later=bool(tool.defer_loading)) for tool in self._offered]
        tools += [_function(tool, later=True) for tool in self._defined.values()]
        if not tools:
            return {}
        one_call = isinstance(self._choice, _MayLimit) and self._choice.disable_parallel_tool_use
        return {
            "tools": tools,
            "tool_choice": _choice(self._choice),
            "parallel_tool_calls": False if one_call else None,
        }

    def shown(self, names: Iterable[str]) -> str:
        """How the model is told of tools in the middle of a conversation."""
        known = [self._by_name[name] for name in names if name in self._by_name]
        functions = [f"<function>{_described(tool)}</function>" for tool in known]
        gone = [withdrawn(name) for name in names if name not in self._by_name]
        return "\n".join([*(["<functions>", *functions, "</functions>"] if functions else []), *gone])


def withdrawn(name: str) -> str:
    """How it is told that a tool is gone."""
    return f"There is no tool {name} any more."


_MayLimit = AutoToolChoice | AnyToolChoice | OneToolChoice


def _defined_on_the_way(messages: Sequence[Turn]) -> Iterator[OwnTool]:
    for turn in messages:
        if isinstance(turn, SystemTurn) and isinstance(turn.content, list):
            for block in turn.content:
                if isinstance(block, ToolAdditionBlock) and isinstance(block.tool, ToolDefined):
                    yield block.tool.definition


def _function(tool: OwnTool, *, later: bool) -> FunctionTool:
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return FunctionTool(type="function", function=function, defer_loading=later or None)


def _described(tool: OwnTool) -> str:
    described = {"description": tool.description or "", "name": tool.name, "parameters": tool.input_schema}
    return json.dumps(described, ensure_ascii=False)


def _choice(choice: MessagesToolChoice | None) -> ToolChoice | None:
    match choice:
        case AnyToolChoice():
            return "required"
        case NoToolChoice():
            return "none"
        case OneToolChoice():
            return NamedToolChoice(type="function", function=FunctionName(name=choice.name))
    return None
