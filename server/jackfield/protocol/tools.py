"""Tools: what the model may call, whether it must, and the calls it made."""

from typing import Annotated, Literal

from pydantic import Tag

from jackfield.protocol.base import JsonObject, KnownTag, RequestModel, Text, TolerantModel, by_kind

_FUNCTIONS_ONLY = {"custom": "Describe the tool as a function: {'type': 'function', 'function': {...}}."}


class FunctionDefinition(TolerantModel):
    """A function the model may call; without ``parameters`` it takes none."""

    name: Text
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class FunctionTool(TolerantModel):
    """A tool that is a function, the only kind there is here."""

    type: Literal["function"]
    function: FunctionDefinition
    defer_loading: bool | None = None
    """It can be called, but the prompt does not show it: the conversation itself does, once it comes to that."""


Tool = Annotated[FunctionTool, KnownTag("type", ("function",), _FUNCTIONS_ONLY)]


class FunctionName(RequestModel):
    """Which function."""

    name: Text


class NamedToolChoice(RequestModel):
    """The model must call this function."""

    type: Literal["function"]
    function: FunctionName


ToolChoiceMode = Literal["none", "auto", "required"]
ToolChoice = Annotated[
    Annotated[ToolChoiceMode, Tag("=mode")]
    | Annotated[
        NamedToolChoice,
        KnownTag(
            "type",
            ("function",),
            {"allowed_tools": "Send only the tools that are allowed in 'tools'.", **_FUNCTIONS_ONLY},
        ),
        Tag("=named"),
    ],
    by_kind({str: "=mode", dict: "=named"}, "'none', 'auto', 'required' or an object that names a function"),
]


class CalledFunction(TolerantModel):
    """The function that was called, its arguments as the JSON text the model wrote."""

    name: str
    arguments: str


class ToolCallInHistory(TolerantModel):
    """A call the assistant made in an earlier turn."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


PastToolCall = Annotated[ToolCallInHistory, KnownTag("type", ("function",), _FUNCTIONS_ONLY, optional=True)]
