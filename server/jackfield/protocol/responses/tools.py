"""Tools in the flat form that ``/v1/responses`` has for them, and what the model must do with them."""

from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from jackfield.protocol.base import TAG, JsonObject, KnownTag, RequestModel, Text, TolerantModel, by_key, by_kind
from jackfield.protocol.tools import ToolChoiceMode

SearchType = Literal[
    "web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11", "tool_search"
]
_SEARCHES: tuple[str, ...] = get_args(SearchType)
_REFUSED = dict.fromkeys(
    (
        "apply_patch",
        "code_interpreter",
        "computer",
        "computer_use_preview",
        "custom",
        "file_search",
        "image_generation",
        "local_shell",
        "mcp",
        "programmatic_tool_calling",
        "shell",
    ),
    "Describe it as a function, {'type': 'function', 'name': ..., 'parameters': {...}}, and run it yourself.",
)


class FunctionTool(TolerantModel):
    """A function the model may call; without ``parameters`` it takes none."""

    type: Literal["function"]
    name: Text
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


class NamespaceTool(TolerantModel):
    """Functions that belong together; calls of them name the namespace too."""

    type: Literal["namespace"]
    name: Text
    description: str | None = None
    tools: list[Annotated[FunctionTool, KnownTag("type", ("function",), _REFUSED)]]


class SearchTool(TolerantModel):
    """A search that the server is to do. Coding assistants offer one whoever answers; here the model is not told."""

    type: SearchType


def _kind(tool: Any) -> str:
    kind = tool["type"] if isinstance(tool, dict) else tool.type
    return f"{TAG}{'search' if kind in _SEARCHES else kind}"


Tool = Annotated[
    Annotated[FunctionTool, Tag("=function")]
    | Annotated[NamespaceTool, Tag("=namespace")]
    | Annotated[SearchTool, Tag("=search")],
    Discriminator(_kind),
    KnownTag("type", ("function", "namespace", *_SEARCHES), _REFUSED),
]


class FunctionChoice(RequestModel):
    """This function."""

    type: Literal["function"]
    name: Text


class AllowedTools(RequestModel):
    """Some of the tools, as if there were no others."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[
        list[Annotated[FunctionChoice, KnownTag("type", ("function",))]], Field(min_length=1, fail_fast=True)
    ]


ToolChoice = Annotated[
    Annotated[ToolChoiceMode, Tag("=mode")]
    | Annotated[
        Annotated[FunctionChoice, Tag("=function")] | Annotated[AllowedTools, Tag("=allowed_tools")],
        by_key("type"),
        KnownTag(
            "type",
            ("function", "allowed_tools"),
            dict.fromkeys((*_REFUSED, *_SEARCHES), "Name a function, or send 'auto' or 'required'."),
        ),
        Tag("=object"),
    ],
    by_kind({str: "=mode", dict: "=object"}, "'none', 'auto', 'required' or an object"),
]
