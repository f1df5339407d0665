"""The conversation so far."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from jackfield.protocol.anthropic.content import AssistantBlock, TextBlock, UserBlock
from jackfield.protocol.anthropic.tools import ToolAdditionBlock, ToolRemovalBlock
from jackfield.protocol.base import KnownTag, TolerantModel, by_key, by_kind

_TEXT_OR_BLOCKS = by_kind({str: "=string", list: "=array"}, "a string or an array of blocks")


class UserTurn(TolerantModel):
    """What the user said, and what tools answered."""

    role: Literal["user"]
    content: Annotated[
        Annotated[str, Tag("=string")] | Annotated[list[UserBlock], Field(fail_fast=True), Tag("=array")],
        _TEXT_OR_BLOCKS,
    ]


class AssistantTurn(TolerantModel):
    """What the model thought, said and called; as the last message it is gone on with."""

    role: Literal["assistant"]
    content: Annotated[
        Annotated[str, Tag("=string")] | Annotated[list[AssistantBlock], Field(fail_fast=True), Tag("=array")],
        _TEXT_OR_BLOCKS,
    ]


SystemBlock = Annotated[
    Annotated[TextBlock, Tag("=text")]
    | Annotated[ToolAdditionBlock, Tag("=tool_addition")]
    | Annotated[ToolRemovalBlock, Tag("=tool_removal")],
    by_key("type"),
    KnownTag("type", ("text", "tool_addition", "tool_removal")),
]


class SystemTurn(TolerantModel):
    """Instructions to the model in the middle of a conversation."""

    role: Literal["system"]
    content: (
        Annotated[
            Annotated[str, Tag("=string")] | Annotated[list[SystemBlock], Field(fail_fast=True), Tag("=array")],
            _TEXT_OR_BLOCKS,
        ]
        | None
    ) = None
    clear_at: Literal["next_user_message", "never"] | None = None
    """Whether the model still sees them once the user has spoken again."""


Turn = Annotated[
    Annotated[UserTurn, Tag("=user")]
    | Annotated[AssistantTurn, Tag("=assistant")]
    | Annotated[SystemTurn, Tag("=system")],
    by_key("role"),
    KnownTag(
        "role",
        ("user", "assistant", "system"),
        {"tool": "Send what the tool answered in a user's message, in a block of type 'tool_result'."},
    ),
]

System = Annotated[
    Annotated[str, Tag("=string")]
    | Annotated[
        list[Annotated[TextBlock, KnownTag("type", ("text",))]],
        Field(fail_fast=True),
        Tag("=array"),
    ],
    _TEXT_OR_BLOCKS,
]
