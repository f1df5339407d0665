"""What messages hold: text, images, documents, thoughts, calls and their results, each a block with a ``type``."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from jackfield.protocol.base import JsonObject, KnownTag, Text, TolerantModel, by_key, by_kind

_IN_TEXT = "Send its text in a block of type 'text'."
_OWN_TOOLS = (
    "Leave it out: Jackfield runs no tools itself. Calls and results of your own are 'tool_use' and 'tool_result'."
)
_FILES = "Send the data itself, in base64: Jackfield keeps no files."

SERVER_BLOCKS = {
    "server_tool_use": _OWN_TOOLS,
    "web_search_tool_result": _OWN_TOOLS,
    "web_fetch_tool_result": _OWN_TOOLS,
    "code_execution_tool_result": _OWN_TOOLS,
    "bash_code_execution_tool_result": _OWN_TOOLS,
    "text_editor_code_execution_tool_result": _OWN_TOOLS,
    "tool_search_tool_result": _OWN_TOOLS,
    "advisor_tool_result": _OWN_TOOLS,
    "mcp_tool_use": _OWN_TOOLS,
    "mcp_tool_result": _OWN_TOOLS,
    "container_upload": _FILES,
    "compaction": "Send the summary in a block of type 'text'.",
    "fallback": "Leave it out: it says nothing to the model.",
}
"""Official blocks that are not supported here, and what to do instead."""


class TextBlock(TolerantModel):
    """Text."""

    type: Literal["text"]
    text: str


class Base64Image(TolerantModel):
    """An image's data."""

    type: Literal["base64"]
    media_type: Text
    """``image/png``, for one."""
    data: Text


class ImageAddress(TolerantModel):
    """Where an image is."""

    type: Literal["url"]
    url: Text


ImageSource = Annotated[
    Annotated[Base64Image, Tag("=base64")] | Annotated[ImageAddress, Tag("=url")],
    by_key("type"),
    KnownTag("type", ("base64", "url"), {"file": _FILES}),
]


class ImageBlock(TolerantModel):
    """An image."""

    type: Literal["image"]
    source: ImageSource


PassageBlock = Annotated[
    Annotated[TextBlock, Tag("=text")] | Annotated[ImageBlock, Tag("=image")],
    by_key("type"),
    KnownTag("type", ("text", "image")),
]
Passages = Annotated[
    Annotated[str, Tag("=string")] | Annotated[list[PassageBlock], Field(fail_fast=True), Tag("=array")],
    by_kind({str: "=string", list: "=array"}, "a string or an array of blocks"),
]


class PlainText(TolerantModel):
    """A document's text."""

    type: Literal["text"]
    media_type: str | None = None
    data: str


class DocumentContent(TolerantModel):
    """A document in blocks."""

    type: Literal["content"]
    content: Passages


DocumentSource = Annotated[
    Annotated[PlainText, Tag("=text")] | Annotated[DocumentContent, Tag("=content")],
    by_key("type"),
    KnownTag("type", ("text", "content"), {"base64": _IN_TEXT, "url": _IN_TEXT, "file": _IN_TEXT}),
]


class DocumentBlock(TolerantModel):
    """A document that is text; PDF files are not read."""

    type: Literal["document"]
    source: DocumentSource
    title: str | None = None
    context: str | None = None
    """What there is to know about it."""


class SearchResultBlock(TolerantModel):
    """What a search has found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: Annotated[list[TextBlock], Field(fail_fast=True)]


class ToolReferenceBlock(TolerantModel):
    """A tool that was deferred, and is shown to the model from here on."""

    type: Literal["tool_reference"]
    tool_name: Text


ResultBlock = Annotated[
    Annotated[TextBlock, Tag("=text")]
    | Annotated[ImageBlock, Tag("=image")]
    | Annotated[DocumentBlock, Tag("=document")]
    | Annotated[SearchResultBlock, Tag("=search_result")]
    | Annotated[ToolReferenceBlock, Tag("=tool_reference")],
    by_key("type"),
    KnownTag("type", ("text", "image", "document", "search_result", "tool_reference")),
]


class ToolResultBlock(TolerantModel):
    """What a tool answered; no content means an empty answer."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[
            Annotated[str, Tag("=string")] | Annotated[list[ResultBlock], Field(fail_fast=True), Tag("=array")],
            by_kind({str: "=string", list: "=array"}, "a string or an array of blocks"),
        ]
        | None
    ) = None
    is_error: bool | None = None


class ToolUseBlock(TolerantModel):
    """A call that the model made in an earlier turn."""

    type: Literal["tool_use"]
    id: str
    name: Text
    input: JsonObject


class ThinkingBlock(TolerantModel):
    """What the model thought in an earlier turn."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(TolerantModel):
    """Thoughts that somebody else's server encrypted; nobody here can read them, so the model does not see them."""

    type: Literal["redacted_thinking"]
    data: str | None = None


UserBlock = Annotated[
    Annotated[TextBlock, Tag("=text")]
    | Annotated[ImageBlock, Tag("=image")]
    | Annotated[DocumentBlock, Tag("=document")]
    | Annotated[SearchResultBlock, Tag("=search_result")]
    | Annotated[ToolResultBlock, Tag("=tool_result")],
    by_key("type"),
    KnownTag("type", ("text", "image", "document", "search_result", "tool_result"), SERVER_BLOCKS),
]
AssistantBlock = Annotated[
    Annotated[TextBlock, Tag("=text")]
    | Annotated[ToolUseBlock, Tag("=tool_use")]
    | Annotated[ThinkingBlock, Tag("=thinking")]
    | Annotated[RedactedThinkingBlock, Tag("=redacted_thinking")],
    by_key("type"),
    KnownTag("type", ("text", "tool_use", "thinking", "redacted_thinking"), SERVER_BLOCKS),
]
