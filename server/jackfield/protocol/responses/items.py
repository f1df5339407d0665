"""What a request's input is made of: messages, calls and what they gave, thoughts, and references to all these."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag

from jackfield.protocol.base import KnownTag, Text, TolerantModel, by_key, by_kind
from jackfield.protocol.content import RefusalPart

SEAL = "jackfield1."
"""What `sealed` thoughts begin with."""


def sealed(thoughts: str) -> str:
    """Thoughts as ``encrypted_content``, for clients that bring nothing else back: opaque, and no secret."""
    return SEAL + base64.urlsafe_b64encode(thoughts.encode()).decode()


def unsealed(content: str) -> str:
    """The thoughts in it; none if somebody else has sealed them."""
    if not content.startswith(SEAL):
        return ""
    try:
        return base64.urlsafe_b64decode(content.removeprefix(SEAL)).decode()
    except (binascii.Error, ValueError):
        return ""


class InputTextPart(TolerantModel):
    """Text."""

    type: Literal["input_text"]
    text: str


class InputImagePart(TolerantModel):
    """An image: its address or a ``data:`` URL."""

    type: Literal["input_image"]
    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["auto", "low", "high", "original"] | None = None


class InputFilePart(TolerantModel):
    """A file: its address, or in base64."""

    type: Literal["input_file"]
    file_data: str | None = None
    file_url: str | None = None
    file_id: str | None = None
    filename: str | None = None


class OutputTextPart(TolerantModel):
    """Text of an earlier answer."""

    type: Literal["output_text"]
    text: str


Part = InputTextPart | InputImagePart | InputFilePart | OutputTextPart | RefusalPart

_AnyPart = Annotated[
    Annotated[InputTextPart, Tag("=input_text")]
    | Annotated[InputImagePart, Tag("=input_image")]
    | Annotated[InputFilePart, Tag("=input_file")]
    | Annotated[OutputTextPart, Tag("=output_text")]
    | Annotated[RefusalPart, Tag("=refusal")],
    by_key("type"),
    KnownTag("type", ("input_text", "input_image", "input_file", "output_text", "refusal")),
]
_Given = Annotated[
    Annotated[InputTextPart, Tag("=input_text")]
    | Annotated[InputImagePart, Tag("=input_image")]
    | Annotated[InputFilePart, Tag("=input_file")],
    by_key("type"),
    KnownTag("type", ("input_text", "input_image", "input_file")),
]
_KINDS = by_kind({str: "=string", list: "=array"}, "a string or an array of content parts")


class MessageItem(TolerantModel):
    """What somebody said; what an assistant said may have a ``phase`` and a ``status``, which change nothing."""

    type: Literal["message"] | None = "message"
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[str, Tag("=string")] | Annotated[list[_AnyPart], Field(fail_fast=True), Tag("=array")], _KINDS
    ]


class FunctionCallItem(TolerantModel):
    """A call that the model made in an earlier turn."""

    type: Literal["function_call"]
    id: str | None = None
    call_id: Text
    name: Text
    namespace: str | None = None
    arguments: str


class FunctionCallOutputItem(TolerantModel):
    """What a function gave."""

    type: Literal["function_call_output"]
    id: str | None = None
    call_id: Text
    output: Annotated[
        Annotated[str, Tag("=string")] | Annotated[list[_Given], Field(fail_fast=True), Tag("=array")], _KINDS
    ]


class SummaryPart(TolerantModel):
    """Thoughts that the client has asked for as a summary."""

    type: Literal["summary_text"]
    text: str


class ReasoningPart(TolerantModel):
    """Thoughts."""

    type: Literal["reasoning_text"]
    text: str


class ReasoningItem(TolerantModel):
    """What the model thought in an earlier turn."""

    type: Literal["reasoning"]
    id: str | None = None
    summary: list[SummaryPart] | None = None
    content: list[ReasoningPart] | None = None
    encrypted_content: str | None = None

    @property
    def thoughts(self) -> str:
        """All of them, in the best form there is."""
        said = "\n\n".join(part.text for part in self.content or ())
        return said or unsealed(self.encrypted_content or "") or "\n\n".join(part.text for part in self.summary or ())


class WebSearchCallItem(TolerantModel):
    """A search that another server made: it holds what was asked, not what was found."""

    type: Literal["web_search_call"]


class ItemReference(TolerantModel):
    """An item of a stored response."""

    type: Literal["item_reference"] | None = None
    id: Text


def _typed(item: Any) -> Any:
    """Messages and references need not say what they are."""
    if not isinstance(item, dict) or item.get("type") is not None:
        return item
    kind = "message" if "role" in item else "item_reference" if "id" in item else None
    return {**item, "type": kind} if kind else item


Item = MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem | WebSearchCallItem | ItemReference

_UNREADABLE = "Leave it out, and say in a message what the model should know of it."
_REFUSED = dict.fromkeys(
    (
        "additional_tools",
        "apply_patch_call",
        "apply_patch_call_output",
        "code_interpreter_call",
        "compaction",
        "compaction_trigger",
        "computer_call",
        "computer_call_output",
        "custom_tool_call",
        "custom_tool_call_output",
        "file_search_call",
        "image_generation_call",
        "local_shell_call",
        "local_shell_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "program",
        "program_output",
        "shell_call",
        "shell_call_output",
        "tool_search_call",
        "tool_search_output",
    ),
    _UNREADABLE,
)

InputItem = Annotated[
    Annotated[MessageItem, Tag("=message")]
    | Annotated[FunctionCallItem, Tag("=function_call")]
    | Annotated[FunctionCallOutputItem, Tag("=function_call_output")]
    | Annotated[ReasoningItem, Tag("=reasoning")]
    | Annotated[WebSearchCallItem, Tag("=web_search_call")]
    | Annotated[ItemReference, Tag("=item_reference")],
    by_key("type"),
    KnownTag(
        "type",
        ("message", "function_call", "function_call_output", "reasoning", "web_search_call", "item_reference"),
        _REFUSED,
    ),
    BeforeValidator(_typed),
]
Input = Annotated[
    Annotated[str, Tag("=string")] | Annotated[list[InputItem], Field(fail_fast=True), Tag("=array")],
    by_kind({str: "=string", list: "=array"}, "a string or an array of items"),
]
