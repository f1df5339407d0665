"""The events of a stream, in the order in which they come; each is named by its ``type``."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from jackfield.protocol.anthropic.answer import MessageAnswer, MessagesUsage, SaidBlock, StopReason
from jackfield.protocol.base import AnswerModel
from jackfield.protocol.extension import Extension


class StreamEvent(AnswerModel):
    """One event of a stream."""

    always: ClassVar = ("type",)

    type: str


class MessageStart(StreamEvent):
    """The prompt has been looked at, or read; ``message`` has no content yet."""

    type: Literal["message_start"] = "message_start"
    message: MessageAnswer


class Ping(StreamEvent):
    """The server lives."""

    type: Literal["ping"] = "ping"


class ContentBlockStart(StreamEvent):
    """A block begins, empty."""

    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: SaidBlock


class TextDelta(StreamEvent):
    """More of a text."""

    type: Literal["text_delta"] = "text_delta"
    text: str


class ThinkingDelta(StreamEvent):
    """More of what the model thinks."""

    type: Literal["thinking_delta"] = "thinking_delta"
    thinking: str


class SignatureDelta(StreamEvent):
    """The end of what the model thought."""

    type: Literal["signature_delta"] = "signature_delta"
    signature: str


class InputJsonDelta(StreamEvent):
    """More of a call's input, as JSON text."""

    type: Literal["input_json_delta"] = "input_json_delta"
    partial_json: str


BlockDelta = Annotated[TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta, Field(discriminator="type")]


class ContentBlockDelta(StreamEvent):
    """More of the block that began last."""

    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: BlockDelta


class ContentBlockStop(StreamEvent):
    """That block is whole, or cut where the answer is."""

    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class MessageChange(AnswerModel):
    """How the answer ended."""

    always: ClassVar = ("stop_sequence", "stop_details", "container")

    stop_reason: StopReason
    stop_sequence: str | None = None
    stop_details: None = None
    container: None = None


class MessageDelta(StreamEvent):
    """The answer ends."""

    never_null: ClassVar = ("jackfield",)

    type: Literal["message_delta"] = "message_delta"
    delta: MessageChange
    usage: MessagesUsage
    """This one counts, whatever `MessageStart` said."""
    jackfield: Extension | None = None


class MessageStop(StreamEvent):
    """Nothing more comes."""

    type: Literal["message_stop"] = "message_stop"
