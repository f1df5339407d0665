"""The conversation so far."""

from typing import Annotated, Literal

from pydantic import Tag

from jackfield.protocol.base import KnownTag, TolerantModel, Unsupported, by_key
from jackfield.protocol.content import Content
from jackfield.protocol.tools import PastToolCall


class SystemMessage(TolerantModel):
    """Instructions to the model."""

    role: Literal["system"]
    content: Content
    name: str | None = None


class DeveloperMessage(TolerantModel):
    """Instructions to the model, under their newer name: the same as a system message."""

    role: Literal["developer"]
    content: Content
    name: str | None = None


class UserMessage(TolerantModel):
    """What the user said."""

    role: Literal["user"]
    content: Content
    name: str | None = None


class AssistantMessage(TolerantModel):
    """What the model said and called in an earlier turn."""

    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[PastToolCall] | None = None
    function_call: Annotated[None, Unsupported("Send the call in 'tool_calls'.")] = None

    @property
    def reasoning(self) -> str | None:
        """What the model thought before it spoke, by either name that clients bring it back under."""
        other = (self.model_extra or {}).get("reasoning")
        return self.reasoning_content or (other if isinstance(other, str) else None)


class ToolMessage(TolerantModel):
    """What a tool answered; no content means an empty answer."""

    role: Literal["tool"]
    tool_call_id: str
    content: Content | None = None
    name: str | None = None


Message = Annotated[
    Annotated[SystemMessage, Tag("=system")]
    | Annotated[DeveloperMessage, Tag("=developer")]
    | Annotated[UserMessage, Tag("=user")]
    | Annotated[AssistantMessage, Tag("=assistant")]
    | Annotated[ToolMessage, Tag("=tool")],
    by_key("role"),
    KnownTag(
        "role",
        ("system", "developer", "user", "assistant", "tool"),
        {"function": "Send what the function answered in a message with role 'tool' and its 'tool_call_id'."},
    ),
]
