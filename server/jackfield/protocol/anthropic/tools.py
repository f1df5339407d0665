"""Tools: what the model may call, and whether it must."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Tag

from jackfield.protocol.base import JsonObject, KnownTag, RequestModel, Text, TolerantModel, by_key, refusal


class OwnTool(TolerantModel):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: Text
    description: str | None = None
    input_schema: JsonObject
    strict: bool | None = None
    defer_loading: bool | None = None
    """The model is not shown the tool before something in the conversation refers to it."""


def _described(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if isinstance(kind, str) and kind != "custom":
        raise refusal(
            "unsupported_value",
            f"Invalid value for '{{param}}': {kind[:64]!r} is a tool that only Anthropic's models know.",
            at="type",
            suggestions=("Describe a tool of your own, with 'name', 'description' and 'input_schema'.",),
        )
    return tool


MessagesTool = Annotated[OwnTool, BeforeValidator(_described)]


class _Choice(RequestModel):
    disable_parallel_tool_use: bool | None = None
    """End with the first call."""


class AutoToolChoice(_Choice):
    """The model may call tools."""

    type: Literal["auto"]


class AnyToolChoice(_Choice):
    """It must call one of them."""

    type: Literal["any"]


class OneToolChoice(_Choice):
    """It must call this one."""

    type: Literal["tool"]
    name: Text


class NoToolChoice(RequestModel):
    """It must not call any."""

    type: Literal["none"]


MessagesToolChoice = Annotated[
    Annotated[AutoToolChoice, Tag("=auto")]
    | Annotated[AnyToolChoice, Tag("=any")]
    | Annotated[OneToolChoice, Tag("=tool")]
    | Annotated[NoToolChoice, Tag("=none")],
    by_key("type"),
    KnownTag("type", ("auto", "any", "tool", "none")),
]


class ToolNamed(TolerantModel):
    """A tool of the request, by its name."""

    type: Literal["tool_reference"]
    name: Text


class ToolDefined(TolerantModel):
    """A tool that is described where the conversation needs it."""

    type: Literal["tool_definition"]
    definition: MessagesTool


_NO_MCP = "Describe the tools in 'tools': Jackfield talks to no MCP servers."
_MCP = {"mcp_tool_reference": _NO_MCP, "mcp_toolset_reference": _NO_MCP}


class ToolAdditionBlock(TolerantModel):
    """From here on the model may call this tool."""

    type: Literal["tool_addition"]
    tool: Annotated[
        Annotated[ToolNamed, Tag("=tool_reference")] | Annotated[ToolDefined, Tag("=tool_definition")],
        by_key("type"),
        KnownTag("type", ("tool_reference", "tool_definition"), _MCP),
    ]


class ToolRemovalBlock(TolerantModel):
    """From here on the model may not call this tool."""

    type: Literal["tool_removal"]
    tool: Annotated[ToolNamed, KnownTag("type", ("tool_reference",), _MCP)]
